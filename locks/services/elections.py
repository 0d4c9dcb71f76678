"""Leader election: a lock whose holder says something, among candidates who wait for it.

Observing is following its stream, `$election:<name>`: from any position, over every transport that follows.
"""

from collections.abc import Sequence
from typing import Any

from orjson import Fragment

from core.batch import Transaction
from core.callers import Call
from core.database import rows
from core.models import between
from core.operations import Waiting, Waits, command, query, refused
from core.sessions import LockDelay, SessionId
from core.types import Cursor, Json, Limit, Prefix, Text, encode_cursor
from locks import rules
from locks.errors import ElectionHeld, NotCandidate, NotLeader
from locks.models import ELECTION, Claim, Lock
from locks.services import holds
from locks.services.deadlocks import refuse_deadlock
from locks.services.queues import (
    finish,
    grant_now,
    leadership_of,
    lease_of,
    pass_on,
    queue_up,
    refresh,
    serve,
    why_gone,
)
from locks.types import (
    Candidate,
    Candidates,
    Election,
    ElectionName,
    Elections,
    ElectionSummary,
    Grant,
    Leadership,
    LockId,
    OptionalTtl,
    Resigned,
    Transferred,
    WaitSeconds,
)


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return holds.touches({**params, "key": f"{ELECTION}{params['name']}"})


def granted(facts: dict[str, Any], kind: str, data: dict[str, Any]) -> Any:
    """What an event with a candidate's ticket means for the candidate."""
    if kind != "election.elected":
        return holds.withdrawn(facts, kind, data)
    ((key, lock_id, _),) = facts["places"]
    told = ("fencing_token", "expires_at", "ttl_seconds", "waited_seconds", "value")
    return {
        "election": key.removeprefix(ELECTION), "leader": data["owner"], "lock_id": lock_id,
        "session_id": data.get("session_id"), "elected_at": data["acquired_at"],
        **{name: data[name] for name in told},
    }  # fmt: skip


def timed_out(facts: dict[str, Any], value: Any) -> Any:
    return value if isinstance(value, Leadership) else holds.timed_out(facts, value)


def place(value: Any) -> dict[str, Any]:
    return {"places": [[f"{ELECTION}{value.election}", value.lock_id, 0]]}


@command(
    "POST elections/{name}/campaign",
    name="elections.campaign",
    returns=Leadership,
    status=201,
    touches=touches,
    waits=Waits("elections.withdraw", granted, timed_out, place),
    volatile=refused,
)
def campaign(
    tx: Transaction,
    *,
    name: ElectionName,
    candidate: Text,
    value: Json = "null",
    ttl_seconds: OptionalTtl = None,
    session_id: SessionId | None = None,
    wait_seconds: WaitSeconds = 0.0,
) -> Leadership | Waiting:
    """Stand in an election: lead at once if nobody does, or, with `wait_seconds` (at most 300), wait for your turn.

    Candidates lead in the order in which they came. `value` is what the leader says to all: an address, for
    instance. It leads until it resigns, until `ttl_seconds` (0.1 to 86400, 30 unless said) after its last renewal,
    or as long as its session. The answer's `lock_id` proves that it leads; its `fencing_token` is the term.

    Errors: `election_held` (409, with leader and value), `lock_wait_timeout` (409), `deadlock` (409),
    `session_not_found` (404), `session_ended` (409).
    """
    key = f"{ELECTION}{name}"
    lock = tx.get(Lock, key) or tx.add(Lock, key)
    asker = holds.asker_for(tx, candidate, ttl_seconds, session_id, value)
    refresh(tx, lock)
    claim = holds.claim_for(tx, lock, asker, "exclusive", 1)
    if holds.first_busy(tx, [(lock, claim)]) is None:
        fact = grant_now(tx, lock, claim, asker.session)
        return leadership_of(lock, fact.data["expires_at"])
    if not wait_seconds:
        about = {"leader": lock.owner, "value": Fragment(lock.metadata or "null"), "candidates": lock.queued}
        raise ElectionHeld(f"{lock.owner or 'Somebody'} leads {name}.", election=name, **about)
    refuse_deadlock(tx, [(lock, claim)])
    return queue_up(tx, [(lock, claim)], wait_seconds)


