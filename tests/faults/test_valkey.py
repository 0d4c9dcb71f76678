"""Without Valkey everything works: it costs latency, never safety."""

import asyncio
import signal
import time
from typing import Any

import pytest

from tests.faults.house import Couple, House
from tests.faults.load import Load
from tests.races.client import Client
from tests.races.processes import eventually, run

BACKSTOP = 1.2  # seconds in which a waiter is woken whatever happened to the wake-ups
QUICK = 0.3  # with them
BUSY = 0.8  # what a busy machine may take on top


def gone(house: House, how: str) -> Any:
    return house.away(house.valkey, signal.SIGKILL) if how == "killed" else house.frozen(house.valkey)


async def handover(couple: Couple, key: str) -> float:
    """The time from a release in one process to its waiter's answer in the other."""
    async with couple.client(couple.a) as a, couple.client(couple.b) as b, couple.client(couple.b) as b2:
        held = await a.call("POST", "locks", {"key": key, "owner": "holder"})
        assert held.status == 201, held.value
        body = {"key": key, "owner": "waiter", "wait_seconds": 30}
        waiting = asyncio.create_task(b.call("POST", "locks", body))

        async def queued() -> bool:
            return bool((await b2.call("GET", f"locks/{key}"))["queue_length"])

        await eventually(queued)
        started = time.monotonic()
        released = await a.call("POST", f"locks/{key}/release", {"lock_id": held["lock_id"]})
        assert released.status == 200
        grant = await waiting
        assert (grant.status, grant["owner"]) == (201, "waiter")
        return time.monotonic() - started


async def hearing(reader: Client, writer: Client, position: int) -> float:
    """The time from an append in one process to a long poll's answer in the other."""
    query = {"from_position": position, "wait_seconds": 30, "system": "true"}
    reading = asyncio.create_task(reader.call("GET", "events", query=query))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    appended = await writer.call("POST", "events/s", {"event_type": "t", "data": 1})
    assert (appended.status, appended["position"]) == (201, position)
    page = await reading
    assert [event["position"] for event in page["events"]] == [position]
    return time.monotonic() - started


async def status(client: Client) -> tuple[str, str, int]:
    """What /health says of all and of Valkey, and the status of /ready."""
    health, ready = await client.call("GET", "/health"), await client.call("GET", "/ready")
    assert (health.status, ready["ready"]) == (200, True)
    return health["status"], health["parts"]["valkey"]["status"], ready.status


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_waiters_are_woken_without_valkey_and_quickly_again_with_it(couple: Couple, how: str) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            with gone(couple.house, how):
                position = (await a.call("GET", "events", query={"system": "true"}))["next_position"]
                took = [await hearing(a, b, position), await hearing(b, a, position + 1)]
                took += [await handover(couple, f"k{n}") for n in range(4)]
                assert max(took) < BACKSTOP + BUSY, took
                for client in (a, b):
                    assert await status(client) == ("degraded", "down", 200)

            async def quick_again() -> bool:
                return await handover(couple, f"again-{time.monotonic()}") < QUICK

            await eventually(quick_again, 10)
            took = sorted([await handover(couple, f"after-{n}") for n in range(9)])
            assert took[len(took) // 2] < QUICK, took
            for client in (a, b):
                assert await status(client) == ("healthy", "up", 200)

    run(story())


def test_nothing_is_lost_when_valkey_is_killed_under_load(couple: Couple) -> None:
    house = couple.house

    async def story() -> None:
        load = Load(couple)
        async with load.running():
            await asyncio.sleep(0.5)
            with house.away(house.valkey, signal.SIGKILL):
                killed_at = time.monotonic()
                await asyncio.sleep(1.5)
                for process in couple.both:
                    assert load.answers_since(process, killed_at + 0.5)
            await asyncio.sleep(0.5)
        assert set(load.outcomes) <= {"done", "lock_held"}, load.outcomes
        await load.check()

    run(story())


def test_a_process_starts_without_valkey(couple: Couple) -> None:
    house = couple.house
    with house.away(house.valkey, signal.SIGKILL):
        couple.a.stop()
        couple.a.start()

        async def story() -> None:
            async with couple.client(couple.a) as a:
                assert await status(a) == ("degraded", "down", 200)
                assert await handover(couple, "k") < BACKSTOP + BUSY

        run(story())
