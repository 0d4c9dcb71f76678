"""Interleavings across two processes that are forced, not hoped for."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg

from tests.races.client import Client, Reply
from tests.races.conftest import Pair
from tests.races.processes import eventually, run

PROMPT = 1.0  # seconds; without a wake-up the backstop needs up to a second, and then reads


@contextlib.asynccontextmanager
async def through_both(pair: Pair, count: int = 1) -> AsyncIterator[tuple[list[Client], list[Client]]]:
    """Clients of the one process and of the other, connected already."""
    found = [[pair.client(process) for _ in range(count)] for process in pair.both]
    for client in [*found[0], *found[1]]:
        await client.call("GET", "locks/unknown")
    try:
        yield found[0], found[1]
    finally:
        for client in [*found[0], *found[1]]:
            client.hang_up()


async def queue(client: Client, key: str) -> list[str]:
    return [waiter["owner"] for waiter in (await client.call("GET", f"locks/{key}"))["waiters"]]


async def acquire(
    client: Client, key: str, owner: str, *, idempotency: str | None = None, **more: Any
) -> Reply:
    return await client.call("POST", "locks", {"key": key, "owner": owner, **more}, key=idempotency)


async def release(client: Client, grant: Reply) -> Reply:
    return await client.call("POST", f"locks/{grant['key']}/release", {"lock_id": grant["lock_id"]})


@contextlib.contextmanager
def row_locked(pair: Pair, key: str) -> Any:
    """The lock's row as if another process were in the middle of a batch with it; yields how to let it go."""
    with psycopg.connect(pair.database_url) as connection:
        address = f"{pair.namespace}/{key}"
        found = connection.execute(
            "select id from syros.locks_lock where id = %s for no key update", [address]
        )
        assert found.fetchone() == (address,)
        yield connection.rollback


async def blocked(pair: Pair, count: int) -> None:
    """Until so many backends of the database wait for a row."""

    def waiting() -> int:
        with psycopg.connect(pair.database_url, autocommit=True) as connection:
            row = connection.execute(
                "select count(*) from pg_stat_activity where datname = current_database() "
                "and wait_event_type = 'Lock'"
            ).fetchone()
            assert row
            return int(row[0])

    async def enough() -> bool:
        return await asyncio.to_thread(waiting) >= count

    await eventually(enough, 5)


# -- one Idempotency-Key -----------------------------------------------------------------------------


def test_one_key_through_two_processes_appends_once(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 20) as (a, b):
            for _ in range(3):
                keys = [str(uuid4()) for _ in a]
                replies = await asyncio.gather(
                    *(
                        client.call("POST", "events/s", {"event_type": "t", "data": key}, key=key)
                        for clients in (a, b)
                        for client, key in zip(clients, keys, strict=True)
                    )
                )
                for first, second in zip(replies[:20], replies[20:], strict=True):
                    assert (first.status, second.status) == (201, 201)
                    assert first.value == second.value
                    replayed = [r.headers.get("idempotency-replayed") for r in (first, second)]
                    assert sorted(map(str, replayed)) == ["None", "true"]
            page = await a[0].call("GET", "events/s", query={"limit": 1000})
            assert [event["version"] for event in page["events"]] == list(range(1, 61))
            assert len({event["data"] for event in page["events"]}) == 60

    run(story())


def test_one_key_through_two_processes_takes_a_lock_once(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 20) as (a, b):
            replies = await asyncio.gather(
                *(
                    acquire(client, f"k{n}", "me", idempotency=f"key-{n}")
                    for clients in (a, b)
                    for n, client in enumerate(clients)
                )
            )
            for first, second in zip(replies[:20], replies[20:], strict=True):
                assert first.status == 201
                assert first.value == second.value

    run(story())


def test_a_retry_in_another_process_shares_the_place_in_the_queue(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 2) as (a, b):
            held = await acquire(a[0], "k", "alice")
            wait = {"owner": "bob", "wait_seconds": 30, "idempotency": "once"}
            first = asyncio.create_task(acquire(a[1], "k", **wait))
            await eventually(lambda: queue(b[0], "k"))
            second = asyncio.create_task(acquire(b[1], "k", **wait))
            await asyncio.sleep(0.2)
            assert await queue(b[0], "k") == ["bob"]
            await release(a[0], held)
            assert (await first).value == (await second).value
            assert (await first).status == 201

    run(story())


async def until_served(client: Client, key: str, **wait: Any) -> Reply:
    while (answer := await acquire(client, key, **wait)).status == 503:
        assert answer["retryable"]
    return answer


