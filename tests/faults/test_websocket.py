"""WebSockets through the end, the kill and the outage of what serves them."""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.faults.house import Couple, House
from tests.races.client import Client
from tests.races.processes import MANAGE, ROOT, Syros, eventually, new_namespace, run


@pytest.fixture
def ending(house: House) -> Iterator[Syros]:
    """A process that the test ends."""
    found = Syros(house.environ, f"sockets-{uuid4().hex[:8]}").start()
    yield found
    found.end()
    assert found.complaints() == []


@contextlib.asynccontextmanager
async def opened(
    process: Syros, namespace: str, key: str = "", port: int = 0
) -> AsyncIterator[ClientConnection]:
    headers = {"Syros-Namespace": namespace, **({"X-API-Key": key} if key else {})}
    url = f"ws://127.0.0.1:{port or process.port}/{'' if port else 'ws'}"
    async with connect(
        url, compression=None, max_size=None, additional_headers=headers, close_timeout=1
    ) as found:
        yield found


async def say(socket: ClientConnection, op: str, name: str = "1", **params: Any) -> None:
    await socket.send(json.dumps({"id": name, "op": op, "params": params}))


async def hear(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(30):
        found: dict[str, Any] = json.loads(await socket.recv())
        return found


async def closed(socket: ClientConnection) -> int:
    """The code that the server closes with."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(30):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code


async def read_on(process: Syros, namespace: str, found: list[int], enough: int) -> None:
    """Follow the log from where it was left until there is enough, or the connection breaks."""
    async with opened(process, namespace) as socket:
        await say(socket, "subscribe", from_position=len(found) + 1)
        while len(found) < enough:
            frame = await hear(socket)
            if "event" in frame:
                found.append(frame["event"]["position"])
            elif "error" in frame:
                assert (frame["error"]["code"], frame["error"]["retryable"]) == ("unavailable", True)


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_who_resumes_after_a_restart_misses_nothing_and_sees_nothing_twice(
    couple: Couple, ending: Syros, end: str
) -> None:
    async def story() -> None:
        written, found = 0, list[int]()

        async def write() -> None:
            nonlocal written
            async with couple.client(couple.a) as client:
                while not stop.is_set():
                    reply = await client.call("POST", "events/s", {"event_type": "t", "data": written})
                    written = reply["position"]
                    await asyncio.sleep(0.002)

        stop = asyncio.Event()
        writing = asyncio.create_task(write())
        for _ in range(2):
            reading = asyncio.create_task(read_on(ending, couple.namespace, found, 1 << 30))
            await eventually(lambda so_far=len(found): asyncio.sleep(0, len(found) > so_far + 20))
            await asyncio.to_thread(ending.kill if end == "killed" else ending.stop)
            with pytest.raises(ConnectionClosed):
                await reading
            await asyncio.to_thread(ending.start)
        stop.set()
        await writing
        await read_on(ending, couple.namespace, found, written)
        assert found == list(range(1, written + 1))

    run(story())


def test_sigterm_answers_what_is_under_way_and_closes_with_1012(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        async with opened(ending, couple.namespace) as socket, couple.client(couple.a) as other:
            await other.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            await other.call("POST", "events/s", {"event_type": "t", "data": 0})
            await say(socket, "subscribe", "follows", prefix="nothing")
            assert (await hear(socket))["subscribed"] is True
            await say(socket, "locks.acquire", "waits", key="k", owner="waiter", wait_seconds=60)

            async def queued() -> int:
                found: int = (await other.call("GET", "locks/k"))["queue_length"]
                return found

            await eventually(queued)
            with psycopg.connect(couple.house.postgres.url) as blocker:
                stream = f"{couple.namespace}/s"
                blocker.execute("select from syros.core_stream where id = %s for update", [stream])
                await say(socket, "events.append", "commits", stream_id="s", event_type="t", data=1)
                statement = "select from pg_stat_activity where wait_event_type = 'Lock'"
                await eventually(lambda: asyncio.to_thread(couple.house.query, statement))
                ending.signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
            frames = {}
            for _ in range(3):
                frame = await hear(socket)
                frames[frame["id"]] = frame
            for name in ("follows", "waits"):
                error = frames[name]["error"]
                assert (error["status"], error["code"], error["retryable"]) == (503, "unavailable", True)
            assert frames["commits"]["result"]["version"] == 2
            assert await closed(socket) == 1012
            assert ending.process
            assert await asyncio.to_thread(ending.process.wait, 10) == 0
            assert not await queued()

    run(story())


def test_idle_connections_do_not_hold_the_end_up(couple: Couple, ending: Syros) -> None:
    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(opened(ending, couple.namespace)) for _ in range(50)]
            started = time.monotonic()
            ending.signal(signal.SIGTERM)
            assert {await closed(socket) for socket in sockets} == {1012}
            assert ending.process
            assert await asyncio.to_thread(ending.process.wait, 10) == 0
            assert time.monotonic() - started < 5

    run(story())


def test_the_second_port_takes_connections_at_its_root(couple: Couple) -> None:
    async def story() -> None:
        async with opened(couple.a, couple.namespace, port=couple.a.ws_port) as socket:
            await say(socket, "auth.whoami")
            assert (await hear(socket))["result"]["namespace"] == couple.namespace

    run(story())


async def new_key(client: Client) -> tuple[str, str]:
    made = await client.call("POST", "auth/api-keys", {"name": "ci"})
    return made["id"], made["key"]


def test_a_key_revoked_in_one_process_closes_its_connections_in_the_other(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as client:
            name, key = await new_key(client)
            async with opened(couple.b, couple.namespace, key) as socket:
                await say(socket, "subscribe")
                assert (await hear(socket))["subscribed"] is True
                started = time.monotonic()
                assert (await client.call("DELETE", f"auth/api-keys/{name}")).status == 200
                assert await closed(socket) == 4401
                assert time.monotonic() - started < 5

    run(story())


def disconnect(couple: Couple, principal: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MANAGE, "disconnect", principal], cwd=ROOT, env=couple.house.environ, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_an_operator_closes_a_principal_s_connections_in_every_process(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as client:
            name, key = await new_key(client)
        async with contextlib.AsyncExitStack() as stack:
            its = [await stack.enter_async_context(opened(p, couple.namespace, key)) for p in couple.both]
            others = [await stack.enter_async_context(opened(p, couple.namespace)) for p in couple.both]
            told = await asyncio.to_thread(disconnect, couple, f"key:{name}")
            assert told.returncode == 0, told.stderr
            assert [await closed(socket) for socket in its] == [4403, 4403]
            for socket in others:
                await say(socket, "auth.whoami")
                assert (await hear(socket))["status"] == 200

    run(story())


def test_without_valkey_only_the_operator_s_command_fails(couple: Couple) -> None:
    async def story() -> None:
        async with couple.client(couple.a) as client, opened(couple.b, couple.namespace) as socket:
            name, key = await new_key(client)
            with couple.house.away(couple.house.valkey, signal.SIGKILL):
                await say(socket, "subscribe")
                assert (await hear(socket))["subscribed"] is True
                assert (await client.call("POST", "events/s", {"event_type": "t", "data": 1})).status == 201
                assert (await hear(socket))["event"]["position"] > 0
                await say(socket, "locks.acquire", "2", key="k", owner="me")
                assert (await hear(socket))["status"] == 201
                told = await asyncio.to_thread(disconnect, couple, f"key:{name}")
                assert told.returncode != 0
                assert "Valkey is away" in told.stderr
            async with opened(couple.b, couple.namespace, key) as its:  # and once it is back, it works again

                async def is_closed() -> bool:
                    await asyncio.to_thread(disconnect, couple, f"key:{name}")
                    with contextlib.suppress(TimeoutError, ConnectionClosed):
                        await asyncio.wait_for(its.recv(), 0.5)
                    return its.close_code == 4403

                await eventually(is_closed)

    run(story())


def test_subscribers_that_never_read_stay_small_and_hold_nobody_up(house: House, ending: Syros) -> None:
    """Twenty of them, forty megabytes: what they have not read waits in the database."""
    namespace, rounds = new_namespace(house.postgres.url), 40
    events = {"events": [{"event_type": "t", "data": "x" * 10_000}] * 100}
    ask = json.dumps({"id": "1", "op": "subscribe", "params": {"from_position": 1}}).encode()

    async def story() -> None:
        sleepers = [await sleeper(ending, namespace, ask) for _ in range(20)]
        found: list[int] = []
        reading = asyncio.create_task(read_on(ending, namespace, found, rounds * 100))
        before = ending.mebibytes()
        async with Client(ending.port, namespace) as writer:
            for n in range(rounds):
                assert (await writer.call("POST", f"events/s-{n}", events)).status == 201
        await reading
        assert found == list(range(1, rounds * 100 + 1))
        assert ending.mebibytes() - before < 150
        for transport in sleepers:
            transport.abort()

    run(story())


async def sleeper(process: Syros, namespace: str, ask: bytes) -> asyncio.WriteTransport:
    """A client that asks for everything and reads none of it."""
    _, writer = await asyncio.open_connection("127.0.0.1", process.port)
    head = (
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\nSyros-Namespace: {namespace}\r\n\r\n"
    )
    writer.write(head.encode())
    await asyncio.sleep(0.05)  # until it is accepted
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"\x81" + bytes([0x80 | len(ask)]) + b"\0\0\0\0" + ask)
    return writer.transport
