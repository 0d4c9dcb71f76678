"""Who waits for which ticket, and what is heard of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from core.batch import Job
from core.callers import DEVELOPER, Call, Namespace
from core.encoding import encode
from core.errors import Conflict
from core.log import Entry
from core.operations import Waiting, registry
from core.waiting import Waiters, grant

STREAM = "$lock:a"


def job(ticket: int, lock_id: str = "mine") -> Job:
    """A caller of locks.acquire who is about to wait."""
    found = Job(registry["locks.acquire"], {}, Call(DEVELOPER, Namespace("n", 1)))
    found.granted = asyncio.get_running_loop().create_future()
    found.value = waiting(ticket, lock_id)
    return found


def waiting(ticket: int, lock_id: str = "mine") -> Waiting:
    return Waiting(STREAM, ticket, 5.0, {"places": [["a", lock_id, ticket]]})


GRANT = {
    "owner": "me", "mode": "exclusive", "permits": 1, "acquired_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-01T00:00:30Z", "ttl_seconds": 30.0, "waited_seconds": 1.0,
}  # fmt: skip


def acquired(ticket: int, namespace: int = 1, stream: str = STREAM) -> Entry:
    data = encode({**GRANT, "ticket": ticket, "fencing_token": ticket}).decode()
    return Entry(namespace, stream, ticket, "lock.acquired", data, "developer")


def in_loop(story: Callable[[Waiters], Any]) -> None:
    async def run() -> None:
        await story(Waiters())

    asyncio.run(run())


def test_a_waiter_hears_of_its_own_ticket_only() -> None:
    async def story(waiters: Waiters) -> None:
        mine = job(5)
        waiters.expect([mine])
        waiters.notice([acquired(4), acquired(5, namespace=2), acquired(5, stream="$lock:b")])
        assert not mine.granted.done()
        waiters.notice([acquired(5)])
        assert (await grant(mine))["fencing_token"] == 5
        assert (len(waiters), waiters.streams) == (0, [])

    in_loop(story)


def test_what_was_heard_of_a_ticket_before_a_batch_ran_again_meant_somebody_else() -> None:
    async def story(waiters: Waiters) -> None:
        mine = job(5)
        waiters.expect([mine])
        waiters.notice([acquired(5)])  # another process got it: this one's transaction was rolled back
        mine.value = waiting(6)
        waiters.expect([mine])
        assert not mine.granted.done()
        waiters.notice([acquired(6)])
        assert (await grant(mine))["fencing_token"] == 6

    in_loop(story)


@pytest.mark.parametrize("error", [None, Conflict()])
def test_who_need_not_wait_the_second_time_is_expected_no_more(error: Conflict | None) -> None:
    async def story(waiters: Waiters) -> None:
        mine = job(5)
        waiters.expect([mine])
        mine.error = error
        if error is None:
            mine.value = {"fencing_token": 7}
        waiters.expect([mine])
        assert (len(waiters), waiters.streams) == (0, [])

    in_loop(story)


def test_two_callers_share_a_place_and_the_last_gives_it_up() -> None:
    async def story(waiters: Waiters) -> None:
        first, second = job(5), job(5)
        waiters.expect([first, second])
        assert waiters.forget(first) is False
        assert waiters.forget(first) is False
        assert waiters.forget(second) is True
        assert len(waiters) == 0

    in_loop(story)