@command(
    "POST elections/{name}/proclaim",
    name="elections.proclaim",
    returns=Leadership,
    touches=touches,
    volatile=refused,
)
def proclaim(tx: Transaction, *, name: ElectionName, lock_id: LockId, value: Json) -> Leadership:
    """Say something else as the leader. Who observes the election is told.

    Errors: `not_leader` (409) with a `reason`.
    """
    lock = led(tx, name, lock_id)
    lock.metadata = value
    about = {"owner": lock.owner, "fencing_token": lock.last_token, "value": Fragment(value)}
    tx.emit(lock, "election.proclaimed", about)
    return leadership_of(lock, holds.ends_at(tx, lock, lock))


@command(
    "POST elections/{name}/renew",
    name="elections.renew",
    returns=Leadership,
    touches=touches,
    volatile=refused,
)
def renew(
    tx: Transaction, *, name: ElectionName, lock_id: LockId, ttl_seconds: OptionalTtl = None
) -> Leadership:
    """Lead for a whole TTL again, or a new one. A leader with a session keeps its session alive instead.

    Errors: `not_leader` (409) with a `reason`.
    """
    lock = led(tx, name, lock_id)
    holds.extend(tx, lock, lock, ttl_seconds)
    return leadership_of(lock, holds.ends_at(tx, lock, lock))


@command(
    "POST elections/{name}/resign",
    name="elections.resign",
    returns=Resigned,
    touches=touches,
    volatile=refused,
)
def resign(tx: Transaction, *, name: ElectionName, lock_id: LockId) -> Resigned:
    """Lead no more; the next candidate leads in the same transaction.

    Errors: `not_leader` (409) with a `reason`.
    """
    lock = led(tx, name, lock_id)
    token = lock.last_token
    finish(tx, lock, lock, "released")
    pass_on(tx, lock)
    return Resigned(name, True, token)


@command(
    "POST elections/{name}/transfer",
    name="elections.transfer",
    returns=Transferred,
    touches=touches,
    volatile=refused,
)
def transfer(tx: Transaction, *, name: ElectionName, lock_id: LockId, to: Text) -> Transferred:
    """Hand leadership to a candidate, whatever its place in the queue: a planned change.

    Errors: `not_leader` (409) with a `reason`; `not_candidate` (404) if nobody of that name stands.
    """
    lock = led(tx, name, lock_id)
    claim = candidate_named(tx, lock, to)
    until = lease_of(tx, claim)
    if claim.session and until is None:
        raise NotCandidate(f"The session of {to} is over.", election=name, candidate=to)
    finish(tx, lock, lock, "released", by="transfer", to=to)
    serve(tx, [(lock, claim)], until)
    return Transferred(name, to, lock.last_token)


@command(
    "POST elections/{name}/depose",
    name="elections.depose",
    returns=Resigned,
    admin=True,
    touches=touches,
    volatile=refused,
)
def depose(
    tx: Transaction, *, name: ElectionName, reason: Text, lock_delay_seconds: LockDelay = 0.0
) -> Resigned:
    """Take leadership from whoever has it, for operators; the next candidate leads, after `lock_delay_seconds` (0 to
    60). `reason` (1 to 255 characters) stands in the log beside who did it.

    Errors: `not_leader` (409) if nobody leads.
    """
    lock = tx.get(Lock, f"{ELECTION}{name}")
    token = lock.last_token if lock else 0
    if lock is None or not holds.force(tx, lock, reason, lock_delay_seconds):
        raise NotLeader(f"Nobody leads {name}.", election=name, reason="never_held")
    pass_on(tx, lock)
    return Resigned(name, True, token)


@command(name="elections.withdraw", touches=holds.touches_places)
def withdraw(tx: Transaction, *, places: list[tuple[str, str, int]], reason: str, keep: bool) -> Any:
    """A candidate gives up its place: as `locks.withdraw`."""
    value = holds.give_up(tx, places, reason, keep)
    lock = tx.get(Lock, places[0][0])
    return leadership_of(lock, value.expires_at) if lock and isinstance(value, Grant) else value


# More than one: those that come first may be of processes that are gone, whose candidates stand again elsewhere.
FIRST = """select id from locks_claim where id > $1 || '#' and id < $1 || '$' and owner = $2 order by id limit 8"""


def candidate_named(tx: Transaction, lock: Lock, candidate: str) -> Claim:
    """The first claim of a candidate that still stands.

    Raises: NotCandidate.
    """
    for (address,) in tx.look(FIRST, lock.id, candidate):
        claim = tx.at(Claim, address)
        if claim is not None and why_gone(tx, claim) is None:
            return claim
    raise NotCandidate(
        f"{candidate} does not stand.", election=lock.name[len(ELECTION) :], candidate=candidate
    )


