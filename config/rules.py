"""What may become of a key. Pure."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from orjson import Fragment

from config import fitting
from config.errors import (
    ConfigNotFound,
    NoRollout,
    NothingToRollOutFrom,
    ReadOnlyConfig,
    RevisionNotFound,
    RevisionPruned,
    RevisionWithoutValue,
    RolloutNarrowed,
    RolloutUnderWay,
    ValueDoesNotFit,
    WrongExpectedRevision,
)
from config.models import Entry, Schema, Sealed
from core.encoding import decode
from core.log import Entry as Written


def check_revision(key: str, expected: int | None, entry: Entry | Schema | None) -> None:
    """Raises: WrongExpectedRevision."""
    actual = entry.expected if entry else 0
    if expected is not None and expected != actual:
        raise WrongExpectedRevision(
            f"{key} is at revision {actual}." if actual else f"{key} is not set.",
            key=key, expected=expected, actual=actual,
        )  # fmt: skip


def present(key: str, entry: Entry | None) -> Entry:
    """Raises: ConfigNotFound."""
    if entry is None or not entry.is_set:
        raise ConfigNotFound(f"{key} is not set.", key=key)
    return entry


def reached(key: str, revision: int, entry: Entry | None) -> Entry:
    """The entry of a key that was once at a revision.

    Raises: RevisionNotFound.
    """
    if entry is None or not 0 < revision <= entry.version:
        raise RevisionNotFound(f"{key} was never at revision {revision}.", key=key, revision=revision)
    return entry


def value_at(key: str, revision: int, written: Written | None) -> dict[str, Any]:
    """What the event says that made a revision.

    Raises: RevisionPruned, RevisionWithoutValue.
    """
    if written is None:
        raise RevisionPruned(key=key, revision=revision)
    data: dict[str, Any] = decode(written.data)
    if "value" not in data and "sealed" not in data:
        raise RevisionWithoutValue(key=key, revision=revision)
    return data


def prefixes(key: str) -> list[str]:
    """The prefixes whose schemas a key could have, the longest first: itself, and what stands before each slash."""
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def schema_of(key: str, schemas: Iterable[str]) -> str | None:
    """The longest of these prefixes that is above a key."""
    known = set(schemas)
    return next((prefix for prefix in prefixes(key) if prefix in known), None)


def check_value(key: str, value: str, schema: Schema | None, pointer: str, *, hidden: bool) -> None:
    """Raises: ValueDoesNotFit, naming each place below `pointer`."""
    if schema is None or schema.json_schema is None:
        return
    problems = fitting.problems_of(schema.json_schema, value, pointer, hidden=hidden)
    if problems:
        error = ValueDoesNotFit(problems, f"{key} does not fit the schema of {schema.name}.")
        error.extra |= {"prefix": schema.name, "schema_revision": schema.version}
        raise error


# -- what a key holds --------------------------------------------------------------------------------


def facts(entry: Entry) -> dict[str, Any]:
    """What its event says of a key, whole: so that every revision can be gone back to. Nothing of a secret."""
    if not entry.is_set:
        return {}
    found = held(entry.value, entry.sealed)
    if entry.percentage is None:
        return found
    following = held(entry.next_value, entry.next_sealed)
    return {**found, "rollout": {"percentage": entry.percentage, "salt": entry.salt, **following}}


def held(value: str | None, sealed: int | None) -> dict[str, Any]:
    return {"value": Fragment(value)} if value is not None else {"secret": True, "sealed": sealed}


def settle(entry: Entry, value: str | None, sealed: int | None) -> None:
    """Set a key for all instances."""
    entry.is_set, entry.value, entry.sealed = True, value, sealed
    entry.percentage = entry.salt = entry.next_value = entry.next_sealed = None


GONE = 0  # no revision: of a secret that is not set


def unset(entry: Entry) -> None:
    """What was secret stays so: who sets it again need not say so, nor have known that it was."""
    settle(entry, None, GONE if is_secret(entry) else None)
    entry.is_set, entry.source = False, None


def is_secret(entry: Entry | None) -> bool:
    """Does a key hold a secret, give one to some instances, or did when it was deleted?"""
    return entry is not None and (entry.sealed is not None or entry.next_sealed is not None)


def kept(key: str, revision: int, sealed: Sealed | None) -> Sealed:
    """Raises: RevisionPruned."""
    if sealed is None:
        raise RevisionPruned(key=key, revision=revision)
    return sealed


# -- rollouts ----------------------------------------------------------------------------------------

SHARES = 10_000  # hundredths of a percent


def share_of(salt: str, instance: str) -> int:
    """Where an instance stands among all, from 0 to 9999: the same for ever, and with another salt elsewhere."""
    return int.from_bytes(sha256(f"{salt}\n{instance}".encode()).digest()[:8]) % SHARES


def takes_next(entry: Entry, instance: str | None) -> bool:
    """Does an instance get the value of the rollout? Who does not say which it is does not."""
    if entry.percentage is None or instance is None:
        return False
    return share_of(entry.salt or "", instance) < round(entry.percentage * SHARES / 100)


def choice(entry: Entry, instance: str | None) -> tuple[str | None, int | None]:
    """The value that an instance gets, or the revision under which it is sealed."""
    if takes_next(entry, instance):
        return entry.next_value, entry.next_sealed
    return entry.value, entry.sealed


def start(
    key: str, entry: Entry | None, percentage: float, salt: str, value: str | None, sealed: int | None
) -> Entry:
    """Raises: NothingToRollOutFrom, RolloutUnderWay."""
    if entry is None or not entry.is_set:
        raise NothingToRollOutFrom(key=key)
    if entry.percentage is not None:
        raise RolloutUnderWay(key=key, percentage=entry.percentage)
    entry.percentage, entry.salt, entry.next_value, entry.next_sealed = percentage, salt, value, sealed
    return entry


def under_way(entry: Entry) -> Entry:
    """Raises: NoRollout."""
    if entry.percentage is None:
        raise NoRollout(key=entry.name)
    return entry


def widen(entry: Entry, percentage: float) -> None:
    """Raises: NoRollout, RolloutNarrowed."""
    present = under_way(entry).percentage
    assert present is not None
    if percentage < present:
        raise RolloutNarrowed(f"It is at {present:g} %.", key=entry.name, percentage=present)
    entry.percentage = percentage


def finish(entry: Entry) -> None:
    """Raises: NoRollout."""
    under_way(entry)
    settle(entry, entry.next_value, entry.next_sealed)


def abort(entry: Entry) -> None:
    """Raises: NoRollout."""
    under_way(entry)
    settle(entry, entry.value, entry.sealed)


def writable(entry: Entry | None) -> None:
    """Raises: ReadOnlyConfig."""
    if entry is not None and entry.is_set and entry.source is not None:
        raise ReadOnlyConfig(f"{entry.name} follows {entry.source}: change it there.", source=entry.source)
