"""Connections to participants and instances: kept for the next request, and not for ever."""

import asyncio
from typing import Any

import pytest

from discovery import http
from discovery.addresses import Addresses
from discovery.http import Client

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_connections_that_nobody_takes_any_more_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER)

    async def story() -> None:
        monkeypatch.setattr(http, "IDLE", 0.2)
        servers = [await asyncio.start_server(answer, "127.0.0.1", 0) for _ in range(2)]
        gone, here = (server.sockets[0].getsockname()[1] for server in servers)
        client = Client(Addresses())

        async def ask(port: int) -> Any:
            return await client.send("127.0.0.1", port, False, True, REQUEST)

        assert (await ask(gone)).status == 204
        await asyncio.sleep(0.3)
        assert (await ask(here)).status == 204
        assert (await ask(here)).status == 204
        assert [place[1] for place in client._idle] == [here]
        assert len(opened) == 2
        async with asyncio.timeout(5):
            await opened[0].wait_closed()

    asyncio.run(story())
