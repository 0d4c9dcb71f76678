"""Peers that stall, trickle and never read: the others are served, and memory stays bounded."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.faults.house import Couple, House
from tests.races.client import Client
from tests.races.processes import Syros, new_namespace, run

PROMPT = 2.0  # seconds for an answer that takes some milliseconds; a busy machine
HALVES = {
    "nothing": b"",
    "half a line": b"POST /api/v1/lo",
    "half a head": b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nContent-",
    "half a body": (
        b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 500\r\n\r\n{"key": "k"'
    ),
    "half a body for Django": (
        b"POST /api/v1/events/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 500\r\n\r\n{"appends": ['
    ),
}


@pytest.fixture
def target(house: House) -> Iterator[Syros]:
    """A process of its own: what it was made to hold is measured."""
    found = Syros(house.environ, f"target-{time.monotonic_ns()}").start()
    yield found
    found.end()
    assert found.complaints() == []


@contextlib.asynccontextmanager
async def connections(port: int, count: int, first: bytes) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Peers that have sent this much and no more."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        await writer.drain()
        writers.append(writer)
    try:
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


async def check_others_are_served(process: Syros, namespace: str) -> None:
    async with Client(process.port, namespace) as client:
        for n in range(10):
            started = time.monotonic()
            grant = await client.call("POST", "locks", {"key": f"k{n}-{started}", "owner": "me"})
            assert grant.status == 201
            appends = [{"stream_id": "s", "events": [{"event_type": "t", "data": n}]}]
            assert (await client.call("POST", "events/batch", {"appends": appends})).status == 201
            assert (await client.call("GET", "/ready")).status == 200
            assert time.monotonic() - started < PROMPT


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_stalls_nobody_else(couple: Couple, half: str) -> None:
    async def story() -> None:
        async with connections(couple.a.port, 50, HALVES[half]):
            await check_others_are_served(couple.a, couple.namespace)

    run(story())


def test_fifty_that_trickle_stall_nobody_else(couple: Couple) -> None:
    """A header line each 50 ms, for as long as it is let."""

    async def trickle(writers: list[asyncio.StreamWriter]) -> None:
        for n in range(1_000):
            for writer in writers:
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write(b"X-Slow-%d: %d\r\n" % (n, n))
            await asyncio.sleep(0.05)

    async def story() -> None:
        async with connections(couple.a.port, 50, b"GET /ready HTTP/1.1\r\nHost: localhost\r\n") as writers:
            trickling = asyncio.create_task(trickle(writers))
            for _ in range(3):
                await check_others_are_served(couple.a, couple.namespace)
                await asyncio.sleep(0.3)
            trickling.cancel()

    run(story())


def test_a_head_without_end_is_cut_off(target: Syros) -> None:
    """Headers of 64 MiB are not collected."""
    before = target.mebibytes()

    async def story() -> None:
        async with connections(target.port, 4, b"GET /ready HTTP/1.1\r\nHost: localhost\r\n") as writers:
            line = b"X-Long: " + b"x" * 65_000 + b"\r\n"
            for _ in range(250):
                for writer in writers:
                    with contextlib.suppress(OSError, RuntimeError):  # it was hung up on
                        writer.write(line)
                        async with asyncio.timeout(0.2):
                            await writer.drain()
            async with Client(target.port) as client:
                assert (await client.call("GET", "/ready")).status == 200
            assert target.mebibytes() - before < 32

    run(story())


def events(count: int, size: int) -> dict[str, Any]:
    return {"events": [{"event_type": "t", "data": "x" * size} for _ in range(count)]}


def test_streams_that_nobody_reads_hold_nobody_up_and_stay_small(house: House, target: Syros) -> None:
    """Ten followers that stop reading, 60 MiB written meanwhile: what they have not read waits in the database."""
    namespace, rounds = new_namespace(house.postgres.url), 60

    async def story() -> None:
        sleepers = [Client(target.port, namespace) for _ in range(10)]
        for sleeper in sleepers:
            await sleeper.send("GET", "events/follow", query={"from_position": 1})
            assert (await sleeper.head())[0] == 200
        async with Client(target.port, namespace) as writer, Client(target.port, namespace) as follower:
            seen = 0
            stream = follower.follow(from_position=1)
            before = target.mebibytes()
            for n in range(rounds):
                started = time.monotonic()
                reply = await writer.call("POST", f"events/s-{n}", events(100, 10_000))
                assert reply.status == 201
                assert time.monotonic() - started < PROMPT + 1
            async with asyncio.timeout(30):
                async for kind, _ in stream:
                    seen += kind == "event"
                    if seen == rounds * 100:
                        break
            await stream.aclose()
            grown = target.mebibytes() - before
            # One megabyte a round for each of ten would be 600; the recent log is kept once, for all.
            assert grown < 150, f"grew by {grown:.0f} MiB"
            await check_others_are_served(target, namespace)
        for sleeper in sleepers:
            sleeper.hang_up()

    run(story())


def test_answers_that_nobody_reads_do_not_pile_up(house: House, target: Syros) -> None:
    """Pipelined requests for a large page, and not a byte of the answers taken."""
    namespace = new_namespace(house.postgres.url)
    request = (
        f"GET /api/v1/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\nSyros-Namespace: {namespace}\r\n\r\n"
    ).encode()

    async def story() -> None:
        async with Client(target.port, namespace) as writer:
            for _ in range(10):
                assert (await writer.call("POST", "events/s", events(100, 10_000))).status == 201
        before = target.mebibytes()
        async with connections(target.port, 10, request * 50):
            await check_others_are_served(target, namespace)
            await asyncio.sleep(2)
            soon = target.mebibytes() - before
            await asyncio.sleep(2)
            late = target.mebibytes() - before
            # One answer of 10 MiB for each of ten, in the forms it has on its way; not fifty.
            assert late < 500, f"grew by {late:.0f} MiB"
            assert late - soon < 100, f"grows: {soon:.0f} MiB, then {late:.0f}"
            await check_others_are_served(target, namespace)

    run(story())
