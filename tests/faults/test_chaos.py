"""Locks of every kind through processes that are killed and stand still, on servers that are restarted and emptied:
whatever happens, the history is one that was promised."""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence

import pytest
import redis

from tests.faults.house import Couple, House
from tests.races.client import Client
from tests.races.histories import Window, seconds
from tests.races.lockers import Locker, Recorder, check, check_all_happened, keys
from tests.races.processes import Syros, run, serving

MANY = 200_000  # acquisitions
HOURS = 2
TTL = 2.0  # seconds
LEASE = 3.0  # seconds: for so long a process that stands still may keep rows from the others
BACK = 3.0  # seconds after the database's return in which processes notice it


class Chaos:
    """What happens to the servers, one thing after the other, and when."""

    def __init__(self, house: House, processes: Sequence[Syros], seed: int) -> None:
        self.house, self.processes = house, processes
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.away: list[Window] = []  # when nothing is expected in time
        self.faults = [
            self.flush, self.kill, self.restart_fast, self.stop, self.kill_valkey, self.restart_killed,
        ]  # fmt: skip

    async def go_on(self, recorder: Recorder, pause: float) -> None:
        """Each fault in turn, at least once, until enough was taken."""
        while not recorder.is_done or len(self.counts) < len(self.faults):
            for fault in self.faults:
                await asyncio.sleep(self.random.uniform(pause / 2, pause))
                await fault()
                self.counts[fault.__name__] += 1
                if recorder.is_done and len(self.counts) == len(self.faults):
                    break

    async def kill(self) -> None:
        victim = self.random.choice(self.processes)
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)

    async def stop(self) -> None:
        """For longer than holds last."""
        victim = self.random.choice(self.processes)
        stopped_at = time.time()
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(TTL + 0.5, TTL + 2))
        finally:
            victim.signal(signal.SIGCONT)
        self.away.append(Window(stopped_at, min(stopped_at + LEASE, time.time()) + 1))

    async def restart_fast(self) -> None:
        await self.restart(signal.SIGINT)

    async def restart_killed(self) -> None:
        await self.restart(signal.SIGKILL)

    async def restart(self, number: signal.Signals) -> None:
        started_at = time.time()
        await asyncio.to_thread(self.house.hit, self.house.postgres, number)
        await asyncio.sleep(0.3)  # the watch sees it and starts it again
        await asyncio.to_thread(self.house.wait_for, self.house.postgres)
        self.away.append(Window(started_at, time.time() + BACK))

    async def flush(self) -> None:
        with redis.from_url(self.house.valkey.url) as valkey:
            valkey.flushall()

    async def kill_valkey(self) -> None:
        await asyncio.to_thread(self.house.hit, self.house.valkey, signal.SIGKILL)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(self.house.wait_for, self.house.valkey)


def extensions(processes: Sequence[Syros]) -> list[Window]:
    """The absences by which processes say that they extended leases."""
    found = []
    for process in processes:
        for line in process.log.read_text().splitlines():
            if "leases are extended by it" in line:
                entry = json.loads(line)
                end = seconds(entry["timestamp"])
                away = float(entry["event"].split("served for ")[1].split(" ")[0]) + 0.05  # it is rounded
                found.append(Window(end - away, end + 0.05))
    return found


async def live_through(
    house: House, processes: Sequence[Syros], namespace: str, recorder: Recorder, seed: int, pause: float
) -> Chaos:
    chaos = Chaos(house, processes, seed)
    lockers = []
    for number in range(48):
        places = [*processes[number % len(processes) :], *processes[: number % len(processes)]]
        clients = [Client(process.port, namespace) for process in places]
        lockers.append(
            Locker(f"c{number}", clients, recorder, seed, wait_seconds=20, ttl_seconds=TTL, idleness=0.5)
        )
    await asyncio.gather(chaos.go_on(recorder, pause), *(locker.work() for locker in lockers))
    async with Client(processes[0].port, namespace) as client:
        await check(client, recorder, away=chaos.away, extensions=extensions(processes))
    return chaos


def test_whatever_happens_the_history_is_one_that_was_promised(couple: Couple) -> None:
    recorder = Recorder(2_000, keys(8), 25)
    run(live_through(couple.house, couple.both, couple.namespace, recorder, seed=1, pause=1.5), 180)
    assert len(recorder.holds) > 200
    assert set(recorder.outcomes) >= {"lost", "unavailable"}


@pytest.mark.long
def test_two_hundred_thousand_acquisitions_through_everything_that_happens(couple: Couple) -> None:
    recorder = Recorder(MANY, keys(8), HOURS * 3600)
    started_at = time.monotonic()
    with serving(couple.house.environ, "c") as others:
        processes = [*couple.both, *others]
        story = live_through(couple.house, processes, couple.namespace, recorder, seed=2, pause=8)
        chaos = run(story, HOURS * 3600 + 1200)
        assert others[0].complaints() == []
    check_all_happened(recorder)
    print(f"{len(recorder.holds)} acquisitions in {time.monotonic() - started_at:.0f} s")
    print(dict(chaos.counts), dict(recorder.outcomes))
    assert len(recorder.holds) >= MANY, "the machine is too slow for so many"