def led(tx: Transaction, name: str, lock_id: str) -> Lock:
    """The election, if this lock_id leads it now.

    Raises: NotLeader.
    """
    lock = tx.get(Lock, f"{ELECTION}{name}")
    if lock is None or lock.lock_id != lock_id or not rules.is_held(lock, tx.now):
        hold = lock if lock and lock.lock_id == lock_id else None
        reason = rules.why_not_held(lock, hold, lock_id)
        raise NotLeader(f"You do not lead {name}: {reason}.", election=name, reason=reason)
    return lock


# -- looking -----------------------------------------------------------------------------------------

LED = """select l.id, l.last_token, l.queued, l.owner, l.session, l.acquired_at, coalesce(l.expires_at, s.expires_at),
    l.metadata::text, l.lock_id is not null and coalesce(l.expires_at, s.expires_at) > clock_timestamp()
from locks_lock l left join core_session s on s.id = split_part(l.id, '/', 1) || '/' || l.session"""
STANDING = """select id, owner, metadata::text, session, since, deadline from locks_claim
    where id > %s and id < %s and deadline > clock_timestamp() order by id limit %s"""


@query("GET elections/{name}", name="elections.get", returns=Election, volatile=refused)
async def get(call: Call, *, name: ElectionName) -> Election:
    """Who leads and who stands, in order (the first 200). An unknown election has neither."""
    address = f"{call.namespace.name}/{ELECTION}{name}"
    found = await rows(f"{LED} where l.id = %s", [address])
    if not found:
        return Election(name, None, None, 0, None, None, None, [], 0)
    _, token, queued, leader, session, elected_at, expires_at, value, is_led = found[0]
    standing = await candidates_of(address, address + "#", 200)
    if not is_led:
        return Election(name, None, None, token, None, None, None, standing, queued)
    said = Fragment(value or "null")
    return Election(name, leader, said, token, session, elected_at, expires_at, standing, queued)


async def candidates_of(address: str, after: str, limit: int) -> list[Candidate]:
    return [seen(row) for row in await rows(STANDING, [after, address + "$", limit])]


def seen(row: Sequence[Any]) -> Candidate:
    _, owner, value, *about = row
    return Candidate(owner, Fragment(value or "null"), *about)


def summary(row: Sequence[Any]) -> ElectionSummary:
    address, token, queued, leader, _, _, _, value, is_led = row
    name = address.partition(ELECTION)[2]
    if not is_led:
        return ElectionSummary(name, None, None, token, queued)
    return ElectionSummary(name, leader, Fragment(value or "null"), token, queued)


@query("GET elections/{name}/leader", name="elections.leader", returns=ElectionSummary, volatile=refused)
async def leader(call: Call, *, name: ElectionName) -> ElectionSummary:
    """Who leads, and what it says; nobody, if `leader` is null."""
    found = await rows(f"{LED} where l.id = %s", [f"{call.namespace.name}/{ELECTION}{name}"])
    return summary(found[0]) if found else ElectionSummary(name, None, None, 0, 0)


@query("GET elections/{name}/candidates", name="elections.candidates", returns=Candidates, volatile=refused)
async def candidates(
    call: Call, *, name: ElectionName, limit: Limit = 50, cursor: Cursor | None = None
) -> Candidates:
    """Who stands, in the order in which they will lead."""
    address = f"{call.namespace.name}/{ELECTION}{name}"
    start = address + "#"  # whatever the cursor says, nobody of another election
    found = await rows(STANDING, [max(start, cursor or start), address + "$", limit + 1])
    more = encode_cursor(found[limit - 1][0]) if len(found) > limit else None
    return Candidates([seen(row) for row in found[:limit]], more)


@query("GET elections", name="elections.find", returns=Elections, volatile=refused)
async def find(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> Elections:
    """The elections there have been lately, by name."""
    start, end = between(call.namespace.name, ELECTION + prefix)
    found = await rows(
        f"{LED} where l.id > %s and l.id >= %s and l.id < %s order by l.id limit %s",
        [cursor or "", start, end, limit + 1],
    )
    items = [summary(row) for row in found[:limit]]
    return Elections(items, encode_cursor(found[limit - 1][0]) if len(found) > limit else None)
