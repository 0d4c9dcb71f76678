"""Taking locks, one or several, and giving them back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Annotated, Any

from pydantic import Field

from core.batch import Transaction
from core.errors import Invalid, SyrosError, Unavailable
from core.models import Session
from core.operations import Waiting, Waits, command, refused
from core.sessions import LockDelay, SessionEnded, SessionId, live
from core.types import Object, Text
from locks import rules, volatile
from locks.errors import CapacityMismatch, Deadlock, LockNotHeld, LockWaitTimeout, busy_with
from locks.models import ELECTION, Claim, Hold, Lock
from locks.services.deadlocks import refuse_deadlock
from locks.services.queues import (
    Member,
    all_holds,
    finish,
    grant_now,
    grant_of,
    is_orphan,
    leave,
    pass_on,
    queue_up,
    refresh,
)
from locks.types import (
    TTL,
    Capacity,
    ForceReleased,
    Grant,
    Grants,
    Item,
    Key,
    Keys,
    LockId,
    Mode,
    OptionalTtl,
    Owner,
    Permits,
    Released,
    WaitSeconds,
)

ROW = "h"  # how the lock_id of a hold ends that has a row of its own, so that it is loaded with the batch
SHOWN = 8  # holders that a refusal names


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    """The lock, and the session it is asked for with."""
    if session_id := params.get("session_id"):
        return ((Lock, params["key"]), (Session, session_id))
    return ((Lock, params["key"]),)


def touches_many(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    wanted = [*(params["keys"] or ()), *(item.key for item in params["items"] or ())]
    found: list[tuple[type[Any], str]] = [(Lock, key) for key in wanted]
    if session_id := params.get("session_id"):
        found.append((Session, session_id))
    return found


def touches_place(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    """The lock, and the row of a hold that has one."""
    key, lock_id = params["key"], params["lock_id"]
    return ((Lock, key), (Hold, f"{key}#{lock_id}")) if lock_id.endswith(ROW) else ((Lock, key),)


# -- taking ------------------------------------------------------------------------------------------


def granted(facts: dict[str, Any], kind: str, data: dict[str, Any]) -> Any:
    """What an event with a waiter's ticket means for the waiter."""
    if kind == "lock.acquired":
        ((key, lock_id, _),) = facts["places"]
        return {"lock_id": lock_id, "key": key, **{name: data[name] for name in GRANTED}}
    return withdrawn(facts, kind, data)


def granted_many(facts: dict[str, Any], kind: str, data: dict[str, Any]) -> Any:
    if kind == "lock.acquired":
        ids = {key: lock_id for key, lock_id, _ in facts["places"]}
        return {"grants": [{"lock_id": ids[grant["key"]], **grant} for grant in data["grants"]]}
    return withdrawn(facts, kind, data)


GRANTED = (
    "owner", "mode", "permits", "fencing_token", "acquired_at", "expires_at", "ttl_seconds", "waited_seconds",
)  # fmt: skip


def withdrawn(facts: dict[str, Any], kind: str, data: dict[str, Any]) -> SyrosError | None:
    """Why a waiter's place is gone, if that is what the event says."""
    if not kind.endswith(".withdrawn"):
        return None
    reason, key = data["reason"], name_of(facts)
    if reason in ("process_gone", "client_gone"):
        # This process stood still, or a retry waits here in the place of a process that was killed, or of a client
        # whose going its own process noticed late.
        return Unavailable(f"Your place for {key} was given up where you first asked. Ask again.")
    if reason == "deadlock":
        return Deadlock(data["words"], key=key, cycle=data["cycle"])
    if reason.startswith("session_"):
        return SessionEnded(f"The session you waited with has ended: {reason}.", reason=reason[8:])
    return LockWaitTimeout(f"You left the queue of {key}: {reason}.", key=key)


def timed_out(facts: dict[str, Any], value: Any) -> Any:
    """What a withdrawal at the end of the wait means: a grant after all, or the refusal."""
    if isinstance(value, Grant | Grants):
        return value
    raise LockWaitTimeout(f"{name_of(facts)} did not come free in time.", **value)