def test_a_waiter_s_retry_elsewhere_gets_the_lock_when_the_first_client_is_gone(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 2) as (a, b):
            held = await acquire(a[0], "k", "alice")
            wait = {"owner": "bob", "wait_seconds": 30, "idempotency": "once"}
            first = asyncio.create_task(acquire(a[1], "k", **wait))
            await eventually(lambda: queue(b[0], "k"))
            first.cancel()
            # Whether the retry finds the place still there or given up already, it is served; in between, it is
            # told to ask again.
            second = asyncio.create_task(until_served(b[1], "k", **wait))
            await eventually(lambda: queue(b[0], "k"))
            await release(a[0], held)
            grant = await asyncio.wait_for(second, 10)
            assert (grant.status, grant["owner"]) == (201, "bob")
            assert (await release(b[0], grant)).status == 200

    run(story())


def test_a_retry_in_the_moment_of_the_grant_is_told_of_it(pair: Pair) -> None:
    """The retry reaches the database while the batch that grants is in the middle of it."""

    async def story() -> None:
        async with through_both(pair, 2) as (a, b):
            held = await acquire(a[0], "k", "alice")
            wait = {"owner": "bob", "wait_seconds": 30, "idempotency": "once"}
            first = asyncio.create_task(acquire(a[1], "k", **wait))
            await eventually(lambda: queue(b[0], "k"))
            with row_locked(pair, "k") as let_go:
                releasing = asyncio.create_task(release(a[0], held))
                await blocked(pair, 1)
                retry = asyncio.create_task(acquire(b[1], "k", **wait))
                await blocked(pair, 2)
                let_go()
            assert (await releasing).status == 200
            grant = await first
            again = await asyncio.wait_for(retry, 10)
            assert again.value == grant.value

    run(story())


# -- the queue across processes ----------------------------------------------------------------------


