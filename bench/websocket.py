"""WebSocket: how many operations, how many deliveries to 500 who follow, and what 5,000 idle connections weigh."""

import asyncio
import json
import os
import resource
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import uvloop

from bench.processes import has_proc, resident_mb
from bench.report import Figure, at_least, at_most
from bench.servers import Syros, folder

needs_wrk = False
CALLERS = 64
FOLLOWERS, WINDOW = 500, 16  # events under way at once
IDLE, AT_ONCE = 5_000, 200
PATIENCE = 120.0  # seconds a load may take


def measure(seconds: int, rounds: int) -> list[Figure]:
    raise_file_limit()
    with folder() as home, Syros(home) as syros, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rates = [runner.run(bounded(operations(syros, seconds))) for _ in range(rounds)]
        deliveries = [runner.run(bounded(fan_out(syros, seconds))) for _ in range(rounds)]
        figures = [
            Figure("WebSocket operations, 64 connections", "a second", median(rates), None, at_least(3_000),
                   raw={"rates": rates}),
            Figure("WebSocket deliveries to 500 subscribers", "a second", median(deliveries), None, at_least(20_000),
                   raw={"rates": deliveries}),
        ]  # fmt: skip
        if has_proc:
            grown = runner.run(bounded(idle(syros)))
            figures.append(Figure("5,000 idle WebSockets", "MB more", grown, None, at_most(300)))
    return figures


async def bounded(load: Coroutine[Any, Any, float]) -> float:
    """What goes wrong in a callback is seen by nobody else than the clock."""
    async with asyncio.timeout(PATIENCE):
        return await load


def raise_file_limit() -> None:
    """Here and in what is started: each connection is a file on both sides."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


class Peer(asyncio.Protocol):
    """A client of a few lines: what costs the client time is taken from the server on the same machine."""

    def __init__(self, syros: Syros, path: str, heard: Callable[["Peer", bytes], None]) -> None:
        self._syros, self._path, self._heard = syros, path, heard
        self._buffer = b""
        self.opened = asyncio.get_running_loop().create_future()
        self.last = 0  # position

    @classmethod
    async def open(cls, syros: Syros, heard: Callable[["Peer", bytes], None]) -> "Peer":
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(lambda: cls(syros, "/ws", heard), "127.0.0.1", syros.port)
        await peer.opened
        return peer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        head = [
            f"GET {self._path} HTTP/1.1", "Host: 127.0.0.1", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            f"X-API-Key: {self._syros.api_key}",
        ]  # fmt: skip
        transport.write("\r\n".join([*head, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.done():
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self.opened.set_result(None)
        self._read()

    def _read(self) -> None:
        buffer, start, size = self._buffer, 0, len(self._buffer)
        while start + 2 <= size:
            length, begin = buffer[start + 1], start + 2
            if length == 126:
                (length,) = struct.unpack_from("!H", buffer, begin) if begin + 2 <= size else (size,)
                begin += 2
            assert length != 127, "no frame here is as large as that"
            if begin + length > size:
                break
            if buffer[start] == 0x81:
                self._heard(self, buffer[begin : begin + length])
            elif buffer[start] == 0x89:
                self._write(0x8A, buffer[begin : begin + length])
            start = begin + length
        self._buffer = buffer[start:]

    def say(self, frame: dict[str, Any]) -> None:
        self._write(0x81, json.dumps(frame).encode())

    def _write(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        length = struct.pack("!B", 0x80 | size) if size < 126 else struct.pack("!BH", 0xFE, size)
        self.transport.write(bytes([kind]) + length + b"\0\0\0\0" + payload)  # masked, by nothing


_names = count(1)


def acquire(peer: Peer) -> None:
    params = {"key": f"bench-{os.getpid()}-{next(_names)}", "owner": "bench", "ttl_seconds": 60}
    peer.say({"id": "1", "op": "locks.acquire", "params": params})


async def operations(syros: Syros, seconds: int) -> float:
    """Locks a second, each connection asking for the next when it has one."""
    done = 0

    def heard(peer: Peer, frame: bytes) -> None:
        nonlocal done
        assert b'"result":' in frame, frame
        done += 1
        acquire(peer)

    peers = [await Peer.open(syros, heard) for _ in range(CALLERS)]
    for peer in peers:
        acquire(peer)
    await asyncio.sleep(0.5)
    before, started = done, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (done - before) / (time.perf_counter() - started)
    for peer in peers:
        peer.transport.abort()
    return rate


async def fan_out(syros: Syros, seconds: int) -> float:
    """Events a second times those who follow, each of whom has every event in order; a few are under way at once."""
    loop, arrived = asyncio.get_running_loop(), dict[int, int]()
    ready, room = asyncio.Semaphore(0), asyncio.Semaphore(WINDOW)
    delivered = 0

    def heard(peer: Peer, frame: bytes) -> None:
        nonlocal delivered
        if b'"subscribed":' in frame:
            peer.last = json.loads(frame)["position"]
            ready.release()
            return
        assert b'"event":' in frame, frame
        start = frame.index(b'"position":') + 11
        position = int(frame[start : frame.index(b",", start)])
        assert position == peer.last + 1, f"{position} after {peer.last}"
        peer.last = position
        delivered += 1
        arrived[position] = arrived.get(position, 0) + 1
        if arrived[position] == FOLLOWERS:
            del arrived[position]
            room.release()

    followers = [await Peer.open(syros, heard) for _ in range(FOLLOWERS)]
    for follower in followers:
        follower.say({"id": "1", "op": "subscribe"})
        await ready.acquire()
    writer = await Peer.open(syros, check_answered)
    started, end = time.perf_counter(), loop.time() + seconds
    while loop.time() < end:
        await room.acquire()
        name = next(_names)
        params = {"stream_id": "bench", "event_type": "Tick", "data": {"n": name}}
        writer.say({"id": str(name), "op": "events.append", "params": params})
    for _ in range(WINDOW):
        await room.acquire()
    rate = delivered / (time.perf_counter() - started)
    for peer in (writer, *followers):
        peer.transport.abort()
    return rate


def check_answered(peer: Peer, frame: bytes) -> None:
    assert b'"result":' in frame, frame


async def idle(syros: Syros) -> float:
    """MB that so many connections add to the processes that serve."""

    def resident() -> float:
        return sum(map(resident_mb, syros.pids))

    before, peers = resident(), deque[Peer]()
    while len(peers) < IDLE:
        peers.extend(await asyncio.gather(*(Peer.open(syros, check_answered) for _ in range(AT_ONCE))))
    await asyncio.sleep(2)
    grown = resident() - before
    for peer in peers:
        peer.transport.abort()
    return grown
