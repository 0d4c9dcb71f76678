"""Looking at locks: who holds, who waits, what was, and how long it takes."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from orjson import Fragment
from pydantic import Field

from core import log
from core.callers import Call
from core.database import rows
from core.encoding import decode
from core.log import RecordedEvent
from core.models import between
from core.operations import nested, query, refused
from core.types import Cursor, Instant, Limit, Prefix, encode_cursor
from locks import volatile
from locks.types import (
    Contended,
    ContendedLocks,
    HeldLock,
    Holder,
    Key,
    LockClass,
    LockHistory,
    Locks,
    LockState,
    LockStats,
    LockSummary,
    Owner,
    PastHold,
    Spread,
    Waiter,
)

SHOWN = 200  # holders and waiters of one lock
# Whether a hold is one now: with its own time, or until somebody ends its session.
HELD = "(l.lock_id is not null and coalesce(l.expires_at > clock_timestamp(), true))"
LOOK = f"""select l.id, l.capacity, l.last_token, l.queued, {HELD}, l.shared + l.used, l.not_before, l.owner, l.session,
    l.acquired_at, coalesce(l.expires_at, s.expires_at), l.metadata::text
from locks_lock l left join core_session s on s.id = split_part(l.id, '/', 1) || '/' || l.session"""
HOLDS = """select o.place, h.* from unnest(%s::text[]) with ordinality o(lock, place) cross join lateral (
    select owner, mode, permits, session, token, acquired_at, coalesce(expires_at, (select s.expires_at
        from core_session s where s.id = split_part(o.lock, '/', 1) || '/' || session)), metadata::text
    from locks_hold where id > o.lock || '#' and id < o.lock || '$'
    and coalesce(expires_at > clock_timestamp(), true) order by token limit %s) h
order by o.place, h.token"""
QUEUES = """select o.place, c.* from unnest(%s::text[]) with ordinality o(lock, place) cross join lateral (
    select ticket, owner, mode, permits, since, deadline, session,
        extract(epoch from clock_timestamp() - since)::float8
    from locks_claim where id > o.lock || '#' and id < o.lock || '$' and deadline > clock_timestamp()
    order by id limit %s) c
order by o.place, c.ticket"""

OF_SESSIONS = """select s.place, h.* from unnest(%s::text[]) with ordinality s(name, place) cross join lateral (
    select id as key, 'exclusive', capacity, last_token, acquired_at from locks_lock
        where session = s.name and id > %s and id < %s and lock_id is not null
    union all select split_part(id, '#', 1), mode, permits, token, acquired_at from locks_hold
        where session = s.name and id > %s and id < %s
    order by key limit %s) h
order by s.place, h.key"""


def keys(call: Call, prefix: str) -> tuple[str, str]:
    """Between which addresses the keys are that begin so. `%` comes after `$`, with which only the system's begin."""
    start, end = between(call.namespace.name, prefix)
    return start if prefix else start + "%", end


async def summaries(found: Sequence[Sequence[Any]]) -> list[LockSummary]:
    """What rows of LOOK say; the holders that have rows of their own in one statement for all."""
    several = [row[0] for row in found if row[5]]
    holds: dict[str, list[Holder]] = {}
    for place, *about in await rows(HOLDS, [several, SHOWN]) if several else []:
        holds.setdefault(several[place - 1], []).append(holder(about))
    return [summary(row, holds.get(row[0], [])) for row in found]


def holder(about: Sequence[Any]) -> Holder:
    owner, mode, permits, session, token, acquired_at, until, metadata = about
    return Holder(owner, mode, permits, session, token, acquired_at, until, Fragment(metadata or "{}"))


def summary(row: Sequence[Any], holders: list[Holder]) -> LockSummary:
    address, capacity, token, queued, is_sole, _, not_before, owner, session, acquired_at, until, metadata = (
        row
    )
    if is_sole:
        about = Fragment(metadata or "{}")
        holders = [Holder(owner, "exclusive", capacity, session, token, acquired_at, until, about)]
    key = address.partition("/")[2]
    return LockSummary(key, bool(holders), capacity, token, holders, queued, not_before)


async def waiters_of(addresses: Sequence[str], limit: int) -> list[list[Waiter]]:
    """Who waits for each of several locks, in order: one statement for all."""
    found: list[list[Waiter]] = [[] for _ in addresses]
    for place, *about in await rows(QUEUES, [list(addresses), limit]):
        found[place - 1].append(Waiter(*about))
    return found


