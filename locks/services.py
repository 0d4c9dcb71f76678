"""The lock operations."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from secrets import token_hex
from time import monotonic
from typing import Annotated, Any

from orjson import Fragment
from pydantic import Field

from core import log
from core.batch import Transaction
from core.callers import SYSTEM, Call, namespaces
from core.database import rows
from core.encoding import encode
from core.engine import outages
from core.errors import FenceStale, Unavailable
from core.log import RecordedEvent
from core.models import Answer, Process
from core.operations import Fence, Waiting, Waits, command, guard, nested, query
from core.runtime import every, runtime
from core.types import Cursor, Limit, Object, Prefix, Token, encode_cursor
from locks import rules, volatile
from locks.errors import LockHeld, LockNotHeld, LockWaitTimeout
from locks.models import Claim, Lock
from locks.types import (
    Currency,
    Grant,
    Holder,
    Key,
    LockId,
    Locks,
    LockState,
    LockSummary,
    Mode,
    OptionalTtl,
    Owner,
    Released,
    Ttl,
    Waiter,
    WaitSeconds,
)  # fmt: skip

outages.append(
    "update locks_lock set expires_at = expires_at + %(away)s * interval '1 second' "
    "where lock_id is not null and expires_at > %(since)s"
)


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Lock, params["key"]),)


# -- taking ------------------------------------------------------------------------------------------


def granted(facts: dict[str, Any], kind: str, data: dict[str, Any]) -> Any:
    """What an event with a waiter's ticket means for the waiter."""
    if kind == "lock.acquired":
        data.pop("ticket", None)
        return {"lock_id": facts["lock_id"], "key": facts["key"], **data}
    if kind == "lock.withdrawn":
        # This process stood still, or a retry waits here in the place of a process that was killed.
        if data.get("reason") == "process_gone":
            return Unavailable(f"The process that kept your place for {facts['key']} was gone. Ask again.")
        return LockWaitTimeout(f"You left the queue of {facts['key']}: {data.get('reason')}.")
    return None


def timed_out(facts: dict[str, Any], value: Any) -> Grant:
    """What a withdrawal at the end of the wait means: a grant after all, or the refusal."""
    if isinstance(value, Grant):
        return value
    raise LockWaitTimeout(f"{facts['key']} did not come free in time.", **value)


def place(value: Any) -> dict[str, Any]:
    return {"key": value.key, "lock_id": value.lock_id, "ticket": 0}


@command(
    "POST locks",
    returns=Grant,
    status=201,
    hot=True,
    touches=touches,
    waits=Waits("locks.withdraw", granted, timed_out, place),
    volatile=volatile.acquire,
)
def acquire(
    tx: Transaction,
    *,
    key: Key,
    owner: Owner,
    ttl_seconds: Ttl = 30.0,
    wait_seconds: WaitSeconds = 0.0,
    mode: Mode = "exclusive",
    permits: Annotated[int, Field(ge=1, le=1)] = 1,
    metadata: Object = "{}",
) -> Grant | Waiting:
    """Take a lock, or join its queue and wait.

    `owner` is a label for people; the answer's `lock_id` proves the hold, and its `fencing_token` is what a
    resource compares. The lock ends `ttl_seconds` (0.1 to 86400) after the last renewal. With `wait_seconds`
    (at most 300) a held lock is waited for, first come first served, across all processes; the place is lost
    when the connection closes. Locks are not reentrant.

    Errors: `lock_held` (409, with holders and retry_after_seconds), `lock_wait_timeout` (409).
    """
    lock = tx.get(Lock, key) or tx.add(Lock, key)
    pass_on(tx, lock)
    claim = Claim.__new__(Claim)
    claim.__dict__.update(
        lock_id=token_hex(16), owner=owner, permits=permits, ttl_seconds=ttl_seconds,
        metadata=None if metadata == "{}" else metadata, since=tx.now, ticket=0,
    )  # fmt: skip
    if lock.lock_id is None and lock.queued == 0:
        emit(tx, lock, [rules.take(lock, claim, tx.now, tx.epoch)])
        return grant(lock)
    if not wait_seconds:
        raise LockHeld(f"{key} is held by {lock.owner}.", **situation(lock, tx))
    return queue_up(tx, lock, claim, wait_seconds)


