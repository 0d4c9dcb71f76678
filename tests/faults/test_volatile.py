"""Volatile locks when a process, or Redis itself, goes away: order and tokens stay, and what is lost is said."""

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.faults.house import Couple
from tests.races.client import Client, Reply
from tests.races.processes import eventually, run

BUSY = 1.0  # seconds that a busy machine may take on top


@pytest.fixture
def couple(couple: Couple) -> Iterator[Couple]:
    """Two processes, and a namespace whose locks are volatile."""

    async def switch() -> None:
        async with couple.client(couple.a) as a:
            made = await a.call("PUT", f"namespaces/{couple.namespace}", {"locks": "volatile"})
            assert (made.status, made["locks"]) == (200, "volatile")

    run(switch())
    return couple


async def acquire(client: Client, owner: str, **more: Any) -> Reply:
    return await client.call("POST", "locks", {"key": "k", "owner": owner, **more})


async def release(client: Client, grant: Reply) -> Reply:
    return await client.call("POST", "locks/k/release", {"lock_id": grant["lock_id"]})


async def queue(client: Client) -> list[str]:
    return [waiter["owner"] for waiter in (await client.call("GET", "locks/k"))["waiters"]]


async def line_up(
    couple: Couple, watcher: Client, places: list[tuple[Any, str]]
) -> "list[asyncio.Task[Reply]]":
    """Waiters in this order, each in its process."""
    found = []
    for process, owner in places:
        found.append(
            asyncio.create_task(acquire(couple.client(process), owner, wait_seconds=60, ttl_seconds=60))
        )

        async def stands(owner: str = owner) -> bool:
            return (await queue(watcher))[-1:] == [owner]

        await eventually(stands)
    return found


def test_the_queue_is_one_for_both_processes(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a:
            grant = await acquire(a, "first")
            names = [f"w{number}" for number in range(8)]
            places = [((couple.a, couple.b)[n % 2], name) for n, name in enumerate(names)]
            for waiting in await line_up(couple, a, places):
                assert (await release(a, grant)).status == 200
                grant = await waiting
                assert grant["owner"] == names.pop(0)

    run(story())


@pytest.mark.parametrize("how", ["released", "expired"])
def test_waiters_of_a_killed_process_are_passed_over(couple: Couple, how: str) -> None:
    async def story() -> None:
        async with couple.client(couple.b) as b:
            held = await acquire(b, "holder", ttl_seconds=60 if how == "released" else 3)
            a_b = [(couple.a, "lost-1"), (couple.b, "next-1"), (couple.a, "lost-2"), (couple.b, "next-2")]
            lost_1, next_1, lost_2, next_2 = await line_up(couple, b, a_b)
            await asyncio.to_thread(couple.a.kill)
            started = time.monotonic()
            if how == "released":
                await release(b, held)
            first = await next_1
            await release(b, first)
            second = await next_2
            assert (first["owner"], second["owner"]) == ("next-1", "next-2")
            assert first["fencing_token"] < second["fencing_token"]
            assert time.monotonic() - started < 4 + BUSY
            await asyncio.gather(lost_1, lost_2, return_exceptions=True)

    run(story())


def test_who_waits_in_a_process_that_stood_still_too_long_is_told_to_ask_again(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.b) as b:
            held = await acquire(b, "holder", ttl_seconds=60)
            lost, waiting = await line_up(couple, b, [(couple.a, "lost"), (couple.b, "next")])
            couple.a.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(3.2)
                await release(b, held)
                assert (await waiting)["owner"] == "next"
            finally:
                couple.a.signal(signal.SIGCONT)
            told = await asyncio.wait_for(lost, 5)
            assert (told.status, told.code, told["retryable"]) == (503, "unavailable", True)

    run(story())


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_redis_there_are_no_volatile_locks_and_with_it_there_are_again(
    couple: Couple, how: str
) -> None:
    house = couple.house
    gone = house.away(house.valkey, signal.SIGKILL) if how == "killed" else house.frozen(house.valkey)

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            token = (await acquire(a, "holder", ttl_seconds=60))["fencing_token"]
            (waiting,) = await line_up(couple, b, [(couple.b, "waiter")])
            with gone:
                for refused in (await acquire(a, "other"), await waiting):
                    assert (refused.status, refused.code) == (503, "unavailable")
                    assert refused.headers["retry-after"] == "1"
                assert (await a.call("POST", "events/s", {"event_type": "t", "data": 1})).status == 201

            async def heals() -> bool:
                return (await acquire(b, "after")).status in {201, 409}

            await eventually(heals, 5)
            state = await b.call("GET", "locks/k")
            # Killed, it came back empty. Frozen, it still has the holder; and whoever was told 503 has left.
            assert [holder["owner"] for holder in state["holders"]] == [
                "after" if how == "killed" else "holder"
            ]

            async def nobody_waits() -> bool:
                return await queue(b) == []

            await eventually(nobody_waits, 5)
            other = await b.call("POST", "locks", {"key": "other", "owner": "after"})
            assert other["fencing_token"] > token

    run(story())


def test_tokens_rise_over_flushall(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            tokens = []
            for _ in range(3):
                for client in (a, b, a):
                    grant = await acquire(client, "me")
                    tokens.append(grant["fencing_token"])
                    await release(client, grant)
                with redis.from_url(couple.house.valkey.url) as store:
                    store.flushall()
            assert tokens == sorted(set(tokens))

    run(story())


def test_the_setting_reaches_the_other_process(couple: Couple) -> None:
    """A volatile lock is in no log, a durable one is; so the other process tells which it makes."""

    async def durable(client: Client) -> bool:
        key = f"k{time.monotonic()}"
        grant = await client.call("POST", "locks", {"key": key, "owner": "me"})
        await client.call("POST", f"locks/{key}/release", {"lock_id": grant["lock_id"]})
        return bool((await client.call("GET", f"events/$lock:{key}"))["events"])

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            assert not await durable(b)
            switched = await a.call("PUT", f"namespaces/{couple.namespace}", {"locks": "durable"})
            assert switched.status == 200
            assert await durable(a)
            await eventually(lambda: durable(b), 1 + BUSY)

    run(story())


def test_hundreds_of_waiters_need_one_connection(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as a:
            grant = await acquire(a, "holder", ttl_seconds=60)
            with redis.from_url(couple.house.valkey.url) as store:
                before = len(store.client_list())
                clients = [couple.client(couple.a) for _ in range(300)]
                waiting = [
                    asyncio.create_task(acquire(c, "w", wait_seconds=60, ttl_seconds=60)) for c in clients
                ]

                async def all_wait() -> bool:
                    return (await a.call("GET", "locks/k"))["queue_length"] == 300

                await eventually(all_wait)
                assert len(store.client_list()) == before
            for client in clients:
                client.hang_up()

            async def all_gone() -> bool:
                return (await a.call("GET", "locks/k"))["queue_length"] == 0

            await eventually(all_gone)
            await release(a, grant)
            await asyncio.gather(*waiting, return_exceptions=True)

    run(story())