def test_a_lock_waited_for_in_one_process_and_released_in_the_other_is_handed_over_promptly(
    pair: Pair,
) -> None:
    async def story() -> None:
        async with through_both(pair) as ((a,), (b,)):
            took = []
            for _ in range(20):
                held = await acquire(b, "k", "alice")
                waiting = asyncio.create_task(acquire(a, "k", "bob", wait_seconds=30))
                await eventually(lambda: queue(b, "k"))
                started = time.monotonic()
                await release(b, held)
                grant = await waiting
                took.append(time.monotonic() - started)
                assert (grant.status, grant["owner"]) == (201, "bob")
                assert grant["fencing_token"] == held["fencing_token"] + 1
                await release(a, grant)
            # By wake-ups, not by the backstop, which would take half a second on average.
            assert sorted(took)[len(took) // 2] < 0.2, took
            assert max(took) < PROMPT + 1, took

    run(story())


def test_a_client_that_goes_in_one_process_leaves_the_queue_for_all(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 3) as (a, b):
            held = await acquire(b[0], "k", "alice")
            gone = asyncio.create_task(acquire(a[0], "k", "gone", wait_seconds=60))
            await eventually(lambda: queue(b[0], "k"))
            next_one = asyncio.create_task(acquire(b[1], "k", "next", wait_seconds=60))
            await eventually(lambda: both_wait(b[0]))
            gone.cancel()  # which closes the connection
            started = time.monotonic()

            async def left() -> bool:
                return await queue(b[2], "k") == ["next"]

            await eventually(left, 5)
            assert time.monotonic() - started < PROMPT + 1
            await release(b[0], held)
            assert (await next_one)["owner"] == "next"
            log = await b[0].call("GET", "events/$lock:k", query={"event_type": "lock.withdrawn"})
            (withdrawn,) = log["events"]
            assert (withdrawn["data"]["owner"], withdrawn["data"]["reason"]) == ("gone", "client_gone")

    async def both_wait(client: Client) -> bool:
        return await queue(client, "k") == ["gone", "next"]

    run(story())


def test_a_client_that_goes_in_the_moment_of_its_grant_gives_it_back(pair: Pair) -> None:
    """The release that grants and the client's going are both on their way while the row is not to be had."""

    async def story() -> None:
        async with through_both(pair, 2) as (a, b):
            held = await acquire(b[0], "k", "alice")
            gone = asyncio.create_task(acquire(a[0], "k", "gone", wait_seconds=60, ttl_seconds=60))
            await eventually(lambda: queue(b[0], "k"))
            with row_locked(pair, "k") as let_go:
                releasing = asyncio.create_task(release(b[0], held))
                await blocked(pair, 1)
                gone.cancel()
                await blocked(pair, 2)  # the withdrawal, behind the release that grants
                let_go()
            await releasing
            grant = await acquire(b[1], "k", "next", wait_seconds=10)
            assert (grant.status, grant["owner"]) == (201, "next")
            log = (await b[0].call("GET", "events/$lock:k"))["events"]
            assert [event["event_type"].removeprefix("lock.") for event in log[:4]] == [
                "acquired", "queued", "released", "acquired",
            ]  # fmt: skip
            assert log[4]["data"]["by"] == "client_gone"

    run(story())


def test_a_new_lock_wanted_by_both_in_the_same_moment_has_one_holder(pair: Pair) -> None:
    """A key without a row cannot be locked: both processes believe that it is free."""

    async def story() -> None:
        async with through_both(pair, 10) as (a, b):
            for turn in range(10):
                replies = await asyncio.gather(
                    *(
                        acquire(client, f"new-{turn}", f"{turn}/{n}")
                        for n, client in enumerate([x for both in zip(a, b, strict=True) for x in both])
                    )
                )
                assert sorted(reply.status for reply in replies) == [201, *[409] * 19]

    run(story())


def test_the_queue_is_one_for_both_processes(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair, 6) as (a, b):
            held = await acquire(a[0], "k", "first")
            order: list[str] = []
            clients = [client for both in zip(a[1:], b[1:], strict=True) for client in both]
            names = [f"w{n}" for n in range(len(clients))]

            async def take_and_give_back(client: Client, name: str) -> None:
                grant = await acquire(client, "k", name, wait_seconds=60)
                order.append(name)
                await release(client, grant)

            tasks = []
            for count, (client, name) in enumerate(zip(clients, names, strict=True), 1):
                tasks.append(asyncio.create_task(take_and_give_back(client, name)))
                await eventually(lambda count=count: as_long_as(a[0], count))
            assert await queue(b[0], "k") == names
            await release(a[0], held)
            await asyncio.gather(*tasks)
            assert order == names

    async def as_long_as(client: Client, count: int) -> bool:
        return len(await queue(client, "k")) == count

    run(story())


def test_a_reader_in_one_process_hears_promptly_of_what_the_other_wrote(pair: Pair) -> None:
    async def story() -> None:
        async with through_both(pair) as ((a,), (b,)):
            took, position = [], 1
            for n in range(20):
                query = {"from_position": position, "wait_seconds": 30}
                reading = asyncio.create_task(a.call("GET", "events", query=query))
                await asyncio.sleep(0.05)
                started = time.monotonic()
                await b.call("POST", "events/s", {"event_type": "t", "data": n})
                page = await reading
                took.append(time.monotonic() - started)
                assert [event["data"] for event in page["events"]] == [n]
                position = page["next_position"]
            assert sorted(took)[len(took) // 2] < 0.2, took
            assert max(took) < PROMPT + 1, took

    run(story())


def test_a_lock_that_was_made_while_a_batch_waited_is_seen_by_it(pair: Pair) -> None:
    """Two locks are wanted at once, of which one is new; who gives back the other has looked for the new one before
    it was there."""

    async def story() -> None:
        async with through_both(pair, 3) as ((a, a2, a3), (b, b2, _)):
            held = await acquire(b, "k1", "holder", ttl_seconds=60)
            await acquire(b, "busy", "other", ttl_seconds=60)
            with row_locked(pair, "busy") as let_busy_go, row_locked(pair, "k1") as let_go:
                first = asyncio.create_task(acquire(a, "busy", "first"))
                await blocked(pair, 1)  # now both requests that come next are one batch
                asked = [
                    asyncio.create_task(release(a2, held)),
                    asyncio.create_task(a3.call("POST", "locks/new/release", {"lock_id": "none"})),
                ]
                both = {"owner": "both", "keys": ["k1", "new"], "wait_seconds": 30}
                waiting = asyncio.create_task(b2.call("POST", "locks/acquire-many", both))
                await blocked(pair, 2)
                await asyncio.sleep(0.1)
                let_busy_go()
                assert (await first).code == "lock_held"
                await blocked(pair, 2)
                let_go()
                released, refused = await asyncio.gather(*asked)
            assert (released.status, released.code) == (200, "")
            assert (refused.status, refused.code) == (409, "lock_not_held")
            granted = await asyncio.wait_for(waiting, 5)
            assert [grant["key"] for grant in granted["grants"]] == ["k1", "new"]

    run(story())


def test_holds_that_two_commands_of_a_batch_look_at_end_once(pair: Pair) -> None:
    """One is refused and names a few holders, the other ends them all."""

    async def story() -> None:
        async with through_both(pair, 3) as ((a, a2, a3), (b, _, _)):
            await acquire(b, "busy", "other", ttl_seconds=60)
            for owner in ("first", "second"):
                await acquire(b, "k", owner, ttl_seconds=60, capacity=2)
            with row_locked(pair, "busy") as let_go:
                busy = asyncio.create_task(acquire(a, "busy", "me"))
                await blocked(pair, 1)  # now both requests that come next are one batch
                refused = asyncio.create_task(acquire(a2, "k", "third"))
                forced = asyncio.create_task(a3.call("POST", "locks/k/force-release", {"reason": "a drill"}))
                await asyncio.sleep(0.2)
                let_go()
            assert (await busy).code == "lock_held"
            assert sorted((await forced)["owners"]) == ["first", "second"]
            assert (await refused).status in {201, 409}  # whichever came first
            log = (await b.call("GET", "events/$lock:k"))["events"]
            ended = [event["data"]["owner"] for event in log if event["event_type"] == "lock.force_released"]
            assert sorted(ended) == ["first", "second"]

    run(story())
