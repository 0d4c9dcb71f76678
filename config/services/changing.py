"""Changing configuration: keys with values, each change a revision with an author."""

from collections.abc import Callable, Sequence
from typing import Any

from orjson import Fragment

from config import rules
from config.models import Entry, Schema
from config.types import ConfigChange, Key, Revision
from core.batch import Transaction
from core.encoding import encode
from core.log import Entry as Written
from core.operations import command
from core.types import Json, Text


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Entry, params["key"]),)


def touches_schemas(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return (*touches(params), *((Schema, prefix) for prefix in rules.prefixes(params["key"])))


@command("PUT config/{key}", name="config.put", returns=ConfigChange, hot=True, touches=touches_schemas)
def put(
    tx: Transaction,
    *,
    key: Key,
    value: Json,
    expected_revision: Revision | None = None,
    reason: Text | None = None,
) -> Any:
    """Set a key to any JSON. Every change gives it a larger revision; a key may hold `/`.

    `expected_revision` sets it only if it is still at that revision; 0: only if it is not set. `reason` stands in its
    history.

    Errors: `wrong_expected_revision` (409, with expected and actual), `value_does_not_fit` (422, naming each place).
    """
    entry = tx.get(Entry, key)
    rules.check_revision(key, expected_revision, entry)
    rules.check_value(key, value, schema_of(tx, key), "/value", hidden=False)
    entry = entry or tx.add(Entry, key)
    set_to(entry, value)
    return changed(tx, entry, "config.put", {"value": Fragment(value)}, reason)


@command("DELETE config/{key}", name="config.delete", returns=ConfigChange, touches=touches)
def delete(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Unset a key. Its history stays, and the revision goes on where it was when it is set again: a rollback to an
    earlier revision brings it back.

    Errors: `config_not_found` (404), `wrong_expected_revision` (409).
    """
    entry = rules.present(key, tx.get(Entry, key))
    rules.check_revision(key, expected_revision, entry)
    entry.is_set, entry.value = False, None
    return changed(tx, entry, "config.deleted", {}, reason)


@command("POST config/{key}/rollback", name="config.rollback", returns=ConfigChange, touches=touches_schemas)
def rollback(
    tx: Transaction,
    *,
    key: Key,
    revision: Revision,
    expected_revision: Revision | None = None,
    reason: Text | None = None,
) -> Any:
    """Set a key to what it was at an earlier revision, as a new revision; also a key that was deleted. Nobody needs to
    see the value for it.

    Errors: `revision_not_found` (404), `revision_pruned` (410), `revision_without_value` (409: it was deleted there),
    `wrong_expected_revision` (409), `value_does_not_fit` (422: the schema has changed since).
    """
    entry = tx.get(Entry, key)
    rules.check_revision(key, expected_revision, entry)
    entry = rules.reached(key, revision, entry)
    earlier = rules.value_at(key, revision, tx.recorded(entry.stream, revision))
    value = encode(earlier["value"]).decode()
    rules.check_value(key, value, schema_of(tx, key), "/revision", hidden=True)
    set_to(entry, value)
    return changed(
        tx, entry, "config.rolled_back", {"value": Fragment(value), "to_revision": revision}, reason
    )


def schema_of(tx: Transaction, key: str) -> Schema | None:
    """The schema that a key's values have to fit."""
    tx.load(*((Schema, tx.address(prefix)) for prefix in rules.prefixes(key)))
    found = (tx.get(Schema, prefix) for prefix in rules.prefixes(key))
    return next((schema for schema in found if schema and schema.is_set), None)


def set_to(entry: Entry, value: str) -> None:
    entry.is_set, entry.value = True, value


def changed(
    tx: Transaction, entry: Entry, kind: str, data: dict[str, Any], reason: str | None
) -> Callable[[], ConfigChange]:
    """Write a change down; the answer holds its position, which the commit gives."""
    written = note(tx, entry, kind, data, reason)
    return lambda: ConfigChange(entry.name, written.version, written.position, written.recorded_at)


def note(
    tx: Transaction, source: Entry | Schema, kind: str, data: dict[str, Any], reason: str | None
) -> Written:
    source.changed_at, source.changed_by = tx.now, tx.call.caller.principal
    said = {} if reason is None else {"reason": reason}
    return tx.emit(source, kind, {**data, **said})
