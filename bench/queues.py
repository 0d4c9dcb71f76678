"""What do 5,000 callers who wait for one lock cost: each release, each hand-off, and while they wait?"""

import asyncio
import statistics
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from bench.client import Client
from bench.handoff import percentile, spread
from bench.processes import clients, has_proc, resident_mb, threads
from bench.report import Figure, at_most
from bench.servers import Syros, folder
from bench.websocket import raise_file_limit

needs_wrk = False
SHORT, LONG = 10, 5_000  # waiters
RELEASES = 600  # a run; of the short queue, ten at a time
AT_ONCE = 100  # who join a queue
IDLE_SECONDS = 10


def measure(seconds: int, rounds: int) -> list[Figure]:
    if not has_proc:
        print("queues: skipped, there is no /proc to read")
        return []
    raise_file_limit()
    with folder() as home, Syros(home) as syros, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask(syros, rounds))


async def ask(syros: Syros, rounds: int) -> list[Figure]:
    few = await Queue.open(syros, "bench-few")
    short = [await few.run(SHORT, RELEASES // SHORT) for _ in range(rounds)]
    await few.close()
    before, started = state(syros), syros.cpu()
    await asyncio.sleep(IDLE_SECONDS)
    idle, started = syros.cpu() - started, time.perf_counter()
    many = await Queue.open(syros, "bench-many")
    await many.fill(LONG)
    took, waiting = time.perf_counter() - started, state(syros)
    started = syros.cpu()
    await asyncio.sleep(IDLE_SECONDS)
    attended = syros.cpu() - started
    long = [await many.run(LONG, 1, RELEASES) for _ in range(rounds)]
    await many.close()
    times = [each for run in long for each in run["ms"]]
    cost = {
        name: statistics.median(run["cpu_us"] for run in runs)
        for name, runs in (("few", short), ("many", long))
    }
    raw = {"cpu_us": {"few": [r["cpu_us"] for r in short], "many": [r["cpu_us"] for r in long]}}
    return [
        Figure(f"hand-off, {LONG:,} wait, p50", "ms", percentile(times, 50), raw={"ms": spread(times)}),
        Figure(f"hand-off, {LONG:,} wait, p99", "ms", percentile(times, 99), None, at_most(100)),
        Figure(f"a release, {SHORT} wait", "µs CPU", cost["few"], raw=raw),
        Figure(f"a release, {LONG:,} wait", "µs CPU", cost["many"]),
        Figure("… times as much", "", cost["many"] / cost["few"], None, at_most(2)),
        Figure(f"{LONG:,} wait, joined", "a second", LONG / took),
        Figure(f"{LONG:,} wait, nothing happens", "% of a core", (attended - idle) / IDLE_SECONDS * 100),
        Figure(f"{LONG:,} wait, memory", "KB each", (waiting["mb"] - before["mb"]) * 1e3 / LONG, None, at_most(40)),
        Figure(f"{LONG:,} wait, threads", "more", waiting["threads"] - before["threads"], None, at_most(5)),
        Figure(f"{LONG:,} wait, connections to the database", "more", waiting["clients"] - before["clients"],
               None, at_most(5)),
    ]  # fmt: skip


def state(syros: Syros) -> dict[str, float]:
    """Of the processes that serve."""
    return {
        "mb": sum(map(resident_mb, syros.pids)),
        "threads": sum(map(threads, syros.pids)),
        "clients": clients(syros.postgres),
    }


class Queue:
    """A lock, whoever holds it, and those who wait for it, each with a connection of its own."""

    def __init__(self, syros: Syros, key: str, holder: Client, lock_id: str) -> None:
        self._syros, self._key = syros, key
        self._holder, self._lock_id = holder, lock_id
        self._granted: asyncio.Queue[tuple[float, Client, dict[str, Any]]] = asyncio.Queue()
        self._spare: list[Client] = []
        self._waiting: dict[Client, asyncio.Task[None]] = {}
        self._token = 0

    @classmethod
    async def open(cls, syros: Syros, key: str) -> "Queue":
        holder = await Client.open(syros)
        grant = await holder.request("POST", "locks", {"key": key, "owner": "bench", "ttl_seconds": 3600})
        return cls(syros, key, holder, grant["lock_id"])

    async def close(self) -> None:
        for task in self._waiting.values():
            task.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)
        for client in (*self._waiting, *self._spare, self._holder):
            await client.close()

    async def fill(self, length: int) -> None:
        """Have so many wait, and be sure that they do."""
        while missing := length - len(self._waiting):
            await asyncio.gather(*(self._join() for _ in range(min(missing, AT_ONCE))))
            while (await self._look())["queue_length"] < len(self._waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _look(self) -> dict[str, Any]:
        return await self._holder.request("GET", f"locks/{self._key}")

    async def _join(self) -> None:
        client = self._spare.pop() if self._spare else await Client.open(self._syros)
        self._waiting[client] = asyncio.create_task(self._wait(client))

    async def _wait(self, client: Client) -> None:
        wanted = {"key": self._key, "owner": "bench", "ttl_seconds": 3600, "wait_seconds": 300}
        grant = await client.request("POST", "locks", wanted)
        self._granted.put_nowait((time.perf_counter(), client, grant))

    async def run(self, length: int, times: int, releases: int = 0) -> dict[str, Any]:
        """Fill the queue and release as often (else until it is empty), so many times: what that cost."""
        cpu, took = 0.0, list[float]()
        for _ in range(times):
            await self.fill(length)
            before = self._syros.cpu()
            took += [await self._hand_on() for _ in range(releases or length)]
            cpu += self._syros.cpu() - before
        return {"cpu_us": cpu / len(took) * 1e6, "ms": took}

    async def _hand_on(self) -> float:
        """Milliseconds from the release to the next one's grant."""
        holder, sent = self._holder, time.perf_counter()
        await holder.request("POST", f"locks/{self._key}/release", {"lock_id": self._lock_id})
        granted, self._holder, grant = await bounded(self._granted.get())
        assert self._granted.empty(), "one release woke two"
        assert grant["fencing_token"] > self._token
        self._lock_id, self._token = grant["lock_id"], grant["fencing_token"]
        del self._waiting[self._holder]
        self._spare.append(holder)
        taken: float = granted - sent
        return taken * 1e3


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(10):
        return await work
