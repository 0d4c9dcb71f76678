"""Clients that take locks in all the ways there are, and remember what they were told."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from tests.races.client import Client, Lost, Reply
from tests.races.histories import (
    Hold,
    LockLog,
    Violation,
    Window,
    check_agreement,
    check_endings,
    check_holds,
    mind_force,
    seconds,
)

SHORT_TTL = 0.1
SESSION_TTL = 0.4  # of one that nobody keeps alive
NEVER = float("inf")
PAUSE = 0.05  # seconds before trying again
CAPACITIES = {f"semaphore/{number}": 3 for number in range(32)}
Way = Callable[[], Awaitable[None]]


def keys(count: int) -> list[str]:
    """So many exclusive ones, half as many that are also shared, and as many semaphores of three permits."""
    half = range(max(1, count // 2))
    return [f"k{n}" for n in range(count)] + [f"shared/{n}" for n in half] + [f"semaphore/{n}" for n in half]


class Recorder:
    """What all clients saw, and how much there is still to do.

    Parameters: `wanted`, acquisitions; `seconds`, after which it is enough in any case.
    """

    def __init__(self, wanted: int, keys: Sequence[str], seconds: float = 3600.0) -> None:
        self.wanted, self.keys = wanted, keys
        self.ends_at = time.monotonic() + seconds
        self.holds: list[Hold] = []
        self.outcomes: Counter[str] = Counter()
        # Owners that were refused, and when; at the end of time who went away, or was not told what came of it.
        self.untold: dict[str, float] = {}
        self.sessions: dict[str, float] = {}  # until when each was kept alive, at the latest

    @property
    def is_done(self) -> bool:
        return len(self.holds) >= self.wanted or time.monotonic() > self.ends_at

    def granted(self, grant: dict[str, Any], told_at: float) -> Hold:
        hold = Hold(
            grant["key"], grant["owner"], grant["fencing_token"], told_at, seconds(grant["expires_at"]),
            mode=grant["mode"], permits=grant["permits"], acquired_at=seconds(grant["acquired_at"]),
            lock_id=grant["lock_id"],
        )  # fmt: skip
        self.holds.append(hold)
        return hold


class Locker:
    """One client after another, each with an owner's name of its own, until enough was taken.

    Parameters: `clients`, one for each process, of which the first is asked until it breaks, then the next one;
    `wait_seconds`, how long it waits for a lock; `ttl_seconds`, for which it takes one; `idleness`, how many times
    more often than usual it lets one run out.
    """

    def __init__(
        self,
        name: str,
        clients: Sequence[Client],
        recorder: Recorder,
        seed: int,
        *,
        wait_seconds: float = 60.0,
        ttl_seconds: float = 30.0,
        idleness: float = 1.0,
    ) -> None:
        self.name, self.clients, self.recorder = name, list(clients), recorder
        self.wait_seconds, self.ttl_seconds = wait_seconds, ttl_seconds
        self.random = random.Random(f"{seed}/{name}")
        self.attempts = 0
        common: list[tuple[Way, int]] = [
            (self.wait_and_give_back, 340),
            (self.try_and_give_back, 50),
            (self.wait_a_moment, 30),
            (self.wait_and_hang_up, 20),
            (self.keep_and_give_back, 20),
            (self.keep_with_a_session, 20),
            (self.force, 5),
        ]
        idle: list[tuple[Way, int]] = [  # they leave a lock to nobody for a while
            (self.keep_too_late, 4),
            (self.give_back_too_late, 4),
            (self.let_it_expire, 4),
            (self.vanish_with_a_session, 3),
        ]
        ways = common + [(way, round(weight * idleness)) for way, weight in idle]
        self.ways, self.weights = zip(*ways, strict=True)

    @property
    def client(self) -> Client:
        return self.clients[0]

    @property
    def owner(self) -> str:
        return f"{self.name}.{self.attempts}"

    async def work(self) -> None:
        while not self.recorder.is_done:
            (way,) = self.random.choices(self.ways, self.weights)
            self.attempts += 1
            await way()
            self.recorder.outcomes[way.__name__] += 1
        for client in self.clients:
            client.hang_up()

    # -- asking --------------------------------------------------------------------------------------

    async def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> Reply | None:
        """None where it is not known what became of it."""
        try:
            reply = await self.client.call(method, path, body, key=key, seconds=self.wait_seconds + 30)
        except Lost:
            self.recorder.outcomes["lost"] += 1
            self.clients.append(self.clients.pop(0))
            await asyncio.sleep(PAUSE)
            return None
        if reply.status >= 400:
            self.recorder.outcomes[reply.code] += 1
        if reply.status == 503:
            await asyncio.sleep(PAUSE)
        return None if reply.code == "outcome_unknown" else reply

    def wish(self, key: str) -> dict[str, Any]:
        wish: dict[str, Any] = {"key": key}
        capacity = CAPACITIES.get(key)
        if capacity:
            wish |= {"capacity": capacity, "permits": self.random.randint(1, capacity)}
        if not key.startswith("k") and self.random.random() < 0.4:
            wish |= {"mode": "shared", "permits": 1}
        return wish

    def wishes(self) -> list[dict[str, Any]]:
        count = self.random.randint(2, 4) if self.random.random() < 0.15 else 1
        return [self.wish(key) for key in self.random.sample(self.recorder.keys, count)]

    def request(self, **more: Any) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        wishes = self.wishes()
        body = {"owner": self.owner, **more}
        if len(wishes) == 1:
            return "locks", {**wishes[0], **body}
        self.recorder.outcomes["several"] += 1
        return "locks/acquire-many", {"items": wishes, **body}

    async def take(self, **more: Any) -> list[Hold]:
        """The holds; none for a refusal, and where nothing is known."""
        path, body = self.request(**more)
        key = f"key-{self.owner}-{path}" if self.random.random() < 0.1 else None
        reply = await self.call("POST", path, body, key)
        if reply is None and key:
            reply = await self.call("POST", path, body, key)
        told_at = time.time()
        # Who waited and is told to ask again may have been granted it in the very moment.
        if reply is None or (reply.status == 503 and "wait_seconds" in body):
            self.recorder.untold[self.owner] = NEVER
            return []
        return self.told(reply, told_at)

    def told(self, reply: Reply, told_at: float) -> list[Hold]:
        if reply.status == 201:
            grants = reply.value.get("grants", [reply.value])
            return [self.recorder.granted(grant, told_at) for grant in grants]
        assert reply.code in REFUSALS, reply.value
        self.recorder.untold[self.owner] = told_at
        return []

    async def give_back(self, holds: Sequence[Hold]) -> None:
        if not holds:
            await asyncio.sleep(self.random.random() / 100)
        elif self.random.random() < 0.3:
            await asyncio.sleep(self.random.random() / 500)
        for hold in holds:
            await self.release(hold)

    async def release(self, hold: Hold) -> None:
        """Until there is an answer, or the time of the hold is up anyway."""
        hold.given_back_at = time.time()
        was_answered = True
        while True:
            reply = await self.call("POST", f"locks/{hold.key}/release", {"lock_id": hold.lock_id})
            if reply is not None and reply.status != 503:
                break
            was_answered = False
            if time.time() > hold.expires_at + self.ttl_seconds:
                return
        assert reply.code in {"", "lock_not_held"}, reply.value
        hold.released = reply.status == 200
        if reply.status == 409 and was_answered:
            hold.refused_at = time.time()

    async def renew(self, hold: Hold, ttl_seconds: float) -> bool:
        """Whether it holds for all that is known."""
        sent_at = time.time()
        body = {"lock_id": hold.lock_id, "ttl_seconds": ttl_seconds}
        reply = await self.call("POST", f"locks/{hold.key}/renew", body)
        if reply is None or reply.status == 503:
            hold.latest = time.time() + ttl_seconds
        elif reply.status == 200:
            if sent_at > hold.expires_at:
                hold.revived_at = sent_at
            hold.expires_at = seconds(reply["expires_at"])
        else:
            assert reply.code == "lock_not_held", reply.value
            hold.refused_at = time.time()
        return hold.refused_at is None

    # -- the ways ------------------------------------------------------------------------------------

    async def wait_and_give_back(self) -> None:
        await self.give_back(await self.take(wait_seconds=self.wait_seconds, ttl_seconds=self.ttl_seconds))

    async def try_and_give_back(self) -> None:
        await self.give_back(await self.take(ttl_seconds=self.ttl_seconds))

    async def wait_a_moment(self) -> None:
        """Not long enough, most of the time."""
        moment = self.random.uniform(0.001, 0.05)
        await self.give_back(await self.take(wait_seconds=moment, ttl_seconds=self.ttl_seconds))

    async def let_it_expire(self) -> None:
        await self.take(wait_seconds=self.wait_seconds, ttl_seconds=SHORT_TTL)

    async def give_back_too_late(self) -> None:
        holds = await self.take(wait_seconds=self.wait_seconds, ttl_seconds=SHORT_TTL)
        await self.sleep_through(holds)
        await self.give_back(holds)

    async def keep_and_give_back(self) -> None:
        holds = await self.take(wait_seconds=self.wait_seconds, ttl_seconds=self.ttl_seconds)
        await self.give_back([hold for hold in holds if await self.renew(hold, self.ttl_seconds)])

    async def keep_too_late(self) -> None:
        holds = await self.take(wait_seconds=self.wait_seconds, ttl_seconds=SHORT_TTL)
        await self.sleep_through(holds)
        await self.give_back([hold for hold in holds if await self.renew(hold, self.ttl_seconds)])

    async def sleep_through(self, holds: Sequence[Hold]) -> None:
        """About as long as they last."""
        if holds:
            left = holds[0].expires_at - time.time()
            await asyncio.sleep(max(0.0, left + self.random.uniform(-0.02, 0.04)))

    async def wait_and_hang_up(self) -> None:
        # A grant that is on the wire in that very moment is lost for its TTL: so a short one.
        path, body = self.request(wait_seconds=self.wait_seconds, ttl_seconds=0.3)
        try:
            async with asyncio.timeout(self.random.uniform(0, 0.05)):
                reply = await self.client.call("POST", path, body)
        except (TimeoutError, Lost):
            self.recorder.untold[self.owner] = NEVER
            self.recorder.outcomes["hung_up"] += 1
        else:
            if reply.status == 503:
                self.recorder.untold[self.owner] = NEVER
            else:
                await self.give_back(self.told(reply, time.time()))

    async def force(self) -> None:
        key = self.random.choice(self.recorder.keys)
        reply = await self.call("POST", f"locks/{key}/force-release", {"reason": "a drill"})
        assert reply is None or reply.status == 503 or reply.code in {"", "lock_not_held"}, reply.value
        if reply is not None and reply.status == 200:
            self.recorder.outcomes["forced"] += 1

    async def keep_with_a_session(self) -> None:
        """Takes twice, and so may be in a deadlock's way; ends with its holds or with all at once."""
        session_id = await self.open(max(2.0, self.ttl_seconds / 10), 0)
        holds: list[Hold] = []
        for _ in range(2):
            if session_id and await self.keep_alive(session_id, holds):
                holds += await self.take(wait_seconds=self.wait_seconds, session_id=session_id)
                self.attempts += 1  # another owner's name for each request
        if self.random.random() < 0.5 and session_id:
            await self.close(session_id, holds)
        else:
            await self.give_back(holds)

    async def vanish_with_a_session(self) -> None:
        session_id = await self.open(SESSION_TTL, self.random.choice([0, 0.2]))
        if session_id:
            await self.take(wait_seconds=self.wait_seconds, session_id=session_id)

    async def open(self, ttl_seconds: float, lock_delay_seconds: float) -> str | None:
        body = {
            "owner": self.owner, "ttl_seconds": ttl_seconds, "lock_delay_seconds": lock_delay_seconds,
        }  # fmt: skip
        reply = await self.call("POST", "sessions", body)
        if reply is None or reply.status == 503:
            return None
        self.recorder.sessions[reply["session_id"]] = seconds(reply["expires_at"])
        found: str = reply["session_id"]
        return found

    async def keep_alive(self, session_id: str, holds: Sequence[Hold]) -> bool:
        reply = await self.call("POST", f"sessions/{session_id}/keepalive")
        latest = time.time() + max(2.0, self.ttl_seconds / 10)
        if reply is not None and reply.status < 500:
            if reply.status != 200:
                assert reply.code == "session_ended", reply.value
                return False
            latest = seconds(reply["expires_at"])
            for hold in holds:
                hold.expires_at = latest
        self.recorder.sessions[session_id] = max(self.recorder.sessions[session_id], latest)
        return True

    async def close(self, session_id: str, holds: Sequence[Hold]) -> None:
        for hold in holds:
            hold.given_back_at = time.time()
        reply = await self.call("DELETE", f"sessions/{session_id}")
        assert reply is None or reply.status == 503 or reply.code in {"", "session_ended"}, reply.value


