"""What does it cost to keep 2,000 sessions alive that hold 100,000 locks, and to hold these at all?"""

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
SESSIONS, KEYS = 2_000, 50  # of each
TTL, RHYTHM = 15, 5  # seconds; a keepalive each third of the TTL
CONNECTIONS = 32
PAUSE = 6  # seconds without keepalives: each session has TTL - RHYTHM left


def measure(seconds: int, rounds: int) -> list[Figure]:
    return against_empty("sessions", 2 * RHYTHM, lambda syros, empty: ask(syros, empty, rounds))


async def ask(syros: Syros, empty: float, rounds: int) -> list[Figure]:
    keeper = Keeper(syros, [await Client.open(syros) for _ in range(CONNECTIONS)])
    started = time.perf_counter()
    async with keeper.at_work():
        await keeper.open_all()
        took = time.perf_counter() - started
    kept, held, calls = list[float](), list[float](), 0
    for _ in range(rounds):  # the median: a vacuum of what was just written is no keepalive
        async with keeper.at_work():
            await asyncio.sleep(RHYTHM)
            before = keeper.calls
            kept.append(await cpu_percent(syros, 2 * RHYTHM) - empty)
            calls += keeper.calls - before
        held.append(await cpu_percent(syros, PAUSE) - empty)
    for client in keeper.clients:
        await client.close()
    rate, keeping, holding = calls / (rounds * 2 * RHYTHM), median(kept), median(held)
    raw = {"percent": {"empty": empty, "held": held, "kept": kept}, "keepalives_a_second": rate}
    about = f"{SESSIONS * KEYS:,} locks of {SESSIONS:,} sessions"
    return [
        Figure(f"{about}, taken by {KEYS}", "a second", SESSIONS * KEYS / took),
        Figure(f"{about}, kept alive", "% of a core", keeping, None, at_most(15), raw=raw),
        Figure("… of it without keepalives", "% of a core", holding),
        Figure("… a keepalive", "µs CPU", (keeping - holding) / 100 / rate * 1e6),
    ]


class Keeper:
    """Opens the sessions and keeps them alive, each in its own time."""

    def __init__(self, syros: Syros, clients: list[Client]) -> None:
        self._syros, self.clients = syros, clients
        self._free: asyncio.Queue[Client] = asyncio.Queue()
        for client in clients:
            self._free.put_nowait(client)
        self._due: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self.calls = 0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._keep(group))
            yield
            work.cancel()

    async def _keep(self, group: asyncio.TaskGroup) -> None:
        """Whoever is due; all have the same rhythm, so they come up in order."""
        while True:
            due, session_id = await self._due.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._due.put_nowait((due + RHYTHM, session_id))
            group.create_task(self._ask("POST", f"sessions/{session_id}/keepalive"))
            self.calls += 1

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, str]:
        client = await self._free.get()
        try:
            return await client.request(method, path, body)
        finally:
            self._free.put_nowait(client)

    async def open_all(self) -> None:
        for begin in range(0, SESSIONS, CONNECTIONS // 2):
            await asyncio.gather(*(self._open(n) for n in range(begin, begin + CONNECTIONS // 2)))

    async def _open(self, number: int) -> None:
        session = await self._ask("POST", "sessions", {"owner": "bench", "ttl_seconds": TTL})
        session_id = session["session_id"]
        self._due.put_nowait((time.monotonic() + RHYTHM, session_id))
        keys = [f"bench-{number}-{key}" for key in range(KEYS)]
        wanted = {"keys": keys, "owner": "bench", "session_id": session_id}
        await self._ask("POST", "locks/acquire-many", wanted)