def name_of(facts: dict[str, Any]) -> str:
    """What is waited for, in the words of who waits."""
    key: str = facts["places"][0][0]
    return key.removeprefix(ELECTION)


def timed_out_many(facts: dict[str, Any], value: Any) -> Any:
    return Grants([value]) if isinstance(value, Grant) else timed_out(facts, value)


def place(value: Any) -> dict[str, Any]:
    grants = value.grants if isinstance(value, Grants) else [value]
    return {"places": [[grant.key, grant.lock_id, 0] for grant in grants]}


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
    ttl_seconds: OptionalTtl = None,
    wait_seconds: WaitSeconds = 0.0,
    mode: Mode = "exclusive",
    permits: Permits = 1,
    capacity: Capacity = None,
    session_id: SessionId | None = None,
    metadata: Object = "{}",
) -> Grant | Waiting:
    """Take a lock, or join its queue and wait.

    `owner` is a label for people; the answer's `lock_id` proves the hold, and its `fencing_token` is what a
    resource compares. The lock ends `ttl_seconds` (0.1 to 86400, 30 unless said) after the last renewal, or, with
    a `session_id`, with that session. `mode` shared: beside other shared holders, and no exclusive one. With a
    `capacity` (1 to 2^31-1) it is a semaphore, of which you take `permits`; the capacity stays until nobody holds
    or waits and somebody asks for another. With `wait_seconds` (at most 300) a lock that has no room is waited
    for, first come first served, across all processes; the place is lost when the connection closes. Locks are not
    reentrant.

    Errors: `lock_held` (409, with holders, retry_after_seconds and lock_delay_until), `lock_wait_timeout` (409),
    `capacity_mismatch` (409), `deadlock` (409, with the cycle), `session_not_found` (404), `session_ended` (409).
    """
    asker = asker_for(tx, owner, ttl_seconds, session_id, None if metadata == "{}" else metadata)
    member = member_of(tx, asker, key, mode, permits, capacity)
    if (busy := first_busy(tx, [member])) is None:
        return grant_of(*member, grant_now(tx, *member, asker.session))
    return wait_for(tx, [member], busy, wait_seconds)


