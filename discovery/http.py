"""Calling instances over HTTP: connections that are kept, answers that are bounded, addresses that are allowed.

Its own client, because it is most of what a step costs: a general one takes four to eight times the CPU. No redirects,
no proxies, no decompression, one request at a time on a connection.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httptools

from discovery.addresses import Addresses, NotSent

MAX_BODY = 1 << 20  # bytes of an answer
MAX_HEADERS = 100
IDLE = 60.0  # seconds that an unused connection is kept
IDLE_CONNECTIONS = 64  # a place


class Broken(Exception):
    """The request left and no proper answer came: nobody knows what became of it."""


@dataclass(slots=True)
class Response:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One connection, and the request that is under way on it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.is_open = False
        self.idle_since = 0.0
        self._waiting: asyncio.Future[Response] | None = None
        self._parser: Any = None
        self._response = Response()
        self._parts: list[bytes] = []
        self._size = 0

    # -- what asyncio calls --------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(str(exc) if exc else "The connection was closed before the answer was complete.")

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"The answer is no HTTP: {error}"[:300])
        except Broken as error:
            self._fail(str(error))

    # -- what the parser calls -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._response, self._parts, self._size = Response(), [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._response.headers) >= MAX_HEADERS:
            raise Broken("The answer has too many headers.")
        self._response.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_BODY:
            raise Broken(f"The answer is larger than {MAX_BODY} bytes.")
        self._parts.append(part)

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        response.status = parser.get_status_code()
        if response.status < 200:
            return  # an interim answer
        response.body = b"".join(self._parts)
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(response)
        if not parser.should_keep_alive():
            self.close()

    # -- asking --------------------------------------------------------------------------------------

    async def ask(self, request: bytes) -> Response:
        """Raises: Broken."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)
        try:
            return await self._waiting
        finally:
            if self._waiting.cancelled():
                self.close()
            self._waiting = None

    def close(self) -> None:
        self.is_open = False
        if self.transport:
            self.transport.abort()

    def _fail(self, why: str) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(Broken(why))
        if self.is_open:
            self.close()


class Client:
    """Connections by the address they lead to; used from one loop."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._idle: dict[tuple[str, int, bool, bool], list[Connection]] = {}
        self._swept_at = monotonic()
        self._tls: ssl.SSLContext | None = None

    async def send(self, host: str, port: int, tls: bool, may_be_private: bool, request: bytes) -> Response:
        """Send a request as it is. Who calls limits the time.

        Raises: NotSent, Broken.
        """
        place = (host, port, tls, may_be_private)
        connection = self._take(place) or await self._connect(*place)
        response = await connection.ask(request)
        if connection.is_open:
            self._give_back(place, connection)
        return response

    async def once(self, host: str, port: int, tls: bool, may_be_private: bool, request: bytes) -> Response:
        """The same on a connection of its own, which is closed whatever happens.

        Raises: NotSent, Broken.
        """
        connection = await self._connect(host, port, tls, may_be_private)
        try:
            return await connection.ask(request)
        finally:
            connection.close()

    def _take(self, place: tuple[str, int, bool, bool]) -> Connection | None:
        idle = self._idle.get(place, [])
        while idle:
            connection = idle.pop()
            if connection.is_open and monotonic() - connection.idle_since < IDLE:
                return connection
            connection.close()
        return None

    def _give_back(self, place: tuple[str, int, bool, bool], connection: Connection) -> None:
        idle = self._idle.setdefault(place, [])
        if len(idle) < IDLE_CONNECTIONS:
            connection.idle_since = monotonic()
            idle.append(connection)
        else:
            connection.close()
        if monotonic() - self._swept_at > IDLE:
            self._sweep()

    def _sweep(self) -> None:
        """Close those that nobody took for long, such as those to places that are no more."""
        self._swept_at = monotonic()
        for place, connections in list(self._idle.items()):
            fresh = [each for each in connections if each.is_open and self._swept_at - each.idle_since < IDLE]
            for connection in set(connections) - set(fresh):
                connection.close()
            self._idle[place] = fresh
            if not fresh:
                del self._idle[place]

    async def _connect(self, host: str, port: int, tls: bool, may_be_private: bool) -> Connection:
        why = ""
        for address in await self._addresses.allowed(host, port, may_be_private):
            try:
                return await self._open(address, port, host if tls else None)
            except (OSError, ssl.SSLError) as error:
                why = f"Cannot connect to {host}:{port}: {error}"[:300]
        raise NotSent(why)

    async def _open(self, address: str, port: int, tls_name: str | None) -> Connection:
        if tls_name and self._tls is None:
            self._tls = ssl.create_default_context()
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, address, port, ssl=self._tls if tls_name else None, server_hostname=tls_name
        )
        return connection
