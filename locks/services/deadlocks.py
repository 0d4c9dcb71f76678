"""Deadlocks: refused when somebody queues, and swept up where two queued at once. What they are is in waits.py."""

from collections.abc import Iterable, Sequence
from typing import Any

from core.batch import Transaction
from core.callers import SYSTEM, Call, namespaces
from core.database import rows
from core.models import between
from core.operations import command, query, refused
from core.runtime import every, runtime
from locks.errors import Deadlock
from locks.models import Claim, Lock
from locks.services.queues import Member, all_holds, leave, pass_on
from locks.types import Edge, Node, WaitsFor
from locks.waits import Contention, Reduction, Stake, cycle_through, cycles, in_words

# Whether anybody can be waiting for this session, which is about to wait for those locks: most hold nothing else.
SUSPECT = """select exists (select from locks_lock l where l.session = $1
        and (l.queued > 0 or l.id = any(string_to_array($2, ' '))))
    or exists (select from locks_hold h join locks_lock l on l.id = split_part(h.id, '#', 1)
        where h.session = $1 and (l.queued > 0 or l.id = any(string_to_array($2, ' '))))
    or exists (select from locks_claim where session = $1)"""
# The contended locks of a namespace, their holds, and their queues in order.
PICTURE = """with contended as materialized (select * from locks_lock where queued > 0 and id > {0} and id < {1})
select l.id, l.capacity, false, l.session, null, l.owner, 'exclusive', l.capacity, l.last_token, 0.0::float8
    from contended l where l.lock_id is not null
union all select l.id, l.capacity, false, h.session, null, h.owner, h.mode, h.permits, h.token, 0.0
    from contended l join locks_hold h on h.id > l.id || '#' and h.id < l.id || '$'
union all (select l.id, l.capacity, true, c.session, c.lead, c.owner, c.mode, c.permits, c.ticket,
    extract(epoch from c.since)::float8
    from contended l join locks_claim c on c.id > l.id || '#' and c.id < l.id || '$' order by c.id)"""
# Namespaces where a session waits while it holds something.
SUSPECTS = """select distinct split_part(c.id, '/', 1) from locks_claim c cross join lateral (
    (select 1 from locks_lock l where l.session = c.session and l.queued > 0 limit 1)
    union all (select 1 from locks_hold h where h.session = c.session limit 1)) held where c.session is not null"""


ASKING = ""  # the request of who is about to queue up


def refuse_deadlock(tx: Transaction, party: Sequence[Member]) -> None:
    """Before somebody queues: would it wait for itself? Only a session is known to be the same as another's holder.

    Raises: Deadlock.
    """
    session = party[0][1].session
    if session is None or not is_suspect(tx, session, party):
        return
    picture = picture_of(tx)
    for lock, claim in party:
        found = picture.setdefault(lock.id, in_memory(tx, lock))
        about = (session, claim.owner, claim.mode, claim.permits, found, lock.last_ticket + 1)
        found.queue.append(Stake(*about, since=tx.now.timestamp(), is_session=True, request=ASKING))
    cycle = cycle_through(Reduction(picture.values()), session)
    # The picture is from before this batch. Where that changes what the cycle is made of, the sweep decides.
    if cycle and not any(tx.is_changed(Lock, tx.address(claim.lock.key)) for claim in cycle):
        raise Deadlock(in_words(cycle), key=party[0][0].name, cycle=told(cycle))


def is_suspect(tx: Transaction, session: str, party: Sequence[Member]) -> bool:
    ((found,),) = tx.look(SUSPECT, session, " ".join(lock.id for lock, _ in party))
    return bool(found)


def picture_of(tx: Transaction) -> dict[str, Contention]:
    return picture(tx.look(PICTURE.format("$1", "$2"), *between(tx.call.namespace.name)))


