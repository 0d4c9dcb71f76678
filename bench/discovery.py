"""What does it cost to hear of 5,000 instances, how long does a lookup take, and how soon is a dead one out?"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from bench.client import Client
from bench.keeping import against_empty, cpu_percent
from bench.report import Figure, at_most
from bench.servers import Syros

needs_wrk = False
SERVICES, INSTANCES = 100, 50  # of each
TTL, RHYTHM = 15, 5  # seconds; a heartbeat each third of the TTL
CONNECTIONS = 128  # of 5,000 agents each has its own, and mostly says nothing
LOOKUPS = 500
DYING = 5  # of each TTL below
SHORT = 3  # seconds


def measure(seconds: int, rounds: int) -> list[Figure]:
    return against_empty("discovery", 2 * RHYTHM, lambda syros, empty: ask(syros, empty, rounds))


async def ask(syros: Syros, empty: float, rounds: int) -> list[Figure]:
    keeper = Keeper([await Client.open(syros) for _ in range(CONNECTIONS)])
    asker = await Client.open(syros)
    kept, busy, calls = list[float](), list[float](), 0
    async with keeper.at_work():
        await keeper.register_all()
        for _ in range(rounds):
            await asyncio.sleep(RHYTHM)
            before = keeper.calls
            kept.append(await cpu_percent(syros, 2 * RHYTHM) - empty)
            calls += keeper.calls - before
            busy += [await timed(asker, f"services/s{n % SERVICES}") for n in range(LOOKUPS)]
        late = [await until_out(asker, number) for number in range(DYING * rounds)]
    # The client of the heartbeats is Python too, and was in the way.
    looked = [await timed(asker, f"services/s{n % SERVICES}") for n in range(LOOKUPS)]
    for client in [*keeper.clients, asker]:
        await client.close()
    rate, keeping = calls / (rounds * 2 * RHYTHM), median(kept)
    raw = {
        "percent": {"empty": empty, "kept": kept},
        "heartbeats_a_second": rate,
        "out_after_ttl": late,
        "errors": keeper.errors[:20],
    }
    about = f"{SERVICES * INSTANCES:,} instances"
    return [
        Figure(
            f"{about} with a TTL of {TTL} s, kept",
            "% of a core",
            keeping,
            None,
            at_most(20),
            keeper.errors,
            raw,
        ),
        Figure("… a heartbeat", "µs CPU", keeping / 100 / rate * 1e6),
        Figure(f"… a lookup of {INSTANCES} of them, p50", "ms", median(looked) * 1e3, None, at_most(3)),
        Figure("… beside the heartbeats of all", "ms", median(busy) * 1e3),
        Figure("… a dead one is out after its TTL and", "s, at most", max(late), None, at_most(2)),
    ]


async def timed(client: Client, path: str) -> float:
    started = time.perf_counter()
    found: Any = await client.request("GET", path)
    took = time.perf_counter() - started
    assert found["instances"], "all were lost"
    return took


async def until_out(client: Client, number: int) -> float:
    """One registers and is never heard of again: how long after its TTL it is listed no more."""
    place = {"address": "192.0.2.7", "port": 80, "ttl_seconds": SHORT}
    await client.request("PUT", f"services/dying/instances/i{number}", place)
    over = time.perf_counter() + SHORT
    await asyncio.sleep(SHORT - 0.2)
    while (await client.request("GET", "services/dying"))["instances"]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return time.perf_counter() - over


class Keeper:
    """Registers the instances and keeps them, each in its own time."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self._free: asyncio.Queue[Client] = asyncio.Queue()
        for client in clients:
            self._free.put_nowait(client)
        self._due: asyncio.Queue[tuple[float, str, int]] = asyncio.Queue()
        self.calls = 0
        self.errors: list[str] = []

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._keep(group))
            yield
            work.cancel()

    async def _keep(self, group: asyncio.TaskGroup) -> None:
        """Whoever is due; all have the same rhythm, so they come up in order."""
        while True:
            due, path, incarnation = await self._due.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._due.put_nowait((due + RHYTHM, path, incarnation))
            group.create_task(self._beat(path, incarnation))
            self.calls += 1

    async def _beat(self, path: str, incarnation: int) -> None:
        try:
            await self._ask("POST", f"{path}/heartbeat", {"incarnation": incarnation})
        except RuntimeError as error:  # it came too late: then the figures mean nothing
            self.errors.append(str(error))

    async def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        client = await self._free.get()
        try:
            return await client.request(method, path, body)
        finally:
            self._free.put_nowait(client)

    async def register_all(self) -> None:
        """Spread over the rhythm, as instances of many machines are."""
        started, step = time.monotonic(), RHYTHM / INSTANCES
        for number in range(INSTANCES):
            await asyncio.gather(*(self._register(service, number) for service in range(SERVICES)))
            await asyncio.sleep(max(0.0, started + step * (number + 1) - time.monotonic()))

    async def _register(self, service: int, number: int) -> None:
        path = f"services/s{service}/instances/i{number}"
        place = {
            "address": "192.0.2.7",
            "port": 80,
            "ttl_seconds": TTL,
            "tags": ["eu"],
            "metadata": {"v": "1"},
        }
        found = await self._ask("PUT", path, place)
        self._due.put_nowait((time.monotonic() + RHYTHM, path, found["incarnation"]))
