"""Locks that live in Redis or Valkey: the same operations, for namespaces whose locks are volatile.

Each script in locks/lua is one atomic step, by the server's own clock. Waiters stand in a queue there; a process hears
of what its waiters are granted over the connection it asks by, and looks twice a second at what it may have missed.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from os import urandom
from pathlib import Path
from random import sample
from secrets import token_hex
from time import monotonic
from typing import Any

from hiredis import ReplyError
from orjson import Fragment

from core.callers import SYSTEM, Call, Namespace
from core.database import rows
from core.errors import NotInVolatileNamespace, SyrosError, Unavailable
from core.models import between
from core.operations import registry
from core.runtime import closing, every, runtime, stopping
from core.types import encode_cursor
from core.valkey import Script, Valkey, Word, away
from locks.errors import LockNotHeld, LockWaitTimeout, busy_with
from locks.models import ELECTION
from locks.types import TTL, Currency, Grant, Holder, Locks, LockState, LockSummary, Released, Waiter
from rbac.errors import LocksAreHeld
from rbac.services import before_switching

LUA = Path(__file__).parent / "lua"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOOK_AT = (
    1000  # locks, in one step of a search, waiters, in one of the patrol: nobody else is served meanwhile
)
LOOKS = 50  # of such steps at most for one page
PAUSES = (0.1, 0.5, 1, 2, 5, 10, 20)  # between attempts to give back what nobody will come for
# A block of tokens that nobody has given out, whatever became of Redis: the floor is the end of the last block, and
# durable. Epoch, failover and raise_epoch count as for durable locks, and a block lasts a million grants.
RESERVE = """update core_cluster
set token_floor = (greatest(token_floor, epoch << 40) + 1048575) / 1048576 * 1048576 + 1048576
returning token_floor - 1048576"""


def script(name: str) -> Script:
    return Script("\n".join((LUA / f"{part}.lua").read_text() for part in ("lock", name)))


ACQUIRE, RENEW, RELEASE, WITHDRAW = map(script, ("acquire", "renew", "release", "withdraw"))
LOOK, FIND, PATROL, SWEEP, REFILL = map(script, ("look", "find", "patrol", "sweep", "refill"))


@dataclass(slots=True, eq=False)
class Place:
    """A caller on its way to a lock. `granted` ends its wait: with token, start and end of the hold, or a refusal."""

    namespace: Namespace
    lock_id: str
    key: str
    owner: str
    ttl_seconds: float
    since: int = 0
    is_queued: bool = False
    granted: Any = None

    def grant(self, token: int, at: int, ends: int) -> Grant:
        return Grant(
            lock_id=self.lock_id, key=self.key, owner=self.owner, mode="exclusive", permits=1, fencing_token=token,
            acquired_at=instant(at), expires_at=instant(ends), ttl_seconds=self.ttl_seconds,
            waited_seconds=max(0, at - self.since) / 1e6 if self.since else 0.0,
        )  # fmt: skip

    def end(self, answer: tuple[int, int, int] | SyrosError) -> None:
        if self.granted is not None and not self.granted.done():
            self.granted.set_result(answer)


def instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


# -- the server --------------------------------------------------------------------------------------

_waiting: dict[str, Place] = {}  # by lock_id
_spaces: dict[str, str] = {}  # what names begin with, by namespace, of those that this connection has served
_refills: dict[str, asyncio.Task[None]] = {}


def heard(message: str) -> None:
    """A waiter of this process has a lock: another one's release, withdrawal or patrol gave it."""
    lock_id, *facts = message.split(" ")
    if place := _waiting.get(lock_id):
        token, at, ends = map(int, facts)
        place.end((token, at, ends))


def lost() -> None:
    """Redis is gone, and with it, for all this process knows, the places in its queues."""
    _spaces.clear()
    for place in list(_waiting.values()):
        place.end(away())


CHANNEL = f"syros:process:{token_hex(8)}"  # also what this process is called in Redis
valkey = Valkey(CHANNEL, heard, lost)
closing.append(valkey.close)