def picture(found: Iterable[Sequence[Any]]) -> dict[str, Contention]:
    """The contended locks, by address. A party is named by its session, else by its place: never by a lock_id."""
    locks: dict[str, Contention] = {}
    for address, capacity, is_claim, session, lead, owner, mode, permits, number, since in found:
        key = address.partition("/")[2]
        lock = locks.setdefault(address, Contention(key, capacity))
        place = f"{key}#{number}" if is_claim else f"{key}@{number}"
        request = lead.partition("/")[2] if lead else place
        about = (session or request, owner, mode, permits, lock, number if is_claim else 0, since)
        stake = Stake(*about, is_session=bool(session), request=request)
        (lock.queue if is_claim else lock.holds).append(stake)
    return locks


def in_memory(tx: Transaction, lock: Lock) -> Contention:
    """A lock that nobody waits for yet."""
    found = Contention(lock.name, lock.capacity)
    for hold in all_holds(tx, lock):
        party = hold.session or f"{lock.name}@{hold.token}"
        about = (party, hold.owner or "", hold.mode, hold.permits, found)
        found.holds.append(Stake(*about, is_session=bool(hold.session)))
    return found


def told(cycle: Sequence[Stake]) -> list[dict[str, Any]]:
    """A cycle as clients see it: each waits for the next, and the last for the first."""
    return [
        {
            "session_id": claim.party if claim.is_session else None,
            "owner": claim.owner,
            "waits_for": claim.lock.key,
            "ticket": claim.ticket,
        }
        for claim in cycle
    ]


@command(touches=lambda params: [(Lock, params["name"].partition("#")[0])])
def break_deadlock(tx: Transaction, *, name: str) -> bool:
    """Refuse a waiter that is still on a cycle. Parameters: the claim's name, `key#ticket`."""
    claim = tx.get(Claim, name)
    if claim is None or claim.session is None:
        return False
    cycle = cycle_through(Reduction(picture_of(tx).values()), claim.session)
    if cycle is None:
        return False
    pass_on(tx, *leave(tx, claim, "deadlock", words=in_words(cycle), cycle=told(cycle)))
    return True


@every(1)
async def break_deadlocks() -> None:
    """Cycles of those who queued at once: the youngest request of each is refused."""
    for (namespace,) in await rows(SUSPECTS):
        locks = picture(await rows(PICTURE.format("%s", "%s"), between(namespace)))
        call = Call(SYSTEM, await namespaces.get(namespace))
        for cycle in cycles(locks.values()):
            claims = [claim for claim in cycle if claim.is_session]  # a caller without one holds nothing
            youngest = max(claims, key=lambda claim: (claim.since, claim.ticket))
            name = f"{youngest.lock.key}#{youngest.ticket:015d}"
            await runtime.carry_out(break_deadlock, call, {"name": name})


@query("GET locks/waits-for", returns=WaitsFor, volatile=refused)
async def waits_for(call: Call) -> WaitsFor:
    """Who waits for whom, lock by lock: the first of a queue for those who hold, each other one for the one before it.

    `cycles` are deadlocks, each as the ids of its nodes; they are seen only for a moment, because the youngest
    request of each is refused. A node is a session, or a caller without one, who is only ever on one lock.
    """
    locks = picture(await rows(PICTURE.format("%s", "%s"), between(call.namespace.name))).values()
    nodes = {stake.party: stake for lock in locks for stake in (*lock.holds, *lock.queue)}
    return WaitsFor(
        [Node(party, "session" if s.is_session else "caller", s.owner) for party, s in nodes.items()],
        [edge for lock in locks for edge in edges_of(lock)],
        [[claim.party for claim in cycle] for cycle in cycles(locks)],
    )


def edges_of(lock: Contention) -> list[Edge]:
    before = [Edge(lock.queue[0].party, hold.party, lock.key, "holds") for hold in lock.holds if lock.queue]
    pairs = zip(lock.queue[1:], lock.queue, strict=False)
    return before + [Edge(claim.party, ahead.party, lock.key, "is_ahead") for claim, ahead in pairs]
