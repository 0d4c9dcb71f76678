"""What does a command cost? CPU of the engine's thread alone, then of everything that serves it over HTTP.

Run as a program it is the first measurement: a Syros process without HTTP, whose engine 64 callers drive.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import uvloop

from bench.load import has_wrk, wrk
from bench.processes import cpu_of_children, cpu_of_threads, has_proc
from bench.report import Figure, at_most
from bench.servers import ROOT, Syros, folder

needs_wrk = False
CALLERS = 64
KEYS = 50  # of each caller


def measure(seconds: int, rounds: int) -> list[Figure]:
    if not hasattr(time, "pthread_getcpuclockid"):
        print("engine: skipped, this system does not tell the CPU time of a thread")
        return []
    with folder() as home, Syros(home) as syros:
        alone = sorted((run_alone(syros, seconds) for _ in range(rounds)), key=lambda run: run["engine_us"])
        middle = alone[len(alone) // 2]
        title = f"engine, {CALLERS} callers in process"
        figures = [
            Figure(title, "µs CPU a command", middle["engine_us"], None, at_most(80), raw={"runs": alone}),
            Figure("… the whole process", "µs CPU a command", middle["process_us"]),
            Figure("… commands", "a second", middle["rate"]),
        ]
        return figures + (over_http(syros, seconds) if has_wrk and has_proc else [])


def run_alone(syros: Syros, seconds: int) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-m", "bench.engine", str(seconds)],
        cwd=ROOT, env={**os.environ, **syros.environment()}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def over_http(syros: Syros, seconds: int) -> list[Figure]:
    """Who spends how much on a lock at 64 connections. The engine is the busiest thread beside the main one."""
    run = wrk(syros, "syros_lock", CALLERS)
    run(1)
    threads = [cpu_of_threads(pid) for pid in syros.pids]
    database, spent = cpu_of_children(syros.postgres), os.times()
    load = run(seconds)
    loop = engine = others = 0.0
    for pid, before in zip(syros.pids, threads, strict=True):
        taken = {thread: cpu - before.get(thread, 0.0) for thread, cpu in cpu_of_threads(pid).items()}
        loop += taken.pop(pid)
        engine += max(taken.values())
        others += sum(taken.values()) - max(taken.values())
    ended = os.times()
    parts = {
        "event loop": loop,
        "engine": engine,
        "other threads": others,
        "PostgreSQL": cpu_of_children(syros.postgres) - database,
        "wrk": ended.children_user + ended.children_system - spent.children_user - spent.children_system,
    }
    each = {name: cpu / load.requests * 1e6 for name, cpu in parts.items()}
    failed = load.refused + load.broken
    return [
        Figure(f"a lock over HTTP, {name}", "µs CPU", cost, errors=failed, raw={"rate": load.rate})
        for name, cost in each.items()
    ]


# -- the engine alone --------------------------------------------------------------------------------


async def drive(seconds: float) -> dict[str, float]:
    """Acquire and release by all callers at once; what it cost."""
    from core.runtime import runtime
    from core.serving import tune

    await runtime.start()
    tune()
    engine = runtime.engine
    assert engine
    await call_all(0.5)
    clock = clock_of("syros-engine")
    commands, batches = engine.commands, engine.batches
    engine_cpu, process_cpu, started = time.clock_gettime(clock), time.process_time(), time.perf_counter()
    await call_all(seconds)
    took = time.perf_counter() - started
    engine_cpu, process_cpu = time.clock_gettime(clock) - engine_cpu, time.process_time() - process_cpu
    commands, batches = engine.commands - commands, engine.batches - batches
    await runtime.stop()
    return {
        "engine_us": round(engine_cpu / commands * 1e6, 1),
        "process_us": round(process_cpu / commands * 1e6, 1),
        "rate": round(commands / took),
        "batch": round(commands / batches, 1),
    }


def clock_of(thread_name: str) -> int:
    """The CPU clock of a thread of this process."""
    thread = next(thread for thread in threading.enumerate() if thread.name == thread_name)
    assert thread.ident
    return time.pthread_getcpuclockid(thread.ident)


async def call_all(seconds: float) -> None:
    until = time.perf_counter() + seconds
    await asyncio.gather(*(one_caller(number, until) for number in range(CALLERS)))


async def one_caller(number: int, until: float) -> None:
    from core.callers import DEVELOPER, Call, namespaces
    from core.operations import registry
    from core.runtime import runtime

    acquire, release = registry["locks.acquire"], registry["locks.release"]
    namespace, n = await namespaces.get("default"), 0
    while time.perf_counter() < until:
        key, n = f"engine-{number}-{n % KEYS}", n + 1
        taken = acquire.parse({"key": key, "owner": "bench", "ttl_seconds": 30})
        grant = (await runtime.run(acquire, Call(DEVELOPER, namespace), taken)).value
        given_back = release.parse({"key": key, "lock_id": grant.lock_id})
        await runtime.run(release, Call(DEVELOPER, namespace), given_back)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    import django

    django.setup()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(drive(float(sys.argv[1])))))


if __name__ == "__main__":
    main()