def queue_up(tx: Transaction, lock: Lock, claim: Claim, wait_seconds: float) -> Waiting:
    values = {name: value for name, value in claim.__dict__.items() if name != "ticket"}
    ticket = lock.last_ticket + 1
    member = tx.add_at(
        Claim, f"{lock.id}#{ticket:015d}", **values, ticket=ticket, process=tx.process_id,
        deadline=tx.now + timedelta(seconds=wait_seconds), answer_id=tx.job.answer_id,
    )  # fmt: skip
    emit(tx, lock, [rules.enqueue(lock, member)])
    facts = {"key": lock.name, "lock_id": member.lock_id, "ticket": ticket}
    return Waiting(lock.stream, ticket, wait_seconds, facts)


@command(
    "POST locks/{key}/renew", returns=Grant, aliases=["PUT locks/{key}/extend"], hot=True, touches=touches,
    volatile=volatile.renew,
)  # fmt: skip
def renew(tx: Transaction, *, key: Key, lock_id: LockId, ttl_seconds: OptionalTtl = None) -> Grant:
    """Give a lock you hold a full TTL again, or a new one.

    Renewals are not events: they change nothing that anyone else must know.

    Errors: `lock_not_held` (409) with a `reason`: expired, released, force_released or, also for a hold that
    32 others have followed, never_held.
    """
    lock = held(tx, key, lock_id)
    lock.ttl_seconds = ttl_seconds or lock.ttl_seconds or 30.0
    lock.expires_at = tx.now + timedelta(seconds=lock.ttl_seconds)
    return grant(lock)


@command(
    "POST locks/{key}/release", returns=Released, aliases=["DELETE locks/{key}"], hot=True, touches=touches,
    volatile=volatile.release,
)  # fmt: skip
def release(tx: Transaction, *, key: Key, lock_id: LockId, owner: Owner | None = None) -> Released:
    """Give a lock back; the first waiter has it in the same transaction.

    `owner` is accepted and ignored: the `lock_id` proves the hold.

    Errors: `lock_not_held` (409) with a `reason`.
    """
    lock = held(tx, key, lock_id)
    token = lock.last_token
    emit(tx, lock, [rules.end(lock, "released")])
    pass_on(tx, lock)
    return Released(key, True, token)


def held(tx: Transaction, key: str, lock_id: str) -> Lock:
    """The lock, if this lock_id holds it now.

    Raises: LockNotHeld.
    """
    lock = tx.get(Lock, key)
    if lock is None or lock.lock_id != lock_id or not rules.is_held(lock, tx.now):
        reason = rules.why_not_held(lock, lock_id)
        raise LockNotHeld(f"You do not hold {key}: {reason}.", key=key, reason=reason)
    return lock


# -- passing on --------------------------------------------------------------------------------------


def pass_on(tx: Transaction, lock: Lock) -> None:
    """End a hold whose time is up and give a free lock to the next waiter."""
    emit(tx, lock, rules.expire(lock, tx.now))
    if lock.lock_id is None and lock.queued:
        facts = rules.promote(
            lock,
            tx.queue(Claim, lock),
            tx.now,
            tx.epoch,
            is_alive=lambda claim: is_alive(tx, claim),
            leave=tx.remove,
        )
        emit(tx, lock, facts)


def is_alive(tx: Transaction, claim: Claim) -> bool:
    process = tx.at(Process, claim.process)
    return process is not None and process.expires_at > tx.now


def emit(tx: Transaction, lock: Lock, facts: Iterable[rules.Fact]) -> None:
    """Write facts to the lock's stream; a waiter's kept answer is settled in the same transaction."""
    for fact in facts:
        tx.emit(lock, fact.type, fact.data)
        answer_id = fact.claim and fact.claim.__dict__.get("answer_id")
        if answer_id and fact.type != "lock.queued":
            settle(tx, lock, answer_id, fact)


