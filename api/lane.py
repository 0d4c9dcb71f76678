"""The fast lane: a bare ASGI adapter over the registry for operations that are hot, wait or stream.

Same URLs and same answers as Django REST framework, at a tenth of the cost; what it does not understand (HTML,
other content types than JSON) it leaves to Django. It sees the client go away, so that waiting ends with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from django.conf import settings

from api import health, requests
from api.requests import NAMES, PREFIX, Headers
from api.routing import match
from core.callers import Call, while_allowed
from core.encoding import encode
from core.errors import SyrosError, TooLarge
from core.express import Reply
from core.operations import MAX_BYTES, Operation, Outcome
from core.runtime import runtime

logger = logging.getLogger("syros.lane")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SLOW_SECONDS = 5.0
_HEADERS = {name.encode(): attribute for name, attribute in NAMES.items()}
_JSON, _PROBLEM = b"application/json", b"application/problem+json"


class Disconnected(Exception):
    """The client is gone; there is nobody to answer."""


class Lane:
    """An ASGI application in front of another one."""

    def __init__(self, django: App) -> None:
        self._django = django

    def wants(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], peer: str
    ) -> "Request | None":
        """The request, if the lane answers it and needs no ASGI for that (see core.express)."""
        request = self._request(method, path, query, headers, peer)
        if request is None or request.operation.streams or too_long(request.headers, request.limit):
            return None
        return request

    def _request(
        self, method: str, path: str, query: bytes, pairs: Iterable[tuple[bytes, bytes]], peer: str
    ) -> "Request | None":
        if not path.startswith(PREFIX):
            return None
        found = match(method, path[len(PREFIX) :].rstrip("/"))
        if found is None:
            return None
        headers = read_headers(pairs)
        return Request(*found, headers, method, query, peer) if takes(found[0], headers) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path in health.PATHS and method in {"GET", "HEAD"}:
            status, body = await health.look(path)
            await write(send, Reply(status, _JSON, encode(body), [(b"cache-control", b"no-store")]))
        elif request := self._request(method, path, scope["query_string"], scope["headers"], peer_of(scope)):
            await respond(request, receive, send)
        else:
            await self._leave(scope, receive, send)

    async def _leave(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave a request to Django, once its body is here: who is slow must not hold one of its few threads."""
        headers = read_headers(scope["headers"])
        found = match(scope["method"], scope["path"][len(PREFIX) :].rstrip("/"))
        try:
            parts = [await read(receive, headers, found[0].max_bytes if found else MAX_BYTES)]
        except TooLarge as error:
            await write(send, refused(error, requests.request_id(headers)))
            return
        except Disconnected:
            return

        async def replay() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop()} if parts else await receive()

        await self._django(scope, replay, send)


@dataclass(slots=True)
class Request:
    """One request for an operation, as far as its head tells."""

    operation: Operation
    names: dict[str, str]
    headers: Headers
    method: str
    query: bytes
    peer: str

    @property
    def limit(self) -> int:
        return self.operation.max_bytes

    async def answer(self, body: bytes) -> Reply:
        """The answer: an outcome or a problem."""
        identity, started, waits = requests.request_id(self.headers), perf_counter(), False
        try:
            call, params = await self.read(body, identity)
            waits = bool(params.get("wait_seconds"))
            outcome = await runtime.run(self.operation, call, params)
            reply = answered(self.operation, outcome, identity, self.headers)
        except Exception as error:
            reply = refused(requests.refusal(error, self.operation.name, identity), identity)
        took = perf_counter() - started
        if took > SLOW_SECONDS and not waits:
            logger.warning("slow: %s took %.1f s", self.operation.name, took, extra={"request_id": identity})
        return reply

    async def read(self, body: bytes, identity: str) -> tuple[Call, dict[str, Any]]:
        """Who calls, and with which parameters.

        Raises: what core.callers and api.requests raise.
        """
        call = await requests.call_of(self.headers, identity, self.peer)
        call.size = len(body)
        query = requests.read_query(self.query.decode("latin-1"))
        found = requests.read_body(body, self.headers.content_type)
        return call, requests.parameters(self.operation, self.method, self.names, query, found)

    def too_large(self) -> Reply:
        error = TooLarge(f"The body is larger than {self.limit} bytes.", limit=self.limit)
        return refused(error, requests.request_id(self.headers))


