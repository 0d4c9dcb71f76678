"""Staged rollouts: a value that some of the instances get, then more, then all or none."""

from typing import Any

from config import rules
from config.models import Entry
from config.services.changing import changed, schema_of, touches, touches_schemas, unsealed
from config.types import ConfigChange, Key, Percentage, Revision
from core.batch import Transaction
from core.operations import command
from core.types import Text


def rolling(tx: Transaction, key: str, expected_revision: int | None) -> Entry:
    """Raises: ConfigNotFound, WrongExpectedRevision."""
    entry = rules.present(key, tx.get(Entry, key))
    rules.check_revision(key, expected_revision, entry)
    return entry


def check_next(tx: Transaction, key: str, entry: Entry) -> None:
    """The schema may have changed since the rollout began.

    Raises: ValueDoesNotFit, RevisionPruned, UnknownSealingKey.
    """
    value = entry.next_value if entry.next_sealed is None else unsealed(tx, key, entry.next_sealed)
    assert value is not None
    rules.check_value(key, value, schema_of(tx, key), "/key", hidden=True)


@command("POST config/{key}/widen", name="config.widen", returns=ConfigChange, touches=touches_schemas)
def widen(
    tx: Transaction,
    *,
    key: Key,
    percentage: Percentage,
    expected_revision: Revision | None = None,
    reason: Text | None = None,
) -> Any:
    """Give the new value of a rollout to more instances, `percentage` of all (0.01 to 100). Those that have it keep it.

    Errors: `config_not_found` (404), `no_rollout` (409), `rollout_narrowed` (409), `wrong_expected_revision` (409),
    `value_does_not_fit` (422: the schema has changed since).
    """
    entry = rolling(tx, key, expected_revision)
    rules.widen(entry, percentage)
    check_next(tx, key, entry)
    return changed(tx, entry, "config.rollout_widened", reason)


@command("POST config/{key}/finish", name="config.finish", returns=ConfigChange, touches=touches_schemas)
def finish(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Give the new value of a rollout to all.

    Errors: `config_not_found` (404), `no_rollout` (409), `wrong_expected_revision` (409),
    `value_does_not_fit` (422: the schema has changed since).
    """
    entry = rolling(tx, key, expected_revision)
    check_next(tx, key, rules.under_way(entry))
    rules.finish(entry)
    return changed(tx, entry, "config.rollout_finished", reason)


@command("POST config/{key}/abort", name="config.abort", returns=ConfigChange, touches=touches)
def abort(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Take the new value of a rollout back: all have the one before.

    Errors: `config_not_found` (404), `no_rollout` (409), `wrong_expected_revision` (409).
    """
    entry = rolling(tx, key, expected_revision)
    rules.abort(entry)
    return changed(tx, entry, "config.rollout_aborted", reason)
