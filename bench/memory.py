"""How much memory, and does it grow? Syros and Valkey; PostgreSQL's is PostgreSQL's."""

from collections.abc import Iterable
from typing import Any

from bench.load import Load, errors, raw, wrk
from bench.processes import children, has_proc, resident_mb
from bench.report import Figure, at_most
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 64
FIRST, ALL = 100_000, 300_000
SLICE = 5  # seconds, of a load that goes on until there were enough commands
PATIENCE = 24  # slices, then so many commands have to do
GROWTH = 2.0  # percent that an allocator may give or take


def measure(seconds: int, rounds: int) -> list[Figure]:
    if not has_proc:
        print("memory: skipped, there is no /proc to read")
        return []
    with folder() as home, Syros(home) as syros:
        at_start = resident(syros)
        loads = drive(syros, FIRST)
        early, at_first = commands(loads), resident(syros)
        loads += drive(syros, ALL - early)
        late, at_all = commands(loads), resident(syros)
    first, last = sum(at_first.values()), sum(at_all.values())
    measured: dict[str, Any] = {"start": at_start, "first": at_first, "all": at_all, "loads": raw(loads)}
    return [
        Figure(f"memory after {early:,} commands", "MB", first, None, at_most(250), errors(loads), measured),
        Figure(f"memory after {late:,} commands", "MB", last, None, at_most(250), errors(loads)),
        Figure("… growth in between", "%", (last / first - 1) * 100, None, at_most(GROWTH), errors(loads)),
    ]


def drive(syros: Syros, enough: int) -> list[Load]:
    run = wrk(syros, "syros_mix", CONNECTIONS)
    loads: list[Load] = []
    while commands(loads) < enough and len(loads) < PATIENCE:
        loads.append(run(SLICE))
    return loads


def commands(loads: Iterable[Load]) -> int:
    return sum(load.requests for load in loads)


def resident(syros: Syros) -> dict[str, float]:
    """MB of the Syros processes and of their Valkey."""
    valkey = next(pid for pid, name in children(syros.pid).items() if name.startswith("valkey"))
    return {"syros": round(sum(map(resident_mb, syros.pids)), 1), "valkey": round(resident_mb(valkey), 1)}
