"""Changing configuration: keys with values, each change a revision with an author."""

from collections.abc import Callable, Sequence
from typing import Any

from config import rules, sealing
from config.models import Entry, Schema, Sealed
from config.types import ConfigChange, Key, NewRollout, Revision
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
    secret: bool | None = None,
    rollout: NewRollout | None = None,
    reason: Text | None = None,
) -> Any:
    """Set a key to any JSON. Every change gives it a larger revision; a key may hold `/`.

    `expected_revision` sets it only if it is still at that revision; 0: only if it is not set. `secret`: the value is
    sealed, and told by config.reveal only; unless said, what the key was. `rollout` gives the value to a share of the
    instances, and leaves the others what they have. `reason` stands in its history.

    Errors: `wrong_expected_revision` (409, with expected and actual), `value_does_not_fit` (422, naming each place),
    `no_sealing_key` (409), `nothing_to_roll_out_from` (409), `rollout_under_way` (409), `read_only_config` (409).
    """
    entry = tx.get(Entry, key)
    rules.writable(entry)
    rules.check_revision(key, expected_revision, entry)
    is_secret = rules.is_secret(entry) if secret is None else secret
    rules.check_value(key, value, schema_of(tx, key), "/value", hidden=is_secret)
    found = (None, seal(tx, key, entry, value)) if is_secret else (value, None)
    if rollout is None:
        entry = entry or tx.add(Entry, key)
        rules.settle(entry, *found)
        return changed(tx, entry, "config.put", reason)
    salt = rollout.salt or f"{key}#{entry.version + 1 if entry else 1}"
    entry = rules.start(key, entry, rollout.percentage, salt, *found)
    return changed(tx, entry, "config.rollout_started", reason)


@command("DELETE config/{key}", name="config.delete", returns=ConfigChange, touches=touches)
def delete(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Unset a key. Its history stays, and the revision goes on where it was when it is set again: a rollback to an
    earlier revision brings it back.

    Errors: `config_not_found` (404), `wrong_expected_revision` (409), `read_only_config` (409).
    """
    entry = rules.present(key, tx.get(Entry, key))
    rules.writable(entry)
    rules.check_revision(key, expected_revision, entry)
    rules.unset(entry)
    return changed(tx, entry, "config.deleted", reason)


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
    see the value for it. A rollout that was under way then is not taken up again, one that is under way ends.

    Errors: `revision_not_found` (404), `revision_pruned` (410), `revision_without_value` (409: it was deleted there),
    `wrong_expected_revision` (409), `value_does_not_fit` (422: the schema has changed since), `read_only_config` (409).
    """
    entry = tx.get(Entry, key)
    rules.writable(entry)
    rules.check_revision(key, expected_revision, entry)
    entry = rules.reached(key, revision, entry)
    earlier = rules.value_at(key, revision, tx.recorded(entry.stream, revision))
    sealed = earlier.get("sealed")
    value = encode(earlier["value"]).decode() if sealed is None else unsealed(tx, key, sealed)
    rules.check_value(key, value, schema_of(tx, key), "/revision", hidden=True)
    rules.settle(entry, value if sealed is None else None, sealed)
    return changed(tx, entry, "config.rolled_back", reason, to_revision=revision)


# -- what the others use -----------------------------------------------------------------------------


def schema_of(tx: Transaction, key: str) -> Schema | None:
    """The schema that a key's values have to fit."""
    tx.load(*((Schema, tx.address(prefix)) for prefix in rules.prefixes(key)))
    found = (tx.get(Schema, prefix) for prefix in rules.prefixes(key))
    return next((schema for schema in found if schema and schema.is_set), None)


def seal(tx: Transaction, key: str, entry: Entry | None, value: str) -> int:
    """Seal the value that a key is about to get; the revision under which it is found.

    Raises: NoSealingKey.
    """
    revision = entry.version + 1 if entry else 1
    tx.add(Sealed, f"{key}#{revision}", token=sealing.seal(value, tx.address(key)))
    return revision


def unsealed(tx: Transaction, key: str, revision: int) -> str:
    """Raises: RevisionPruned, UnknownSealingKey."""
    found = rules.kept(key, revision, tx.get(Sealed, f"{key}#{revision}"))
    return sealing.unseal(found.token, tx.address(key))


def changed(
    tx: Transaction, entry: Entry, kind: str, reason: str | None, **more: Any
) -> Callable[[], ConfigChange]:
    """Write a change down; the answer holds its position, which the commit gives."""
    written = note(tx, entry, kind, {**rules.facts(entry), **more}, reason)
    return lambda: ConfigChange(entry.name, written.version, written.position, written.recorded_at)


def note(
    tx: Transaction, source: Entry | Schema, kind: str, data: dict[str, Any], reason: str | None
) -> Written:
    source.changed_at, source.changed_by = tx.now, tx.call.caller.principal
    said = {} if reason is None else {"reason": reason}
    return tx.emit(source, kind, {**data, **said})
