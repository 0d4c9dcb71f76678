"""How locks pass on: who is next, and what a grant and a withdrawal leave behind. No operation is here.

Everything goes through the transaction, which is memory: these functions do no I/O of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from orjson import Fragment

from core.batch import Key, Transaction
from core.encoding import decode, encode
from core.models import Answer, Process, Session
from core.operations import Waiting
from core.sessions import when_ended
from locks import rules
from locks.models import ELECTION, Claim, Hold, Lock
from locks.types import Grant, Grants, Leadership

# What the events of an election are called: it is a lock, but not in the words of its users.
ELECTION_WORDS = {
    "lock.acquired": "election.elected",
    "lock.queued": "election.joined",
    "lock.withdrawn": "election.withdrawn",
    "lock.released": "election.resigned",
    "lock.expired": "election.expired",
    "lock.force_released": "election.deposed",
}
LEASE = """select expires_at from core_session where id = $1 and ended_at is null
    and expires_at > clock_timestamp()"""

Member = tuple[Lock, Claim]
NOBODY = ""  # in the place of a process: the claim of a session that asks again by itself
when_granted: list[Callable[[Transaction, Claim], None]] = []  # called when such a claim is granted


def pass_on(tx: Transaction, *locks: Lock) -> None:
    """End holds whose time is up and give what is free to who waits. Strict FIFO: nobody overtakes."""
    for lock in locks:
        expire(tx, lock)
    tx.load_queues(Claim, (lock for lock in locks if can_move(tx, lock)))
    todo = list(locks)
    while todo:
        lock = todo.pop()
        expire(tx, lock)
        if not rules.is_delayed(lock, tx.now):
            lock.not_before = None  # so that the sweep does not find it again
        while can_move(tx, lock) and (claim := first(tx, lock, todo)):
            party = party_of(tx, claim)
            if not all(is_next(tx, member, todo) for member in party):
                break
            until = lease_of(tx, claim)
            if claim.session and until is None:
                # Its session is over, or about to be kept alive: the sweep looks again.
                rules.delay(lock, tx.now)
                break
            serve(tx, party, until)
            todo += [other for other, _ in party if other is not lock]


def refresh(tx: Transaction, lock: Lock) -> None:
    """Notice what time alone has done: a hold that ran out, or a lock-delay that is over."""
    if expire(tx, lock) or (lock.queued and (rules.is_free(lock) or lock.not_before)):
        pass_on(tx, lock)


def can_move(tx: Transaction, lock: Lock) -> bool:
    return lock.queued > 0 and lock.lock_id is None and not rules.is_delayed(lock, tx.now)


def expire(tx: Transaction, lock: Lock) -> bool:
    """End the holds whose time is up; whether there were any."""
    if lock.expires_at is None or lock.expires_at > tx.now:
        return False
    if lock.lock_id is not None:
        finish(tx, lock, lock, "expired", expired_at=lock.expires_at)
        return True
    lasting = []
    for hold in list(tx.queue(Hold, lock, whole=True)):
        if rules.is_held(hold, tx.now):
            lasting.append(hold.expires_at)
        else:
            finish(tx, lock, hold, "expired", expired_at=hold.expires_at)
    lock.expires_at = min((until for until in lasting if until), default=None)
    return True


def all_holds(tx: Transaction, lock: Lock) -> list[Lock | Hold]:
    if lock.lock_id:
        return [lock]
    if not lock.shared and not lock.used:
        return []
    return sorted(tx.queue(Hold, lock, whole=True), key=lambda hold: hold.token)


def first(tx: Transaction, lock: Lock, todo: list[Lock]) -> Claim | None:
    """The first of the queue that still waits. Those before it are withdrawn, and the other locks they waited for
    are to be looked at."""
    if not lock.queued:
        return None
    for claim in tx.queue(Claim, lock):
        reason = why_gone(tx, claim)
        if reason is None:
            return claim
        todo += [other for other in leave(tx, claim, reason) if other is not lock]
    return None


def why_gone(tx: Transaction, claim: Claim) -> str | None:
    if claim.deadline <= tx.now:
        return "timed_out"
    return "process_gone" if is_orphan(tx, claim) else None


def is_orphan(tx: Transaction, claim: Claim) -> bool:
    """Is the process gone in which its caller waited?"""
    if claim.process == NOBODY:
        return False
    process = tx.at(Process, claim.process)
    return process is None or process.expires_at <= tx.now


def is_next(tx: Transaction, member: Member, todo: list[Lock]) -> bool:
    lock, claim = member
    queued, has_expired = lock.queued, expire(tx, lock)
    found = first(tx, lock, todo)
    if has_expired or lock.queued < queued:
        todo.append(lock)  # what came free there may be another's who is before this one
    return found is claim and rules.fits(lock, claim, tx.now)


def lease_of(tx: Transaction, claim: Claim) -> datetime | None:
    """Until when the claim's session lives, as far as the database tells without locking it: the session's end
    finds whatever is granted meanwhile."""
    if not claim.session:
        return None
    found = tx.look(LEASE, f"{claim.namespace}/{claim.session}")
    return found[0][0] if found else None


def party_of(tx: Transaction, claim: Claim) -> list[Member]:
    """The claim, and those that it is granted with: all or nothing. Any of their locks guards all of them."""
    if claim.lead is None:
        return [(lock_of(tx, claim.id), claim)]
    lead = tx.known(Claim, claim.lead)
    assert lead.others is not None
    ids = [lead.id, *decode(lead.others)]
    tx.load(*((Lock, address.partition("#")[0]) for address in ids))
    tx.load(*((Claim, address) for address in ids))
    return [(lock_of(tx, address), tx.known(Claim, address)) for address in ids]


def lock_of(tx: Transaction, address: str) -> Lock:
    """The lock of a claim or a hold."""
    return tx.known(Lock, address.partition("#")[0])


# -- what is done ------------------------------------------------------------------------------------


def serve(tx: Transaction, party: Sequence[Member], lease_until: datetime | None) -> None:
    """Give every member of a party its hold, and tell who waits."""
    grants = []
    for lock, claim in party:
        tx.remove(claim)
        lock.queued -= 1
        grants.append((lock, claim, give(tx, lock, claim, lease_until)))
    lock, lead, fact = grants[0]
    if lead.others is not None:
        fact.data["grants"] = [told(lock, fact) for lock, _, fact in grants]
    for lock, _, fact in grants:
        emit(tx, lock, fact)
    if lead.answer_id:
        keep(tx, lead.answer_id, answer_to(grants))
    if lead.process == NOBODY:
        for function in when_granted:
            function(tx, lead)


def answer_to(grants: Sequence[tuple[Lock, Claim, rules.Fact]]) -> Any:
    """What the one who waited is answered."""
    lock, lead, fact = grants[0]
    if lead.others is not None:
        return Grants([grant_of(*grant) for grant in grants])
    if is_election(lock):
        return leadership_of(lock, fact.data["expires_at"], fact.data["waited_seconds"])
    return grant_of(lock, lead, fact)


def queue_up(
    tx: Transaction,
    party: Sequence[Member],
    wait_seconds: float,
    *,
    is_many: bool = False,
    process: str | None = None,
) -> Waiting:
    """Put claims at the ends of their queues; several are served together. Parameters: `is_many`, whether the answer
    is to be that of several, also where there is but one; `process`, where its caller waits, if not here."""
    deadline = tx.now + timedelta(seconds=wait_seconds)
    waits_in = tx.process_id if process is None else process
    claims = [stored(tx, lock, claim, deadline, waits_in) for lock, claim in party]
    lead = claims[0]
    lead.answer_id = tx.job.answer_id
    if is_many:
        lead.others = encode([claim.id for claim in claims[1:]]).decode()
    if len(claims) > 1:
        for claim in claims:
            claim.lead = lead.id
    for (lock, _), claim in zip(party, claims, strict=True):
        emit(tx, lock, rules.enqueue(lock, claim))
    places = [
        [lock.name, claim.lock_id, claim.ticket] for (lock, _), claim in zip(party, claims, strict=True)
    ]
    return Waiting(party[0][0].stream, lead.ticket, wait_seconds, {"places": places})


def stored(tx: Transaction, lock: Lock, claim: Claim, deadline: datetime, process: str) -> Claim:
    ticket = lock.last_ticket + 1
    values = {**claim.__dict__, "ticket": ticket, "process": process, "deadline": deadline}
    return tx.add_at(Claim, f"{lock.id}#{ticket:015d}", **values)


def give(tx: Transaction, lock: Lock, claim: Claim, lease_until: datetime | None = None) -> rules.Fact:
    """A hold for a claim that fits; its event is the caller's to write."""
    hold = lock if rules.is_sole(lock, claim) else tx.add_at(Hold, f"{lock.id}#{claim.lock_id}")
    return rules.take(lock, hold, claim, tx.now, tx.epoch, tx.floor, lease_until)


