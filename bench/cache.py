"""What do cached values cost over HTTP, beside the barest handler that asks Redis? And a tag of a million values?"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench.client import Client
from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least, at_most
from bench.servers import ROOT, Server, Syros, folder

needs_wrk = True
CONNECTIONS = 64
MANY = 50
TAGGED = int(os.environ.get("BENCH_TAGGED", 1_000_000))
PEER_TAGGED = 20_000
INVALIDATIONS = 50
WRITERS = 4  # that put the tagged values, 500 at a time


class Bare(Server):
    """uvicorn, with one handler."""

    name = "bare"

    def __init__(self, home: Path, syros: Syros) -> None:
        super().__init__(home / "bare.log")
        self._redis = redis_of(syros)

    def command(self) -> list[str]:
        about = ["--host", "127.0.0.1", "--port", str(self.port), "--no-access-log"]
        return [sys.executable, "-m", "uvicorn", "bench.bare_get:app", *about]

    def environment(self) -> Mapping[str, str]:
        return {"BENCH_REDIS_URL": self._redis}

    def ready(self) -> str:
        return "/"


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros, Bare(home, syros) as bare:
        servers = {"put": syros, "get": syros, "get_many": syros, "bare": bare}
        runs = {do: wrk(server, "cache", CONNECTIONS, do=do) for do, server in servers.items()}
        loads = in_turn(runs, seconds, rounds)
        took = asyncio.run(invalidations(syros))
        peer = cashews(syros, seconds)
    rate = {do: median(found, "rate") for do, found in loads.items()}
    failed = {do: errors(found) for do, found in loads.items()}
    measured = {do: raw(found) for do, found in loads.items()}
    share = rate["get"] / rate["bare"] * 100
    p50, p99 = (statistics.quantiles(took, n=100)[n] for n in (49, 98))
    return [
        Figure(f"cache.get, {CONNECTIONS} connections", "a second", rate["get"], None, at_least(5000), failed["get"],
               measured),
        Figure("… of a bare handler's", "%", share, None, at_least(60), failed["bare"]),
        Figure(f"cache.put, {CONNECTIONS} connections", "a second", rate["put"], None, at_least(3500), failed["put"]),
        Figure(f"cache.get_many of {MANY}", "keys a second", rate["get_many"] * MANY, None, at_least(30_000),
               failed["get_many"]),
        Figure(f"invalidating a tag of {TAGGED:,} values, p50", "ms", p50, None, at_most(5), raw={"ms": took}),
        Figure("… p99", "ms", p99),
        *beside_cashews(rate["put"], p50, peer),
    ]  # fmt: skip


def beside_cashews(puts: float, invalidation: float, peer: list[float]) -> list[Figure]:
    """Syros is asked over HTTP, cashews in its own process."""
    if not peer:
        print("CASHEWS_PYTHON is not set: its side is skipped")
        return []
    about = {"cashews": {"puts": peer[0], "invalidation_ms": peer[1], "values": PEER_TAGGED}}
    return [
        Figure("cache.put times cashews' in process", "ratio", puts / peer[0], raw=about),
        Figure(f"cashews' invalidation of {PEER_TAGGED:,} values, times ours of {TAGGED:,}", "ratio",
               peer[1] / invalidation),
    ]  # fmt: skip


def cashews(syros: Syros, seconds: int) -> list[float]:
    """Puts a second, and the ms of an invalidation. CASHEWS_PYTHON names an interpreter that has `cashews[redis]`."""
    python = os.environ.get("CASHEWS_PYTHON")
    if not python:
        return []
    script = str(ROOT / "bench" / "scripts" / "cashews_tags.py")
    line = [python, script, redis_of(syros), str(seconds), str(CONNECTIONS), str(PEER_TAGGED)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=300)
    return [float(word) for word in done.stdout.split()]


def redis_of(syros: Syros) -> str:
    found: str = json.loads((syros.var / "serving.json").read_text())["REDIS_URL"]
    return found


async def invalidations(syros: Syros) -> list[float]:
    """How many ms each took, of a tag that all of them have."""
    await asyncio.gather(*(fill(syros, writer) for writer in range(WRITERS)))
    client = await Client.open(syros)
    took = []
    for _ in range(INVALIDATIONS):
        started = time.perf_counter()
        await client.request("POST", "cache/invalidate", {"tags": ["million"]})
        took.append((time.perf_counter() - started) * 1000)
    await client.close()
    return took


async def fill(syros: Syros, writer: int) -> None:
    client = await Client.open(syros)
    for start in range(writer * 500, TAGGED, WRITERS * 500):
        items = [
            {"key": f"m/{start + n}", "value": n, "tags": ["million"], "ttl_seconds": 3600}
            for n in range(500)
        ]
        await client.request("POST", "cache/put-many", {"items": items})
    await client.close()
