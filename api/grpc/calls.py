"""Operations as gRPC methods: one message in, one message or a stream of them out."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message
from grpc import aio
from grpc.aio import ServicerContext as Context

from api import requests
from api.grpc.status import refuse
from api.messages import build, check_known, messages
from api.requests import NAMES, Headers
from core.callers import ANONYMOUS, Call, while_allowed
from core.encoding import encode
from core.errors import Malformed, TooLarge, TooManyOperations
from core.operations import Operation, Outcome
from core.runtime import runtime

REQUEST_SECONDS = 60.0  # for a message to arrive whole
STRANGER_SECONDS = 10.0  # the same, for a caller who need not say who it is
STRANGERS = 32  # calls of one address, of those who need not say who they are: each may send 16 MiB
PROCESS_STRANGERS = 200  # of all addresses
LARGE = 64 << 10  # bytes; 1 MiB takes some 0.3 s to be read or written
converters = ThreadPoolExecutor(2, "syros-grpc")  # not the threads of queries: these would wait
_READ = NAMES.keys() - {"host", "origin"}


def headers_of(context: Context) -> Headers:
    """What the metadata says. A browser cannot speak gRPC, so there is no Host or Origin to be careful about."""
    headers = Headers(host="localhost")
    for name, value in context.invocation_metadata() or ():
        if name in _READ and isinstance(value, str):
            setattr(headers, NAMES[name], value)
    return headers


def peer_of(context: Context) -> str:
    return address(context.peer())


@lru_cache(maxsize=1024)
def address(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""


async def receive(context: Context, seconds: float) -> bytes:
    """The message of a call that has one.

    Raises: Malformed, when it does not come.
    """
    try:
        async with asyncio.timeout(seconds):
            body = await context.read()
    except TimeoutError:
        raise Malformed(f"No message came within {seconds:.0f} seconds.") from None
    if body is aio.EOF:
        raise Malformed("The call has no message.")
    found: bytes = body
    return found


class Places:
    """Room for calls that need no credentials: so many of an address, so many of all. Who finds none is refused at
    once, and those who have credentials are not affected.
    """

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, peer: str, most: int, most_of_all: int) -> Iterator[None]:
        """Raises: TooManyOperations."""
        if self._taken[peer] >= most or self._taken.total() >= most_of_all:
            raise TooManyOperations("Too many calls without credentials are under way.", limit=most)
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


strangers = Places()  # who call anonymous operations


def decoded(kind: type[Message], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise Malformed(f"Not a {kind.DESCRIPTOR.full_name}, or one that nests too deep.") from None


async def converted(size: int, convert: Callable[..., Any], *what: Any) -> Any:
    """What a conversion gives: done in a thread where it is of so many bytes that others would wait for it."""
    if size <= LARGE:
        return convert(*what)
    return await asyncio.get_running_loop().run_in_executor(converters, convert, *what)


def check_size(operation: Operation, size: int) -> None:
    """Raises: TooLarge."""
    limit = operation.max_bytes
    if size > limit:
        raise TooLarge(f"The message is larger than {limit} bytes.", limit=limit)


class Method:
    """One operation."""

    def __init__(self, operation: Operation) -> None:
        known = messages()
        self._operation = operation
        self._request, self._response = known.request(operation), known.response(operation)
        self._read, self._write = known.reader(self._request.DESCRIPTOR), known.answer_writer(operation)

    async def answer(self, _: object, context: Context) -> bytes:
        """Carry the operation out once."""
        headers = headers_of(context)
        identity = requests.request_id(headers)
        try:
            with self._place(context):
                call, params = await self._asked(context, headers, identity)
                outcome = await runtime.run(self._operation, call, params)
            reply = await self._reply(outcome.value)
            context.set_trailing_metadata(told(outcome, identity))
            return reply
        except aio.BaseError:
            raise  # the peer is gone
        except Exception as error:
            refuse(context, requests.refusal(error, self._operation.name, identity), identity)
            return b""

    async def stream(self, _: object, context: Context) -> None:
        """Give what the operation gives, as fast as the peer takes it."""
        headers = headers_of(context)
        identity = requests.request_id(headers)
        try:
            call, params = await self._asked(context, headers, identity)
            items: Any = runtime.stream(self._operation, call, params)
            try:
                async with while_allowed(call, self._operation, params):
                    async for item in items:
                        await context.write(await self._reply(item))
            finally:
                await items.aclose()
        except aio.BaseError:
            raise
        except Exception as error:
            refuse(context, requests.refusal(error, self._operation.name, identity), identity)

    def _place(self, context: Context) -> AbstractContextManager[None]:
        if not self._operation.anonymous:
            return nullcontext()
        return strangers.take(peer_of(context), STRANGERS, PROCESS_STRANGERS)

    async def _asked(self, context: Context, headers: Headers, identity: str) -> tuple[Call, dict[str, Any]]:
        """Who calls, and with which parameters. Nothing is read for a caller who must say who it is and does not.

        Raises: what core.callers and api.requests raise; Malformed, TooLarge, Invalid.
        """
        if self._operation.anonymous:
            call = await requests.call_by(ANONYMOUS, headers, identity)
            body = await receive(context, STRANGER_SECONDS)
        else:
            peer = "" if requests.credential(headers) else peer_of(context)
            call = await requests.call_of(headers, identity, peer)
            body = await receive(context, REQUEST_SECONDS)
        call.size = len(body)
        check_size(self._operation, call.size)
        return call, await converted(call.size, self._params, body)

    def _params(self, body: bytes) -> dict[str, Any]:
        message = decoded(self._request, body)
        check_known(message, body)
        return self._operation.parse(self._read(message))

    async def _reply(self, value: Any) -> bytes:
        found: bytes = await converted(len(encode(value)), self._written, value)
        return found

    def _written(self, value: Any) -> bytes:
        return build(self._response, self._write(value)).SerializeToString()


def told(outcome: Outcome, identity: str) -> tuple[tuple[str, str], ...]:
    """What is said beside an answer."""
    found = (("syros-status", str(outcome.status)), ("x-request-id", identity))
    return (*found, ("idempotency-replayed", "true")) if outcome.replayed else found