async def held_in(namespace: str, sessions: Sequence[str], limit: int) -> list[list[HeldLock]]:
    """The locks that each of several sessions holds, in key order: one statement for all."""
    found: list[list[HeldLock]] = [[] for _ in sessions]
    space = between(namespace)
    for place, address, *about in await rows(OF_SESSIONS, [list(sessions), *space, *space, limit]):
        found[place - 1].append(HeldLock(address.partition("/")[2], *about))
    return found


@query(
    "GET locks/{key}", returns=LockState, aliases=["GET locks/{key}/status"], hot=True, volatile=volatile.get
)
async def get(call: Call, *, key: Key) -> LockState:
    """Who holds a lock and who waits for it, in order (the first 200 of each). A free or unknown key is not locked."""
    address = f"{call.namespace.name}/{key}"
    found = await rows(f"{LOOK} where l.id = %s", [address])
    if not found:
        return LockState(key, False, 1, 0, [], 0, None, [])
    (state,) = await summaries(found)
    (waiting,) = await waiters_of([address], SHOWN) if state.queue_length else ([],)
    return LockState(
        state.key, state.is_locked, state.capacity, state.last_token, state.holders, state.queue_length,
        state.lock_delay_until, waiting,
    )  # fmt: skip


@query("GET locks", returns=Locks, volatile=volatile.find)
async def find(
    call: Call,
    *,
    prefix: Prefix = "",
    owner: Owner | None = None,
    held: bool | None = None,
    contended: bool | None = None,
    limit: Limit = 50,
    cursor: Cursor | None = None,
) -> Locks:
    """Locks by key prefix, owner of a present hold, held or contended, in key order."""
    conditions, values = ["l.id >= %s", "l.id < %s", "l.id > %s"], [*keys(call, prefix), cursor or ""]
    if owner is not None:
        conditions.append(f"(({HELD} and l.owner = %s) or (l.shared + l.used > 0 and {OWNED}))")
        values += [owner, owner]
    if held is not None:
        conditions.append(f"{'' if held else 'not '}({HELD} or (l.shared + l.used > 0 and {HAS_HOLDS}))")
    if contended is not None:
        conditions.append("l.queued > 0" if contended else "l.queued = 0")
    found = await rows(
        f"{LOOK} where {' and '.join(conditions)} order by l.id limit %s", [*values, limit + 1]
    )
    more = found[limit - 1][0] if len(found) > limit else None
    return Locks(await summaries(found[:limit]), more and encode_cursor(more))


HAS_HOLDS = """exists (select from locks_hold h where h.id > l.id || '#' and h.id < l.id || '$'
    and coalesce(h.expires_at > clock_timestamp(), true))"""
OWNED = HAS_HOLDS.replace("and coalesce", "and h.owner = %s and coalesce")


@nested(LockSummary, volatile=volatile.waiters)
async def waiters(call: Call, parents: Sequence[LockSummary], *, limit: Limit = 20) -> list[list[Waiter]]:
    """Who waits for the lock, in order."""
    contended = [lock.key for lock in parents if lock.queue_length]
    addresses = [f"{call.namespace.name}/{key}" for key in contended]
    found = dict(zip(contended, await waiters_of(addresses, limit) if addresses else [], strict=True))
    return [found.get(lock.key, []) for lock in parents]


@nested(LockSummary)
async def history(
    call: Call, parents: Sequence[LockSummary], *, limit: Limit = 20
) -> list[list[RecordedEvent]]:
    """What happened to the lock last, newest first: its stream's events."""
    return await log.last(call.namespace.number, [f"$lock:{lock.key}" for lock in parents], limit)


# -- what was ----------------------------------------------------------------------------------------

# The last holds by their grants; how each ended, by the first event of its token after that.
PAST = """select a.data::text, a.recorded_at, e.type, e.data::text, e.recorded_at
from (select * from core_event where namespace_id = %s and stream = %s and type = 'lock.acquired'
    order by version desc limit %s) a
left join lateral (select type, data, recorded_at from core_event e where e.namespace_id = a.namespace_id
    and e.stream = a.stream and e.version > a.version
    and e.type in ('lock.released', 'lock.expired', 'lock.force_released')
    and (e.data->>'fencing_token')::bigint = (a.data->>'fencing_token')::bigint
    order by e.version limit 1) e on true
order by a.version desc"""


