"""The fast lane: a bare ASGI adapter over the registry for operations that are hot, wait or stream.

Same URLs and same answers as Django REST framework, at a tenth of the cost; what it does not understand (HTML,
other content types than JSON) it leaves to Django. It sees the client go away, so that waiting ends with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Any

from api import health, requests
from api.requests import NAMES, PREFIX, Headers
from api.routing import match
from core.callers import Call
from core.encoding import encode
from core.errors import Internal, SyrosError, TooLarge
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if scope["type"] != "http" or not path.startswith(PREFIX):
            if path in health.PATHS and scope["method"] in {"GET", "HEAD"}:
                status, body = await health.look(path)
                await write(send, status, _JSON, encode(body), [(b"cache-control", b"no-store")])
            else:
                await self._leave(MAX_BYTES, read_headers(scope), scope, receive, send)
            return
        headers = read_headers(scope)
        found = match(scope["method"], path[len(PREFIX) :].rstrip("/"))
        if found is None or not takes(found[0], headers):
            await self._leave(found[0].max_bytes if found else MAX_BYTES, headers, scope, receive, send)
            return
        await respond(found[0], found[1], headers, scope, receive, send)

    async def _leave(self, limit: int, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave a request to Django, once its body is here: who is slow must not hold one of its few threads."""
        try:
            parts = [await read(receive, headers, limit)]
        except TooLarge as error:
            await refuse(send, error, requests.request_id(headers))
            return
        except Disconnected:
            return

        async def replay() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop()} if parts else await receive()

        await self._django(scope, replay, send)


def takes(operation: Operation, headers: Headers) -> bool:
    """Is this request for the lane?"""
    if not (operation.hot or operation.waits or operation.streams):
        return False
    if headers.accept and "html" in headers.accept:
        return False
    return not headers.content_type or requests.is_json(headers.content_type)


def read_headers(scope: Scope) -> Headers:
    headers = Headers()
    for name, value in scope["headers"]:
        if attribute := _HEADERS.get(name):
            setattr(headers, attribute, value.decode("latin-1"))
    return headers


async def respond(
    operation: Operation, names: dict[str, str], headers: Headers, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer one request: an outcome, a stream, or a problem."""
    identity, started = requests.request_id(headers), perf_counter()
    try:
        body = await read(receive, headers, operation.max_bytes)
        client = scope.get("client")
        call = await requests.call_of(headers, identity, client[0] if client else "")
        call.size = len(body)
        query = requests.read_query(scope["query_string"].decode("latin-1"))
        params = requests.parameters(
            operation, scope["method"], names, query, requests.read_body(body, headers.content_type)
        )
        if operation.streams:
            await stream(operation, call, params, receive, send)
            return
        if operation.waits or "wait_seconds" in params:
            outcome = await while_connected(runtime.run(operation, call, params), params, receive)
        else:
            outcome = await runtime.run(operation, call, params)
        await answer(send, outcome, identity)
    except SyrosError as error:
        await refuse(send, error, identity)
    except Disconnected:
        return
    except Exception:
        logger.exception("%s broke", operation.name, extra={"request_id": identity})
        await refuse(send, Internal(), identity)
    took = perf_counter() - started
    if took > SLOW_SECONDS and not operation.waits:
        logger.warning("slow: %s took %.1f s", operation.name, took, extra={"request_id": identity})


async def read(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The body, as long as it is within the limit.

    Raises: TooLarge, Disconnected.
    """
    if headers.content_length.isdigit() and int(headers.content_length) > limit:
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


async def while_connected(
    work: Coroutine[Any, Any, Outcome], params: dict[str, Any], receive: Receive
) -> Outcome:
    """Wait for an outcome as long as the client is there; when it goes, its place in every queue goes too."""
    if not params.get("wait_seconds"):
        return await work
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


async def answer(send: Send, outcome: Outcome, identity: str) -> None:
    headers = [(b"x-request-id", identity.encode())]
    if outcome.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    await write(send, outcome.status, _JSON, encode(outcome.value), headers)


async def refuse(send: Send, error: SyrosError, identity: str) -> None:
    headers = [(b"x-request-id", identity.encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await write(send, error.status, _PROBLEM, encode(error.problem(identity)), headers)


async def write(
    send: Send, status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def stream(
    operation: Operation, call: Call, params: dict[str, Any], receive: Receive, send: Send
) -> None:
    """Server-sent events: each item's one key is its event name; the position is the id to resume from."""
    items = runtime.stream(operation, call, params)
    first = await anext(items)  # refusals come before the head of the response
    head = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", call.request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    sending = asyncio.ensure_future(send_items(first, items, send))
    gone = asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await items.aclose()  # type: ignore[attr-defined]


async def send_items(first: dict[str, Any], items: AsyncIterator[dict[str, Any]], send: Send) -> None:
    """All of it, and its end: what breaks a stream off is its last event, where a status can no longer say it."""
    await send_item(first, send)
    last = b""
    try:
        async for item in items:
            await send_item(item, send)
    except SyrosError as error:
        last = b"event: error\ndata: %s\n\n" % encode(error.problem())
    await send({"type": "http.response.body", "body": last})


async def send_item(item: dict[str, Any], send: Send) -> None:
    ((kind, value),) = item.items()
    text = b"event: %s\nid: %d\ndata: %s\n\n" % (kind.encode(), value["position"], encode(value))
    await send({"type": "http.response.body", "body": text, "more_body": True})
