"""A Syros process that is killed, or stands still: what was acknowledged stays, the others go on."""

import asyncio
import random
import signal
import sys
import time
from datetime import datetime
from typing import Any

import psycopg
import pytest

from tests.faults.house import Couple
from tests.faults.load import Load, check_answer
from tests.races.client import Client, Reply
from tests.races.processes import eventually, run

LEASE = 3.0  # seconds: the lease of a process
BUSY = 1.5  # seconds that a busy machine may take for what is promised in time


async def acquire(client: Client, owner: str, **more: Any) -> Reply:
    return await client.call("POST", "locks", {"key": "k", "owner": owner, **more})


async def waits(client: Client, owner: str) -> None:
    async with asyncio.timeout(20):
        while True:
            state = await client.call("GET", "locks/k")
            if owner in [waiter["owner"] for waiter in state["waiters"]]:
                return
            await asyncio.sleep(0.01)


async def kill_in_turn(couple: Couple, kills: int, seed: int) -> Load:
    moments = random.Random(seed)
    load = Load(couple, may_lose=True)
    async with load.running():
        for n in range(kills):
            victim, other = couple.both[n % 2], couple.both[1 - n % 2]
            await asyncio.sleep(moments.uniform(0.3, 1.2))
            killed_at = time.monotonic()
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(0.5)
            assert load.answers_since(other, killed_at), "the other process did not go on"
            restarted_at = time.monotonic()
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(0.3)
            assert load.answers_since(victim, restarted_at), "the process did not come back"
    return load


def check_passed_on(log: list[dict[str, Any]]) -> None:
    """A lock whose holder is gone passes on within a second of the end of its TTL."""
    for event in log:
        if event["event_type"] == "lock.expired":
            ended, noted = (
                datetime.fromisoformat(at) for at in (event["data"]["expired_at"], event["recorded_at"])
            )
            assert (noted - ended).total_seconds() < 1 + BUSY, event


def kill_and_check(couple: Couple, kills: int, seed: int) -> None:
    async def story() -> None:
        load = await kill_in_turn(couple, kills, seed)
        assert load.outcomes["lost"]
        check_passed_on(await load.check())

    run(story(), 60 + 20 * kills)


