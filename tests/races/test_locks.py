"""Many clients, few keys, two processes: what a lock promises under every interleaving that turns up."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from locks.rules import ENDINGS
from tests.races.client import Client, Reply
from tests.races.conftest import Pair
from tests.races.histories import Hold, check_agreement, check_holds, check_lock_log
from tests.races.processes import run

CLIENTS = 32  # a process
KEYS = ["k0", "k1", "k2", "k3"]
SHORT_TTL = 0.1


def seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


class Recorder:
    """What all clients saw, and how much there is still to do."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.holds: list[Hold] = []
        self.outcomes: Counter[str] = Counter()
        self.hung_up: set[str] = set()  # owners that went away while they waited

    @property
    def is_done(self) -> bool:
        return len(self.holds) >= self.wanted

    def granted(self, reply: Reply, told_at: float) -> Hold:
        hold = Hold(
            reply["key"], reply["owner"], reply["fencing_token"], told_at, seconds(reply["expires_at"])
        )
        self.holds.append(hold)
        return hold


class Worker:
    """A client that takes locks in all the ways there are, until enough were taken."""

    def __init__(self, name: str, client: Client, recorder: Recorder, seed: int) -> None:
        self.name, self.client, self.recorder = name, client, recorder
        self.random = random.Random(f"{seed}/{name}")
        self.attempts = 0
        ways: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.wait_and_give_back, 78),
            (self.try_and_give_back, 10),
            (self.wait_a_moment, 6),
            (self.wait_and_hang_up, 4),
            (self.let_it_expire, 1),
            (self.give_back_too_late, 1),
        ]
        self.ways, self.weights = zip(*ways, strict=True)

    async def work(self) -> None:
        while not self.recorder.is_done:
            (way,) = self.random.choices(self.ways, self.weights)
            self.attempts += 1
            await way()
            self.recorder.outcomes[way.__name__] += 1

    @property
    def owner(self) -> str:
        return f"{self.name}.{self.attempts}"

    async def take(self, **more: Any) -> tuple[str, Hold] | None:
        """The lock_id and the hold; None for a refusal."""
        body = {"key": self.random.choice(KEYS), "owner": self.owner, **more}
        key = f"key-{self.owner}" if self.random.random() < 0.1 else None
        reply = await self.client.call("POST", "locks", body, key=key)
        told_at = time.time()
        if reply.status == 201:
            return reply["lock_id"], self.recorder.granted(reply, told_at)
        assert reply.status == 409, reply.value
        assert reply.code in {"lock_held", "lock_wait_timeout"}, reply.value
        self.recorder.outcomes[reply.code] += 1
        return None

    async def give_back(self, taken: tuple[str, Hold] | None) -> None:
        if taken is None:
            await asyncio.sleep(self.random.random() / 100)
            return
        lock_id, hold = taken
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.random() / 500)
        hold.given_back_at = time.time()
        path = f"locks/{hold.key}/release"
        reply = await self.client.call("POST", path, {"lock_id": lock_id})
        assert reply.status in {200, 409}, reply.value
        if reply.status == 409:
            assert hold.expires_at < time.time(), f"{hold} was taken away: {reply.value}"
            if reply["reason"] != "expired":
                await self.check_forgotten(hold, reply["reason"])
        hold.released = reply.status == 200

    async def check_forgotten(self, hold: Hold, reason: str) -> None:
        """A lock remembers its last holds only; under this load they are over within milliseconds."""
        state = await self.client.call("GET", f"locks/{hold.key}")
        assert reason == "never_held"
        assert state["last_token"] - hold.token >= ENDINGS, f"{hold} is already forgotten"

    async def wait_and_give_back(self) -> None:
        await self.give_back(await self.take(wait_seconds=60, ttl_seconds=30))

    async def try_and_give_back(self) -> None:
        await self.give_back(await self.take(ttl_seconds=30))

    async def wait_a_moment(self) -> None:
        """Not long enough, most of the time."""
        await self.give_back(await self.take(wait_seconds=self.random.uniform(0.001, 0.05), ttl_seconds=30))

    async def let_it_expire(self) -> None:
        await self.take(wait_seconds=60, ttl_seconds=SHORT_TTL)

    async def give_back_too_late(self) -> None:
        taken = await self.take(wait_seconds=60, ttl_seconds=SHORT_TTL)
        if taken:
            await asyncio.sleep(SHORT_TTL * self.random.uniform(0.9, 1.5))
        await self.give_back(taken)

    async def wait_and_hang_up(self) -> None:
        # A grant that is on the wire in that very moment is lost for its TTL: so a short one.
        body = {"key": self.random.choice(KEYS), "owner": self.owner, "wait_seconds": 60, "ttl_seconds": 0.3}
        await self.client.send("POST", "locks", body)
        try:
            async with asyncio.timeout(self.random.uniform(0, 0.05)):
                reply = await self.client.answer()
        except TimeoutError:
            self.recorder.hung_up.add(self.owner)
            self.client.hang_up()
        else:
            await self.give_back((reply["lock_id"], self.recorder.granted(reply, time.time())))


