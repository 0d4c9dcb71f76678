"""What it costs to keep many alive: the CPU of a server beside what the same one takes while nothing is there."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop

from bench.processes import has_proc
from bench.report import Figure
from bench.servers import Syros, folder

SETTLING = 3  # seconds: what starting leaves to do


def against_empty(
    question: str, seconds: float, ask: Callable[[Syros, float], Awaitable[list[Figure]]]
) -> list[Figure]:
    """What `ask` finds out of a fresh server, told how many percent of a core that takes over so many seconds while it
    is empty."""
    if not has_proc:
        print(f"{question}: skipped, there is no /proc to read")
        return []

    async def measured(syros: Syros) -> list[Figure]:
        await asyncio.sleep(SETTLING)
        return await ask(syros, await cpu_percent(syros, seconds))

    with folder() as home, Syros(home) as syros, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured(syros))


async def cpu_percent(syros: Syros, seconds: float) -> float:
    before, started = syros.cpu(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (syros.cpu() - before) / (time.perf_counter() - started) * 100
