"""Sagas whose processes are killed and stand still, whose database is restarted, and whose participant is unreliable:
in the ledger everything was done once, or was taken back once and in reverse."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.faults.authors import Authors, register
from tests.faults.house import Couple, House
from tests.faults.ledger import MOODS, Ledger
from tests.races.processes import Syros, run

MANY = 5_000
LEASE = 3.0  # seconds: the lease of a process
EVERY = 2.0  # seconds from one fault to the next one
CALM = 0.7  # seconds between them at least: who stood still goes on with what it did
PATIENCE = 60.0  # seconds from the last start until all are over


class Storm:
    """What happens to the servers meanwhile."""

    def __init__(self, house: House, processes: Sequence[Syros], seed: int, faults: str) -> None:
        self.house, self.processes = house, processes
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults = [getattr(self, name) for name in faults.split()]

    async def rage(self, authors: Authors) -> None:
        """One fault after the other, each at least once."""
        number = 0
        while not authors.is_done or number < len(self.faults):
            fault = self.faults[number % len(self.faults)]
            begun = time.monotonic()
            await fault()
            self.counts[fault.__name__] += 1
            number += 1
            await asyncio.sleep(max(CALM, EVERY - (time.monotonic() - begun)))

    def victim(self) -> Syros:
        return self.random.choice(self.processes)

    async def kill(self, victim: Syros | None = None) -> None:
        victim = victim or self.victim()
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)

    async def kill_all(self) -> None:
        """Whoever was in the middle of a call is gone."""
        await asyncio.gather(*map(self.kill, self.processes))

    async def stop(self) -> None:
        """For longer than the lease: the others take over, and it wakes up in the middle of what it did."""
        await self.stand_still(self.victim())

    async def stand_still(self, victim: Syros) -> None:
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self.random.uniform(LEASE + 0.3, LEASE + 1.5))
        finally:
            victim.signal(signal.SIGCONT)

    async def stop_and_kill(self) -> None:
        """While one stands still, the other dies: what that one took over is an orphan again."""
        one, other = self.random.sample(self.processes, 2)
        await asyncio.gather(self.stand_still(one), self.kill(other))

    async def restart(self) -> None:
        await asyncio.to_thread(self.house.hit, self.house.postgres, signal.SIGINT)
        await asyncio.sleep(0.3)  # the watch sees it and starts it again
        await asyncio.to_thread(self.house.wait_for, self.house.postgres)


async def live_through(couple: Couple, authors: Authors, faults: str, patience: float) -> Ledger:
    begun = time.monotonic()
    with Ledger(couple.namespace, authors.ports, authors.seed) as ledger:
        await register(couple.namespace, authors.ports, ledger.port)
        storm = Storm(couple.house, couple.both, authors.seed, faults)
        await asyncio.gather(storm.rage(authors), authors.work())
        await authors.check(ledger, patience)
    print(f"{len(authors.written)} sagas in {time.monotonic() - begun:.0f} s, {ledger.books}")
    for counts in (storm.counts, ledger.moods, authors.outcomes, authors.facts):
        print(dict(counts))
    return ledger


def authors_for(couple: Couple, wanted: int, pace: float, seed: int) -> Authors:
    return Authors(couple.namespace, [process.port for process in couple.both], wanted, pace, seed)


def test_whatever_happens_the_ledger_says_all_or_nothing(couple: Couple) -> None:
    authors = authors_for(couple, 80, 9, seed=1)
    run(live_through(couple, authors, "stop kill_all restart kill", PATIENCE), 120)
    assert authors.outcomes["succeeded"] > 10
    assert authors.outcomes["compensated"] > 10
    assert authors.facts["unheard"]


@pytest.mark.long
def test_five_thousand_sagas_through_everything_that_happens(couple: Couple) -> None:
    authors = authors_for(couple, MANY, 12, seed=2)
    faults = "kill kill kill stop kill kill stop_and_kill kill restart"
    ledger = run(live_through(couple, authors, faults, 5 * PATIENCE), 3600)
    assert set(authors.outcomes) >= {
        "succeeded",
        "compensated",
        "failed",
        "Lost",
        "TimeoutError",
        "unavailable",
    }
    assert set(ledger.moods) == set(MOODS)
    counts = ledger.books.counts + authors.facts
    assert min(counts[what] for what in ("again", "hanging", "empty", "unheard", "step.late_result")) > 50