async def ask(namespace: Namespace, what: Script, key: str, *words: Word) -> Any:
    """Run a script. Once connected it has gone off before anybody else is served.

    Raises: Unavailable.
    """
    connection = valkey.connection or await valkey.ready()
    space = _spaces.get(namespace.name) or space_of(namespace)
    found: Any = await connection.run(what, space, key, connection.run_id, *words)
    if type(found) is ReplyError:
        found = await valkey.again(connection, found, what, space, key, connection.run_id, *words)
    return found


def space_of(namespace: Namespace) -> str:
    return _spaces.setdefault(namespace.name, f"syros:{{{valkey.identity}/{namespace.name}}}:")


async def refill(namespace: Namespace) -> None:
    """Reserve a block of tokens: once, for all who need it in this moment.

    Raises: Unavailable.
    """
    task = _refills.get(namespace.name)
    if task is None:
        task = _refills[namespace.name] = runtime.spawn(reserve(namespace))
        task.add_done_callback(lambda done: refilled(namespace.name, done))
    await asyncio.shield(task)


def refilled(name: str, task: "asyncio.Task[None]") -> None:
    _refills.pop(name)
    if not task.cancelled():
        task.exception()  # whoever still waits for it has it


async def reserve(namespace: Namespace) -> None:
    ((start,),) = await rows(RESERVE)
    await ask(namespace, REFILL, "", start)


# -- the operations ----------------------------------------------------------------------------------


async def acquire(
    call: Call,
    *,
    key: str,
    owner: str,
    ttl_seconds: float | None = None,
    wait_seconds: float = 0.0,
    mode: str = "exclusive",
    permits: int = 1,
    capacity: int | None = None,
    metadata: str = "{}",
    **more: Any,
) -> Grant:
    if mode != "exclusive" or permits != 1 or capacity not in {None, 1} or any(more.values()):
        raise NotInVolatileNamespace("Volatile locks are exclusive, have one holder and no session.")
    place = Place(call.namespace, urandom(16).hex(), key, owner, ttl_seconds or TTL)
    if valkey.connection is None:
        await valkey.ready()
    try:
        return await take(place, "" if metadata == "{}" else metadata, wait_seconds)
    except (asyncio.CancelledError, Unavailable):  # it may have been taken all the same
        runtime.spawn(give_back(place), name="withdraw")
        raise


async def take(place: Place, metadata: str, wait_seconds: float) -> Grant:
    microseconds = round(wait_seconds * 1e6)
    if microseconds:
        expect(place)
    words = (place.lock_id, place.owner, place.ttl_seconds, metadata, microseconds, CHANNEL)
    try:
        answer = await ask(place.namespace, ACQUIRE, place.key, *words)
        if answer[0] == "dry":
            answer = await ask_again(place, *words)
        if answer[0] == "granted":
            return place.grant(*answer[1:])
        if answer[0] == "held":
            raise busy_with(situation(place.key, *answer[1:]))
        place.since, place.is_queued = answer[1], True
        return await wait(place, wait_seconds)
    finally:
        if microseconds:
            del _waiting[place.lock_id]
            runtime.pending.discard(place.granted)


async def ask_again(place: Place, *words: Word) -> Any:
    """With a new block of tokens."""
    for _ in range(3):
        await refill(place.namespace)
        answer = await ask(place.namespace, ACQUIRE, place.key, *words)
        if answer[0] != "dry":
            return answer
    raise away()


def expect(place: Place) -> None:
    """Listen before asking, so that no grant can slip between."""
    if runtime.stopping:
        raise stopping()
    place.granted = asyncio.get_running_loop().create_future()
    runtime.pending.add(place.granted)
    _waiting[place.lock_id] = place


async def wait(place: Place, seconds: float) -> Grant:
    try:
        async with asyncio.timeout(seconds):
            answer = await place.granted
    except TimeoutError:
        return await timed_out(place)
    if isinstance(answer, SyrosError):
        raise answer
    return place.grant(*answer)


async def timed_out(place: Place) -> Grant:
    """A grant after all, or the refusal."""
    kind, *facts = await ask(place.namespace, WITHDRAW, place.key, place.lock_id, 1)
    if kind == "granted":
        return place.grant(*facts)
    owner, queue_length = facts
    raise LockWaitTimeout(
        f"{place.key} did not come free in time.",
        key=place.key,
        owner=owner or None,
        queue_length=queue_length,
    )


