"""Who gets a lock, when and for how long. Pure: state and time in, changed state and facts out.

The rules mutate the aggregates they are given and return the facts that became true; they know no database,
no clock and no transport.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from locks.models import Claim, Lock

TOKEN_BITS = 40  # a token is epoch * 2^40 + a counter: larger after every failover
ENDINGS = 32  # how many of its last holds a lock remembers
MARK = 8  # letters of a lock_id that tell those apart
REASONS = {reason[0]: reason for reason in ("expired", "released", "force_released")}


@dataclass(slots=True)
class Fact:
    """Something that became true of a lock, on its way into the log."""

    type: str
    data: dict[str, Any]
    claim: Claim | None = field(default=None)


def is_held(lock: Lock, now: datetime) -> bool:
    return lock.lock_id is not None and lock.expires_at is not None and lock.expires_at > now


def is_current(lock: Lock | None, token: int, now: datetime) -> bool:
    """Is this the token of the present hold? What a resource asks before it takes a write."""
    return lock is not None and lock.last_token == token and is_held(lock, now)


def take(lock: Lock, claim: Claim, now: datetime, epoch: int, floor: int = 0) -> Fact:
    """Give a free lock to a claim, with a token larger than every one before."""
    lock.last_token = max(lock.last_token, epoch << TOKEN_BITS, floor) + 1
    lock.lock_id, lock.owner, lock.metadata = claim.lock_id, claim.owner, claim.metadata
    lock.ttl_seconds, lock.acquired_at = claim.ttl_seconds, now
    lock.expires_at = now + timedelta(seconds=claim.ttl_seconds)
    data = {
        "owner": claim.owner,
        "mode": "exclusive",
        "permits": claim.permits,
        "fencing_token": lock.last_token,
        "acquired_at": now,
        "expires_at": lock.expires_at,
        "ttl_seconds": claim.ttl_seconds,
        "waited_seconds": max(0.0, (now - claim.since).total_seconds()),
    }
    if claim.ticket:
        data["ticket"] = claim.ticket
    return Fact("lock.acquired", data, claim)


def end(lock: Lock, reason: str, **more: Any) -> Fact:
    """End the present hold and remember why, for its holder's next call."""
    fact = Fact(f"lock.{reason}", {"owner": lock.owner, "fencing_token": lock.last_token, **more})
    lock.endings = f"{mark(lock.lock_id)}{reason[0]}{lock.endings}"[: ENDINGS * (MARK + 1)]
    lock.lock_id = lock.owner = lock.metadata = None
    lock.acquired_at = lock.expires_at = lock.ttl_seconds = None
    return fact


def expire(lock: Lock, now: datetime) -> list[Fact]:
    """End a hold whose time is up."""
    if lock.lock_id is None or is_held(lock, now):
        return []
    return [end(lock, "expired", expired_at=lock.expires_at)]


def why_not_held(lock: Lock | None, lock_id: str) -> str:
    """What became of a hold: `expired`, `released`, `force_released` or `never_held`.

    A lock remembers its last 32 holds; of one before them it says `never_held`.
    """
    if lock is None:
        return "never_held"
    if lock.lock_id == lock_id:
        return "expired"
    for start in range(0, len(lock.endings), MARK + 1):
        if lock.endings[start : start + MARK] == mark(lock_id):
            return REASONS[lock.endings[start + MARK]]
    return "never_held"


def mark(lock_id: str | None) -> str:
    return (lock_id or "")[:MARK].ljust(MARK)


def promote(
    lock: Lock,
    queue: Iterable[Claim],
    now: datetime,
    epoch: int,
    *,
    is_alive: Callable[[Claim], bool],
    leave: Callable[[Claim], None],
    floor: int = 0,
) -> list[Fact]:
    """Give a free lock to the first waiter that still waits. Strict FIFO: nobody overtakes.

    Parameters: `queue` in ticket order; `is_alive` tells whether a claim's process lives; `leave` takes a claim out.
    """
    facts: list[Fact] = []
    if lock.lock_id is not None or lock.queued == 0:
        return facts
    for claim in queue:
        leave(claim)
        lock.queued -= 1
        if claim.deadline <= now:
            facts.append(withdrawn(claim, "timed_out"))
        elif not is_alive(claim):
            facts.append(withdrawn(claim, "process_gone"))
        else:
            return [*facts, take(lock, claim, now, epoch, floor)]
    return facts


def enqueue(lock: Lock, claim: Claim) -> Fact:
    """Put a claim at the end of the queue; it has the lock's next ticket."""
    lock.last_ticket = claim.ticket
    lock.queued += 1
    data = {"owner": claim.owner, "ticket": claim.ticket, "deadline": claim.deadline}
    return Fact("lock.queued", data, claim)


def withdrawn(claim: Claim, reason: str) -> Fact:
    return Fact("lock.withdrawn", {"owner": claim.owner, "ticket": claim.ticket, "reason": reason}, claim)
