"""Who gets a lock, when and for how long. Pure: state and time in, changed state and facts out.

The rules mutate the aggregates they are given and return the facts that became true; they know no database,
no clock and no transport. One rule covers every kind of lock: a hold has permits, and the permits of all holds
never exceed the capacity; shared holds take none and leave none.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from locks.models import Claim, Hold, Lock

TOKEN_BITS = 40  # a token is epoch * 2^40 + a counter: larger after every failover
ENDINGS = 32  # how many of its last holds a lock remembers at least
MANY = 1000  # and at most
MARK = 8  # letters of a lock_id that tell those apart
REASONS = {reason[0]: reason for reason in ("expired", "released", "force_released")}


@dataclass(slots=True)
class Fact:
    """Something that became true of a lock, on its way into the log."""

    type: str
    data: dict[str, Any]
    claim: Claim | None = field(default=None)


class Leased(Protocol):
    """A hold: a row of its own, or the lock's row."""

    lock_id: Any
    owner: Any
    session: Any
    acquired_at: Any
    expires_at: Any
    metadata: Any

    @property
    def token(self) -> int: ...


# -- what is so --------------------------------------------------------------------------------------


def is_held(hold: Leased, now: datetime) -> bool:
    """A hold lasts until its last instant; one of a session until somebody ends the session."""
    return hold.lock_id is not None and (hold.expires_at is None or hold.expires_at > now)


def is_free(lock: Lock) -> bool:
    return lock.lock_id is None and not lock.used and not lock.shared


def is_delayed(lock: Lock, now: datetime) -> bool:
    return lock.not_before is not None and lock.not_before > now


def fits(lock: Lock, claim: Claim, now: datetime) -> bool:
    """Is there room for this claim beside the present holds?"""
    if lock.lock_id is not None or is_delayed(lock, now):
        return False
    if claim.mode == "shared":
        return lock.used == 0
    return lock.shared == 0 and lock.used + claim.permits <= lock.capacity


def has_capacity(lock: Lock, permits: int, capacity: int | None) -> bool:
    """Can so many permits ever be had, of the capacity that is asked for?"""
    return permits <= lock.capacity and capacity in (None, lock.capacity)


def is_sole(lock: Lock, claim: Claim) -> bool:
    """Would it leave room for no other? Then it stands on the lock's row."""
    return claim.mode == "exclusive" and claim.permits == lock.capacity


def why_not_held(lock: Lock | None, hold: Leased | None, lock_id: str) -> str:
    """What became of a hold: `expired`, `released`, `force_released` or `never_held`.

    A lock remembers at least its last 32 holds; of one before them it says `never_held`.
    """
    if lock is None:
        return "never_held"
    if hold is not None:
        return "expired"
    for start in range(0, len(lock.endings), MARK + 1):
        if lock.endings[start : start + MARK] == mark(lock_id):
            return REASONS[lock.endings[start + MARK]]
    return "never_held"


def mark(lock_id: str | None) -> str:
    return (lock_id or "")[:MARK].ljust(MARK)


# -- what becomes so ---------------------------------------------------------------------------------


def offer_capacity(lock: Lock, capacity: int | None) -> None:
    """A lock that nobody holds or waits for takes the capacity that is asked for."""
    if capacity is not None and lock.queued == 0 and is_free(lock):
        lock.capacity = capacity


def next_token(lock: Lock, epoch: int, floor: int) -> int:
    """Larger than every token of this lock before, than all of earlier epochs, and than those of pruned rows."""
    lock.last_token = max(lock.last_token, epoch << TOKEN_BITS, floor) + 1
    return lock.last_token


def take(
    lock: Lock,
    hold: Lock | Hold,
    claim: Claim,
    now: datetime,
    epoch: int,
    floor: int = 0,
    lease_until: datetime | None = None,
) -> Fact:
    """Give a claim that fits its hold, with a token larger than every one before.

    Parameters: `hold`, the lock itself for a sole hold, else a new row; `lease_until`, of a claim with a session.
    """
    token = next_token(lock, epoch, floor)
    hold.lock_id, hold.owner, hold.session = claim.lock_id, claim.owner, claim.session
    hold.metadata, hold.acquired_at = claim.metadata, now
    hold.ttl_seconds = claim.ttl_seconds
    until = lease_until or now + timedelta(seconds=claim.ttl_seconds)
    hold.expires_at = None if claim.session else until
    if isinstance(hold, Hold):
        hold.token, hold.mode, hold.permits = token, claim.mode, claim.permits
        count(lock, hold, 1)
        mind(lock, hold.expires_at)
    return acquired(lock, claim, token, now, until)


