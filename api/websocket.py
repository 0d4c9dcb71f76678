"""WebSocket: every operation and every stream over one connection, from the same registry as all else.

A client sends text frames of JSON, each with an id of its choice, and what it is told bears the id of what it asked.
Everything under way on a connection goes on side by side; what a client may have under way, and may leave unread, is
bounded. The connection's own bounds are core.sockets'.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal, TypeVar, cast

from channels.consumer import AsyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from pydantic import BaseModel, ConfigDict, ValidationError
from redis import RedisError
from websockets.frames import CloseCode

from api import requests
from api.lane import Receive, Scope, Send, peer_of, read_headers
from api.requests import Headers
from core.callers import ANONYMOUS, Call, Caller, authorize, identify, review, verdicts
from core.encoding import MAX_DEPTH, encode
from core.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    SyrosError,
    TooLarge,
    Unauthenticated,
)
from core.operations import Operation, Outcome, problems_of, registry
from core.runtime import every, runtime
from core.sockets import TRUST
from core.types import Text

logger = logging.getLogger("syros.websocket")
# It says once a second that Valkey is away, with a traceback; /health says it better.
logging.getLogger("channels_redis.pubsub").setLevel(logging.CRITICAL)

BEARER = "syros.bearer."  # the subprotocol by which a browser, which can set no headers, says its token
AUTH_SECONDS = 10.0  # for the first frame of a client that has not said who it is
CALLS = 256  # under way on a connection; with so many, no further frame is read
CALL, WAIT, STREAM = "call", "wait", "stream"
# Of the calls, these many may wait: the others end soon, so that the connection is read again.
MOST = {WAIT: 200, STREAM: 100}
ENVELOPE_BYTES = 1024  # of a frame, around the parameters
HELD_BYTES = 32 << 20  # of calls under way, of calls that wait, and of answers that a client lets lie
FINISH_SECONDS = 10.0  # for what is under way when the process stops
REVIEW_SECONDS = 0.5
REVIEWED_AT_ONCE = 200  # credentials; checking the signatures of so many tokens takes some 15 ms
UNAUTHENTICATED, FORBIDDEN, SLOW = 4401, 4403, 4429
CODES = {401: UNAUTHENTICATED, 403: FORBIDDEN, 503: CloseCode.TRY_AGAIN_LATER}
FOLLOW = "events.follow"  # what `subscribe` means
GROUP = "syros.sockets"  # every process is in it


class IdInUse(Conflict):
    """Something else is under way on this connection under the same id."""


class TooManyWaits(SyrosError):
    """As many calls wait on this connection as may."""

    status = 429
    retryable = True


class TooManySubscriptions(SyrosError):
    """This connection has as many subscriptions as it may."""

    status = 429


class SlowConsumer(SyrosError):
    """The client does not read what it is sent. Go on after the position, on another connection."""

    status = 429
    retryable = True


FULL: dict[str, type[SyrosError]] = {WAIT: TooManyWaits, STREAM: TooManySubscriptions}


# -- frames ------------------------------------------------------------------------------------------


class Ask(BaseModel):
    """Call an operation, or follow a stream: `subscribe` is events.follow."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Text
    op: Text
    params: dict[str, Any] = {}
    idempotency_key: Text | None = None
    namespace: Text | None = None


class End(BaseModel):
    """Give up what is under way under this id: a call leaves its queue, a subscription ends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Text
    op: Literal["cancel", "unsubscribe"]


class Auth(BaseModel):
    """Say who you are, or go on with a new token before the old one runs out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    op: Literal["auth"]
    token: str
    id: Text | None = None


Frame = TypeVar("Frame", Ask, End, Auth)


