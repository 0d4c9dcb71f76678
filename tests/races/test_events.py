"""Many writers and readers, two processes: nothing is missed, doubled or out of order."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.races.client import Client, Reply
from tests.races.conftest import Pair
from tests.races.histories import Written, check_log, check_once, check_seen, check_written
from tests.races.processes import run

WRITERS, READERS = 16, 4
SHARED = ["shared-1", "shared-2", "shared-3"]


class Writer:
    """Appends in all the ways there are; remembers what it was told."""

    def __init__(self, name: str, here: Client, there: Client, seed: int) -> None:
        self.name, self.here, self.there = name, here, there
        self.random = random.Random(f"{seed}/{name}")
        self.written: list[Written] = []
        self.refused: list[str] = []  # the data of what was not written
        self.outcomes: Counter[str] = Counter()
        self.count = 0

    async def work(self, operations: int) -> None:
        ways: list[Callable[[], Awaitable[None]]] = [
            self.append_one, self.append_batch, self.append_to_many, self.append_expecting,
            self.append_again, self.append_through_both,
        ]  # fmt: skip
        for _ in range(operations):
            (way,) = self.random.choices(ways, [30, 15, 5, 25, 15, 10])
            await way()
            self.outcomes[way.__name__] += 1

    def events(self, most: int, ids: bool = False) -> list[dict[str, Any]]:
        found = []
        for _ in range(self.random.randint(1, most)):
            self.count += 1
            event: dict[str, Any] = {"event_type": "Counted", "data": f"{self.name}/{self.count}"}
            found.append({**event, "event_id": str(uuid4())} if ids else event)
        return found

    @property
    def stream(self) -> str:
        return self.random.choice([*SHARED, f"own-{self.name}"])

    def told_one(self, event: dict[str, Any], answer: dict[str, Any]) -> None:
        self.written.append(
            Written(
                answer["stream_id"], answer["version"], answer["position"], answer["event_id"], event["data"]
            )
        )

    def told(self, events: list[dict[str, Any]], answer: dict[str, Any]) -> None:
        assert len(answer["event_ids"]) == len(events)
        assert answer["last_version"] - answer["first_version"] == len(events) - 1
        assert answer["last_position"] - answer["first_position"] == len(events) - 1
        for n, (event, event_id) in enumerate(zip(events, answer["event_ids"], strict=True)):
            version, position = answer["first_version"] + n, answer["first_position"] + n
            self.written.append(Written(answer["stream_id"], version, position, event_id, event["data"]))

    async def append_one(self) -> None:
        (event,) = self.events(1)
        reply = await self.here.call("POST", f"events/{self.stream}", event)
        assert reply.status == 201, reply.value
        self.told_one(event, reply.value)

    async def append_batch(self) -> None:
        events = self.events(10)
        reply = await self.here.call("POST", f"events/{self.stream}", {"events": events})
        assert reply.status == 201, reply.value
        self.told(events, reply.value)

    async def append_to_many(self) -> None:
        streams = self.random.sample([*SHARED, f"own-{self.name}"], 2)
        appends = [{"stream_id": stream, "events": self.events(3)} for stream in streams]
        reply = await self.here.call("POST", "events/batch", {"appends": appends})
        assert reply.status == 201, reply.value
        for append, answer in zip(appends, reply["appends"], strict=True):
            self.told(append["events"], answer)

    async def append_expecting(self) -> None:
        """Write only if nobody else did since the version was read."""
        stream = self.random.choice(SHARED)
        version = (await self.here.call("GET", f"events/{stream}/info"))["version"]
        events = self.events(3)
        body = {"events": events, "expected_version": version}
        reply = await self.here.call("POST", f"events/{stream}", body)
        if reply.status == 201:
            assert reply["first_version"] == version + 1
            self.told(events, reply.value)
            return
        assert (reply.status, reply.code) == (409, "wrong_expected_version")
        assert reply["actual"] > version
        self.refused += [event["data"] for event in events]
        self.outcomes["conflict"] += 1

    async def append_again(self) -> None:
        """A retry, through the other process, of what was answered already."""
        stream, events = self.stream, self.events(4, ids=True)
        first = await self.here.call("POST", f"events/{stream}", {"events": events})
        again = await self.there.call("POST", f"events/{stream}", {"events": events})
        assert (first.status, again.status) == (201, 200)
        assert first.value == again.value
        self.told(events, first.value)

    async def append_through_both(self) -> None:
        """The same append in the same moment through both processes."""
        stream, events = self.stream, self.events(4, ids=True)
        replies: list[Reply] = await asyncio.gather(
            *(
                client.call("POST", f"events/{stream}", {"events": events})
                for client in (self.here, self.there)
            )
        )
        assert sorted(reply.status for reply in replies) == [200, 201], [r.value for r in replies]
        assert replies[0].value == replies[1].value
        self.told(events, replies[0].value)


class Reader:
    """Reads the whole log from its beginning while it grows."""

    def __init__(self, name: str, client: Client) -> None:
        self.name, self.client = name, client
        self.events: list[dict[str, Any]] = []
        self.last = 0

    async def page(self) -> None:
        """Pages, with a long poll at the end."""
        position = 1
        while True:
            query = {"from_position": position, "system": "true", "limit": 70, "wait_seconds": 5}
            page = await self.client.call("GET", "events", query=query)
            assert page.status == 200, page.value
            self.events += page["events"]
            position = page["next_position"]
            self.last = position - 1

    async def follow(self) -> None:
        async for kind, item in self.client.follow(from_position=1, system="true"):
            if kind == "event":
                self.events.append(item)
            assert item["position"] >= self.last
            self.last = item["position"]


async def whole_log(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    position, more = 1, True
    while more:
        query = {"from_position": position, "system": "true", "limit": 1000}
        page = await client.call("GET", "events", query=query)
        found += page["events"]
        position, more = page["next_position"], page["has_more"]
    return found


async def race(pair: Pair, operations: int, seed: int) -> None:
    writers = [
        Writer(f"w{n}", pair.client(pair.both[n % 2]), pair.client(pair.both[1 - n % 2]), seed)
        for n in range(WRITERS)
    ]
    readers = [Reader(f"reader {n}", pair.client(pair.both[n % 2])) for n in range(READERS)]
    reading = [
        asyncio.create_task(reader.page() if n < READERS / 2 else reader.follow())
        for n, reader in enumerate(readers)
    ]
    await asyncio.gather(*(writer.work(operations) for writer in writers))
    async with pair.client(pair.b) as client:
        log = await whole_log(client)
    await caught_up(readers, reading, len(log))
    check(writers, readers, log)


async def caught_up(readers: list[Reader], reading: list["asyncio.Task[None]"], last: int) -> None:
    async with asyncio.timeout(20):
        while any(reader.last < last for reader in readers):
            for task in reading:
                assert not task.done(), task.exception()
            await asyncio.sleep(0.02)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


def check(writers: list[Writer], readers: list[Reader], log: list[dict[str, Any]]) -> None:
    check_log(log)
    written = [each for writer in writers for each in writer.written]
    check_written(written, log)
    check_once([each.data for each in written], log)
    assert len(written) == len(log)  # so what was refused is not there
    for reader in readers:
        check_seen([event["position"] for event in reader.events], len(log), reader.name)
        assert reader.events == log
    outcomes: Counter[str] = Counter()
    for writer in writers:
        outcomes += writer.outcomes
    assert len(outcomes) == 7, f"not everything took part: {outcomes}"


def test_sixteen_writers_and_four_readers(pair: Pair) -> None:
    run(race(pair, operations=60, seed=1))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_the_same_for_longer(pair: Pair, seed: int) -> None:
    run(race(pair, operations=600, seed=seed), 900)