def acquired(lock: Lock, claim: Claim, token: int, now: datetime, until: datetime) -> Fact:
    data = {
        "owner": claim.owner,
        "mode": claim.mode,
        "permits": claim.permits,
        "fencing_token": token,
        "acquired_at": now,
        "expires_at": until,
        "ttl_seconds": claim.ttl_seconds,
        "waited_seconds": max(0.0, (now - claim.since).total_seconds()),
    }
    if claim.session:
        data["session_id"] = claim.session
    if claim.ticket:
        data["ticket"] = claim.ticket
    return Fact("lock.acquired", data, claim)


def count(lock: Lock, hold: Hold, sign: int) -> None:
    if hold.mode == "shared":
        lock.shared += sign
    else:
        lock.used += sign * hold.permits


def mind(lock: Lock, expires_at: datetime | None) -> None:
    """Look for expired holds again no later than this one's end."""
    if expires_at is not None and (lock.expires_at is None or expires_at < lock.expires_at):
        lock.expires_at = expires_at


def renew(lock: Lock, hold: Lock | Hold, ttl_seconds: float, now: datetime) -> None:
    """Give a hold its whole time, from now on."""
    hold.ttl_seconds = ttl_seconds
    hold.expires_at = now + timedelta(seconds=ttl_seconds)
    if hold is not lock:
        mind(lock, hold.expires_at)


def end(lock: Lock, hold: Lock | Hold, reason: str, now: datetime, **more: Any) -> Fact:
    """End a hold and remember why, for its holder's next call. A row of its own is the caller's to remove."""
    held = max(0.0, (now - hold.acquired_at).total_seconds()) if hold.acquired_at else 0.0
    data = {"owner": hold.owner, "fencing_token": hold.token, "held_seconds": held, **more}
    if hold.session:
        data["session_id"] = hold.session
    remember(lock, hold.lock_id, reason)
    if isinstance(hold, Hold):
        count(lock, hold, -1)
    if hold is lock or is_free(lock):
        clear(lock)
    return Fact(f"lock.{reason}", data)


def remember(lock: Lock, lock_id: str | None, reason: str) -> None:
    """Of those that an operator ended together, all; by and by the usual number again."""
    count = len(lock.endings) // (MARK + 1) + (1 if reason == "force_released" else -1)
    keep = max(ENDINGS, min(count, MANY)) * (MARK + 1)
    lock.endings = f"{mark(lock_id)}{reason[0]}{lock.endings}"[:keep]


def clear(lock: Lock) -> None:
    """Nobody holds it."""
    lock.lock_id = lock.owner = lock.session = lock.metadata = None
    lock.acquired_at = lock.expires_at = lock.ttl_seconds = None


def delay(lock: Lock, until: datetime) -> None:
    """Give it to nobody until then."""
    if lock.not_before is None or lock.not_before < until:
        lock.not_before = until


def enqueue(lock: Lock, claim: Claim) -> Fact:
    """Put a claim at the end of the queue; it has the lock's next ticket."""
    lock.last_ticket = claim.ticket
    lock.queued += 1
    data = {
        "owner": claim.owner,
        "mode": claim.mode,
        "permits": claim.permits,
        "ticket": claim.ticket,
        "deadline": claim.deadline,
    }
    if claim.session:
        data["session_id"] = claim.session
    return Fact("lock.queued", data, claim)


def withdraw(lock: Lock, claim: Claim, reason: str, **more: Any) -> Fact:
    """Take a claim out of the queue, without a hold."""
    lock.queued -= 1
    data = {"owner": claim.owner, "ticket": claim.ticket, "reason": reason, **more}
    return Fact("lock.withdrawn", data, claim)