def read(kind: type[Frame], found: dict[str, Any]) -> Frame:
    """Raises: Invalid, naming every bad field."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise Invalid(problems_of(error)) from None


def operation_of(name: str) -> Operation:
    """Raises: NotFound, also for an operation that has no route."""
    operation = registry[FOLLOW if name == "subscribe" else name]
    if operation.route is None:
        raise NotFound("There is no such operation.", operation=name)
    return operation


def name_of(found: dict[str, Any]) -> bytes:
    """The id of a frame that may be no good, as JSON."""
    name = found.get("id")
    return encode(name) if isinstance(name, str) and len(name) <= 255 else b"null"


def answered(name: bytes, outcome: Outcome) -> bytes:
    more = b',"replayed":true' if outcome.replayed else b""
    return b'{"id":%b,"result":%b,"status":%d%b}' % (name, encode(outcome.value), outcome.status, more)


def refused(name: bytes, error: SyrosError, identity: str) -> bytes:
    return b'{"id":%b,"error":%b}' % (name, encode(error.problem(identity)))


def close_code(error: SyrosError) -> int:
    return int(CODES.get(error.status, CloseCode.POLICY_VIOLATION))


@dataclass(slots=True)
class Work:
    """A call or a subscription under way."""

    ask: Ask
    operation: Operation
    params: dict[str, Any]
    size: int  # bytes of the frame
    identity: str  # the request id
    position: int | None = None  # the last one told of
    revoked: SyrosError | None = None  # why it is ended, when the caller may do it no more
    task: "asyncio.Task[None]" = field(init=False)
    name: bytes = field(init=False)  # the id as JSON
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = encode(self.ask.id)
        self.kind = STREAM if self.operation.streams else WAIT if self.params.get("wait_seconds") else CALL


# -- one connection ----------------------------------------------------------------------------------


class Socket(AsyncConsumer):
    """A client's connection: whose it is, and what is under way on it."""

    caller: Caller | None = None
    credential: str | None = None
    _is_closed = False
    _count = 0  # of frames that asked for something
    _unread = 0  # bytes of answers that wait to be sent
    _room: "asyncio.Future[None] | None" = None

    def __init__(self) -> None:
        self.under_way: dict[str, Work] = {}
        self.counts, self.sizes = Counter[str](), Counter[str]()  # of what is under way, by kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # As Channels does it, less what would cost each of many idle sockets a task and a subscription in Valkey,
        # and each message a hop to a thread that looks after connections of Django's: there are none here.
        self.scope, self.base_send = scope, send
        try:
            while True:
                await self.dispatch(await receive())
        except StopConsumer:
            pass
        finally:
            self._leave()

    async def dispatch(self, message: dict[str, Any]) -> None:
        await getattr(self, get_handler_name(message))(message)

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        self.headers = read_headers(self.scope["headers"])
        self.identity = requests.request_id(self.headers)
        bearer = next((each for each in self.scope["subprotocols"] if each.startswith(BEARER)), None)
        credential = requests.credential(self.headers) or (bearer or "").removeprefix(BEARER) or None
        refusal: SyrosError | None = None
        try:
            self._read_address()
            await self._become(await self._identify(credential), credential)
        except SyrosError as error:
            if not isinstance(error, Unauthenticated) or credential:
                refusal = error
        # Accepted in any case: of what was not, a browser shows no code.
        about = [(b"x-request-id", self.identity.encode())]
        await self.send({"type": "websocket.accept", "subprotocol": bearer, "headers": about})
        if refusal:
            await self._turn_away(b"null", refusal)
        elif self.caller is None:
            sockets.strangers[self] = monotonic()

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        found: dict[str, Any] = {}
        if message.get("text") is None:
            await self.close(CloseCode.UNSUPPORTED_DATA, "text frames only")
            return
        try:
            text = message["text"].encode()
            found = requests.read_object(text, MAX_DEPTH + 1)
            await self._take(found, len(text))
        except SyrosError as error:
            if isinstance(error, Unauthenticated):
                await self._turn_away(name_of(found), error)
            else:
                await self._say(refused(name_of(found), error, self._next_identity()))

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        if runtime.stopping and not self._is_closed:
            if tasks := [work.task for work in self.under_way.values()]:
                await asyncio.wait(tasks, timeout=FINISH_SECONDS)
            await self.close(CloseCode.SERVICE_RESTART, "this process is stopping")
        raise StopConsumer

    def _leave(self) -> None:
        sockets.discard(self)
        for work in self.under_way.values():
            work.task.cancel()

    # -- who it is -----------------------------------------------------------------------------------

    def _read_address(self) -> None:
        """Raises: Malformed, Invalid."""
        query = requests.read_query(self.scope["query_string"].decode("latin-1"))
        namespace = query.pop("namespace", "")
        if query or not isinstance(namespace, str):
            names = [*query] or ["namespace"]
            raise Invalid([{"pointer": f"/{n}", "code": "extra", "detail": "not taken here"} for n in names])
        self.headers.namespace = self.headers.namespace or namespace

    async def _identify(self, credential: str | None) -> Caller:
        host, origin = self.headers.host, self.headers.origin or None
        return await identify(credential, peer=peer_of(self.scope), host=host, origin=origin)

    async def _become(self, caller: Caller, credential: str | None) -> None:
        sockets.discard(self)
        self.caller, self.credential = caller, credential
        sockets.add(self)
        if TRUST in (self.scope.get("extensions") or {}):
            await self.send({"type": TRUST})

    async def _auth(self, frame: Auth) -> None:
        caller = await self._identify(frame.token)
        if self.credential and self.caller and self.caller.principal != caller.principal:
            raise Forbidden("This connection is somebody else's.", principal=self.caller.principal)
        await self._become(caller, frame.token)
        about = {"id": frame.id} if frame.id else {}
        await self._say(encode({**about, "authenticated": True, "principal": caller.principal}))

    def _next_identity(self) -> str:
        self._count += 1
        return f"{self.identity}.{self._count}"

    # -- what is asked -------------------------------------------------------------------------------

    async def _take(self, found: dict[str, Any], size: int) -> None:
        op = found.get("op")
        if op == "auth":
            await self._auth(read(Auth, found))
        elif op in ("cancel", "unsubscribe"):
            await self._end(read(End, found))
        else:
            await self._begin(read(Ask, found), size)

    async def _begin(self, ask: Ask, size: int) -> None:
        operation = operation_of(ask.op)
        if self.caller is None and not operation.anonymous:
            raise Unauthenticated
        if ask.id in self.under_way:
            raise IdInUse
        if size > operation.max_bytes + ENVELOPE_BYTES:
            limit = operation.max_bytes
            raise TooLarge(f"The parameters are larger than {limit} bytes.", limit=limit)
        work = Work(ask, operation, operation.parse(ask.params), size, self._next_identity())
        ask.params = {}  # as objects they would take many times the frame, for as long as it waits
        if work.kind in MOST and self.counts[work.kind] >= MOST[work.kind]:
            raise FULL[work.kind](limit=MOST[work.kind])
        if work.kind == WAIT and self.sizes[WAIT] + size > HELD_BYTES:
            raise TooManyWaits(limit_bytes=HELD_BYTES)
        self._start(work)
        while self.counts[CALL] + self.counts[WAIT] >= CALLS or self.sizes[CALL] > HELD_BYTES:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _start(self, work: Work) -> None:
        self.under_way[work.ask.id] = work
        self.counts[work.kind] += 1
        self.sizes[work.kind] += work.size
        work.task = asyncio.get_running_loop().create_task(self._carry_out(work))
        # Not at the end of the task itself: one that is cancelled at once never begins.
        work.task.add_done_callback(lambda _: self._done(work))

    def _done(self, work: Work) -> None:
        del self.under_way[work.ask.id]
        self.counts[work.kind] -= 1
        self.sizes[work.kind] -= work.size
        if self._room and not self._room.done():
            self._room.set_result(None)

    async def _end(self, frame: End) -> None:
        work = self.under_way.get(frame.id)
        if work:
            work.task.cancel()
            await asyncio.wait([work.task])
        if work is None or not work.task.cancelled():  # or answered in this very moment
            raise NotFound("Nothing is under way under this id.")
        word = "cancelled" if frame.op == "cancel" else "unsubscribed"
        await self._say(encode({"id": frame.id, word: True}))

    async def _carry_out(self, work: Work) -> None:
        await self._answer(await self._last_frame(work))

    async def _last_frame(self, work: Work) -> bytes:
        """What there is to say in the end: an outcome or a problem."""
        do = self._stream if work.kind == STREAM else self._run
        try:
            return await do(work, await self._call(work))
        except asyncio.CancelledError:
            if work.revoked is None:
                raise
            return refused(work.name, work.revoked, work.identity)
        except Exception as error:
            found = requests.refusal(error, work.operation.name, work.identity)
            return refused(work.name, found, work.identity)

    async def _call(self, work: Work) -> Call:
        """Raises: what core.callers raises."""
        anonymous = work.operation.anonymous
        caller = ANONYMOUS if anonymous else await self._identify(self.credential)
        headers = Headers(
            namespace=work.ask.namespace or self.headers.namespace,
            idempotency_key=work.ask.idempotency_key or "",
            traceparent=self.headers.traceparent,
        )
        call = await requests.call_by(caller, headers, work.identity)
        call.size = work.size
        return call

    async def _run(self, work: Work, call: Call) -> bytes:
        return answered(work.name, await runtime.run(work.operation, call, work.params))

    async def _stream(self, work: Work, call: Call) -> bytes:
        """Its items, each as one comes: none is fetched before the client took those before it."""
        stream = cast(AsyncGenerator[dict[str, Any]], runtime.stream(work.operation, call, work.params))
        async with aclosing(stream) as items:
            first = await anext(items)  # what refuses, refuses before
            await self._subscribed(work, first)
            async for item in items:
                await self._tell(work, item)
        return b'{"id":%b,"unsubscribed":true}' % work.name

    async def _subscribed(self, work: Work, first: dict[str, Any]) -> None:
        reached = first.get("heartbeat") or {}
        await self._say(encode({"id": work.ask.id, "subscribed": True, **reached}))
        work.position = reached.get("position")
        if not reached:
            await self._tell(work, first)

    async def _tell(self, work: Work, item: dict[str, Any]) -> None:
        ((kind, value),) = item.items()
        await self._say(b'{"id":%b,"%b":%b}' % (work.name, kind.encode(), encode(value)))
        work.position = value.get("position", work.position)

    # -- what is said --------------------------------------------------------------------------------

    async def _answer(self, frame: bytes) -> None:
        if self._unread and self._unread + len(frame) > HELD_BYTES:
            await self._give_up()
        self._unread += len(frame)
        try:
            await self._say(frame)
        finally:
            self._unread -= len(frame)

    async def _say(self, frame: bytes) -> None:
        if self._is_closed:
            return
        try:
            await self.send({"type": "websocket.send", "text": frame.decode()})
        except TimeoutError:
            await self._give_up()
        except OSError:
            self._is_closed = True  # it is gone, which `websocket_disconnect` is about to hear

    async def _give_up(self) -> None:
        """The client does not read: tell it, for when it does, how far each of its subscriptions came."""
        if self._is_closed:
            return
        self._is_closed = True
        streams = [work for work in self.under_way.values() if work.kind == STREAM]
        with suppress(OSError):
            for work in streams:
                error = SlowConsumer(position=work.position)
                text = refused(work.name, error, work.identity).decode()
                await self.send({"type": "websocket.send", "text": text})
        reached = min((work.position for work in streams if work.position is not None), default=None)
        await self._send_close(
            SLOW, "slow consumer" if reached is None else f"slow consumer; position {reached}"
        )

    async def _turn_away(self, name: bytes, error: SyrosError) -> None:
        await self._say(refused(name, error, self._next_identity()))
        await self.close(close_code(error), error.code)

    async def close(self, code: int, reason: str) -> None:
        """Say good-bye, and wait for nothing."""
        if not self._is_closed:
            self._is_closed = True
            await self._send_close(code, reason)

    async def _send_close(self, code: int, reason: str) -> None:
        with suppress(OSError):
            await self.send({"type": "websocket.close", "code": int(code), "reason": reason})

    # -- what changes meanwhile ----------------------------------------------------------------------

    def review(self, caller: Caller) -> None:
        """The credential was looked at again: is its caller still to hear what it follows?"""
        self.caller = caller
        for work in self.under_way.values():
            if work.kind == STREAM:
                try:
                    authorize(caller, work.operation, work.params)
                except SyrosError as error:
                    work.revoked = error
                    work.task.cancel()


