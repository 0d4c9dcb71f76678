"""Several processes on one port: they share the work, and one that dies is replaced."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.house import House
from tests.races.client import Client
from tests.races.processes import MANAGE, ROOT, Syros, eventually, new_namespace, run, until

SERVING = "select pid from syros.core_process where expires_at > clock_timestamp()"


@pytest.fixture
def pair(house: House) -> Iterator[Syros]:
    """Two processes; `workers(house, before)` tells them from those of other tests."""
    found = Syros(house.environ, f"pair-{time.monotonic_ns()}", workers=2).start()
    yield found
    found.end()


@pytest.fixture
def before(house: House) -> set[int]:
    return pids(house)


def pids(house: House) -> set[int]:
    return {pid for (pid,) in house.query(SERVING)}


def both(house: House, before: set[int]) -> Callable[[], set[int]]:
    """Waits for two processes, and says which."""

    def found() -> set[int]:
        until(lambda: len(pids(house) - before) == 2, 20, "two processes serve")
        return pids(house) - before

    return found


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_both_take_their_share(house: House, before: set[int], pair: Syros) -> None:
    both(house, before)()
    namespace = new_namespace(house.postgres.url)

    async def story() -> None:
        clients = [Client(pair.port, namespace) for _ in range(40)]
        for n, client in enumerate(clients):
            assert (await client.call("POST", "locks", {"key": f"k{n}", "owner": "me"})).status == 201
        commands = []
        for client in clients:  # each on its own connection, so always the same process
            commands.append((await client.call("GET", "/health"))["parts"]["engine"]["commands"])
            client.hang_up()
        assert all(5 < share < 35 for share in commands), commands  # of 40; it may be 20 each

    run(story())


def test_a_worker_that_dies_is_replaced(house: House, before: set[int], pair: Syros) -> None:
    (worker,) = both(house, before)() - {pair.pid}
    os.kill(worker, signal.SIGKILL)
    until(lambda: len(pids(house) - before - {worker, pair.pid}) == 1, 20, "another worker serves")
    namespace = new_namespace(house.postgres.url)

    async def story() -> None:
        async def served() -> bool:
            async with Client(pair.port, namespace) as client:
                return bool((await client.call("GET", "/ready")).status == 200)

        for _ in range(20):
            await eventually(served, 10)

    run(story())


def test_workers_end_with_the_first_process_even_if_it_is_killed(
    house: House, before: set[int], pair: Syros
) -> None:
    (worker,) = both(house, before)() - {pair.pid}
    pair.kill()
    until(lambda: is_gone(worker), 20, "the worker is gone")


def test_the_end_is_everybody_s(house: House, before: set[int], pair: Syros) -> None:
    (worker,) = both(house, before)() - {pair.pid}
    assert pair.stop() == 0
    assert is_gone(worker)
    assert pids(house) <= before
    assert [line for line in pair.complaints() if "worker" in line] == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_somebody_has_is_not_shared(house: House, pair: Syros, workers: str) -> None:
    refused = subprocess.run(
        [*MANAGE, "serve", "web", *pair.address, "--workers", workers],
        cwd=ROOT, env=house.environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert f"Cannot listen on 127.0.0.1:{pair.port}" in refused.stderr
