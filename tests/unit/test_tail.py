"""What is kept of a log for those who follow it, and what they are told when it goes back."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from core import tail
from core.following import PositionAhead, follow
from core.log import Entry
from core.models import log_id
from core.runtime import runtime
from core.tail import HEADS, RING, RING_BYTES, Following, Tail
from core.waiting import Waiters


def entries(count: int, size: int, first: int = 1) -> list[Entry]:
    return [Entry(1, "s", n, "t", "x" * size, "me", position=n) for n in range(first, first + count)]


def test_no_more_than_so_many_entries_are_kept() -> None:
    log = Following(1)
    log.keep(entries(RING, 1))
    log.keep(entries(10, 1, RING + 1))
    assert [log.ring[0].position, log.ring[-1].position] == [11, RING + 10]
    assert log.ring_bytes == RING


def test_no_more_than_so_many_bytes_are_kept_and_the_newest_stay() -> None:
    log = Following(1)
    for number in range(1, 41):
        log.keep(entries(1, 1 << 20, number))
    assert [entry.position for entry in log.ring] == list(range(25, 41))
    assert log.ring_bytes == RING_BYTES
    log.keep(entries(1, RING_BYTES + 1, 41))
    assert (list(log.ring), log.ring_bytes) == ([], 0)


def test_nothing_is_kept_once_it_is_forgotten() -> None:
    log = Following(1)
    log.keep(entries(3, 10))
    log.forget()
    assert (list(log.ring), log.ring_bytes) == ([], 0)


# -- a log that goes back -------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> "Log":
    found = Log()
    monkeypatch.setattr(tail, "tail_pool", found)
    monkeypatch.setattr(tail, "follow_pool", found)
    monkeypatch.setattr(tail, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runtime, "tail", found.tail)
    return found


class Log:
    """A log of one namespace, as the database has it, and a tail that polls it."""

    def __init__(self) -> None:
        self.head = 100
        self.tail = Tail(Waiters())

    async def rows(self, query: str, params: Sequence[Any] = ()) -> list[Any]:
        if query == HEADS:
            return [(1, self.head, 0)]
        return [row(n) for n in range(params[0] - log_id(1, 0) + 1, self.head + 1)]

    async def polled(self) -> None:
        before = self.tail.polled_at
        while self.tail.polled_at == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)


def row(position: int) -> Any:
    return (
        log_id(1, position),
        "s",
        position,
        "t",
        str(position),
        "{}",
        None,
        "me",
        None,
        None,
        datetime.now(UTC),
    )


def test_who_follows_a_log_that_went_back_is_told(log: Log) -> None:
    """A failover lost the last ten events; what comes now has their positions."""

    async def story() -> None:
        polling = asyncio.create_task(log.tail._poll())
        with log.tail.listening(1) as grown:
            await log.polled()
            assert log.tail.follow(1).head == 100
            following = aiter(follow(1, 100, lambda entry: {}, 15.0))
            assert await anext(following) == {"heartbeat": {"position": 100}}
            told = asyncio.ensure_future(anext(following))
            await log.polled()
            grown.clear()
            log.head = 90
            with pytest.raises(PositionAhead):
                await told
            assert grown.went_back
            assert grown.is_set()
            assert log.tail.follow(1).head == 90
            with log.tail.listening(1) as again:
                again.clear()
                log.head = 99
                await log.polled()
                assert again.is_set()
                assert not again.went_back
        polling.cancel()

    asyncio.run(asyncio.wait_for(story(), 20))