def takes(operation: Operation, headers: Headers) -> bool:
    """Is this request for the lane?"""
    if not (operation.hot or operation.waits or operation.streams):
        return False
    if headers.accept and "html" in headers.accept:
        return False
    if headers.cookie and settings.SESSION_COOKIE_NAME in headers.cookie and not requests.credential(headers):
        return False  # a person signed in to the admin; Django knows sessions
    return not headers.content_type or requests.is_json(headers.content_type)


def peer_of(scope: Scope) -> str:
    """The address at the other end of the socket."""
    return str(scope["client"][0]) if scope["client"] else ""


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    headers = Headers()
    for name, value in pairs:
        if attribute := _HEADERS.get(name):
            setattr(headers, attribute, value.decode("latin-1"))
    return headers


def answered(operation: Operation, outcome: Outcome, identity: str, asked: Headers) -> Reply:
    headers = [(b"x-request-id", identity.encode())]
    if outcome.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    if place := requests.location(operation, outcome):
        headers.append((b"location", place.encode()))
    if tag := requests.etag(operation, outcome):
        headers.append((b"etag", tag.encode()))
        if asked.if_none_match and requests.is_known(tag, asked):
            return Reply(304, _JSON, b"", headers)
    return Reply(outcome.status, _JSON, encode(outcome.value), headers)


def refused(error: SyrosError, identity: str) -> Reply:
    headers = [(b"x-request-id", identity.encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return Reply(error.status, _PROBLEM, encode(error.problem(identity)), headers)


# -- over ASGI ---------------------------------------------------------------------------------------


async def respond(request: Request, receive: Receive, send: Send) -> None:
    """What the express way leaves to ASGI: streams, and requests that are pipelined or expect to be told to go on."""
    try:
        body = await read(receive, request.headers, request.limit)
        if request.operation.streams:
            await stream(request, body, receive, send)
        else:
            await write(send, await while_connected(request.answer(body), receive))
    except TooLarge:
        await write(send, request.too_large())
    except Disconnected:
        return


def too_long(headers: Headers, limit: int) -> bool:
    return headers.content_length.isdecimal() and int(headers.content_length) > limit


async def read(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The body, as long as it is within the limit.

    Raises: TooLarge, Disconnected.
    """
    if too_long(headers, limit):
        raise TooLarge(f"The body is larger than {limit} bytes.", limit=limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.", limit=limit)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def while_connected(work: Coroutine[Any, Any, Reply], receive: Receive) -> Reply:
    """Work for an answer as long as the client is there; when it goes, its place in every queue goes too.

    Raises: Disconnected.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return await task
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def write(send: Send, reply: Reply) -> None:
    about = [(b"content-type", reply.kind), (b"content-length", b"%d" % len(reply.body))]
    head = reply.headers if reply.status == 304 else [*about, *reply.headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
    await send({"type": "http.response.body", "body": reply.body})


async def stream(request: Request, body: bytes, receive: Receive, send: Send) -> None:
    """Server-sent events: each item's one key is its event name; the position is the id to resume from."""
    identity = requests.request_id(request.headers)
    try:
        call, params = await request.read(body, identity)
        if request.headers.last_event_id.isdecimal() and "from_position" in params:
            # A browser that lost the connection says how far it had come, and repeats the address it began with.
            params["from_position"] = int(request.headers.last_event_id[:16]) + 1
        items = runtime.stream(request.operation, call, params)
        first = await anext(items)  # refusals come before the head of the response
    except SyrosError as error:
        await write(send, refused(error, identity))
        return
    head = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", identity.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    allowed = while_allowed(call, request.operation, params)
    sending = asyncio.ensure_future(send_items(allowed, first, items, send))
    gone = asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await items.aclose()  # type: ignore[attr-defined]


async def send_items(
    allowed: AbstractAsyncContextManager[None],
    first: dict[str, Any],
    items: AsyncIterator[dict[str, Any]],
    send: Send,
) -> None:
    """All of it, and its end: what breaks a stream off is its last event, where a status can no longer say it."""
    await send_item(first, send)
    last = b""
    try:
        async with allowed:
            async for item in items:
                await send_item(item, send)
    except SyrosError as error:
        last = b"event: error\ndata: %s\n\n" % encode(error.problem())
    await send({"type": "http.response.body", "body": last})


async def send_item(item: dict[str, Any], send: Send) -> None:
    ((kind, value),) = item.items()
    text = b"event: %s\nid: %d\ndata: %s\n\n" % (kind.encode(), value["position"], encode(value))
    await send({"type": "http.response.body", "body": text, "more_body": True})
