"""HTTP for the fast lane without ASGI between: from httptools' parser to an answer in one write.

uvicorn keeps the connections, parses and times out; a request that the application wants to answer by itself skips
the scope, the messages and the state machine of ASGI, which cost as much as answering it. All others go their way.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

REQUEST_SECONDS = 60.0  # for a request to arrive whole
KEEP_ALIVE_SECONDS = 75.0  # between two requests
LOOK_SECONDS = 5.0  # how exactly these are kept
HEAD_BYTES = 64 << 10  # of a request's line and headers


@dataclass(slots=True)
class Reply:
    """A whole answer, but for its length."""

    status: int
    kind: bytes
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Wanted(Protocol):
    """A request that the application answers by itself."""

    @property
    def limit(self) -> int:
        """Bytes of the body."""

    def answer(self, body: bytes) -> Awaitable[Reply]:
        """Never raises, but for being cancelled: the client went away."""

    def too_large(self) -> Reply:
        """The answer to a body over the limit."""


class Application(Protocol):
    def wants(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], peer: str
    ) -> Wanted | None:
        """The request, if it is to be answered here."""


class Express:
    """A wanted request on its way: in the place of uvicorn's cycle, and with the attributes that uvicorn uses."""

    __slots__ = (
        "body", "connection", "disconnected", "keep_alive", "more_body", "response_complete", "task", "wanted",
    )  # fmt: skip

    def __init__(self, connection: "Connection", wanted: Wanted, keep_alive: bool) -> None:
        self.connection, self.wanted, self.keep_alive = connection, wanted, keep_alive
        self.task: asyncio.Task[None] | None = None
        self.body = b""
        self.more_body = True
        self.disconnected = self.response_complete = False

    @property
    def message_event(self) -> "Express":
        return self

    def set(self) -> None:
        """uvicorn says that something happened: more of the body, its end, or the end of the connection."""
        if self.disconnected:
            if self.task:
                self.task.cancel()
        elif len(self.body) > self.wanted.limit:
            self.keep_alive = False  # the rest of the body would be read as the next request
            self._write(self.wanted.too_large())
            self._finish()
        elif self.more_body:
            self.connection.flow.resume_reading()
        elif self.task is None:
            self.task = self.connection.start(self._respond())

    async def _respond(self) -> None:
        self._write(await self.wanted.answer(self.body))
        if self.connection.flow.write_paused:
            await self.connection.flow.drain()  # who does not read is not answered further
        self._finish()

    def _write(self, reply: Reply) -> None:
        lines = [*self.connection.server_state.default_headers, *reply.headers]
        if not self.keep_alive:
            lines.append((b"connection", b"close"))
        about = b"content-type: %b\r\ncontent-length: %d\r\n" % (reply.kind, len(reply.body))
        if reply.status == 304:
            about = b""  # it would be about a body that is not sent
        head = [STATUS_LINE[reply.status], about, *[b"%b: %b\r\n" % line for line in lines]]
        self.connection.transport.write(b"".join([*head, b"\r\n", reply.body]))

    def _finish(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self.connection.transport.close()
        self.connection.on_response_complete()


class Lenient:
    """A transport that takes what is written after the peer has hung up; uvloop's raises."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class Connection(HttpToolsProtocol):
    """uvicorn's, which takes the express way where it can, and neither waits for ever for a request to be complete
    nor collects a head without end. It looks at its clock now and then, which costs a request nothing."""

    _complete = True  # as far as a request has come
    _head_complete = False
    _head_bytes = 0
    _since = 0.0  # the last time something came or went
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(Any, Lenient(transport)))
        self._since = self.loop.time()
        self._look_later()

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._since = self.loop.time()
        super().data_received(data)
        self._head_bytes = 0 if self._head_complete else self._head_bytes + len(data)
        if self._head_bytes > HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        self._complete = self._head_complete = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_complete = True
        is_free = self.cycle is None or self.cycle.response_complete  # requests may be pipelined
        wanted = self._wanted() if is_free and not self.expect_100_continue else None
        if wanted is None:
            super().on_headers_complete()
        else:
            self.cycle = cast(Any, Express(self, wanted, self.parser.should_keep_alive()))

    def _wanted(self) -> Wanted | None:
        if self.parser.get_http_version() != "1.1" or self.parser.should_upgrade() or not self.url.isascii():
            return None
        path, _, query = self.url.partition(b"?")
        application = cast(Application, self.app)
        method, peer = self.parser.get_method().decode(), self.client[0] if self.client else ""
        text = unquote(path.decode()) if b"%" in path else path.decode()
        return application.wants(method, text, query, self.headers, peer)

    def on_message_complete(self) -> None:
        self._complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        if self.pipeline or self.flow.read_paused:
            super().on_response_complete()  # starts the next one
        else:
            self.server_state.total_requests += 1

    def handle_websocket_upgrade(self) -> None:
        self._look_no_more()  # a WebSocket keeps its own time
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_no_more()
        super().connection_lost(exc)

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task that the end of the server waits for."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return task

    def _look_no_more(self) -> None:
        if self._look:
            self._look.cancel()

    def _look_later(self) -> None:
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_at_clock)

    def _look_at_clock(self) -> None:
        is_answering = self._complete and self.cycle is not None and not self.cycle.response_complete
        has_begun = not self._complete or self.cycle is None
        patience = REQUEST_SECONDS if has_begun else KEEP_ALIVE_SECONDS
        if not is_answering and self.loop.time() - self._since > patience:
            self.transport.close()
        else:
            self._look_later()
