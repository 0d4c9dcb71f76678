"""How fast are sagas? Steps of participants that are called, tasks of workers that come for them, one saga alone."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import uvloop

from bench.client import Client
from bench.handoff import percentile
from bench.report import Figure, at_least, at_most
from bench.servers import ROOT, Server, Syros, folder

needs_wrk = False
STARTERS, WORKERS, BATCH = 128, 8, 100
STEPS = 3
DBOS_CONCURRENCY = 50
BACKLOG = 5_000  # tasks that may be ahead of the workers


class Participant(Server):
    name = "participant"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.participant", str(self.port)]

    def ready(self) -> str:
        return "/count"

    @property
    def count(self) -> int:
        with urllib.request.urlopen(self.url + "/count") as answer:
            return int(answer.read())


def saga(service: str) -> dict[str, Any]:
    steps = [
        {"name": f"s{n}", "service": service, "action": "do", "compensation": "undo"} for n in range(STEPS)
    ]
    return {"name": "bench", "steps": steps}


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros, Participant(home / "participant.log") as participant:
        register(syros, participant)
        alone = uvloop.run(latencies(syros, 200))
        pushed, peer = [], []
        for _ in range(rounds):
            pushed.append(uvloop.run(pushes(syros, participant, seconds + 2.0)))
            peer += dbos(syros, participant, seconds + 2.0)
        fetched = [uvloop.run(tasks(syros, seconds + 2.0)) for _ in range(rounds)]
    return [
        Figure("sagas: a saga of three steps alone, p50", "ms", percentile(alone, 50), None, at_most(15)),
        Figure("… p99", "ms", percentile(alone, 99)),
        Figure("sagas: push steps", "a second", statistics.median(pushed), None, at_least(2500), raw={"runs": pushed}),
        *beside_dbos(pushed, peer),
        Figure(
            "sagas: pull tasks", "a second", statistics.median(fetched), None, at_least(3000), raw={"runs": fetched}
        ),
    ]  # fmt: skip


def beside_dbos(pushed: list[float], peer: list[float]) -> list[Figure]:
    """Steps of DBOS workflows on the same PostgreSQL and participant, where it is installed."""
    if not peer:
        return []
    times = statistics.median(pushed) / statistics.median(peer)
    return [
        Figure(
            "… DBOS, workflows of three HTTP steps", "a second", statistics.median(peer), raw={"runs": peer}
        ),
        Figure("… times DBOS", "x", times, None, at_least(15)),
    ]


def dbos(syros: Syros, participant: Participant, seconds: float) -> list[float]:
    """DBOS_PYTHON names an interpreter that has `dbos` and `httpx`: an environment of its own, for it shares none of
    Syros' pins."""
    python = os.environ.get("DBOS_PYTHON")
    if not python:
        return []
    url = json.loads((syros.var / "serving.json").read_text())["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop database if exists dbos with (force)")
        connection.execute("create database dbos")
    parts = urlsplit(url)
    own = urlunsplit(parts._replace(path="/dbos"))
    script = str(ROOT / "bench" / "scripts" / "dbos_steps.py")
    line = [python, script, own, participant.url, str(seconds), str(DBOS_CONCURRENCY)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120)
    return [float(done.stdout.split()[-1])]


def register(syros: Syros, participant: Participant) -> None:
    place = {"address": "127.0.0.1", "port": participant.port, "ttl_seconds": 3600}
    syros.post("/api/v1/services/pushed/instances/one", place, method="PUT")
    time.sleep(1)  # until every process knows


async def latencies(syros: Syros, count: int) -> list[float]:
    """In milliseconds, of one after another, from the start to the answer that it is over."""
    client = await Client.open(syros)
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        answer = await client.request("POST", "sagas?wait_seconds=10", saga("pushed"))
        found.append((time.perf_counter() - begun) * 1000)
        assert answer["status"] == "succeeded", answer
    await client.close()
    return sorted(found)


async def pushes(syros: Syros, participant: Participant, seconds: float) -> float:
    """Steps a second: so many callers start sagas, each its next when one is over."""

    async def start(client: Client) -> None:
        await client.request("POST", "sagas?wait_seconds=30", saga("pushed"))

    before, begun = participant.count, time.perf_counter()
    await together(syros, STARTERS, start, seconds)
    return (participant.count - before) / (time.perf_counter() - begun)


async def tasks(syros: Syros, seconds: float) -> float:
    """Tasks a second that workers complete, in batches, while sagas are started beside them."""
    begun_sagas = done = 0

    async def start(client: Client) -> None:
        nonlocal begun_sagas
        if begun_sagas * STEPS - done > BACKLOG:
            await asyncio.sleep(0.01)
            return
        begun_sagas += 1
        await client.request("POST", "sagas", saga("pulled"))

    async def work(client: Client) -> None:
        nonlocal done
        asked = {"worker_id": "w", "max": BATCH, "wait_seconds": 1}
        if found := (await client.request("POST", "workers/pulled/poll", asked))["tasks"]:
            each = [
                {"task_id": task["task_id"], "lease_token": task["lease_token"], "output": {}}
                for task in found
            ]
            await client.request("POST", "tasks/complete-many", {"tasks": each})
            done += len(found)

    begun = time.perf_counter()
    await asyncio.gather(
        together(syros, STARTERS // 4, start, seconds), together(syros, WORKERS, work, seconds)
    )
    return done / (time.perf_counter() - begun)


async def together(syros: Syros, count: int, act: Any, seconds: float) -> None:
    until = time.perf_counter() + seconds

    async def one() -> None:
        client = await Client.open(syros)
        while time.perf_counter() < until:
            await act(client)
        await client.close()

    await asyncio.gather(*(one() for _ in range(count)))
