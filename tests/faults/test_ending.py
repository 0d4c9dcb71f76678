"""SIGTERM: refuse, drain, finish, say good-bye, and let the next one go on at once."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from tests.faults.house import Couple, House
from tests.races.client import Client, Lost
from tests.races.processes import Syros, eventually, run

DRAINED = 5.0  # seconds in which a process without work of its own is gone, on a busy machine


@pytest.fixture
def ending(house: House) -> Iterator[Syros]:
    """A process that the test ends."""
    found = Syros(house.environ, f"ending-{uuid4().hex[:8]}").start()
    yield found
    found.end()
    assert found.complaints() == []


def lease(couple: Couple, process: Syros) -> bool:
    """Does its lease still run?"""
    statement = "select expires_at > clock_timestamp() from syros.core_process where pid = %s"
    ((runs,),) = couple.house.query(statement, process.pid)
    return bool(runs)


async def gone(process: Syros, within: float = DRAINED) -> int:
    assert process.process
    started = time.monotonic()
    code = await asyncio.to_thread(process.process.wait, 60)
    assert time.monotonic() - started < within, "it took too long to end"
    return code


def test_what_is_under_way_is_answered(couple: Couple, ending: Syros) -> None:
    """Commands that wait for the database in the moment of the signal."""

    async def story() -> None:
        clients = [Client(ending.port, couple.namespace) for _ in range(8)]
        for n, client in enumerate(clients):
            await client.call("POST", f"events/s{n}", {"event_type": "t", "data": 0})
        with psycopg.connect(couple.house.postgres.url) as blocker:
            streams = [f"{couple.namespace}/s{n}" for n in range(8)]
            blocker.execute("select from syros.core_stream where id = any(%s) for update", [streams])
            asked = [
                asyncio.create_task(client.call("POST", f"events/s{n}", {"event_type": "t", "data": 1}))
                for n, client in enumerate(clients)
            ]
            statement = "select from pg_stat_activity where wait_event_type = 'Lock'"
            await eventually(lambda: asyncio.to_thread(couple.house.query, statement))
            ending.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert ending.process
            assert ending.process.poll() is None
        for reply in await asyncio.gather(*asked):
            assert (reply.status, reply["version"]) == (201, 2), reply.value
        assert await gone(ending) == 0
        assert not lease(couple, ending)

    run(story())


def test_under_load_every_acknowledged_event_is_there(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        written: list[str] = []

        async def write(name: str) -> None:
            count = 0
            async with Client(ending.port, couple.namespace) as client:
                with contextlib.suppress(Lost):  # by then it is gone
                    while True:
                        count += 1
                        data = f"{name}/{count}"
                        reply = await client.call("POST", "events/s", {"event_type": "t", "data": data})
                        if reply.status == 503:
                            return
                        assert reply.status == 201, reply.value
                        written.append(data)

        writing = [asyncio.create_task(write(f"w{n}")) for n in range(16)]
        await asyncio.sleep(0.5)
        ending.signal(signal.SIGTERM)
        assert await gone(ending) == 0
        await asyncio.gather(*writing)
        assert written
        assert not lease(couple, ending)
        found: list[str] = []
        async with couple.client(couple.a) as reader:
            while len(page := (await read_from(reader, len(found) + 1))) > 0:
                found += page
        assert set(written) <= set(found)
        assert len(found) == len(set(found))

    async def read_from(reader: Client, version: int) -> list[str]:
        page = await reader.call("GET", "events/s", query={"from_version": version, "limit": 1000})
        return [event["data"] for event in page["events"]]

    run(story())


def test_who_waits_is_told_to_ask_elsewhere_and_leaves_the_queue(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a, Client(ending.port, couple.namespace) as client:
            held = await a.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            body = {"key": "k", "owner": "waiter", "wait_seconds": 60}
            waiting = asyncio.create_task(client.call("POST", "locks", body))

            async def queued() -> bool:
                return bool((await a.call("GET", "locks/k"))["queue_length"])

            await eventually(queued)
            ending.signal(signal.SIGTERM)
            told = await waiting
            assert (told.status, told.code, told["retryable"]) == (503, "unavailable", True)
            assert float(told.headers["retry-after"]) > 0
            assert await gone(ending) == 0
            assert not await queued()
            assert (await a.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})).status == 200

    run(story())


def test_a_held_lock_outlives_its_process(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a, Client(ending.port, couple.namespace) as client:
            held = await client.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            ending.signal(signal.SIGTERM)
            assert await gone(ending) == 0
            renewed = await a.call("POST", "locks/k/renew", {"lock_id": held["lock_id"]})
            assert renewed["fencing_token"] == held["fencing_token"]

    run(story())


@pytest.mark.parametrize("reads", ["a long poll", "a stream"])
def test_who_reads_what_comes_does_not_hold_the_end_up(couple: Couple, ending: Syros, reads: str) -> None:
    async def story() -> None:
        async with Client(ending.port, couple.namespace) as client:
            if reads == "a long poll":
                query = {"wait_seconds": 60}
                reading = asyncio.create_task(client.call("GET", "events", query=query))
                await asyncio.sleep(0.3)
            else:
                items = client.follow()
                assert (await anext(items))[0] == "heartbeat"
                reading = asyncio.create_task(anext(items))
            ending.signal(signal.SIGTERM)
            assert await gone(ending) == 0
            if reads == "a long poll":
                told = await reading
                assert told.status in {200, 503}
            else:
                kind, problem = await reading
                assert (kind, problem["code"]) == ("error", "unavailable")
                with pytest.raises(Lost):
                    await anext(items)

    run(story())


def test_an_idle_process_ends_at_once_and_its_log_says_nothing_wrong(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        async with Client(ending.port, couple.namespace) as client:
            assert (await client.call("GET", "/ready")).status == 200
            ending.signal(signal.SIGINT)
            assert await gone(ending) == 0

    run(story())
    assert not lease(couple, ending)


def test_the_port_is_free_for_the_next_one(ending: Syros) -> None:
    for end in (Syros.kill, Syros.stop):
        end(ending)
        ending.start()
    assert ending.get("/live").status_code == 200
