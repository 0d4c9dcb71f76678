"""Looking at configuration: what is set, what was, and what changes."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import Any

from orjson import Fragment

from config import rules
from config.errors import ConfigNotFound
from config.models import Entry
from config.types import (
    ConfigChanged,
    ConfigHistory,
    ConfigPage,
    ConfigRevision,
    ConfigState,
    InstanceName,
    Key,
    Revision,
    RevisionCursor,
    Rollout,
)
from core import following, log
from core.callers import Call
from core.database import Row, Together, rows
from core.encoding import decode
from core.following import HeartbeatSeconds, grew
from core.log import Entry as Written
from core.models import between
from core.operations import query
from core.types import Cursor, Limit, Position, Prefix, Wait, encode_cursor
from core.watching import watchers

PAGE_BYTES = 4 << 20  # of values in one answer
COLUMNS = (
    "id", "value", "sealed", "percentage", "salt", "next_value", "next_sealed", "source", "version", "changed_at",
    "changed_by",
)  # fmt: skip
STATE = ", ".join(f"{name}::text" if name.endswith("value") else name for name in COLUMNS)
ONE = Together(f"select {STATE}, is_set from config_entry where id = any(%s)")
# As they are answered: what is stored may be compressed to a hundredth.
OCTETS = "coalesce(octet_length(value::text), 0) + coalesce(octet_length(next_value::text), 0)"
# The limit stands innermost: a window is looked through before it is cut.
PAGE = f"""select {STATE}, there from (
    select *, count(*) over () as there, sum(size) over (order by id) - size as before from (
        select *, {OCTETS} as size from config_entry
        where id >= %s and id < %s and id > %s and is_set order by id limit %s) near
) page where before < {PAGE_BYTES} order by id"""


# -- what is set -------------------------------------------------------------------------------------


@query("GET config/{key}", name="config.get", returns=ConfigState, hot=True)
async def get(
    call: Call,
    *,
    key: Key,
    wait_seconds: Wait = 0.0,
    from_revision: Revision = 0,
    instance_id: InstanceName | None = None,
) -> ConfigState:
    """What a key is set to: never older than the last change that was acknowledged, by whichever process. With
    `instance_id`, what that instance gets while a rollout is under way; without, what there was before. Of a secret the
    value is not told: see config.reveal.

    `wait_seconds` (at most 300) holds the request until the key is at `from_revision` or further: ask for the one after
    that which you have. When the time is over, the answer is what it is then.

    Errors: `config_not_found` (404, with the revision that it was deleted at).
    """
    # Not from memory: another process may have acknowledged a change that this one has not heard of.
    if wait_seconds:
        await reached(call, key, from_revision, wait_seconds)
    found = await ONE.row(f"{call.namespace.name}/{key}")
    if found is None or not found[-1]:
        raise ConfigNotFound(f"{key} is not set.", key=key, revision=revision_in(found))
    return state_of(found, instance_id)


async def reached(call: Call, key: str, revision: int, seconds: float) -> None:
    """Wait until a key is at a revision, not longer than that.

    Raises: Unavailable.
    """
    until = monotonic() + seconds
    while True:
        async with watchers.of(call.namespace.number, [f"{Entry.STREAMS}{key}"]) as changed:
            at = revision_in(await ONE.row(f"{call.namespace.name}/{key}"))
            if at >= revision or not await grew(changed, until - monotonic()):
                return


def revision_in(row: Row | None) -> int:
    return row[COLUMNS.index("version")] if row else 0


@query("GET config", name="config.find", returns=ConfigPage)
async def find(
    call: Call,
    *,
    prefix: Prefix = "",
    limit: Limit = 50,
    cursor: Cursor | None = None,
    instance_id: InstanceName | None = None,
) -> ConfigPage:
    """Keys that begin so, in order, with what they are set to; with `instance_id`, what that instance gets.

    `position`: whoever watches from the position after that of the first page misses no change.
    """
    position = await following.start_of(call, None, None)
    start, end = between(call.namespace.name, prefix)
    found = await rows(PAGE, [start, end, f"{call.namespace.name}/{cursor or ''}", limit + 1])
    items = [state_of(row, instance_id) for row in found[:limit]]
    return ConfigPage(items, position, encode_cursor(items[-1].key) if log.has_more(found, limit) else None)


def state_of(row: Row, instance: str | None = None) -> ConfigState:
    address, value, sealed, percentage, _, _, _, source, revision, changed_at, changed_by, *_ = row
    is_next, rollout = False, None
    if percentage is not None:
        entry = Entry(**dict(zip(COLUMNS, row, strict=False)))
        value, sealed = rules.choice(entry, instance)
        is_next, rollout = rules.takes_next(entry, instance), rollout_of(entry)
    return ConfigState(
        address.partition("/")[2], shown(value), sealed is not None, revision, is_next, rollout, source, changed_at,
        changed_by,
    )  # fmt: skip


def rollout_of(entry: Entry) -> Rollout | None:
    if entry.percentage is None:
        return None
    is_secret = entry.next_sealed is not None
    return Rollout(entry.percentage, entry.salt or "", shown(entry.next_value), is_secret)


def shown(value: str | None) -> Any:
    return None if value is None else Fragment(value)


# -- what was ----------------------------------------------------------------------------------------


@query("GET config/{key}/history", name="config.history", returns=ConfigHistory)
async def history(
    call: Call, *, key: Key, limit: Limit = 50, cursor: RevisionCursor | None = None
) -> ConfigHistory:
    """The revisions of a key, the newest first: who set it to what, and why. Of a key that was never set, none."""
    found, next_cursor = await revisions(call, f"{Entry.STREAMS}{key}", limit, cursor)
    return ConfigHistory([revision_of(entry) for entry in found], next_cursor)


async def revisions(call: Call, stream: str, limit: int, cursor: Any) -> tuple[list[Written], str | None]:
    """A page of what changed a key or a schema, the newest first, and the cursor of the next page."""
    older = [("version < %s", cursor)]
    found, more = await log.of_stream(call.namespace.number, stream, older, limit, "version desc")
    return found, encode_cursor(str(found[-1].version)) if more else None


def revision_of(entry: Written) -> ConfigRevision:
    data = decode(entry.data)
    return ConfigRevision(
        entry.stream.removeprefix(Entry.STREAMS), entry.version, entry.position, entry.type.removeprefix("config."),
        data.get("value"), "sealed" in data, rollout_in(data),
        data.get("to_revision"), data.get("reason"), entry.recorded_at, entry.actor,
    )  # fmt: skip


def rollout_in(data: dict[str, Any]) -> Rollout | None:
    """The rollout that an event tells of."""
    found = data.get("rollout")
    return found and Rollout(found["percentage"], found["salt"], found.get("value"), "sealed" in found)


# -- what changes ------------------------------------------------------------------------------------


@query("GET config/watch", name="config.watch", returns=ConfigChanged)
async def watch(
    call: Call,
    *,
    prefix: Prefix = "",
    from_position: Position | None = None,
    heartbeat_seconds: HeartbeatSeconds = 15.0,
) -> AsyncIterator[dict[str, Any]]:
    """Every change of the keys that begin so, in order: first what there is from `from_position` (absent: only what
    comes), then what comes. A heartbeat carries the position reached, also where nothing matched.

    Errors: `position_pruned` (410): history before it is gone, so read all keys and go on at the position of that page;
    `position_ahead` (409).
    """
    wanted = f"{Entry.STREAMS}{prefix}"

    def item(entry: Written) -> dict[str, Any] | None:
        return {"change": told(entry)} if entry.stream.startswith(wanted) else None

    position = await following.start_of(call, from_position, Entry.STREAMS)
    items = following.follow(call.namespace.number, position, item, heartbeat_seconds)
    async with aclosing(items):
        async for found in items:
            yield found


def told(entry: Written) -> dict[str, Any]:
    found = revision_of(entry)
    return {name: getattr(found, name) for name in ConfigRevision.__slots__}