def settle(tx: Transaction, lock: Lock, answer_id: str, fact: rules.Fact) -> None:
    """A granted waiter's retry gets the grant; a refusal is not kept, so that asking again asks again."""
    kept = tx.at(Answer, answer_id)
    if kept is None:
        return
    if fact.type == "lock.acquired":
        answer = grant(lock, fact.data["waited_seconds"])
        kept.body, kept.status, kept.waiting = encode(answer).decode(), 201, None
    else:
        tx.remove(kept)


@command(touches=touches)
def withdraw(tx: Transaction, *, key: str, lock_id: str, ticket: int, keep: bool) -> Any:
    """A waiter gives up its place: it timed out (`keep`) or its client is gone (give back what it was granted)."""
    lock = tx.get(Lock, key)
    if lock is None:
        return {}
    claim = tx.at(Claim, f"{lock.id}#{ticket:015d}")
    if claim is not None and claim.lock_id == lock_id:
        tx.remove(claim)
        lock.queued -= 1
        emit(tx, lock, [rules.withdrawn(claim, "timed_out" if keep else "client_gone")])
        pass_on(tx, lock)
    elif lock.lock_id == lock_id and rules.is_held(lock, tx.now):
        if keep:
            return grant(lock)
        emit(tx, lock, [rules.end(lock, "released", by="client_gone")])
        pass_on(tx, lock)
    return {"key": key, "owner": lock.owner, "queue_length": lock.queued}


@command(touches=lambda params: [(Lock, key) for key in params["keys"]])
def sweep(tx: Transaction, *, keys: list[str]) -> int:
    """End holds whose time is up and pass their locks on, whether or not anybody asks for them."""
    for key in keys:
        if lock := tx.get(Lock, key):
            pass_on(tx, lock)
    return len(keys)


# -- the fence ---------------------------------------------------------------------------------------


def check_fence(tx: Transaction, fence: Fence) -> None:
    """Refuse a write whose token is not current, and record the refusal in `$fence`.

    Raises: FenceStale.
    """
    lock = tx.get(Lock, fence.key)
    if rules.is_current(lock, fence.fencing_token, tx.now):
        return
    last = lock.last_token if lock else 0
    refusal = FenceStale(
        f"Token {fence.fencing_token} of {fence.key} is stale.",
        key=fence.key, fencing_token=fence.fencing_token, last_token=last,
    )  # fmt: skip
    refusal.aftermath = lambda tx: tx.emit(
        tx.stream("$fence"),
        "fence.refused",
        {
            "key": fence.key,
            "fencing_token": fence.fencing_token,
            "last_token": last,
            "operation": tx.job.operation.name,
        },
    )
    raise refusal


guard.touches = staticmethod(lambda fence: [(Lock, fence.key)])
guard.check = staticmethod(check_fence)


# -- looking -----------------------------------------------------------------------------------------

LOOK = """select id, capacity, last_token, queued, lock_id is not null and expires_at > clock_timestamp(),
    owner, acquired_at, expires_at, metadata::text from locks_lock"""
QUEUES = """select s.place, c.* from unnest(%s::text[]) with ordinality s(lock, place) cross join lateral (
    select ticket, owner, permits, since, deadline from locks_claim
    where id > s.lock || '#' and id < s.lock || '$' and deadline > clock_timestamp() order by id limit %s) c
order by s.place, c.ticket"""


def grant(lock: Lock, waited_seconds: float = 0.0) -> Grant:
    held: Any = lock  # whose holder's columns are all there
    return Grant(
        held.lock_id, held.name, held.owner, "exclusive", 1, held.last_token, held.acquired_at,
        held.expires_at, held.ttl_seconds, waited_seconds,
    )  # fmt: skip


def situation(lock: Lock, tx: Transaction) -> dict[str, Any]:
    """What a refused caller is told: who holds, how many wait, when to ask again."""
    assert lock.expires_at
    return {
        "key": lock.name,
        "holders": [{"owner": lock.owner, "mode": "exclusive", "expires_at": lock.expires_at}],
        "queue_length": lock.queued,
        "retry_after_seconds": round(max(0.0, (lock.expires_at - tx.now).total_seconds()), 3),
    }


