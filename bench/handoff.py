"""How soon has the next waiter the lock? Holder and waiter are clients of two processes, in turn."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from bench.client import Client
from bench.report import Figure, at_most
from bench.servers import Syros, folder

needs_wrk = False
HANDOFFS, WARM_UP = 400, 20
KEY = "bench-handoff"


@dataclass(frozen=True, slots=True)
class Handoff:
    """Milliseconds from the release, sent and answered, to the waiter's grant."""

    since_sent: float
    since_answered: float


def measure(seconds: int, rounds: int) -> list[Figure]:
    with (
        folder() as home,
        Syros(home) as first,
        Syros(home, beside=first) as second,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(hand_on(first, second))
    sent = [handoff.since_sent for handoff in found]
    answered = [handoff.since_answered for handoff in found]
    measured = {"handoffs": len(found), "since_sent_ms": spread(sent), "since_answered_ms": spread(answered)}
    return [
        Figure(
            "hand-off to another process, p50", "ms", percentile(sent, 50), None, at_most(10), raw=measured
        ),
        Figure("hand-off to another process, p99", "ms", percentile(sent, 99), None, at_most(50)),
        Figure("… from the release's answer on, p50", "ms", percentile(answered, 50)),
    ]


async def hand_on(first: Syros, second: Syros) -> list[Handoff]:
    """One lock, back and forth between the processes."""
    holder, waiter, watcher = await Client.open(first), await Client.open(second), await Client.open(first)
    grant = await holder.request("POST", "locks", {"key": KEY, "owner": "bench", "ttl_seconds": 60})
    found = []
    for _ in range(WARM_UP + HANDOFFS):
        handoff, lock_id = await hand_over(holder, waiter, watcher, grant["lock_id"])
        found.append(handoff)
        grant = {"lock_id": lock_id}
        holder, waiter = waiter, holder
    for client in (holder, waiter, watcher):
        await client.close()
    return found[WARM_UP:]


async def hand_over(holder: Client, waiter: Client, watcher: Client, lock_id: str) -> tuple[Handoff, str]:
    """Release once the waiter queues; the times, and the new holder's lock_id."""
    wanted = {"key": KEY, "owner": "bench", "ttl_seconds": 60, "wait_seconds": 30}
    waiting = asyncio.create_task(timed(waiter, "locks", wanted))
    while not (await watcher.request("GET", f"locks/{KEY}"))["queue_length"]:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    sent = time.perf_counter()
    answered, _ = await timed(holder, f"locks/{KEY}/release", {"lock_id": lock_id})
    granted, grant = await waiting
    return Handoff((granted - sent) * 1e3, (granted - answered) * 1e3), grant["lock_id"]


async def timed(client: Client, path: str, body: dict[str, object]) -> tuple[float, dict[str, str]]:
    answer = await client.request("POST", path, body)
    return time.perf_counter(), answer


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: a value that was measured."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def spread(values: Sequence[float]) -> dict[str, float]:
    ranks = {"min": 0.1, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: round(percentile(values, rank), 3) for name, rank in ranks.items()}