# -- all of a process --------------------------------------------------------------------------------


class Sockets:
    """The connections of this process, by credential; and those that have not said yet who they are."""

    def __init__(self) -> None:
        self._by_credential: dict[str | None, set[Socket]] = {}
        self.strangers: dict[Socket, float] = {}
        self.guests: set[Any] = set()  # other doors' connections: each has a caller, and `end(code, reason)`

    def __iter__(self) -> Iterator[Socket]:
        return iter([socket for found in self._by_credential.values() for socket in found])

    def of(self, credential: str) -> list[Socket]:
        return list(self._by_credential.get(credential, ()))

    def add(self, socket: Socket) -> None:
        self._by_credential.setdefault(socket.credential, set()).add(socket)

    def discard(self, socket: Socket) -> None:
        self.strangers.pop(socket, None)
        found = self._by_credential.get(socket.credential, set())
        found.discard(socket)
        if not found:
            self._by_credential.pop(socket.credential, None)

    async def turn_away(self) -> None:
        """Close the connections of those who have not said in time who they are."""
        for socket, since in list(self.strangers.items()):
            if monotonic() - since > AUTH_SECONDS:
                await socket.close(UNAUTHENTICATED, Unauthenticated.code)

    async def review(self) -> None:
        """Look again at every credential whose verdict has run out or was dropped, as all are when rights change.

        Raises: Unavailable, and then the connections stay until it can be known.
        """
        due = [each for each in self._by_credential if each and verdicts.get(each) is None]
        for start in range(0, len(due), REVIEWED_AT_ONCE):
            some = due[start : start + REVIEWED_AT_ONCE]
            good = await review(some)
            for socket in [
                each for credential in some if credential not in good for each in self.of(credential)
            ]:
                await socket.close(UNAUTHENTICATED, Unauthenticated.code)
        for socket in self:
            caller = verdicts.get(socket.credential) if socket.credential else None
            if caller and caller is not socket.caller:
                socket.review(caller)

    async def close(self, principal: str) -> None:
        found = [socket for socket in self if socket.caller and socket.caller.principal == principal]
        for socket in found:
            await socket.close(FORBIDDEN, "closed by an operator")
        guests = [each for each in self.guests if each.caller.principal == principal]
        for guest in guests:
            await guest.end(FORBIDDEN, "closed by an operator")
        if count := len(found) + len(guests):
            logger.warning("closed %d connections of %s for an operator", count, principal)


sockets = Sockets()


@every(REVIEW_SECONDS)
async def look_again() -> None:
    await sockets.turn_away()
    await sockets.review()


@every(1)
async def hear_operators() -> None:
    """Close the connections that operators want closed, as long as Valkey is there to tell."""
    layer = get_channel_layer()
    try:
        channel = await layer.new_channel("syros.")
        await layer.group_add(GROUP, channel)
        while True:
            message = await layer.receive(channel)
            await sockets.close(message["principal"])
    except (RedisError, OSError):
        await layer.flush()


async def close_everywhere(principal: str) -> None:
    """Have the connections of a principal closed in every process.

    Raises: OSError, RedisError: Valkey is away.
    """
    await get_channel_layer().group_send(GROUP, {"type": "close", "principal": principal})
