"""The writer's thread dies: whoever was in its batch is told, another one serves within a second."""

import asyncio
import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.conf import settings

from core.engine import Engine
from core.runtime import runtime
from tests.doors import Served
from tests.faults.load import check_answer, whole_log
from tests.races.client import Client, Reply
from tests.races.histories import check_log
from tests.races.processes import eventually, run

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

REPLACED = 1.0  # seconds until another thread serves
BUSY = 1.0  # what a busy machine may take on top


@pytest.fixture
def engine(served: Served) -> Iterator[Engine]:
    found = runtime.engine
    assert found
    assert found.is_alive
    yield found
    assert found.is_alive


@pytest.fixture
def client(served: Served, namespace: str) -> Callable[[], Client]:
    return lambda: Client(served.port, namespace)


def acquire(client: Client, key: str, **more: Any) -> Any:
    return client.call("POST", "locks", {"key": key, "owner": "me"}, **more)


async def check_replaced(engine: Engine, died: Any, client: Client) -> None:
    started = time.monotonic()

    async def serves() -> bool:
        return bool((await acquire(client, f"again/{time.monotonic()}")).status == 201)

    await eventually(serves, 10)
    assert time.monotonic() - started < REPLACED + BUSY
    assert engine._thread is not died


def dies_in(monkeypatch: pytest.MonkeyPatch, engine: Engine, name: str) -> None:
    """The next call of this method ends the thread."""
    method = getattr(engine, name)

    def die(*args: Any) -> Any:
        monkeypatch.setattr(engine, name, method)
        raise SystemExit

    monkeypatch.setattr(engine, name, die)


def test_it_dies_while_its_batch_waits_for_a_row(
    engine: Engine, client: Callable[[], Client], namespace: str
) -> None:
    async def story() -> None:
        clients = [client() for _ in range(6)]
        await acquire(clients[0], "k0")
        with psycopg.connect(settings.DATABASE_URL) as blocker:
            blocker.execute("select from syros.locks_lock where id = %s for update", [f"{namespace}/k0"])
            asked = [asyncio.create_task(acquire(c, f"k{n}")) for n, c in enumerate(clients)]
            statement = "select from pg_stat_activity where wait_event_type = 'Lock'"
            with psycopg.connect(settings.DATABASE_URL, autocommit=True) as onlooker:
                await eventually(lambda: asyncio.to_thread(onlooker.execute(statement).fetchall))
            thread = engine._thread
            assert thread
            assert thread.ident
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
        replies = [await task for task in asked]
        await asyncio.to_thread(thread.join, 10)  # its callers are told before it is gone
        assert not thread.is_alive()
        in_its_batch = [reply for reply in replies if reply.status == 503]
        assert in_its_batch
        for reply in replies:
            check_answer(reply)
        for n, reply in enumerate(replies):
            state = await clients[0].call("GET", f"locks/k{n}")
            assert state["is_locked"] is (reply.status == 201 or n == 0), f"k{n}: {reply.value}"
        await check_replaced(engine, thread, clients[0])
        for each in clients:
            each.hang_up()

    run(story())


def test_it_dies_before_anybody_is_told_of_what_was_committed(
    engine: Engine, client: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with client() as one:
            thread = engine._thread
            dies_in(monkeypatch, engine, "_tell")
            body = {"event_type": "t", "data": 1}
            told = await one.call("POST", "events/s", body, key="once")
            assert (told.status, told.code) == (503, "outcome_unknown")
            await check_replaced(engine, thread, one)
            again = await one.call("POST", "events/s", body, key="once")
            assert (again.status, again["version"]) == (201, 1)
            assert (await one.call("GET", "events/s"))["version"] == 1

    run(story())


def test_it_dies_before_the_commit(
    engine: Engine, client: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with client() as one:
            thread = engine._thread
            dies_in(monkeypatch, engine, "_transact")
            told = await acquire(one, "k")
            assert (told.status, told.code) == (503, "unavailable")
            await check_replaced(engine, thread, one)
            assert (await acquire(one, "k")).status == 201

    run(story())


def test_it_dies_while_it_has_nothing_to_do(
    engine: Engine, client: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes between the end of the one and the begin of the other waits that long."""

    async def story() -> None:
        async with client() as one:
            thread = engine._thread
            assert thread
            dies_in(monkeypatch, engine, "_collect")
            await asyncio.to_thread(thread.join, 5)
            started = time.monotonic()
            assert (await acquire(one, "k")).status == 201
            assert time.monotonic() - started < REPLACED + BUSY
            assert engine._thread is not thread

    run(story())


def test_it_dies_again_and_again_under_load(
    engine: Engine, client: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left without an answer, nothing that was acknowledged is lost, nothing is there twice."""

    async def story() -> None:
        deadline = time.monotonic() + 3
        outcomes: Counter[str] = Counter()
        written: list[str] = []

        async def write(name: str) -> None:
            async with client() as mine:
                count = 0
                while time.monotonic() < deadline:
                    count += 1
                    data = f"{name}/{count}"
                    reply = await insist(mine, data, outcomes)
                    assert reply.status == 201
                    written.append(data)

        async def kill() -> None:
            while time.monotonic() < deadline - 0.5:
                for name in ("_transact", "_tell", "_collect"):
                    dies_in(monkeypatch, engine, name)
                    await asyncio.sleep(0.25)

        await asyncio.gather(kill(), *(write(f"w{n}") for n in range(16)))
        assert outcomes["unavailable"], outcomes
        assert outcomes["outcome_unknown"], outcomes
        async with client() as reader:
            log = await whole_log(reader)
        check_log(log)
        assert sorted(event["data"] for event in log) == sorted(written)

    run(story())


async def insist(client: Client, data: str, outcomes: Counter[str]) -> Reply:
    while True:
        reply = await client.call("POST", "events/s", {"event_type": "t", "data": data}, key=data, seconds=20)
        check_answer(reply)
        outcomes[reply.code or "done"] += 1
        if reply.status != 503:
            return reply
        await asyncio.sleep(0.05)
