"""What may become of a key. Pure."""

from collections.abc import Iterable
from typing import Any

from config import fitting
from config.errors import (
    ConfigNotFound,
    RevisionNotFound,
    RevisionPruned,
    RevisionWithoutValue,
    ValueDoesNotFit,
    WrongExpectedRevision,
)
from config.models import Entry, Schema
from core.encoding import decode
from core.log import Entry as Written


def revision_of(entry: Entry | Schema | None) -> int:
    """The revision that a writer has to expect: 0 of a key that is not set."""
    return entry.version if entry and entry.is_set else 0


def check_revision(key: str, expected: int | None, entry: Entry | Schema | None) -> None:
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
    if "value" not in data:
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
