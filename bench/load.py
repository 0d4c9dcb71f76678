"""Load by wrk: the same generator for both servers, one after the other, several times in turn."""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.servers import Server, Syros

SCRIPTS = Path(__file__).parent / "scripts"
WARM_UP_SECONDS = 1
_seeds = count(1000)  # no two runs ask for the same lock

has_wrk = shutil.which("wrk") is not None


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk measured. `refused`: answers of 400 and above; `broken`: no answer at all."""

    requests: int
    seconds: float
    refused: int
    broken: int
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return (self.requests - self.refused) / self.seconds


Run = Callable[[int], Load]


def wrk(server: Server, script: str, connections: int, **about: object) -> Run:
    """A load that is run for so many seconds. Parameters: `about` reaches the script as BENCH_<NAME>."""

    def run(seconds: int) -> Load:
        told = {"seed": next(_seeds), "api_key": server.api_key if isinstance(server, Syros) else "", **about}
        answer = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", f"{script}.lua", server.url],
            cwd=SCRIPTS, check=True, capture_output=True, text=True,
            env={**os.environ, "LUA_PATH": "./?.lua;;", **{f"BENCH_{k.upper()}": str(v) for k, v in told.items()}},
        )  # fmt: skip
        return Load(**json.loads(answer.stdout.splitlines()[-1]))

    return run


def in_turn(runs: Mapping[str, Run], seconds: int, rounds: int) -> dict[str, list[Load]]:
    """A B C A B C …, after a second of each: what else the machine does meets all of them alike."""
    for run in runs.values():
        run(WARM_UP_SECONDS)
    found: dict[str, list[Load]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run(seconds))
    return found


def median(loads: Iterable[Load], figure: str) -> float:
    found: float = statistics.median(getattr(load, figure) for load in loads)
    return found


def errors(loads: Iterable[Load]) -> int:
    return sum(load.refused + load.broken for load in loads)


def raw(loads: Iterable[Load]) -> list[dict[str, Any]]:
    return [{"rate": round(load.rate, 1), **asdict(load)} for load in loads]
