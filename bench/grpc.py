"""How many locks a second over gRPC, in batches and one by one? And what of it is the server's CPU?

Run as a program it is the load: `python -m bench.grpc KIND PORT API_KEY SECONDS SEED`.
"""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from grpc import aio

from bench.processes import cpu_of_threads, has_proc
from bench.report import Figure, at_least
from bench.servers import ROOT, Syros, folder

needs_wrk = False
CONNECTIONS = 8
BATCH = 16  # commands
BATCHES = 4  # under way on a connection
CALLS = 64  # under way in all
LOADS = 2  # processes that make it
_seeds = itertools.count(1)
Step = Callable[[aio.Channel, str], Awaitable[int]]


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros:
        figures = []
        for kind, title, least in (
            ("execute", f"locks over gRPC, Execute, batches of {BATCH}", 8000),
            ("unary", f"locks over gRPC, {CALLS} calls at a time", 1500),
        ):
            run(syros, kind, 1)
            runs = [run(syros, kind, seconds) for _ in range(rounds)]
            rate = statistics.median(each["rate"] for each in runs)
            failed = sum(each["failed"] for each in runs)
            figures.append(Figure(title, "a second", rate, None, at_least(least), failed, {"runs": runs}))
            if has_proc:
                cpu = statistics.median(each["cpu_us"] for each in runs)
                figures.append(Figure("… the serving processes", "µs CPU a lock", cpu))
        return figures


def run(syros: Syros, kind: str, seconds: int) -> dict[str, Any]:
    """All loads at once, for so many seconds."""
    before = cpu(syros)
    command = [sys.executable, "-m", "bench.grpc", kind, str(syros.grpc_port), syros.api_key, str(seconds)]
    loads = [
        subprocess.Popen([*command, str(next(_seeds))], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(LOADS)
    ]
    found = [json.loads(load.communicate(timeout=seconds + 60)[0].splitlines()[-1]) for load in loads]
    locks = sum(each["locks"] for each in found)
    return {
        "rate": round(sum(each["locks"] / each["seconds"] for each in found)),
        "failed": sum(each["failed"] for each in found),
        "cpu_us": round((cpu(syros) - before) / max(locks, 1) * 1e6, 1),
    }


def cpu(syros: Syros) -> float:
    return sum(sum(cpu_of_threads(pid).values()) for pid in syros.pids) if has_proc else 0.0


# -- the load ----------------------------------------------------------------------------------------


class Load:
    """Locks with fresh names, taken over this process's share of the connections until the time is up."""

    def __init__(self, port: int, api_key: str, seconds: float, seed: str) -> None:
        from api.messages import messages

        self._known: Any = messages()
        self._metadata = (("x-api-key", api_key),)
        self._target, self._seconds = f"127.0.0.1:{port}", seconds
        self._names = (f"grpc-{seed}-{number}" for number in itertools.count())
        self.locks = self.failed = 0

    async def drive(self, kind: str) -> dict[str, float]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [aio.insecure_channel(self._target, options) for _ in range(CONNECTIONS // LOADS)]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        started = time.perf_counter()
        self._until = started + self._seconds
        if kind == "execute":
            await asyncio.gather(*(self._execute(channel) for channel in channels))
        else:
            await asyncio.gather(*(self._unary(channels[n % len(channels)]) for n in range(CALLS // LOADS)))
        took = time.perf_counter() - started
        await asyncio.gather(*(channel.close() for channel in channels))
        return {"locks": self.locks, "failed": self.failed, "seconds": took}

    def _lock(self) -> dict[str, Any]:
        return {"key": next(self._names), "owner": "bench", "ttl_seconds": 30}

    async def _execute(self, channel: aio.Channel) -> None:
        request = self._known["CoordinationServiceExecuteRequest"]
        response = self._known["CoordinationServiceExecuteResponse"]
        call = channel.stream_stream(
            "/syros.v1.CoordinationService/Execute", request.SerializeToString, response.FromString
        )(metadata=self._metadata)
        under_way = 0
        while time.perf_counter() < self._until or under_way:
            while time.perf_counter() < self._until and under_way <= BATCH * (BATCHES - 1):
                await call.write(request(commands=[{"locks_acquire": self._lock()} for _ in range(BATCH)]))
                under_way += BATCH
            results = (await call.read()).results
            under_way -= len(results)
            self.locks += len(results)
            self.failed += sum(result.status != 201 for result in results)
        await call.done_writing()

    async def _unary(self, channel: aio.Channel) -> None:
        request = self._known["LocksServiceAcquireRequest"]
        take = channel.unary_unary("/syros.v1.LocksService/Acquire", request.SerializeToString)
        while time.perf_counter() < self._until:
            try:
                await take(request(**self._lock()), metadata=self._metadata)
                self.locks += 1
            except aio.AioRpcError:
                self.failed += 1


def main() -> None:
    import os

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    import django

    django.setup()
    kind, port, api_key, seconds, seed = sys.argv[1:]
    load = Load(int(port), api_key, float(seconds), seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(load.drive(kind))))


if __name__ == "__main__":
    main()