def summary(row: Sequence[Any]) -> tuple[str, bool, int, int, list[Holder], int]:
    address, capacity, last_token, queued, is_locked, owner, acquired_at, expires_at, metadata = row
    key = address.partition("/")[2]
    holders = []
    if is_locked:
        about = Fragment(metadata or "{}")
        holders = [Holder(owner, "exclusive", 1, None, last_token, acquired_at, expires_at, about)]
    return key, is_locked, capacity, last_token, holders, queued


@query(
    "GET locks/{key}", returns=LockState, aliases=["GET locks/{key}/status"], hot=True, volatile=volatile.get
)
async def get(call: Call, *, key: Key) -> LockState:
    """Who holds a lock and who waits for it, in order (the first 200). A free or unknown key is not locked."""
    address = f"{call.namespace.name}/{key}"
    found = await rows(f"{LOOK} where id = %s", [address])
    if not found:
        return LockState(key, False, 1, 0, [], 0, [])
    (waiting,) = await waiters_of([address], 200) if found[0][3] else ([],)
    return LockState(*summary(found[0]), waiting)


async def waiters_of(addresses: Sequence[str], limit: int) -> list[list[Waiter]]:
    """Who waits for each of several locks, in order: one statement for all."""
    found: list[list[Waiter]] = [[] for _ in addresses]
    for place, ticket, owner, *rest in await rows(QUEUES, [list(addresses), limit]):
        found[place - 1].append(Waiter(ticket, owner, "exclusive", *rest))
    return found


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
    """Locks by key prefix, owner, held or contended, in key order."""
    start = f"{call.namespace.name}/{prefix}"
    # "~" comes after everything that a key may hold, so these are the keys that begin so.
    conditions, values = ["id >= %s", "id < %s", "id > %s"], [start, start + "~", cursor or ""]
    if owner is not None:
        conditions.append("owner = %s and lock_id is not null and expires_at > clock_timestamp()")
        values.append(owner)
    if held is not None:
        conditions.append(f"{'' if held else 'not '}(lock_id is not null and expires_at > clock_timestamp())")
    if contended is not None:
        conditions.append("queued > 0" if contended else "queued = 0")
    found = await rows(f"{LOOK} where {' and '.join(conditions)} order by id limit %s", [*values, limit + 1])
    more = found[limit - 1][0] if len(found) > limit else None
    return Locks([LockSummary(*summary(row)) for row in found[:limit]], more and encode_cursor(more))


@query("POST locks/{key}/check", returns=Currency, hot=True, volatile=volatile.check)
async def check(call: Call, *, key: Key, fencing_token: Token) -> Currency:
    """Is this fencing token the lock's current one, and is the lock held? For resources that keep no state."""
    found = await rows(f"{LOOK} where id = %s", [f"{call.namespace.name}/{key}"])
    if not found:
        return Currency(False, 0)
    _, _, last_token, _, is_locked, *_ = found[0]
    return Currency(bool(is_locked) and last_token == fencing_token, last_token)


# -- what nobody asks for ----------------------------------------------------------------------------

# Expired holds that somebody waits for, by the partial index over contended locks: prompt and cheap.
CONTENDED = """select id from locks_lock where queued > 0 and (lock_id is null or expires_at <= clock_timestamp())
    limit 200"""
# The others only for the log's sake: who asks sees them free already. A scan, so it rests in proportion.
FORGOTTEN = (
    "select id from locks_lock where lock_id is not null and expires_at <= clock_timestamp() limit 200"
)


@every(0.4)
async def sweep_contended() -> None:
    await sweep_found(CONTENDED)


@every(5)
async def sweep_forgotten() -> None:
    """Log what expired without anybody asking; rest twenty times as long as the scan took."""
    started = monotonic()
    while await sweep_found(FORGOTTEN) == 200 and monotonic() - started < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(20 * (monotonic() - started))


async def sweep_found(statement: str) -> int:
    keys: dict[str, list[str]] = {}
    for (address,) in await rows(statement):
        namespace, _, key = address.partition("/")
        keys.setdefault(namespace, []).append(key)
    for name, found in keys.items():
        call = Call(SYSTEM, await namespaces.get(name))
        await runtime.carry_out(sweep, call, {"keys": sorted(found)})
    return sum(map(len, keys.values()))
