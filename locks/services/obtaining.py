"""Locks for other apps: what a session obtains in the course of its own transactions. No operation is here.

Nobody waits in a process for such a lock: its place in the queue lasts until its time or its session is over.
"""

from collections.abc import Callable, Sequence

from core.batch import Transaction
from core.models import Session
from locks.models import Claim, Lock
from locks.services.deadlocks import refuse_deadlock
from locks.services.holds import Asker, first_busy, member_of
from locks.services.queues import (
    NOBODY,
    all_holds,
    finish,
    grant_now,
    holdings,
    leave,
    pass_on,
    queue_up,
    when_granted,
)
from locks.types import Item

WAITING = "select 1 from locks_claim where session = $1 and id > $2 and id < $3 limit 1"


def obtain(
    tx: Transaction, session: Session, owner: str, items: Sequence[Item], wait_seconds: float
) -> dict[str, int] | None:
    """The session's fencing tokens by key, once it has all of these locks; None while it waits for them.

    Ask again with the same items, now and then, and when `granted` says so. `owner` is a label for people.
    Raises: Deadlock, CapacityMismatch.
    """
    items = sorted(items, key=lambda item: item.key)
    locks = [tx.get(Lock, item.key) or tx.add(Lock, item.key) for item in items]
    tokens = {lock.name: token for lock in locks if (token := token_of(tx, lock, session))}
    if len(tokens) == len(items):
        return tokens
    if any(is_waiting(tx, lock, session) for lock in locks):
        return None
    asker = Asker(owner, session, session.ttl_seconds, None)
    party = [
        member_of(tx, asker, item.key, item.mode, item.permits, item.capacity)
        for item in items
        if item.key not in tokens
    ]
    if first_busy(tx, party) is None:
        return tokens | {
            lock.name: grant_now(tx, lock, claim, session).data["fencing_token"] for lock, claim in party
        }
    refuse_deadlock(tx, party)
    queue_up(tx, party, wait_seconds, is_many=len(party) > 1, process=NOBODY)
    return None


def token_of(tx: Transaction, lock: Lock, session: Session) -> int | None:
    holds = [hold for hold in all_holds(tx, lock) if hold.session == session.name]
    return holds[0].token if holds else None


def is_waiting(tx: Transaction, lock: Lock, session: Session) -> bool:
    """In this batch, or since before it."""
    mine = [claim for claim in tx.loaded(Claim) if claim.session == session.name]
    if any(claim.id.startswith(f"{lock.id}#") for claim in mine):
        return True
    found = tx.look(WAITING, session.name, f"{lock.id}#", f"{lock.id}$") if lock.queued else []
    return bool(found)


def give_back(tx: Transaction, session: Session, keys: Sequence[str]) -> None:
    """Release what the session holds of these locks, and give up what it waits for there."""
    locks = [lock for key in sorted(keys) if (lock := tx.get(Lock, key))]
    for lock in locks:
        for hold in all_holds(tx, lock):
            if hold.session == session.name:
                finish(tx, lock, hold, "released")
    others = leave_queues(tx, session, [lock.id for lock in locks if lock.queued])
    pass_on(tx, *locks, *(lock for lock in others if lock not in locks))


def leave_queues(tx: Transaction, session: Session, locks: Sequence[str]) -> list[Lock]:
    """Returns the locks that were waited for, with others as well, where several were wanted at once."""
    mine = holdings(tx, session.name) if locks else ()
    places = sorted({place for model, place in mine if model is Claim and place.partition("#")[0] in locks})
    tx.load(*((Claim, place) for place in places))
    claims = (tx.at(Claim, place) for place in places)
    return [lock for claim in claims if claim for lock in leave(tx, claim, "given_up")]


def granted(function: Callable[[Transaction, Claim], None]) -> None:
    """Register what is called in the transaction that grants a place which no process waits in."""
    when_granted.append(function)