@command(
    "POST locks/acquire-many",
    returns=Grants,
    status=201,
    hot=True,
    touches=touches_many,
    waits=Waits("locks.withdraw", granted_many, timed_out_many, place),
    volatile=refused,
)
def acquire_many(
    tx: Transaction,
    *,
    owner: Owner,
    keys: Keys | None = None,
    items: Annotated[list[Item], Field(min_length=1, max_length=64)] | None = None,
    ttl_seconds: OptionalTtl = None,
    wait_seconds: WaitSeconds = 0.0,
    session_id: SessionId | None = None,
    metadata: Object = "{}",
) -> Grants | Waiting:
    """Take up to 64 locks at once: all of them or none, each with a token of its own.

    `keys` are exclusive locks; `items` say mode, permits and capacity for each. Who waits holds nothing meanwhile,
    has a place in every queue, and is served when it is the first in all of them and all have room: so nobody
    deadlocks, overtakes or starves. The rest is as in `locks.acquire`.

    Errors: as `locks.acquire`; `lock_held` names the first key that has no room.
    """
    wanted = wanted_of(keys, items)
    asker = asker_for(tx, owner, ttl_seconds, session_id, None if metadata == "{}" else metadata)
    party = [
        member_of(tx, asker, item.key, item.mode, item.permits, item.capacity)
        for item in sorted(wanted, key=lambda item: item.key)
    ]
    if (busy := first_busy(tx, party)) is None:
        return Grants([grant_of(*member, grant_now(tx, *member, asker.session)) for member in party])
    return wait_for(tx, party, busy, wait_seconds, is_many=True)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for locks, and whose lease theirs is."""

    owner: str
    session: Session | None
    ttl_seconds: float
    metadata: str | None


def asker_for(
    tx: Transaction, owner: str, ttl_seconds: float | None, session_id: str | None, metadata: str | None
) -> Asker:
    """Raises: Invalid, SessionNotFound, SessionEnded."""
    if session_id is None:
        return Asker(owner, None, ttl_seconds or TTL, metadata)
    refuse_ttl(ttl_seconds)
    session = live(tx, session_id)
    return Asker(owner, session, session.ttl_seconds, metadata)


def member_of(
    tx: Transaction, asker: Asker, key: str, mode: str, permits: int, capacity: int | None
) -> Member:
    """A lock as it is now, and the claim that is laid to it.

    Raises: CapacityMismatch, Invalid.
    """
    lock = tx.get(Lock, key) or tx.add(Lock, key)
    refresh(tx, lock)
    if mode == "shared" and permits != 1:
        raise Invalid([{"pointer": "/permits", "code": "shared", "detail": "a shared hold takes no permits"}])
    rules.offer_capacity(lock, capacity)
    if not rules.has_capacity(lock, permits, capacity):
        detail = f"{lock.name} has a capacity of {lock.capacity}."
        raise CapacityMismatch(detail, key=lock.name, capacity=lock.capacity)
    return lock, claim_for(tx, lock, asker, mode, permits)


def first_busy(tx: Transaction, party: Sequence[Member]) -> Lock | None:
    """The first lock that has no room, or for which others wait."""
    return next((lock for lock, claim in party if lock.queued or not rules.fits(lock, claim, tx.now)), None)


def wait_for(
    tx: Transaction, party: Sequence[Member], busy: Lock, wait_seconds: float, *, is_many: bool = False
) -> Waiting:
    """Raises: LockHeld, Deadlock."""
    if not wait_seconds:
        raise busy_with(situation(tx, busy))
    refuse_deadlock(tx, party)
    return queue_up(tx, party, wait_seconds, is_many=is_many)


def wanted_of(keys: list[str] | None, items: list[Item] | None) -> list[Item]:
    """What is asked for, each key once.

    Raises: Invalid.
    """
    if (keys is None) == (items is None):
        raise Invalid([{"pointer": "/keys", "code": "one_of", "detail": "either keys or items"}])
    found = [Item.model_construct(key=key) for key in keys] if keys is not None else items or []
    name = "keys" if keys is not None else "items"
    seen: dict[str, int] = {}
    errors = [
        {"pointer": f"/{name}/{place}", "code": "duplicate", "detail": f"the same as {name}/{seen[item.key]}"}
        for place, item in enumerate(found)
        if seen.setdefault(item.key, place) != place
    ]
    if errors:
        raise Invalid(errors)
    return found


def refuse_ttl(ttl_seconds: float | None) -> None:
    """Raises: Invalid."""
    if ttl_seconds is not None:
        detail = "with session_id the lock lives as long as the session"
        raise Invalid([{"pointer": "/ttl_seconds", "code": "with_session", "detail": detail}])


def claim_for(tx: Transaction, lock: Lock, asker: Asker, mode: str, permits: int) -> Claim:
    claim = Claim.__new__(Claim)  # not stored unless it has to wait
    claim.__dict__.update(
        lock_id=token_hex(16), owner=asker.owner, mode=mode, permits=permits, ticket=0, since=tx.now,
        session=asker.session and asker.session.name, ttl_seconds=asker.ttl_seconds, metadata=asker.metadata,
        lead=None, answer_id=None,
    )  # fmt: skip
    if not rules.is_sole(lock, claim):
        claim.lock_id += ROW
    return claim


def situation(tx: Transaction, lock: Lock) -> dict[str, Any]:
    """What a refused caller is told: who holds, how many wait, when to ask again."""
    holds: list[Any] = [lock] if lock.lock_id else []
    if lock.shared or lock.used:
        some = [hold for _, hold in zip(range(SHOWN), tx.queue(Hold, lock), strict=False)]
        holds = sorted(some, key=lambda hold: hold.token)
    holders = [
        {
            "owner": hold.owner,
            "mode": hold.mode,
            "session_id": hold.session,
            "expires_at": ends_at(tx, lock, hold),
        }
        for hold in holds
    ]
    delayed = lock.not_before if rules.is_delayed(lock, tx.now) else None
    free_at = min([holder["expires_at"] for holder in holders], default=None) or delayed
    return {
        "key": lock.name,
        "holders": holders,
        "queue_length": lock.queued,
        "retry_after_seconds": round(max(0.0, (free_at - tx.now).total_seconds()), 3) if free_at else 0.0,
        "lock_delay_until": delayed,
    }


EXPIRY = "select expires_at from core_session where id = $1"


def ends_at(tx: Transaction, lock: Lock, hold: Lock | Hold) -> datetime:
    if not hold.session:
        assert hold.expires_at
        return hold.expires_at
    found = tx.look(EXPIRY, f"{lock.namespace}/{hold.session}")
    return found[0][0] if found else tx.now  # opened in this very batch


# -- keeping and giving back -------------------------------------------------------------------------


@command(
    "POST locks/{key}/renew",
    returns=Grant,
    aliases=["PUT locks/{key}/extend"],
    hot=True,
    touches=touches_place,
    volatile=volatile.renew,
)
def renew(tx: Transaction, *, key: Key, lock_id: LockId, ttl_seconds: OptionalTtl = None) -> Grant:
    """Give a lock you hold a full TTL again, or a new one. One of a session is kept by `sessions.keepalive`; here it
    is only confirmed.

    Renewals are not events: they change nothing that anyone else must know.

    Errors: `lock_not_held` (409) with a `reason`: expired, released, force_released or, also for a hold that
    32 others have followed, never_held.
    """
    lock, hold = held(tx, key, lock_id)
    extend(tx, lock, hold, ttl_seconds)
    return regranted(tx, lock, hold)


def extend(tx: Transaction, lock: Lock, hold: Lock | Hold, ttl_seconds: float | None) -> None:
    """Give a hold its time again; one of a session has its session's.

    Raises: Invalid.
    """
    if hold.session:
        refuse_ttl(ttl_seconds)
    else:
        rules.renew(lock, hold, ttl_seconds or hold.ttl_seconds or TTL, tx.now)


@command(
    "POST locks/{key}/release",
    returns=Released,
    aliases=["DELETE locks/{key}"],
    hot=True,
    touches=touches_place,
    volatile=volatile.release,
)
def release(tx: Transaction, *, key: Key, lock_id: LockId, owner: Owner | None = None) -> Released:
    """Give a lock back; the first waiter has it in the same transaction.

    `owner` is accepted and ignored: the `lock_id` proves the hold.

    Errors: `lock_not_held` (409) with a `reason`.
    """
    lock, hold = held(tx, key, lock_id)
    token = hold.token
    finish(tx, lock, hold, "released")
    pass_on(tx, lock)
    return Released(key, True, token)


def held(tx: Transaction, key: str, lock_id: str) -> tuple[Lock, Lock | Hold]:
    """The lock and the hold, if this lock_id holds it now.

    Raises: LockNotHeld.
    """
    lock = tx.get(Lock, key)
    hold = hold_of(tx, lock, lock_id) if lock else None
    if lock is None or hold is None or not rules.is_held(hold, tx.now):
        reason = rules.why_not_held(lock, hold, lock_id)
        raise LockNotHeld(f"You do not hold {key}: {reason}.", key=key, reason=reason)
    return lock, hold


def hold_of(tx: Transaction, lock: Lock, lock_id: str) -> Lock | Hold | None:
    if lock.lock_id is not None:
        return lock if lock.lock_id == lock_id else None
    return tx.at(Hold, f"{lock.id}#{lock_id}") if lock.shared or lock.used else None


@command(
    "POST locks/{key}/force-release", returns=ForceReleased, admin=True, touches=touches, volatile=refused
)
def force_release(
    tx: Transaction, *, key: Key, reason: Text, lock_delay_seconds: LockDelay = 0.0
) -> ForceReleased:
    """Take a lock from all who hold it, for operators. What they hold in their hands is stale from then on, and
    their next call says `force_released`; the first waiter has the lock, after `lock_delay_seconds` (0 to 60).

    `reason` (1 to 255 characters) stands in the log beside who did it.

    Errors: `lock_not_held` (409) if nobody holds it.
    """
    lock = tx.get(Lock, key)
    owners = force(tx, lock, reason, lock_delay_seconds) if lock else []
    if lock is None or not owners:
        raise LockNotHeld(f"Nobody holds {key}.", key=key, reason="never_held")
    pass_on(tx, lock)
    return ForceReleased(key, owners, lock.last_token)


def force(tx: Transaction, lock: Lock, reason: str, delay_seconds: float) -> list[str]:
    """End every hold of a lock; whose they were."""
    live_holds = [hold for hold in all_holds(tx, lock) if rules.is_held(hold, tx.now)]
    owners = [hold.owner or "" for hold in live_holds]
    for hold in live_holds:
        finish(tx, lock, hold, "force_released", because=reason)
    if owners:
        rules.next_token(lock, tx.epoch, tx.floor)
    if delay_seconds:
        rules.delay(lock, tx.now + timedelta(seconds=delay_seconds))
    return owners


# -- leaving the queue -------------------------------------------------------------------------------


def touches_places(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    found: list[tuple[type[Any], str]] = []
    for key, lock_id, ticket in params["places"]:
        found += [*touches_place({"key": key, "lock_id": lock_id}), (Claim, f"{key}#{ticket:015d}")]
    return found


@command(touches=touches_places)
def withdraw(tx: Transaction, *, places: list[tuple[str, str, int]], reason: str, keep: bool) -> Any:
    """A waiter gives up its place: it `timed_out`, or the `client_gone`.

    Parameters: key, lock_id and ticket of each lock that it wanted at once; `keep`, whether it has what it was
    granted meanwhile, rather than giving it back.
    """
    return give_up(tx, places, reason, keep)


def give_up(tx: Transaction, places: list[tuple[str, str, int]], reason: str, keep: bool) -> Any:
    key, lock_id, ticket = places[0]
    lead = tx.get(Claim, f"{key}#{ticket:015d}")
    if lead is not None and lead.lock_id == lock_id:
        pass_on(tx, *leave(tx, lead, reason))
    elif holds := [(lock, hold) for each in places for lock, hold in still_held(tx, *each)]:
        if keep and len(holds) == len(places):  # an operator may have taken one of several meanwhile
            grants = [regranted(tx, lock, hold) for lock, hold in holds]
            return grants[0] if len(places) == 1 else Grants(grants)
        for lock, hold in holds:
            finish(tx, lock, hold, "released", by="client_gone")
        pass_on(tx, *(lock for lock, _ in holds))
    wanted = tx.get(Lock, key)
    return situation(tx, wanted) if wanted else {"key": key}


def still_held(tx: Transaction, key: str, lock_id: str, ticket: int) -> list[tuple[Lock, Lock | Hold]]:
    lock = tx.get(Lock, key)
    hold = hold_of(tx, lock, lock_id) if lock else None
    return [(lock, hold)] if lock and hold and rules.is_held(hold, tx.now) else []


def regranted(tx: Transaction, lock: Lock, hold: Lock | Hold) -> Grant:
    """The grant of a hold that is there already."""
    mode: Any = hold.mode
    return Grant(
        hold.lock_id or "", lock.name, hold.owner or "", mode, hold.permits, hold.token,
        hold.acquired_at or tx.now, ends_at(tx, lock, hold), hold.ttl_seconds or TTL, 0.0,
    )  # fmt: skip


@command(touches=lambda params: [(Lock, key) for key in params["keys"]])
def sweep(tx: Transaction, *, keys: list[str]) -> int:
    """End holds whose time is up and pass their locks on, whether or not anybody asks for them."""
    for key in keys:
        if lock := tx.get(Lock, key):
            pass_on(tx, lock)
    return len(keys)


@command(touches=lambda params: [(Lock, address.partition("#")[0]) for address in params["names"]])
def bury(tx: Transaction, *, names: list[str]) -> int:
    """Withdraw the waiters of processes that are gone, wherever they stand in their queues."""
    tx.load(*((Claim, tx.address(name)) for name in names))
    for name in names:
        claim = tx.get(Claim, name)
        if claim is not None and is_orphan(tx, claim):
            pass_on(tx, *leave(tx, claim, "process_gone"))
    return len(names)