async def give_back(place: Place) -> None:
    """Leave the queue, or end what was granted to a caller who never heard of it; through short outages."""
    for pause in PAUSES:
        with suppress(Unavailable):
            await ask(place.namespace, WITHDRAW, place.key, place.lock_id, 0)
            return
        if runtime.stopping:
            return
        await asyncio.sleep(pause)


def situation(key: str, owner: str, ends: int, queued: int, now: int) -> dict[str, Any]:
    """What a refused caller is told: who holds, how many wait, when to ask again."""
    return {
        "key": key,
        "holders": [holder_of(owner, ends)] if owner else [],
        "queue_length": queued,
        "retry_after_seconds": round(max(0, ends - now) / 1e6, 3),
        "lock_delay_until": None,
    }


def holder_of(owner: str, ends: int) -> dict[str, Any]:
    return {"owner": owner, "mode": "exclusive", "session_id": None, "expires_at": instant(ends)}


async def renew(call: Call, *, key: str, lock_id: str, ttl_seconds: float | None = None) -> Grant:
    kind, *facts = await ask(call.namespace, RENEW, key, lock_id, ttl_seconds or "")
    if kind == "not_held":
        raise not_held(key, *facts)
    token, at, ends, owner, ttl = facts
    return Place(call.namespace, lock_id, key, owner, float(ttl)).grant(token, at, ends)


async def release(call: Call, *, key: str, lock_id: str, owner: str | None = None) -> Released:
    kind, fact = await ask(call.namespace, RELEASE, key, lock_id)
    if kind == "not_held":
        raise not_held(key, fact)
    return Released(key, True, fact)


def not_held(key: str, reason: str) -> LockNotHeld:
    return LockNotHeld(f"You do not hold {key}: {reason}.", key=key, reason=reason)


# -- looking -----------------------------------------------------------------------------------------


async def get(call: Call, *, key: str) -> LockState:
    *facts, waiters = await ask(call.namespace, LOOK, key, 200)
    return LockState(**summary(key, *facts), waiters=[waiter(*each) for each in waiters])


def summary(
    key: str, is_held: int, token: int, owner: str, at: int, ends: int, metadata: str, queued: int
) -> dict[str, Any]:
    holder = Holder(
        owner=owner, mode="exclusive", permits=1, session_id=None, fencing_token=token, acquired_at=instant(at),
        expires_at=instant(ends), metadata=Fragment(metadata or "{}"),
    )  # fmt: skip
    return {
        "key": key, "is_locked": bool(is_held), "capacity": 1, "last_token": token,
        "holders": [holder] if is_held else [], "queue_length": queued, "lock_delay_until": None,
    }  # fmt: skip


def waiter(ticket: int, owner: str, since: int, deadline: int, age: int) -> Waiter:
    return Waiter(
        ticket=ticket,
        owner=owner,
        mode="exclusive",
        permits=1,
        since=instant(since),
        deadline=instant(deadline),
        session_id=None,
        age_seconds=age / 1e6,
    )


async def waiters(call: Call, parents: Sequence[LockSummary], *, limit: int = 20) -> list[list[Waiter]]:
    """Who waits for each of several locks, in order."""
    asked = [ask(call.namespace, LOOK, lock.key, limit if lock.queue_length else 0) for lock in parents]
    return [[waiter(*each) for each in found[-1]] for found in await asyncio.gather(*asked)]


async def check(call: Call, *, key: str, fencing_token: int) -> Currency:
    is_held, token, *_ = await ask(call.namespace, LOOK, key, 0)
    return Currency(bool(is_held) and token == fencing_token, token)


