"""The configuration operations: keys with values, each change a revision with an author."""

from collections.abc import Callable, Sequence
from typing import Any

from orjson import Fragment

from config import rules
from config.errors import ConfigNotFound
from config.models import Entry
from config.types import ConfigChange, ConfigPage, ConfigState, Key, Revision
from core.batch import Transaction
from core.callers import Call
from core.database import Row, rows
from core.log import Entry as Written
from core.models import between
from core.operations import command, query
from core.runtime import runtime
from core.types import Cursor, Json, Limit, Prefix, Text, encode_cursor

# -- changing ----------------------------------------------------------------------------------------


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Entry, params["key"]),)


@command("PUT config/{key}", returns=ConfigChange, hot=True, touches=touches)
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

    Errors: `wrong_expected_revision` (409, with expected and actual).
    """
    entry = tx.get(Entry, key)
    rules.check_revision(key, expected_revision, entry)
    entry = entry or tx.add(Entry, key)
    entry.is_set, entry.value = True, value
    return changed(tx, entry, "config.put", {"value": Fragment(value)}, reason)


@command("DELETE config/{key}", returns=ConfigChange, touches=touches)
def delete(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Unset a key. Its history stays, and the revision goes on where it was when it is set again.

    Errors: `config_not_found` (404), `wrong_expected_revision` (409).
    """
    entry = rules.present(key, tx.get(Entry, key))
    rules.check_revision(key, expected_revision, entry)
    entry.is_set, entry.value = False, None
    return changed(tx, entry, "config.deleted", {}, reason)


def changed(
    tx: Transaction, entry: Entry, kind: str, data: dict[str, Any], reason: str | None
) -> Callable[[], ConfigChange]:
    """Write a change down; the answer holds its position, which the commit gives."""
    entry.changed_at, entry.changed_by = tx.now, tx.call.caller.principal
    said = {} if reason is None else {"reason": reason}
    written: Written = tx.emit(entry, kind, {**data, **said})
    return lambda: ConfigChange(entry.name, written.version, written.position, written.recorded_at)


# -- looking -----------------------------------------------------------------------------------------

PAGE_BYTES = 4 << 20  # of values in one answer
STATE = "id, value::text, version, changed_at, changed_by"
ONE = f"select {STATE} from config_entry where id = %s and is_set"
# The limit stands innermost: a window is looked through before it is cut.
PAGE = f"""select {STATE}, there from (
    select *, count(*) over () as there, sum(size) over (order by id) - size as before from (
        select *, coalesce(pg_column_size(value), 0) as size from config_entry
        where id >= %s and id < %s and id > %s and is_set order by id limit %s) near
) page where before < {PAGE_BYTES} order by id"""


@query("GET config/{key}", returns=ConfigState, hot=True)
async def get(call: Call, *, key: Key) -> ConfigState:
    """What a key is set to: never older than the last change that was acknowledged, by whichever process.

    Errors: `config_not_found` (404).
    """
    # Not from memory: another process may have acknowledged a change that this one has not heard of.
    found = await rows(ONE, [f"{call.namespace.name}/{key}"])
    if not found:
        raise ConfigNotFound(f"{key} is not set.", key=key)
    return state_of(found[0])


@query("GET config", returns=ConfigPage)
async def find(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> ConfigPage:
    """Keys that begin so, in order, with what they are set to.

    `position`: whoever watches from the position after that of the first page misses no change.
    """
    assert runtime.tail, "reads come through a serving runtime"
    _, position = await runtime.tail.bounds(call.namespace.number)
    start, end = between(call.namespace.name, prefix)
    found = await rows(PAGE, [start, end, f"{call.namespace.name}/{cursor or ''}", limit + 1])
    items = [state_of(row) for row in found[:limit]]
    has_more = bool(found) and found[0][-1] > len(items)
    return ConfigPage(items, position, encode_cursor(items[-1].key) if has_more else None)


def state_of(row: Row) -> ConfigState:
    address, value, revision, changed_at, changed_by, *_ = row
    return ConfigState(address.partition("/")[2], Fragment(value), revision, changed_at, changed_by)
