"""Names of instances: looked up once for all who need it, and none of them in the way of others."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from discovery.addresses import LOOKUPS, Addresses, NotSent

SOON = 10.0


class Names:
    """What a resolver knows; names that end in `.slow` it never answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended = threading.Event()

    def __call__(self, host: str, port: int, *more: Any, **others: Any) -> list[Any]:
        self.asked.append(host)
        if host.endswith(".slow"):
            self.ended.wait(60)
        if host.endswith(".none"):
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.51.100.7", port))] * 2


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield found
    found.ended.set()


def run(story: Any) -> Any:
    return asyncio.run(asyncio.wait_for(story, SOON))


def test_a_name_is_looked_up_once_for_all_who_need_it(names: Names) -> None:
    async def story() -> list[Any]:
        addresses = Addresses()
        return await asyncio.gather(*(addresses.allowed("bank.test", 80, True) for _ in range(10)))

    assert run(story()) == [["198.51.100.7"]] * 10
    assert names.asked == ["bank.test"]


def test_who_does_not_wait_for_the_end_does_not_end_it_for_others(names: Names) -> None:
    async def story() -> None:
        addresses = Addresses()
        hasty, patient = (asyncio.create_task(addresses.allowed("a.slow", 80, True)) for _ in range(2))
        await asyncio.sleep(0.05)
        hasty.cancel()
        names.ended.set()
        assert await patient == ["198.51.100.7"]

    run(story())
    assert names.asked == ["a.slow"]


def test_that_there_is_none_is_remembered(names: Names) -> None:
    async def story() -> None:
        addresses = Addresses()
        for _ in range(3):
            with pytest.raises(NotSent, match="no address"):
                await addresses.allowed("a.none", 80, True)

    run(story())
    assert names.asked == ["a.none"]


def test_names_that_nobody_answers_for_are_in_nobody_s_way(names: Names) -> None:
    """Neither of other names, unless there are many, nor of what else connects by a name in this loop."""

    async def story() -> None:
        addresses, loop = Addresses(), asyncio.get_running_loop()
        slow = [asyncio.create_task(addresses.allowed(f"{n}.slow", 80, True)) for n in range(3 * LOOKUPS)]
        await asyncio.sleep(0.05)
        assert await loop.getaddrinfo("redis.test", 6379)
        assert sum(name.endswith(".slow") for name in names.asked) == LOOKUPS
        started = time.monotonic()
        names.ended.set()
        assert await addresses.allowed("bank.test", 80, True) == ["198.51.100.7"]
        assert time.monotonic() - started < SOON / 2
        await asyncio.gather(*slow)

    run(story())


def test_a_few_slow_names_are_not_in_the_way_of_another(names: Names) -> None:
    async def story() -> None:
        addresses = Addresses()
        for n in range(LOOKUPS - 1):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(addresses.allowed(f"{n}.slow", 80, True), 0.01)
        assert await addresses.allowed("bank.test", 80, True) == ["198.51.100.7"]

    run(story())
