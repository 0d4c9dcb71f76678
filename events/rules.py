"""Whether an append may happen, and whether it already did. Pure."""

from collections.abc import Sequence
from itertools import pairwise

from core.log import Entry
from events.errors import EventIdConflict, WrongExpectedVersion


def check_version(stream: str, expected: int | str, actual: int) -> None:
    """Raises: WrongExpectedVersion."""
    fits = (
        expected == "any"
        or (expected == "no_stream" and actual == 0)
        or (expected == "exists" and actual > 0)
        or expected == actual
    )
    if not fits:
        raise WrongExpectedVersion(
            f"{stream} is at version {actual}.", stream_id=stream, expected=expected, actual=actual
        )


def already(stream: str, ids: Sequence[str | None], found: Sequence[Entry | None]) -> bool:
    """Was this very append made before? All of its ids, in this stream, one after the other.

    Raises: EventIdConflict, when only some of it was, or elsewhere, or in another order.
    """
    known = [entry for entry in found if entry is not None]
    if not known:
        return False
    same = (
        len(known) == len(ids)
        and all(entry.stream == stream for entry in known)
        and all(b.version == a.version + 1 for a, b in pairwise(known))
    )
    if not same:
        used = [event_id for event_id, entry in zip(ids, found, strict=True) if entry is not None]
        raise EventIdConflict(f"Used before: {', '.join(map(str, used[:3]))}.", event_ids=used[:100])
    return True
