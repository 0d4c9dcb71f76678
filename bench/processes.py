"""What the kernel knows of processes and threads: CPU time, memory, children. Linux only."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CLIENT = re.compile(rb"postgres: \S+ \S+ (\[local\]|\d)")  # user, database and address
TICKS = os.sysconf("SC_CLK_TCK")

has_proc = (PROC / "self" / "task").exists()


def children(pid: int) -> dict[int, str]:
    """The children of a process and their names."""
    return {child: name for child, name, parent in _all() if parent == pid}


def _all() -> Iterator[tuple[int, str, int]]:
    for path in PROC.glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        yield int(path.parent.name), head.partition("(")[2], int(tail.split()[1])


def cpu_of_threads(pid: int) -> dict[int, float]:
    """CPU seconds by thread."""
    return {int(path.parent.name): _cpu(path) for path in PROC.glob(f"{pid}/task/[0-9]*/stat")}


def cpu_of_children(pid: int) -> float:
    """CPU seconds of a process without threads and of its children, the ended ones included."""
    ended = _fields(PROC / str(pid) / "stat")[13:15]
    running = sum(_cpu(PROC / str(child) / "stat") for child in (pid, *children(pid)))
    return running + sum(map(int, ended)) / TICKS


def _cpu(path: Path) -> float:
    """CPU seconds of a thread whose stat this is; to the nanosecond, where the kernel keeps that beside it."""
    try:
        exact = path.with_name("schedstat")
        return int(exact.read_text().split()[0]) / 1e9
    except OSError:
        pass
    try:
        return sum(map(int, _fields(path)[11:13])) / TICKS
    except OSError:
        return 0.0


def _fields(path: Path) -> list[str]:
    return path.read_text().rpartition(")")[2].split()


def resident_mb(pid: int) -> float:
    """Resident memory, in MB."""
    return _status(pid, "VmRSS:") * 1024 / 1e6


def threads(pid: int) -> int:
    return _status(pid, "Threads:")


def clients(postgres: int) -> int:
    """How many backends of PostgreSQL serve a client."""
    titles = [(PROC / str(pid) / "cmdline").read_bytes() for pid in children(postgres)]
    return sum(CLIENT.match(title) is not None for title in titles)


def _status(pid: int, name: str) -> int:
    status = (PROC / str(pid) / "status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1])