async def find(
    call: Call,
    *,
    prefix: str = "",
    owner: str | None = None,
    held: bool | None = None,
    contended: bool | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Locks:
    low = f"({cursor}" if cursor and cursor >= prefix else f"[{prefix}"
    wanted = (f"({prefix}~", owner or "", *("" if each is None else int(each) for each in (held, contended)))
    found: list[Any] = []
    for _ in range(LOOKS):
        words = (low, *wanted, limit + 1 - len(found), LOOK_AT)
        more, last, is_all = await ask(call.namespace, FIND, "", *words)
        found += more
        low = f"({last}"
        if is_all or len(found) > limit:
            break
    items = [LockSummary(**summary(*each)) for each in found[:limit]]
    if len(found) > limit:
        last = items[-1].key
    return Locks(items, None if is_all and len(found) <= limit else encode_cursor(last))


# -- what nobody asks for ----------------------------------------------------------------------------


@every(0.5)
async def look_at_server() -> None:
    """Apart from the patrol, which may be the one that is not answered."""
    valkey.look()


@every(0.5)
async def patrol() -> None:
    """Keep the places of who waits here, pass on what ran out, and hear of what was missed."""
    by_space: dict[str, dict[str, list[Place]]] = {}
    for place in _waiting.values():
        if place.is_queued:
            by_space.setdefault(place.namespace.name, {}).setdefault(place.key, []).append(place)
    for queues in by_space.values():
        for part in parts(queues):
            await look_after(part)


def parts(queues: dict[str, list[Place]]) -> Iterator[list[tuple[str, list[Place]]]]:
    """Waiters by key, no more at a time than a script may look at."""
    part: list[tuple[str, list[Place]]] = []
    size = 0
    for key, places in queues.items():
        for start in range(0, len(places), LOOK_AT):
            some = places[start : start + LOOK_AT]
            if size + len(some) > LOOK_AT:
                yield part
                part, size = [], 0
            part.append((key, some))
            size += len(some)
    if part:
        yield part


async def look_after(part: list[tuple[str, list[Place]]]) -> None:
    namespace = part[0][1][0].namespace
    words: list[Word] = []
    for key, places in part:
        words += [key, len(places), *(place.lock_id for place in places)]
    dry, news = await ask(namespace, PATROL, "", CHANNEL, *words)
    for lock_id, kind, *facts in news:
        if place := _waiting.get(lock_id):
            place.end(tuple(facts) if kind == "granted" else place_lost(place))
    if dry:
        await refill(namespace)
        await look_after(part)


def place_lost(place: Place) -> Unavailable:
    return Unavailable(f"Your place for {place.key} was lost. Ask again.")


@every(5)
async def sweep() -> None:
    """Forget the names of locks that have vanished; rest twenty times as long as that took."""
    started = monotonic()
    for name in sample(list(_spaces), len(_spaces)):  # none is always the last
        gone = LOOK_AT
        while gone > LOOK_AT / 4 and monotonic() - started < 2:
            gone = await ask(Namespace(name, 0), SWEEP, "", LOOK_AT)
    await asyncio.sleep(20 * (monotonic() - started))


# -- the setting -------------------------------------------------------------------------------------


LED = """select id from locks_lock where id > %s and id < %s and lock_id is not null
    and coalesce(expires_at > clock_timestamp(), true) limit 1"""


async def check_switch(namespace: Namespace) -> None:
    """May a namespace's locks be kept elsewhere from now on?

    Raises: LocksAreHeld; Unavailable.
    """
    operation = registry["locks.find"]
    look = operation.volatile if namespace.volatile else operation.function
    assert look
    found = await look(Call(SYSTEM, namespace), held=True, limit=1)
    if found.items:
        raise LocksAreHeld(f"{found.items[0].key} is held.", key=found.items[0].key)
    if not namespace.volatile:
        await check_durable(namespace)
    # The epoch rises with the switch; what is left of a block lies below it.
    connection = await valkey.ready()
    await connection.ask("DEL", f"{space_of(namespace)}tokens:{connection.run_id}")


async def check_durable(namespace: Namespace) -> None:
    """Raises: LocksAreHeld, for what there is of durable locks only."""
    if (await registry["sessions.find"].function(Call(SYSTEM, namespace))).items:
        raise LocksAreHeld("Sessions are open.")
    for (address,) in await rows(LED, between(namespace.name, ELECTION)):
        raise LocksAreHeld(f"{address.partition(ELECTION)[2]} is led.", key=address.partition("/")[2])


before_switching.append(check_switch)
