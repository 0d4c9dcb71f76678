"""What do sagas cost that are there and not over: asleep, in the middle of a call, left by a process that is gone?"""

import asyncio
import json
import os
import signal
import time
import urllib.request
from typing import Any

import psycopg
import uvloop

from bench.client import Client
from bench.processes import has_proc, resident_mb
from bench.report import Figure, at_most
from bench.sagas import Participant, pushes, register
from bench.servers import Syros, folder

needs_wrk = False
SLEEPING = 1_000_000
IN_FLIGHT = 10_000
LEFT = 5_000  # in flight in a process that is killed
STARTERS = 64
A_YEAR = 365 * 86400
SETTLED = 5.0  # seconds, some rounds of whatever looks for sagas
PATIENCE = 60.0
# What one saga that sleeps is, so many times.
COPIES = """insert into syros.sagas_saga ({columns})
select {values} from syros.sagas_saga cross join generate_series(1, {count}) where id = 'default/{saga}'"""


def measure(seconds: int, rounds: int) -> list[Figure]:
    if not has_proc:
        print("crowds: skipped, there is no /proc to read")
        return []
    return [*sleeping(seconds), *in_flight(), recovery()]


# -- asleep ------------------------------------------------------------------------------------------


def sleeping(seconds: int) -> list[Figure]:
    """A million, copied in the database from one that came there as all do; beside them others are carried out."""
    with folder() as home, Syros(home) as syros, Participant(home / "participant.log") as participant:
        register(syros, participant)
        without = uvloop.run(pushes(syros, participant, seconds))
        before = resident(syros)
        put_to_sleep(syros)
        time.sleep(SETTLED)
        after, at_rest = resident(syros), cpu_share(syros, SETTLED)
        beside = uvloop.run(pushes(syros, participant, seconds))
    asleep = f"{SLEEPING:,} asleep"
    return [
        Figure(f"sagas: {asleep}, memory for them", "MB", after - before, None, at_most(10), raw={"before": before}),
        Figure("… of one core, looking after them", "%", at_rest),
        Figure("… push steps beside them, of those without", "%", beside / without * 100, raw={"without": without}),
    ]  # fmt: skip


def put_to_sleep(syros: Syros) -> None:
    step = {"name": "rest", "kind": "sleep", "seconds": A_YEAR}
    saga = syros.post("/api/v1/sagas", {"name": "asleep", "steps": [step]})["saga_id"]
    time.sleep(1)  # until nobody has it
    url = json.loads((syros.var / "serving.json").read_text())["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "select column_name from information_schema.columns where table_schema = 'syros'"
            " and table_name = 'sagas_saga' and is_generated = 'NEVER' order by 1"
        )
        names = [name for (name,) in found]
        fresh = {
            "id": "'default/asleep-' || generate_series",
            "wake_at": "wake_at + generate_series * interval '1s'",
        }
        values = ", ".join(fresh.get(name, f'"{name}"') for name in names)
        columns = ", ".join(f'"{name}"' for name in names)
        connection.execute(COPIES.format(columns=columns, values=values, count=SLEEPING, saga=saga))
        connection.execute("analyze syros.sagas_saga")


class Working(Syros):
    """A process that answers requests and calls participants."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SYROS_WORKS": "1"}


# -- under way ---------------------------------------------------------------------------------------


def in_flight() -> list[Figure]:
    """Each with a call that its participant has not answered yet."""
    with folder() as home, Syros(home) as syros, Participant(home / "participant.log") as participant:
        register(syros, participant)
        before = resident_mb(syros.pid)
        begin(syros, participant, IN_FLIGHT)
        during, both = resident_mb(syros.pid), resident(syros)
        release(participant)
        until_over(syros)
    name = f"sagas: {IN_FLIGHT:,} whose calls are under way"
    measured = {"before": before, "with the process beside": both}
    return [
        Figure(
            f"{name}, memory of the process that makes them", "MB", during, None, at_most(300), raw=measured
        )
    ]


def recovery() -> Figure:
    """From the kill of the process that has them to the last of their calls being made again elsewhere."""
    with folder() as home, Syros(home) as first, Participant(home / "participant.log") as participant:
        register(first, participant)
        with Working(home, beside=first) as second:
            begin(second, participant, LEFT)
            os.kill(second.pid, signal.SIGKILL)
            killed, known = time.monotonic(), participant.count
            until(lambda: participant.count - known >= LEFT)
            taken = time.monotonic() - killed
            release(participant)
            until_over(first)
    return Figure(f"sagas: {LEFT:,} of a killed process go on after", "s", taken, None, at_most(12))


def begin(syros: Syros, participant: Participant, count: int) -> None:
    """Start so many, and wait until each of them is in the middle of a call."""
    uvloop.run(start(syros, count))
    until(lambda: participant.count >= count)


async def start(syros: Syros, count: int) -> None:
    step = {"name": "one", "service": "pushed", "action": "hold", "timeout_seconds": 300}
    left = iter(range(count))

    async def some() -> None:
        client = await Client.open(syros)
        for _ in left:
            await client.request("POST", "sagas", {"name": "held", "steps": [step]})
        await client.close()

    await asyncio.gather(*(some() for _ in range(STARTERS)))


def release(participant: Participant) -> None:
    urllib.request.urlopen(participant.url + "/release").read()


def until_over(syros: Syros) -> None:
    """Raises: AssertionError, if one ended otherwise than well."""
    until(lambda: not found(syros, "running"))
    assert not any(found(syros, status) for status in ("failed", "compensated", "attention"))


def found(syros: Syros, status: str) -> list[Any]:
    with urllib.request.urlopen(f"{syros.url}/api/v1/sagas?status={status}&limit=1") as answer:
        items: list[Any] = json.load(answer)["items"]
        return items


def until(holds: Any) -> None:
    """Raises: AssertionError, if it takes too long."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "that took too long"
        time.sleep(0.02)


def resident(syros: Syros) -> float:
    return sum(map(resident_mb, syros.pids))


def cpu_share(syros: Syros, seconds: float) -> float:
    """Percent of one core that the process and its PostgreSQL take."""
    before = syros.cpu()
    time.sleep(seconds)
    return (syros.cpu() - before) / seconds * 100
