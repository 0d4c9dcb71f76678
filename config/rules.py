"""What may become of a key. Pure."""

from config.errors import ConfigNotFound, WrongExpectedRevision
from config.models import Entry


def revision_of(entry: Entry | None) -> int:
    """The revision that a writer has to expect: 0 of a key that is not set."""
    return entry.version if entry and entry.is_set else 0


def check_revision(key: str, expected: int | None, entry: Entry | None) -> None:
    """Raises: WrongExpectedRevision."""
    actual = revision_of(entry)
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
