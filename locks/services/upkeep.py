"""What nobody asks for: locks pass on when time is up, dead waiters leave, old history goes."""

import asyncio
from time import monotonic

from core.callers import SYSTEM, Call, namespaces
from core.database import rows
from core.engine import outages, promotions
from core.operations import Operation
from core.runtime import every, runtime
from locks.services.holds import bury, sweep

AT_ONCE = 200  # locks or waiters a command
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
# What somebody waits for and time has set free, by the partial index over contended locks: prompt and cheap.
CONTENDED = """select id from locks_lock where queued > 0 and (expires_at <= clock_timestamp()
    or (lock_id is null and used + shared = 0 and coalesce(not_before <= clock_timestamp(), true))) limit 200"""
# The others only for the log's sake: who asks sees them free already. A scan, so it rests in proportion, and first
# looks at what most rows fail.
FORGOTTEN = """select id from locks_lock
    where expires_at <= now() and (lock_id is not null or used + shared > 0) limit 200"""
# Those who waited in a process that is gone. Nobody else takes them out of the middle of a queue.
ORPHANS = """select c.id from locks_claim c
    left join core_process p on p.id = c.process and p.expires_at > clock_timestamp() where p.id is null limit 200"""


@every(0.4)
async def sweep_contended() -> None:
    await each(sweep, "keys", CONTENDED)


@every(0.4)
async def bury_orphans() -> None:
    while await each(bury, "names", ORPHANS) == AT_ONCE:
        pass


@every(5)
async def sweep_forgotten() -> None:
    """Log what expired without anybody asking; rest a hundred times as long as the scan took."""
    started = monotonic()
    while await each(sweep, "keys", FORGOTTEN) == AT_ONCE and monotonic() - started < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(100 * (monotonic() - started))


async def each(operation: Operation, parameter: str, statement: str) -> int:
    """Carry a command out for all addresses that a statement finds, a namespace at a time; how many there are."""
    found: dict[str, list[str]] = {}
    for (address,) in await rows(statement):
        namespace, _, name = address.partition("/")
        found.setdefault(namespace, []).append(name)
    for namespace, names in found.items():
        call = Call(SYSTEM, await namespaces.get(namespace))
        await runtime.carry_out(operation, call, {parameter: sorted(names)})
    return sum(map(len, found.values()))
