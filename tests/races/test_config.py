"""Two processes that compare and set the same keys: nothing is lost, and what was acknowledged is seen by all."""

import asyncio
from typing import Any

from tests.races.client import Client
from tests.races.conftest import Pair
from tests.races.processes import run

KEYS = [f"counter/{n}" for n in range(3)]
WRITERS, EACH = 12, 25


async def count_up(client: Client, other: Client, key: str) -> int:
    """Add one by compare and set; how often somebody else was first."""
    lost = 0
    while True:
        reply = await client.call("GET", f"config/{key}")
        value, revision = (reply.value["value"], reply.value["revision"]) if reply.status == 200 else (0, 0)
        body: dict[str, Any] = {"value": value + 1, "expected_revision": revision}
        put = await client.call("PUT", f"config/{key}", body)
        if put.status == 200:
            seen = await other.call("GET", f"config/{key}")
            assert seen.value["revision"] >= put.value["revision"], (
                "an acknowledged put was not seen elsewhere"
            )
            return lost
        assert (put.status, put.value["code"]) == (409, "wrong_expected_revision"), put.value
        assert put.value["actual"] > revision or revision == 0
        lost += 1


async def write(pair: Pair, number: int) -> int:
    here, there = pair.client(pair.both[number % 2]), pair.client(pair.both[1 - number % 2])
    async with here, there:
        return sum([await count_up(here, there, KEYS[(number + n) % len(KEYS)]) for n in range(EACH)])


async def race(pair: Pair) -> None:
    lost = sum(await asyncio.gather(*(write(pair, number) for number in range(WRITERS))))
    async with pair.client(pair.a) as client:
        states = [(await client.call("GET", f"config/{key}")).value for key in KEYS]
    assert sum(state["value"] for state in states) == WRITERS * EACH
    assert [state["revision"] for state in states] == [state["value"] for state in states]
    assert lost > 0, "nobody was ever in anybody's way: nothing was tested"


def test_no_update_is_lost(pair: Pair) -> None:
    run(race(pair))