def grant_now(tx: Transaction, lock: Lock, claim: Claim, session: Session | None) -> rules.Fact:
    """The same for who need not wait, and its event."""
    fact = give(tx, lock, claim, session.expires_at if session else None)
    emit(tx, lock, fact)
    return fact


def told(lock: Lock, fact: rules.Fact) -> dict[str, Any]:
    """One of several grants as the event of the first tells it."""
    return {"key": lock.name, **{name: value for name, value in fact.data.items() if name not in ASIDE}}


ASIDE = ("ticket", "grants", "session_id", "value")  # in an event, and not in an answer


def grant_of(lock: Lock, claim: Claim, fact: rules.Fact) -> Grant:
    about = {name: value for name, value in fact.data.items() if name not in ASIDE}
    return Grant(lock_id=claim.lock_id, key=lock.name, **about)


def is_election(lock: Lock) -> bool:
    return lock.name.startswith(ELECTION)


def leadership_of(lock: Lock, expires_at: datetime, waited_seconds: float = 0.0) -> Leadership:
    """The present leader's own view."""
    held: Any = lock  # whose holder's columns are all there
    return Leadership(
        held.name.removeprefix(ELECTION), held.owner, Fragment(held.metadata or "null"), held.lock_id,
        held.last_token, held.session, held.acquired_at, expires_at, held.ttl_seconds, waited_seconds,
    )  # fmt: skip


