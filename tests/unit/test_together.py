"""Rows that many ask for at once: everybody is answered, whatever comes in the moment in which a reader has done."""

import asyncio
from collections.abc import Sequence

import pytest

from core import database
from core.database import Row, Together

WAITING = 20.0  # seconds


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list["asyncio.Future[list[Row]]"]:
    """Statements under way, to be answered by hand."""
    found: list[asyncio.Future[list[Row]]] = []

    async def rows(query: str, params: Sequence[list[str]]) -> list[Row]:
        found.append(asyncio.get_running_loop().create_future())
        ids = params[0]
        await found[-1]
        return [(each, "there") for each in ids]

    monkeypatch.setattr(database, "rows", rows)
    return found


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_asks_in_the_moment_in_which_all_readers_are_done_is_answered(
    asked: list[asyncio.Future[list[Row]]],
) -> None:
    async def story() -> None:
        together = Together("")
        first = [asyncio.create_task(together.row("0"))]
        await turns()
        first.append(asyncio.create_task(together.row("1")))
        await turns()
        assert len(asked) == 2
        go = asyncio.get_running_loop().create_future()

        async def ask() -> Row | None:
            await go
            return await together.row("2")

        late = asyncio.create_task(ask())
        await turns()
        for statement in asked:
            statement.set_result([])
        go.set_result(None)  # it goes on in the same turn of the loop as the readers, after them
        await turns()
        for statement in asked[2:]:
            statement.set_result([])
        async with asyncio.timeout(WAITING):
            assert await asyncio.gather(*first, late) == [(str(n), "there") for n in range(3)]

    asyncio.run(story())


def test_those_who_ask_meanwhile_share_a_statement(asked: list[asyncio.Future[list[Row]]]) -> None:
    async def story() -> None:
        together = Together("")
        tasks = []
        for n in range(10):
            tasks.append(asyncio.create_task(together.row(str(n % 5))))
            await turns()
        assert len(asked) == database.READERS
        for statement in asked:
            statement.set_result([])
        await turns()
        assert len(asked) == database.READERS + 1
        asked[-1].set_result([])
        async with asyncio.timeout(WAITING):
            assert await asyncio.gather(*tasks) == [(str(n % 5), "there") for n in range(10)]

    asyncio.run(story())
