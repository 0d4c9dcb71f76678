"""Many clients, few keys, two processes: what a lock promises under every interleaving that turns up."""

import asyncio

import pytest

from tests.races.conftest import Pair
from tests.races.lockers import FAULTS, Locker, Recorder, check, check_all_happened, keys
from tests.races.processes import run

LOCKERS = 32  # a process


async def race(pair: Pair, acquisitions: int, seed: int, count: int = 6) -> Recorder:
    recorder = Recorder(acquisitions, keys(count))
    lockers = [
        Locker(f"{process.name}{number}", [pair.client(process)], recorder, seed)
        for number in range(LOCKERS)
        for process in pair.both
    ]
    await asyncio.gather(*(locker.work() for locker in lockers))
    return recorder


async def check_pair(pair: Pair, recorder: Recorder) -> None:
    async with pair.client(pair.a) as a, pair.client(pair.b) as b:
        logs = [await check(client, recorder) for client in (a, b)]
    assert logs[0].locks == logs[1].locks
    assert not FAULTS & set(recorder.outcomes), recorder.outcomes


def test_two_processes_and_sixty_four_clients_on_few_keys(pair: Pair) -> None:
    async def story() -> None:
        recorder = await race(pair, 1_500, seed=1)
        await check_pair(pair, recorder)
        check_all_happened(recorder)

    run(story())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_twenty_thousand_acquisitions(pair: Pair, seed: int) -> None:
    async def story() -> None:
        recorder = await race(pair, 20_000, seed)
        await check_pair(pair, recorder)
        check_all_happened(recorder)

    run(story(), 600)