def finish(tx: Transaction, lock: Lock, hold: Lock | Hold, reason: str, **more: Any) -> None:
    """End a hold; passing the lock on is the caller's."""
    fact = rules.end(lock, hold, reason, tx.now, **more)
    if hold is not lock:
        tx.remove(hold)
    emit(tx, lock, fact)


def leave(tx: Transaction, claim: Claim, reason: str, **more: Any) -> list[Lock]:
    """Take a claim, and those it would be granted with, out of their queues. Returns the locks they waited for."""
    party = party_of(tx, claim)
    for lock, member in party:
        tx.remove(member)
        emit(tx, lock, rules.withdraw(lock, member, reason, **more))
    answer_id = party[0][1].answer_id
    if answer_id and (kept := tx.at(Answer, answer_id)):
        tx.remove(kept)  # a refusal is not kept, so that asking again asks again
    return [lock for lock, _ in party]


def keep(tx: Transaction, answer_id: str, answer: Any) -> None:
    """A granted waiter's retry gets the grant."""
    if kept := tx.at(Answer, answer_id):
        kept.body, kept.status, kept.waiting = encode(answer).decode(), 201, None


def emit(tx: Transaction, lock: Lock, fact: rules.Fact) -> None:
    """Write a fact to the lock's stream, or the election's, in its words."""
    lock.changed_at = tx.now
    kind = fact.type
    if is_election(lock):
        kind = ELECTION_WORDS[kind]
        if kind == "election.elected":
            fact.data["value"] = Fragment(lock.metadata or "null")
    tx.emit(lock, kind, fact.data)


# -- of a session ------------------------------------------------------------------------------------

HOLDINGS = """select id, null as lock_id from locks_lock where session = $1
union all select id, null from locks_hold where session = $1
union all select id, lock_id from locks_claim where session = $1"""


@when_ended
def let_go(tx: Transaction, session: Session, reason: str) -> None:
    """What ends with a session: its holds, with its lock-delay if it expired, and its places in queues."""
    held = sorted(set(holdings(tx, session.name)), key=lambda key: (key[1], key[0].__name__))
    addresses = sorted({address.partition("#")[0] for _, address in held})
    tx.load(*((Lock, address) for address in addresses))
    tx.load(*held)
    locks = [lock_of(tx, address) for address in addresses]
    for lock in locks:
        if lock.session == session.name:
            take_back(tx, lock, lock, session, reason)
    for model, address in held:
        found = tx.at(model, address)
        if isinstance(found, Hold):
            take_back(tx, lock_of(tx, address), found, session, reason)
        elif isinstance(found, Claim):
            leave(tx, found, f"session_{reason}")
    pass_on(tx, *locks)


def take_back(tx: Transaction, lock: Lock, hold: Lock | Hold, session: Session, reason: str) -> None:
    if reason == "expired":
        finish(tx, lock, hold, "expired", expired_at=session.expires_at)
        if session.lock_delay_seconds:
            rules.delay(lock, tx.now + timedelta(seconds=session.lock_delay_seconds))
    else:
        finish(tx, lock, hold, "released", by="session_closed")


def holdings(tx: Transaction, session: str) -> Iterator[Key]:
    """What a session holds and waits for; of a waiter also the hold that it may have become. What this batch made has
    ids that are others when it is decided again: it is never asked of the database."""
    for address, lock_id in tx.look(HOLDINGS, session):
        if lock_id:
            yield Claim, address
            yield Hold, f"{address.partition('#')[0]}#{lock_id}"
        else:
            yield Hold if "#" in address else Lock, address
    for model in (Lock, Hold, Claim):
        for found in tx.loaded(model):
            if found.session == session:  # type: ignore[attr-defined]
                yield model, found.id