async def locks_log(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    position = 1
    while True:
        query = {"prefix": "$lock:", "from_position": position, "limit": 1000}
        page = await client.call("GET", "events", query=query)
        found += page["events"]
        if not page["has_more"]:
            return found
        position = page["next_position"]


async def settle(client: Client) -> None:
    """Until nobody holds and nobody waits: who went away has left the queues."""
    async with asyncio.timeout(40):
        while True:
            states = [await client.call("GET", f"locks/{key}") for key in KEYS]
            if not any(state["is_locked"] or state["queue_length"] for state in states):
                return
            await asyncio.sleep(0.05)


async def whole_log(client: Client) -> list[dict[str, Any]]:
    """The log once it tells that every hold has ended: a lock that ran out is free before that is written down."""
    async with asyncio.timeout(40):
        while True:
            found = await locks_log(client)
            if not any(lock.holder for lock in check_lock_log(found).values()):
                return found
            await asyncio.sleep(0.2)


async def race(pair: Pair, acquisitions: int, seed: int) -> Recorder:
    recorder = Recorder(acquisitions)
    workers = [
        Worker(f"{process.name}{number}", pair.client(process), recorder, seed)
        for number in range(CLIENTS)
        for process in pair.both
    ]
    await asyncio.gather(*(worker.work() for worker in workers))
    for worker in workers:
        worker.client.hang_up()
    return recorder


async def check(pair: Pair, recorder: Recorder) -> None:
    check_holds(recorder.holds)
    logs = []
    for process in pair.both:
        async with pair.client(process) as client:
            await settle(client)
            logs.append(await whole_log(client))
    assert logs[0] == logs[1]
    locks = check_lock_log(logs[0])
    check_agreement(recorder.holds, locks)
    seen = {hold.owner for hold in recorder.holds}
    for lock in locks.values():
        assert lock.holder is None
        assert lock.waiting == {}
        # Every hold is known to somebody: a client, or one that hung up, and then it ended without it.
        for token, owner in lock.grants.items():
            left = owner in recorder.hung_up and lock.endings[token] in {"client_gone", "expired"}
            assert owner in seen or left, f"nobody knows of {owner}'s {lock.key}"


def check_all_happened(recorder: Recorder) -> None:
    """The race is worth its name only if every way of taking a lock took part in it."""
    happened = set(recorder.outcomes)
    assert happened >= {"lock_held", "lock_wait_timeout", "let_it_expire", "wait_and_hang_up"}
    assert recorder.hung_up


def test_two_processes_and_sixty_four_clients_on_four_keys(pair: Pair) -> None:
    async def story() -> None:
        recorder = await race(pair, 2_500, seed=1)
        await check(pair, recorder)
        check_all_happened(recorder)

    run(story())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_twenty_thousand_acquisitions(pair: Pair, seed: int) -> None:
    async def story() -> None:
        recorder = await race(pair, 20_000, seed)
        await check(pair, recorder)
        check_all_happened(recorder)

    run(story(), 600)