def test_what_was_acknowledged_survives_the_kill(couple: Couple) -> None:
    kill_and_check(couple, kills=2, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_what_was_acknowledged_survives_many_kills(couple: Couple, seed: int) -> None:
    kill_and_check(couple, kills=10, seed=seed)


def test_waiters_of_a_killed_process_are_skipped(couple: Couple) -> None:
    async def story() -> None:
        a, b, b2 = couple.client(couple.a), couple.client(couple.b), couple.client(couple.b)
        held = await acquire(b, "holder", ttl_seconds=60)
        lost = asyncio.create_task(acquire(a, "lost", wait_seconds=60, ttl_seconds=60))
        await waits(b, "lost")
        next_one = asyncio.create_task(acquire(b2, "next", wait_seconds=60))
        await waits(b, "next")
        await asyncio.to_thread(couple.a.kill)
        await asyncio.sleep(LEASE + 0.2)
        released_at = time.monotonic()
        await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
        assert (await next_one)["owner"] == "next"
        assert time.monotonic() - released_at < BUSY
        events = (await b.call("GET", "events/$lock:k"))["events"]
        (gone,) = [event["data"] for event in events if event["event_type"] == "lock.withdrawn"]
        assert (gone["owner"], gone["reason"]) == ("lost", "process_gone")
        await asyncio.gather(lost, return_exceptions=True)

    run(story())


ASKING = """import socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    body = b'{"key": "k", "owner": "gone", "wait_seconds": 60}'
    head = f"POST /api/v1/locks HTTP/1.1\\r\\nHost: localhost\\r\\nSyros-Namespace: {sys.argv[2]}\\r\\n"
    head += "Content-Type: application/json\\r\\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\\r\\n\\r\\n".encode() + body)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["hangs up", "is killed"])
def test_a_waiter_whose_client_vanishes_leaves_the_queue(couple: Couple, how: str) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as waiter, couple.client(couple.b) as b:
            await acquire(b, "holder", ttl_seconds=60)
            if how == "is killed":
                command = [sys.executable, "-c", ASKING, str(couple.a.port), couple.namespace]
                vanish = (await asyncio.create_subprocess_exec(*command)).kill
            else:
                await waiter.send("POST", "locks", {"key": "k", "owner": "gone", "wait_seconds": 60})
                vanish = waiter.hang_up
            await waits(b, "gone")
            vanish()
            await eventually(lambda: is_as_long(b, 0), 2)

    run(story())


async def is_as_long(client: Client, length: int) -> bool:
    return bool((await client.call("GET", "locks/k"))["queue_length"] == length)


def test_a_thousand_waiters_of_a_killed_process_are_skipped(couple: Couple) -> None:
    """Twenty of another process stand between them, and go on in order."""
    crowd, others = 50, 20  # before each of the others stands a crowd

    async def story() -> None:
        gone = [couple.client(couple.a) for _ in range(crowd * others)]
        waiting: list[asyncio.Task[None]] = []
        async with couple.client(couple.b) as b:
            held = await acquire(b, "holder", ttl_seconds=60)
            for number in range(others):
                ahead = gone[number * crowd : (number + 1) * crowd]
                request = {"key": "k", "owner": "gone", "wait_seconds": 120, "ttl_seconds": 60}
                await asyncio.gather(*(client.send("POST", "locks", request) for client in ahead))
                await eventually(lambda: is_as_long(b, (number + 1) * crowd + number))  # noqa: B023
                waiting.append(asyncio.create_task(take_turn(couple, number)))
                await eventually(lambda: is_as_long(b, (number + 1) * (crowd + 1)))  # noqa: B023
            await asyncio.to_thread(couple.a.kill)
            await eventually(lambda: is_as_long(b, others), 4 + BUSY)
            await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
            assert served == []
            await asyncio.gather(*waiting)
            assert served == list(range(others))
        for client in gone:
            client.hang_up()

    served: list[int] = []

    async def take_turn(couple: Couple, number: int) -> None:
        async with couple.client(couple.b) as client:
            grant = await acquire(client, f"other{number}", wait_seconds=120)
            served.append(number)
            await client.call("POST", "locks/k/release", {"lock_id": grant["lock_id"]})

    run(story())


@pytest.mark.parametrize("whose", ["holder", "waiter"])
def test_a_lock_passes_on_after_the_kill_of_its_holder_s_process(couple: Couple, whose: str) -> None:
    """Of the holder, or of a waiter that was granted it before its process was known to be gone."""
    ttl = 1.0

    async def story() -> None:
        a, b, b2 = couple.client(couple.a), couple.client(couple.b), couple.client(couple.b)
        held = await acquire(a if whose == "holder" else b, "holder", ttl_seconds=ttl)
        lost = None
        if whose == "waiter":
            lost = asyncio.create_task(acquire(a, "lost", wait_seconds=60, ttl_seconds=ttl))
            await waits(b, "lost")
        next_one = asyncio.create_task(acquire(b2, "next", wait_seconds=60))
        await waits(b, "next")
        await asyncio.to_thread(couple.a.kill)
        started = time.monotonic()
        if whose == "waiter":
            await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
        assert (await next_one)["owner"] == "next"
        assert time.monotonic() - started < ttl + 1 + BUSY
        if lost:
            await asyncio.gather(lost, return_exceptions=True)

    run(story())


def test_a_process_that_stands_still_holds_nobody_up(couple: Couple) -> None:
    """Frozen under load, perhaps in the middle of a batch: the other goes on, and what it missed it learns."""

    async def story() -> None:
        load = Load(couple)
        async with load.running():
            await asyncio.sleep(0.5)
            couple.a.signal(signal.SIGSTOP)
            try:
                stopped_at = time.monotonic()
                await asyncio.sleep(LEASE + 2)
                late = load.answers_since(couple.b, stopped_at + LEASE)
                assert late, "the other process stood still too"
            finally:
                couple.a.signal(signal.SIGCONT)
            woken_at = time.monotonic()
            await asyncio.sleep(2)
            assert load.answers_since(couple.a, woken_at), "the process did not go on"
        await load.check()

    run(story())


def test_a_process_that_stands_still_in_the_middle_of_a_batch_lets_its_rows_go(couple: Couple) -> None:
    """Its transaction is ended for it, and its caller is told no lie when it wakes."""
    address = f"{couple.namespace}/k"

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            await b.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            stuck = {"key": "k", "owner": "stuck", "wait_seconds": 60}
            with psycopg.connect(couple.house.postgres.url) as blocker:
                blocker.execute("select from syros.locks_lock where id = %s for update", [address])
                asked = asyncio.create_task(a.call("POST", "locks", stuck))
                statement = "select from pg_stat_activity where wait_event_type = 'Lock'"
                await eventually(lambda: asyncio.to_thread(couple.house.query, statement))
                couple.a.signal(signal.SIGSTOP)
                blocker.rollback()  # now the row is the stopped process's
            started = time.monotonic()
            try:
                state = await b.call("POST", "locks", {"key": "k", "owner": "other"})
                while state.status == 503:
                    check_answer(state)
                    state = await b.call("POST", "locks", {"key": "k", "owner": "other"})
                assert (state.status, state.code, state["queue_length"]) == (409, "lock_held", 0)
                assert time.monotonic() - started < LEASE + 1 + BUSY
            finally:
                couple.a.signal(signal.SIGCONT)

            async def told_or_queued() -> bool:
                return asked.done() or (await b.call("GET", "locks/k"))["queue_length"] == 1

            await eventually(told_or_queued, 10)
            if asked.done():
                assert (asked.result().status, asked.result().code) == (503, "unavailable")
            asked.cancel()

    run(story())


def test_who_waits_in_a_process_that_stood_still_too_long_is_told_to_ask_again(couple: Couple) -> None:
    async def story() -> None:
        a, b, b2 = couple.client(couple.a), couple.client(couple.b), couple.client(couple.b)
        held = await acquire(b, "holder", ttl_seconds=60)
        lost = asyncio.create_task(acquire(a, "lost", wait_seconds=60, ttl_seconds=60))
        await waits(b, "lost")
        couple.a.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(LEASE + 0.2)
            await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
            assert (await acquire(b2, "next"))["owner"] == "next"
        finally:
            couple.a.signal(signal.SIGCONT)
        told = await asyncio.wait_for(lost, 5)
        assert (told.status, told.code, told["retryable"]) == (503, "unavailable", True)

    run(story())


def test_a_retry_elsewhere_for_a_killed_process_is_told_to_ask_again(couple: Couple) -> None:
    """It shares the place of the first call, which ends with the process; asking again is a new place."""

    async def story() -> None:
        a, b, b2 = couple.client(couple.a), couple.client(couple.b), couple.client(couple.b)
        held = await acquire(b, "holder", ttl_seconds=60)
        body = {"key": "k", "owner": "waiter", "wait_seconds": 60}
        lost = asyncio.create_task(a.call("POST", "locks", body, key="once"))
        await waits(b, "waiter")
        await asyncio.to_thread(couple.a.kill)
        retry = asyncio.create_task(b2.call("POST", "locks", body, key="once"))
        await asyncio.sleep(LEASE + 0.2)
        await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
        told = await asyncio.wait_for(retry, 5)
        assert (told.status, told.code) == (503, "unavailable")
        grant = await b2.call("POST", "locks", body, key="once")
        assert (grant.status, grant["owner"]) == (201, "waiter")
        await asyncio.gather(lost, return_exceptions=True)

    run(story())