REFUSALS = {"lock_held", "lock_wait_timeout", "deadlock", "session_ended", "unavailable"}
WAYS = {
    "wait_and_give_back", "try_and_give_back", "wait_a_moment", "wait_and_hang_up", "keep_and_give_back",
    "keep_with_a_session", "keep_too_late", "give_back_too_late", "let_it_expire", "vanish_with_a_session",
    "force",
}  # fmt: skip
FAULTS = {"lost", "unavailable", "outcome_unknown"}  # what clients see of faults, and never without


def check_all_happened(recorder: Recorder) -> None:
    """The race is worth its name only if every way of taking a lock took part in it."""
    wanted = WAYS | {"lock_held", "lock_wait_timeout", "several", "hung_up", "forced"}
    assert set(recorder.outcomes) >= wanted, wanted - set(recorder.outcomes)


# -- the log -----------------------------------------------------------------------------------------


async def pages(client: Client) -> AsyncIterator[list[dict[str, Any]]]:
    """The system's events of a namespace."""
    position, more = 1, True
    while more:
        query = {"prefix": "$", "from_position": position, "limit": 1000}
        page = await client.call("GET", "events", query=query)
        assert page.status == 200, page.value
        yield page["events"]
        position, more = page["next_position"], page["has_more"]


async def settle(client: Client, keys: Sequence[str], patience: float = 40.0) -> None:
    """Until nobody holds and nobody waits: who went away has left the queues.

    Raises: Violation.
    """
    deadline = time.monotonic() + patience
    for key in keys:
        while True:
            state = (await client.call("GET", f"locks/{key}")).value
            if not state.get("is_locked", True) and not state["queue_length"]:
                break
            if time.monotonic() > deadline:
                raise Violation(f"{key}: it is held, or waited for, and nobody is there any more: {state}")
            await asyncio.sleep(0.05)


async def whole_log(client: Client, away: Sequence[Window] = (), patience: float = 40.0) -> LockLog:
    """The log once it tells that every hold has ended: a lock that ran out is free before that is written down."""
    deadline = time.monotonic() + patience
    while True:
        log = LockLog(CAPACITIES, away)
        async for events in pages(client):
            for event in events:
                log.take(event)
        log.close()
        open_still = [hold for lock in log.locks.values() for hold in lock.holds.values()]
        if not open_still:
            return log
        if time.monotonic() > deadline:
            raise Violation(f"{open_still} never ended")
        await asyncio.sleep(0.5)


async def check(
    client: Client,
    recorder: Recorder,
    *,
    away: Sequence[Window] = (),
    extensions: Sequence[Window] = (),
    patience: float = 40.0,
) -> LockLog:
    """Everything that is promised. Raises: Violation."""
    await settle(client, recorder.keys, patience)
    log = await whole_log(client, away, patience)
    mind_force(recorder.holds, log.locks)
    check_holds(recorder.holds, CAPACITIES)
    check_agreement(recorder.holds, log.locks)
    check_endings(recorder.holds, log.locks, recorder.untold, recorder.sessions, extensions)
    assert not any(lock.waiting for lock in log.locks.values())
    return log
