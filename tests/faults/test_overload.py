"""More than can be done at once: a bounded queue, an honest 503, and recovery without help."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest

from tests.faults.house import Couple, House
from tests.faults.load import check_answer
from tests.races.client import Client, Reply
from tests.races.processes import Syros, eventually, new_namespace, run

LIMIT = 16  # commands that may queue
CALLERS = 80


@pytest.fixture(scope="module")
def narrow(house: House) -> Iterator[Syros]:
    """A process with a short queue."""
    found = Syros({**house.environ, "SYROS_QUEUE_LIMIT": str(LIMIT)}, "narrow").start()
    yield found
    assert found.complaints() == []
    found.end()


async def crowd(process: Syros, namespace: str, prefix: str) -> list[tuple[float, Reply]]:
    """Many callers at once, each with a key of its own; how long each waited for its answer."""

    async def one(n: int) -> tuple[float, Reply]:
        async with Client(process.port, namespace) as client:
            started = time.monotonic()
            reply = await client.call("POST", "locks", {"key": f"{prefix}/{n}", "owner": "me"})
            return time.monotonic() - started, reply

    return await asyncio.gather(*(one(n) for n in range(CALLERS)))


def check_refusals(answers: list[tuple[float, Reply]]) -> None:
    """Those that found no place were told so at once; nobody was told anything else."""
    counts = Counter(reply.code or "done" for _, reply in answers)
    for _, reply in answers:
        check_answer(reply)
    assert counts["unavailable"] >= CALLERS - 3 * LIMIT, counts
    prompt = [took for took, reply in answers if reply.code == "unavailable" and "full" in reply["detail"]]
    assert sorted(prompt)[len(prompt) // 2] < 1, "a refusal took as long as an answer"


async def check_recovery(process: Syros, namespace: str) -> None:
    async def whole() -> bool:
        async with Client(process.port, namespace) as client:
            replies = [
                await client.call("POST", "locks", {"key": f"after/{time.monotonic()}", "owner": "me"})
                for _ in range(5)
            ]
            return all(reply.status == 201 for reply in replies)

    await eventually(whole, 6)


@contextlib.contextmanager
def row_locked(url: str, address: str) -> Iterator[None]:
    """A lock's row in somebody else's hands."""
    with psycopg.connect(url) as connection:
        found = connection.execute("select 1 from syros.locks_lock where id = %s for update", [address])
        assert found.fetchone()
        yield
        connection.rollback()


def test_a_full_queue_refuses_while_the_database_stands_still(house: House, narrow: Syros) -> None:
    namespace = new_namespace(house.postgres.url)

    async def story() -> None:
        await crowd(narrow, namespace, "before")
        with house.frozen(house.postgres):
            waiting = asyncio.create_task(crowd(narrow, namespace, "during"))
            await asyncio.sleep(1.5)
        check_refusals(await waiting)
        await check_recovery(narrow, namespace)

    run(story())


def test_a_full_queue_refuses_while_a_row_is_not_to_be_had(house: House, narrow: Syros) -> None:
    namespace = new_namespace(house.postgres.url)

    async def story() -> None:
        async with Client(narrow.port, namespace) as client:
            await client.call("POST", "locks", {"key": "k", "owner": "me"})
            with row_locked(house.postgres.url, f"{namespace}/k"):
                blocked = asyncio.create_task(client.call("GET", "locks/k"))
                async with Client(narrow.port, namespace) as other:
                    stuck = asyncio.create_task(other.call("POST", "locks", {"key": "k", "owner": "other"}))
                    await row_wanted(house)
                    answers = await crowd(narrow, namespace, "during")
                    # Who wants the row hears that it is not to be had; it is not an error of anybody's.
                    refused = await stuck
                    assert (refused.status, refused.code) == (503, "unavailable")
                assert (await blocked).status == 200
            check_refusals(answers)
            await check_recovery(narrow, namespace)

    run(story())


async def row_wanted(house: House) -> None:
    statement = "select from pg_stat_activity where wait_event_type = 'Lock'"
    await eventually(lambda: asyncio.to_thread(house.query, statement), 10)


def test_a_row_in_other_hands_does_not_stop_the_others(couple: Couple) -> None:
    """Somebody's console sits on one lock's row for long: other locks go on, and nobody's wait is lost."""
    long = 7.0  # seconds; more than twice a process's lease

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.a) as a2, couple.client(couple.b) as b:
            await a.call("POST", "locks", {"key": "stuck", "owner": "me"})
            held = await b.call("POST", "locks", {"key": "waited", "owner": "holder", "ttl_seconds": 60})
            body = {"key": "waited", "owner": "waiter", "wait_seconds": 60}
            waiting = asyncio.create_task(a2.call("POST", "locks", body))
            await eventually(lambda: is_queued(b, "waited"))
            with row_locked(couple.house.postgres.url, f"{couple.namespace}/stuck"):
                ends_at = time.monotonic() + long
                wanting = [asyncio.create_task(want(ends_at)) for _ in range(2)]
                others = await asyncio.gather(*(take_others(n, ends_at) for n in range(16)))
                # The process was alive all along: its waiter still has its place.
                await b.call("POST", "locks/waited/release", {"lock_id": held["lock_id"]})
                grant = await waiting
                assert (grant.status, grant.value.get("owner")) == (201, "waiter"), grant.value
                await asyncio.gather(*wanting)
            for answered in others:
                # The first waits 2 s for the row; then each half that wants it, of at most nine, 250 ms.
                assert max(answered) < 6, answered

    async def want(ends_at: float) -> None:
        async with couple.client(couple.a) as client:
            while time.monotonic() < ends_at:
                reply = await client.call("POST", "locks", {"key": "stuck", "owner": "me"})
                assert (reply.status, reply.code) == (503, "unavailable")

    async def take_others(n: int, ends_at: float) -> list[float]:
        """How long each of these took."""
        took = []
        async with couple.client(couple.a) as client:
            while (started := time.monotonic()) < ends_at:
                reply = await client.call("POST", "locks", {"key": f"free/{n}/{started}", "owner": "me"})
                assert reply.status == 201, reply.value
                took.append(time.monotonic() - started)
        return took

    async def is_queued(client: Client, key: str) -> bool:
        return bool((await client.call("GET", f"locks/{key}"))["queue_length"])

    run(story())
