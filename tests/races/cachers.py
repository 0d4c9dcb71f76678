"""Readers, loaders and invalidators of a cache, in processes of their own, and the board by which they are judged:
`python -m tests.races.cachers '{"role": "read", …}'`.

The board is memory that all of them share: of each record the version in the "database", and the version whose
invalidation has been acknowledged. A reader notes what is acknowledged, reads, and may be served nothing older.
"""

import asyncio
import json
import mmap
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.races.client import Client, Lost

RECORDS = 24
# How a writer says that a record changed: by its tag, by deleting its key, by putting the new value.
WAYS = ("tag", "delete", "put")
LEASE_SECONDS = 2.0
MANY = 50
TOLD = 50  # stale reads that a process tells of: more would fill the pipe that nobody reads before its end


class Board:
    """Versions of records: in the database, and acknowledged."""

    def __init__(self, path: Path) -> None:
        size = RECORDS * 8 * 2
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def version(self, record: int) -> int:
        return self._memory[record]

    def change(self, record: int) -> int:
        self._memory[record] += 1
        return self._memory[record]

    def acknowledge(self, record: int, version: int) -> None:
        self._memory[RECORDS + record] = version

    def acknowledged(self) -> list[int]:
        return self._memory[RECORDS:].tolist()

    def versions(self) -> list[int]:
        return self._memory[:RECORDS].tolist()


def way(record: int) -> str:
    return WAYS[record % len(WAYS)]


def records_of(key: int) -> list[int]:
    """What a value is made of: with tags, of two records."""
    tagged = [record for record in range(RECORDS) if way(record) == "tag"]
    if way(key) != "tag":
        return [key]
    return [key, tagged[(tagged.index(key) + 1) % len(tagged)]]


@dataclass
class Found:
    """What a process saw."""

    reads: int = 0
    hits: int = 0
    loads: int = 0
    refused: int = 0
    unavailable: int = 0
    stale: list[str] = field(default_factory=list)


class Worker:
    """One client. Parameters: `about` is what the command line says."""

    def __init__(self, about: dict[str, Any], number: int, found: Found) -> None:
        self.board, self.found = Board(Path(about["board"])), found
        self.client = Client(about["ports"][number % len(about["ports"])], about["namespace"])
        self.random = random.Random(f"{about['seed']}/{number}")
        self.until, self.reads, self.pause = about["until"], about["reads"], about["pause"]
        self.number, self.role = number, about["role"]

    def goes_on(self) -> bool:
        return time.time() < self.until and self.found.reads < self.reads

    async def work(self) -> None:
        step = self.change if self.role == "change" else self.read_many if self.number % 4 == 3 else self.read
        async with self.client:
            while self.goes_on():
                try:
                    await step()
                except Lost:
                    await asyncio.sleep(0.05)

    # -- reading -------------------------------------------------------------------------------------

    async def read(self) -> None:
        key, known = self.random.randrange(RECORDS), self.board.acknowledged()
        reply = await self.client.call("GET", f"cache/k{key}", query={"lease_seconds": LEASE_SECONDS})
        self.found.reads += 1
        if reply.status == 200:
            self.check(key, reply.value, known)
        elif reply.code == "cache_miss":
            if reply["lease"]:
                await self.load(key, reply["lease"])
            elif reply["as_of"] is None:
                self.found.unavailable += 1
        else:
            self.found.unavailable += reply.status == 503

    async def load(self, key: int, lease: str) -> None:
        records = records_of(key)
        value = {str(record): self.board.version(record) for record in records}
        await asyncio.sleep(self.random.random() * 0.02)
        tags = [f"r{record}" for record in records if way(record) == "tag"]
        body = {"value": value, "tags": tags, "lease": lease, "ttl_seconds": 60}
        reply = await self.client.call("PUT", f"cache/k{key}", body)
        self.found.loads += 1
        self.found.refused += reply.code == "stale_load"

    async def read_many(self) -> None:
        known = self.board.acknowledged()
        keys = [self.random.randrange(RECORDS) for _ in range(MANY)]
        reply = await self.client.call("POST", "cache/get-many", {"keys": [f"k{key}" for key in keys]})
        if reply.status == 200:
            self.found.reads += len(set(keys))
            for item in reply["items"]:
                self.check(int(item["key"][1:]), item, known)

    def check(self, key: int, item: dict[str, Any], known: list[int]) -> None:
        self.found.hits += 1
        for record, version in item["value"].items():
            if version < known[int(record)]:
                was = f"k{key} has version {version} of {record}, acknowledged was {known[int(record)]}"
                self.found.stale += [was] if len(self.found.stale) < TOLD else []

    # -- changing ------------------------------------------------------------------------------------

    async def change(self) -> None:
        """Each record has one writer: versions only rise."""
        record = self.random.choice([r for r in range(RECORDS) if r % 3 == self.number % 3])
        version = self.board.change(record)
        while self.goes_on():
            if await self.declare(record, version):
                self.board.acknowledge(record, version)
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(self.random.random() * self.pause)

    async def declare(self, record: int, version: int) -> bool:
        try:
            if way(record) == "tag":
                return (
                    await self.client.call("POST", "cache/invalidate", {"tags": [f"r{record}"]})
                ).status == 200
            if way(record) == "delete":
                return (await self.client.call("DELETE", f"cache/k{record}")).status == 200
            body = {"value": {str(record): version}, "ttl_seconds": 60}
            reply = await self.client.call("PUT", f"cache/k{record}", body)
            return bool(reply.status == 200 and reply["stored"])
        except Lost:
            return False


async def work(about: dict[str, Any]) -> Found:
    found = Found()
    workers = [Worker(about, number, found) for number in range(about["workers"])]
    await asyncio.gather(*(worker.work() for worker in workers))
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(vars(runner.run(work(json.loads(sys.argv[1]))))))
