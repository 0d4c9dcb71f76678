"""What nobody asks for: locks pass on when time is up, dead waiters leave, old history goes."""

import asyncio
from time import monotonic

from django.conf import settings

from core.database import Pool, pool, rows
from core.engine import outages, promotions
from core.retention import forget_history
from core.runtime import carry_out_for, carry_out_found, every
from locks.services.holds import bury, sweep

AT_ONCE = 200  # locks or waiters a command
REST = 20  # seconds between scans at most
outages.append(
    "update locks_lock set expires_at = expires_at + %(away)s * interval '1 second' "
    "where (lock_id is not null or used + shared > 0) and expires_at > %(since)s"
)
outages.append(
    "update locks_hold set expires_at = expires_at + %(away)s * interval '1 second' where expires_at > %(since)s"
)
RENEWED = "greatest(expires_at, clock_timestamp() + ttl_seconds * interval '1 second')"
promotions.append(
    f"update locks_lock set expires_at = {RENEWED} where lock_id is not null and session is null"
)
promotions.append(f"update locks_hold set expires_at = {RENEWED} where session is null")
# What somebody waits for and time has set free, by the partial index over contended locks: prompt and cheap. A free
# lock whose first waiter waits for others too is passed on when one of those is.
CONTENDED = """select id from locks_lock where queued > 0 and (expires_at <= clock_timestamp()
    or not_before <= clock_timestamp() or (lock_id is null and used + shared = 0 and not_before is null
        and (select lead is null from locks_claim c
            where c.id > locks_lock.id || '#' and c.id < locks_lock.id || '$' order by c.id limit 1))) limit 200"""
# The others only for the log's sake: who asks sees them free already. A scan, so it rests in proportion, and first
# looks at what most rows fail.
FORGOTTEN = """select id from locks_lock
    where expires_at <= now() and (lock_id is not null or used + shared > 0) limit 200"""
# Those who waited in a process that is gone. Nobody else takes them out of the middle of a queue.
ORPHANS = """select c.id from locks_claim c
    left join core_process p on p.id = c.process and p.expires_at > clock_timestamp()
    where p.id is null and c.process <> '' limit 200"""


@every(0.4)
async def sweep_contended() -> None:
    await carry_out_found(sweep, "keys", CONTENDED)


@every(0.4)
async def bury_orphans() -> None:
    while await carry_out_found(bury, "names", ORPHANS) == AT_ONCE:
        pass


@every(5)
async def sweep_forgotten() -> None:
    """Log what expired without anybody asking; rest a hundred times as long as the scan took, but never so long
    that a busy database keeps an end out of the log."""
    started = monotonic()
    found = await rows(FORGOTTEN)
    scan = monotonic() - started
    while await carry_out_for(sweep, "keys", found) == AT_ONCE and monotonic() - started < 2:
        await asyncio.sleep(0.05)
        found = await rows(FORGOTTEN)
    await asyncio.sleep(min(100 * scan, REST))


# -- old history -------------------------------------------------------------------------------------

KINDS = ("$lock:", "$election:", "$session:")
# Rows of locks that have been idle for so long that nothing of their history is left. Whoever takes such a lock next
# begins with a new row, so the floor under all tokens rises above its last one, in the same statement.
FORGET_IDLE = """with idle as (
    select l.id from locks_lock l join core_namespace n on n.name = split_part(l.id, '/', 1)
    where l.lock_id is null and l.used + l.shared = 0 and l.queued = 0
        and coalesce(l.not_before <= clock_timestamp(), true)
        and l.changed_at < clock_timestamp() - %s * interval '1 day'
        and not exists (select from core_event e where e.namespace_id = n.number and e.stream =
            case when substr(l.id, strpos(l.id, '/') + 1, 10) = '$election:' then '' else '$lock:' end
                || substr(l.id, strpos(l.id, '/') + 1))
    limit 1000 for update of l skip locked
), gone as (delete from locks_lock using idle where locks_lock.id = idle.id returning last_token
), floor as (update core_cluster set token_floor = greatest(token_floor, (select max(last_token) from gone))
    where exists (select from gone))
select count(*) from gone"""


async def prune(days: float, database: Pool) -> tuple[int, int]:
    """Forget what is older than so many days: the history of locks, elections and sessions, and the rows of locks
    that have been idle since. How many events and rows there were."""
    events = sum([await forget_history(kind, days, database) for kind in KINDS])
    locks = 0
    while gone := (await database.rows(FORGET_IDLE, [days]))[0][0]:
        locks += gone
    return events, locks


@every(600)
async def prune_in_time() -> None:
    await prune(settings.LOCK_HISTORY_DAYS, pool)