@query("GET locks/{key}/history", name="locks.history", returns=LockHistory, volatile=refused)
async def past(call: Call, *, key: Key, limit: Limit = 20) -> LockHistory:
    """The last holds of a lock, newest first: whose, how long, and why each ended. As far back as history is kept
    (SYROS_LOCK_HISTORY_DAYS)."""
    found = await rows(PAST, [call.namespace.number, f"$lock:{key}", limit])
    return LockHistory(key, [past_hold(*row) for row in found])


def past_hold(
    granted: str, acquired_at: datetime, kind: str | None, ended: str | None, ended_at: datetime | None
) -> PastHold:
    hold, end = decode(granted), decode(ended or "{}")
    return PastHold(
        hold["owner"], hold["mode"], hold["permits"], hold.get("session_id"), hold["fencing_token"], acquired_at,
        hold["waited_seconds"], ended_at, end.get("held_seconds"), kind and kind.removeprefix("lock."),
        end.get("because") or end.get("by"),
    )  # fmt: skip


SCANNED = 200_000  # events that statistics look at, the newest ones
# A class is what keys have before their first `/` or `:` after the prefix.
STATS = """with recent as (
    select stream, type, data from core_event where namespace_id = %s and id > %s and stream >= %s and stream < %s
        and recorded_at >= %s and type like 'lock.%%'
), told as (
    select %s || substring(substr(stream, %s) from '^[^/:]*[/:]?') as class, type,
        (data->>'waited_seconds')::float8 as waited, (data->>'held_seconds')::float8 as held,
        data->>'reason' as reason from recent
)
select class, count(*) filter (where type = 'lock.expired'), count(*) filter (where type = 'lock.force_released'),
    count(*) filter (where reason = 'timed_out'), count(*) filter (where reason = 'deadlock'),
    count(held), percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by held),
    count(waited), percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by waited)
from told group by class order by class limit 200"""
BEGIN = """select coalesce(max(id), 0) - %s,
    coalesce((select recorded_at from core_event where id > max(e.id) - %s order by id limit 1), clock_timestamp())
from core_event e where id > %s::bigint << 40 and id < (%s::bigint + 1) << 40"""


@query("GET locks/stats", returns=LockStats, volatile=refused)
async def stats(call: Call, *, prefix: Prefix = "", since: Instant | None = None) -> LockStats:
    """How long locks were held and waited for, by class: what their keys have up to the first `/` or `:` after the
    prefix. Since an hour ago unless said; of a busy log the last 200,000 events are looked at, and `partial` says so.
    """
    number = call.namespace.number
    ((first, begins),) = await rows(BEGIN, [SCANNED, SCANNED, number, number])
    ((now,),) = await rows("select clock_timestamp()")
    start = since or now - timedelta(hours=1)
    stream = f"$lock:{prefix}"
    found = await rows(STATS, [number, first, stream, stream + "~", start, prefix, len(stream) + 1])
    is_partial = first >= number << 40 and begins > start  # a log that is only young is looked at as a whole
    return LockStats(begins if is_partial else start, [lock_class(*row) for row in found], is_partial)


def lock_class(
    prefix: str, expired: int, forced: int, timed_out: int, deadlocks: int, *spreads: Any
) -> LockClass:
    held, waited = spread(*spreads[:2]), spread(*spreads[2:])
    return LockClass(prefix, held, waited, expired, forced, timed_out, deadlocks)


def spread(count: int, values: list[float] | None) -> Spread | None:
    return Spread(count, *(round(value, 6) for value in values)) if count and values else None


LONGEST_QUEUES = (
    f"""{LOOK} where l.queued > 0 and l.id >= %s and l.id < %s order by l.queued desc, l.id limit %s"""
)
WAITED = """select o.place, extract(epoch from clock_timestamp() - c.since)::float8
from unnest(%s::text[]) with ordinality o(lock, place) cross join lateral (
    select since from locks_claim where id > o.lock || '#' and id < o.lock || '$' order by id limit 1) c"""


@query("GET locks/contended", returns=ContendedLocks, volatile=refused)
async def contended(
    call: Call, *, prefix: Prefix = "", limit: Annotated[int, Field(ge=1, le=200)] = 50
) -> ContendedLocks:
    """The locks that somebody waits for, the longest queue first."""
    found = await rows(LONGEST_QUEUES, [*keys(call, prefix), limit])
    waited: dict[int, float] = dict(await rows(WAITED, [[row[0] for row in found]])) if found else {}
    return ContendedLocks(
        [
            Contended(lock.key, lock.queue_length, waited.get(place, 0.0), lock.holders)
            for place, lock in enumerate(await summaries(found), 1)
        ]
    )
