"""Nothing is served that was acknowledged to be old, by the cache in PostgreSQL either: without any Redis, and while
PostgreSQL is killed."""

import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.doors import free_port
from tests.faults.house import House
from tests.races.client import Client
from tests.races.processes import Syros, eventually, new_namespace, run
from tests.races.test_cache import SECONDS, Race, check, hunt


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    var = Path(tempfile.mkdtemp(prefix="syros-cache-"))
    found = House(var).start()
    found.environ |= {"CACHE_BACKEND": "postgres", "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    yield found
    found.stop()
    shutil.rmtree(var)


@pytest.fixture(scope="module")
def syros(house: House) -> Iterator[list[Syros]]:
    """Two processes, and nobody where they look for Redis."""
    found = [Syros(house.environ, name) for name in ("a", "b")]
    try:
        for process in found:
            process.spawn()
        for process in found:
            process.wait_ready()
        yield found
    finally:
        for process in found:
            process.end()


def test_nothing_old_is_served_while_all_is_well(house: House, syros: list[Syros]) -> None:
    check(Race(house, syros, new_namespace(house.postgres.url), SECONDS).results())


def test_nothing_old_is_served_whatever_becomes_of_the_tables(house: House, syros: list[Syros]) -> None:
    """Emptied as a crash does it, and by crashes. The first is longer than reads wait for a connection."""
    race = Race(house, syros, new_namespace(house.postgres.url), SECONDS)
    emptied = killed = 0
    chance = random.Random(7)
    while race.is_on:
        time.sleep(0.3 + chance.random())
        if chance.random() < 0.7:
            with contextlib.suppress(psycopg.Error), psycopg.connect(house.postgres.url) as connection:
                connection.execute("truncate syros.cache_item, syros.cache_clock")
                emptied += 1
        else:
            with house.away(house.postgres, signal.SIGKILL):
                time.sleep(chance.random() * 0.5 if killed else 3.0)
            killed += 1
    found = race.results()
    check(found)
    assert min(emptied, killed, found["changes"], found["unavailable"]) > 0, found


@pytest.mark.parametrize("bug", ["version_at_set", "delete_only"])
def test_a_bug_is_found(house: House, bug: str) -> None:
    syros = Syros(house.environ, "buggy", manage=[sys.executable, "-m", "tests.races.cache_bugs"])
    try:
        syros.start()
        found = hunt(house, syros, bug)
    finally:
        syros.end()
    assert found, "nobody noticed"


def test_numbers_are_counted_once_and_one_has_the_lease(house: House, syros: list[Syros]) -> None:
    async def story() -> None:
        namespace = new_namespace(house.postgres.url)
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(syros[n % 2].port, namespace)) for n in range(16)
            ]

            async def count(client: Client) -> list[int]:
                return [(await client.call("POST", "cache/n/incr", {}))["value"] for _ in range(20)]

            counted = await asyncio.gather(*map(count, clients))
            assert sorted(n for some in counted for n in some) == list(range(1, 321))

            async def ask(client: Client) -> str | None:
                reply = await client.call("GET", "cache/m", query={"lease_seconds": 30})
                assert reply.code == "cache_miss"
                lease: str | None = reply["lease"]
                return lease

            assert sum(lease is not None for lease in await asyncio.gather(*map(ask, clients))) == 1

            async def add(client: Client) -> int:
                body = {"value": 1, "only_if_absent": True}
                return (await client.call("PUT", "cache/once", body)).status

            assert sorted(await asyncio.gather(*map(add, clients))) == [200] + [409] * 15

    run(story())


def test_an_invalidation_that_was_only_logged_is_applied(house: House, syros: list[Syros]) -> None:
    """As by a process that died between its commit and what follows."""

    async def story() -> None:
        namespace = new_namespace(house.postgres.url)
        async with Client(syros[0].port, namespace) as a:
            await a.call("PUT", "cache/k", {"value": "old", "tags": ["red"]})
            await a.call("POST", "cache/invalidate", {"tags": ["blue"]})
            with psycopg.connect(house.postgres.url, autocommit=True) as connection:
                connection.execute(
                    """update syros.core_event set data = '{"tags": ["red"], "mode": "hard"}' where stream = '$cache'
                    and namespace_id = (select number from syros.core_namespace where name = %s)""",
                    [namespace],
                )
                connection.execute(
                    """update syros.cache_clock set applied = 0 where tag = ''
                    and namespace_id = (select number from syros.core_namespace where name = %s)""",
                    [namespace],
                )
            syros[1].end()
            syros[1].start()

            async def is_gone() -> bool:
                return (await a.call("GET", "cache/k")).code == "cache_miss"

            await eventually(is_gone, 10)

    run(story())
