"""An HTTP client for many requests: one keep-alive connection, no more work than it takes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson

API = "/api/v1"


class Lost(Exception):
    """The connection broke before the answer was complete: whether it happened is not known."""


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    value: Any

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    @property
    def code(self) -> str:
        """Of a problem; empty for an answer that is none."""
        return str(self.value.get("code", "")) if self.status >= 400 else ""


class Client:
    """One connection to the process that listens on `port`; opened when it is needed."""

    def __init__(self, port: int, namespace: str = "default") -> None:
        self.port, self.namespace = port, namespace
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.hang_up()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = 60.0,
    ) -> Reply:
        """One request of the API. Parameters: `key`, an Idempotency-Key.

        Raises: Lost; TimeoutError, and then the connection is closed.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.send(method, path, body, key=key, query=query, headers=headers)
                return await self.answer()
        except (OSError, asyncio.IncompleteReadError) as error:
            self.hang_up()
            if isinstance(error, TimeoutError):
                raise
            raise Lost(f"{method} {path}: {error}") from error
        except BaseException:
            self.hang_up()
            raise

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Only send the request; `answer` reads what comes back."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        payload = b"" if body is None else orjson.dumps(body)
        target = (path if path.startswith("/") else f"{API}/{path}") + (
            f"?{urlencode(query)}" if query else ""
        )
        head = [
            f"{method} {target} HTTP/1.1",
            "Host: localhost",
            f"Syros-Namespace: {self.namespace}",
            f"Content-Length: {len(payload)}",
        ]
        if payload:
            head.append("Content-Type: application/json")
        if key:
            head.append(f"Idempotency-Key: {key}")
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer = self._streams[1]
        writer.write("\r\n".join([*head, "", ""]).encode() + payload)
        await writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        assert self._streams
        lines = (await self._streams[0].readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> Reply:
        assert self._streams
        status, headers = await self.head()
        body = await self._streams[0].readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.hang_up()
        is_json = "json" in headers.get("content-type", "")
        return Reply(status, headers, orjson.loads(body) if is_json else {"body": body.decode()})

    def hang_up(self) -> None:
        """Close the connection without a word, whatever was under way."""
        if self._streams:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].transport.abort()
            self._streams = None

    async def follow(self, **query: Any) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """The items of the SSE stream: `heartbeat` and `event`, each with what it carries.

        Raises: Lost, when the stream ends.
        """
        try:
            await self.send("GET", "events/follow", query=query)
            status, _ = await self.head()
            assert status == 200
            assert self._streams
            buffer = b""
            while True:
                size = int(await self._streams[0].readuntil(b"\r\n"), 16)
                buffer += (await self._streams[0].readexactly(size + 2))[:-2]
                while b"\n\n" in buffer:
                    item, _, buffer = buffer.partition(b"\n\n")
                    fields = dict(line.split(": ", 1) for line in item.decode().split("\n"))
                    yield fields["event"], orjson.loads(fields["data"])
                if not size:
                    raise Lost("the stream ended")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Lost(str(error)) from error
        finally:
            self.hang_up()
