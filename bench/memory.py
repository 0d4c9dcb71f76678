"""How much memory, and does it grow? Syros and Valkey; PostgreSQL's is PostgreSQL's."""

from typing import Any

from bench.load import Load, errors, raw, wrk
from bench.processes import children, has_proc, resident_mb
from bench.report import Figure, at_most
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 64
FIRST, ALL = 100_000, 300_000
PATIENCE = 120  # seconds for one of the loads, then so many commands have to do
GROWTH = 2.0  # percent that an allocator may give or take


def measure(seconds: int, rounds: int) -> list[Figure]:
    if not has_proc:
        print("memory: skipped, there is no /proc to read")
        return []
    with folder() as home, Syros(home) as syros:
        at_start = resident(syros)
        loads = [drive(syros, FIRST)]
        at_first = resident(syros)
        loads.append(drive(syros, ALL - FIRST))
        at_all = resident(syros)
    first, last = sum(at_first.values()), sum(at_all.values())
    early, late = loads[0].requests, loads[0].requests + loads[1].requests
    measured: dict[str, Any] = {"start": at_start, "first": at_first, "all": at_all, "loads": raw(loads)}
    return [
        Figure(f"memory after {early:,} commands", "MB", first, None, at_most(250), errors(loads), measured),
        Figure(f"memory after {late:,} commands", "MB", last, None, at_most(250), errors(loads)),
        Figure("… growth in between", "%", (last / first - 1) * 100, None, at_most(GROWTH), errors(loads)),
    ]


def drive(syros: Syros, commands: int) -> Load:
    return wrk(syros, "syros_mix", CONNECTIONS, limit=commands)(PATIENCE)


def resident(syros: Syros) -> dict[str, float]:
    """MB of the Syros process and of its Valkey."""
    valkey = next(pid for pid, name in children(syros.pid).items() if name.startswith("valkey"))
    return {"syros": round(resident_mb(syros.pid), 1), "valkey": round(resident_mb(valkey), 1)}
