"""A participant for tests, in the test's own process: it does what its script says, and remembers what it was asked."""

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools


@dataclass
class Asked:
    """A request as the participant saw it."""

    path: str
    headers: dict[str, str]
    body: Any


Answer = tuple[int, Any, dict[str, str]]
Script = Callable[[Asked], "Answer | bytes | float | None"]


class Participant:
    """Serves on a free port of this machine. `script[path]` says what is answered: a status with a body and headers,
    bytes that are sent as they are, seconds to wait before nothing is answered, None to break the connection."""

    def __init__(self) -> None:
        self.script: dict[str, Script] = defaultdict(lambda: lambda asked: (200, {"did": asked.path}, {}))
        self.asked: list[Asked] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> "Participant":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *error: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def answer(self, asked: Asked, transport: Any) -> None:
        self.asked.append(asked)
        found = self.script[asked.path](asked)
        if isinstance(found, float | int):
            await asyncio.sleep(found)
            found = None
        if found is None:
            transport.abort()
        elif isinstance(found, bytes):
            transport.write(found)
        else:
            transport.write(response(*found))


def response(status: int, body: Any, headers: dict[str, str]) -> bytes:
    text = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status} X",
        f"content-length: {len(text)}",
        *(f"{n}: {v}" for n, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + text


class _Connection(asyncio.Protocol):
    def __init__(self, participant: Participant) -> None:
        self.participant = participant

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path, self.headers, self.parts = "", {}, []  # type: ignore[var-annotated]

    def on_url(self, url: bytes) -> None:
        self.path += url.decode().lstrip("/")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        asked = Asked(self.path, self.headers, json.loads(b"".join(self.parts) or b"null"))
        self._answering = asyncio.ensure_future(self.participant.answer(asked, self.transport))
