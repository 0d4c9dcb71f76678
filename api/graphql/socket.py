"""GraphQL over WebSocket, by the protocol graphql-transport-ws: subscriptions, and queries and mutations too."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from websockets.frames import CloseCode

from api import requests
from api.graphql.asking import Asked, Question, graph
from api.graphql.context import Unanswerable, refusal
from api.lane import peer_of, read_headers
from api.requests import NAMES, Headers
from api.sessions import by_own_page
from api.websocket import sockets
from core.callers import Call, Caller, turned_away
from core.encoding import encode
from core.errors import Malformed, SyrosError, TooManyOperations, Unauthenticated, Unavailable
from core.runtime import runtime
from core.sockets import TRUST

PROTOCOL = "graphql-transport-ws"
INIT_SECONDS = 3.0  # for the client to say who it is
FINISH_SECONDS = 10.0  # for what is under way when the process stops
MAX_OPERATIONS = 100  # at once, of one socket
HELD_BYTES = 32 << 20  # of requests under way, together
MAX_ID = 128
INVALID, UNAUTHENTICATED, FORBIDDEN, NO_PROTOCOL = 4400, 4401, 4403, 4406
INIT_TIMEOUT, REPEATED, TOO_MANY_INITS, TRY_LATER = 4408, 4409, 4429, 1013
# What the payload of connection_init may hold: the headers that a browser cannot set, `namespace` for short.
CREDENTIALS = {
    **{name: NAMES[name] for name in ("authorization", "x-api-key", "syros-namespace")},
    "namespace": "namespace",
}


class Closed(Exception):
    """The client broke the protocol, or may not go on."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


TOO_SLOW = Closed(CloseCode.POLICY_VIOLATION, "you do not read what you asked for")


class Gone(Exception):
    """The client went away, or does not read what it asked for."""


class Socket(AsyncWebsocketConsumer):
    """One connection. Its operations are tasks; each waits while the client does not read."""

    channel_layer_alias = ""  # nobody sends to it but its own operations

    def __init__(self) -> None:
        super().__init__()
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._held = 0  # bytes of their requests
        self._headers = Headers()
        self.caller: Caller | None = None
        self._timer: asyncio.Task[None] | None = None
        self._is_initialised = self._is_over = False

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Without Channels' hop into a thread: no connection of the ORM's is used here."""
        handlers = {
            "websocket.connect": self.websocket_connect,
            "websocket.receive": self.websocket_receive,
            "websocket.disconnect": self.websocket_disconnect,
        }
        await handlers[message["type"]](message)
        message.clear()  # Channels holds it until the next one comes

    async def connect(self) -> None:
        self._headers = read_headers(self.scope["headers"])
        if PROTOCOL not in self.scope["subprotocols"]:
            await self.accept()  # or the client would not hear why
            await self._end(Closed(NO_PROTOCOL, f"Offer the subprotocol {PROTOCOL}."))
            return
        await self.accept(PROTOCOL)
        self._timer = asyncio.create_task(self._wait_for_init())

    async def disconnect(self, code: int) -> None:
        sockets.guests.discard(self)
        if runtime.stopping and not self._is_over:
            if self._operations:
                await asyncio.wait(self._operations.values(), timeout=FINISH_SECONDS)
            await self._end(Closed(CloseCode.SERVICE_RESTART, "this process is stopping"))
        await asyncio.gather(*self._cancel(), return_exceptions=True)
        # Tasks and their connection hold each other: what they took would stay until the collector's next long look.
        self._operations.clear()
        self._timer = None

    def _cancel(self) -> "list[asyncio.Task[None]]":
        """End everything but the task that asks for it."""
        tasks = {*self._operations.values(), *filter(None, [self._timer])} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        return list(tasks)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self._is_over:  # sent before the client knew
            return
        data = (text_data or "").encode()
        try:
            message = read_message(data)
            handle = getattr(self, f"_on_{message['type']}", None)
            if handle is None:
                raise Closed(INVALID, "Unknown type of message")
            await handle(message, len(data))
        except Closed as closed:
            await self._end(closed)
        except Unavailable as error:
            await self._end(Closed(TRY_LATER, error.detail))
        except Gone:
            await self._end(TOO_SLOW)

    async def say(self, kind: str, **more: Any) -> None:
        """Raises: Gone."""
        try:
            await self.send(encode({"type": kind, **more}).decode())
        except OSError:  # core.sockets' time-out, too
            raise Gone from None

    async def end(self, code: int, reason: str) -> None:
        """Close the connection for an operator."""
        await self._end(Closed(code, reason))

    async def _end(self, closed: Closed) -> None:
        self._is_over = True
        self._cancel()
        with suppress(OSError):
            await self.close(closed.code, closed.reason[:100])  # a frame has no room for more

    # -- what the client says ------------------------------------------------------------------------

    async def _on_connection_init(self, message: dict[str, Any], size: int) -> None:
        if self._is_initialised:
            raise Closed(TOO_MANY_INITS, "Too many initialisation requests")
        self._is_initialised = True
        payload = message.get("payload") or {}
        if not isinstance(payload, dict):
            raise Closed(INVALID, "payload is an object")
        for name, value in payload.items():
            if (attribute := CREDENTIALS.get(name.lower())) and isinstance(value, str):
                if not value.isprintable():  # as no header is
                    raise Closed(UNAUTHENTICATED, f"{name[:40]} has characters that no credential has")
                setattr(self._headers, attribute, value)
        self.caller = (await self._identify()).caller
        sockets.guests.add(self)
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.create_task(self._watch())
        if TRUST in self.scope.get("extensions", {}):
            await self.base_send({"type": TRUST})
        await self.say("connection_ack")

    async def _on_ping(self, message: dict[str, Any], size: int) -> None:
        await self.say("pong")

    async def _on_pong(self, message: dict[str, Any], size: int) -> None:
        return

    async def _on_subscribe(self, message: dict[str, Any], size: int) -> None:
        name, payload = read_id(message), message.get("payload")
        if self.caller is None:
            raise Closed(UNAUTHENTICATED, "Unauthorized")
        if name in self._operations:
            raise Closed(REPEATED, f"Subscriber for {name[:40]} already exists")
        if not isinstance(payload, dict):
            raise Closed(INVALID, "payload is an object")
        identity = requests.request_id(Headers())
        try:
            asked = await self._open(payload, size)
        except Exception as error:
            await self.say(**refusing(error, identity), id=name)
            return
        if not self._is_over:  # it may have been ended meanwhile
            self._begin(name, asked, identity)

    async def _open(self, payload: dict[str, Any], size: int) -> Asked:
        """Here and not in the operation's task: that one would keep all of what was sent.

        Raises: TooManyOperations, and what Graph.open raises.
        """
        if len(self._operations) >= MAX_OPERATIONS:
            raise TooManyOperations(limit=MAX_OPERATIONS)
        if self._held + size > HELD_BYTES:
            raise TooManyOperations(f"Together they have more than {HELD_BYTES} bytes.", limit=HELD_BYTES)
        return await graph().open(Question.read(payload, size))

    def _begin(self, name: str, asked: Asked, identity: str) -> None:
        self._held += asked.question.size
        task = asyncio.create_task(self._operate(name, asked, identity))
        # Not at the end of the task itself: one that is cancelled at once never begins.
        task.add_done_callback(partial(self._done, name, asked.question.size))
        self._operations[name] = task

    def _done(self, name: str, size: int, task: "asyncio.Task[None]") -> None:
        self._held -= size
        self._forget(name, task)

    def _forget(self, name: str, task: "asyncio.Task[None] | None") -> None:
        if self._operations.get(name) is task:
            del self._operations[name]

    async def _on_complete(self, message: dict[str, Any], size: int) -> None:
        if task := self._operations.pop(read_id(message), None):
            task.cancel()

    # -- what it gets --------------------------------------------------------------------------------

    async def _operate(self, name: str, asked: Asked, identity: str) -> None:
        try:
            last = await self._tell(name, asked, identity)
            # The name may be used again as soon as the client hears of the end.
            self._forget(name, asyncio.current_task())
            await self.say(**last, id=name)
        except Closed as closed:
            await self._end(closed)
        except Gone:
            await self._end(TOO_SLOW)

    async def _tell(self, name: str, asked: Asked, identity: str) -> dict[str, Any]:
        """Send the answers as they come; what is to be said last is given back.

        Raises: Closed, Gone.
        """
        try:
            async with aclosing(self._answers(asked, identity)) as answers:
                async for answer in answers:
                    await self.say("next", id=name, payload=answer)
            return {"kind": "complete"}
        except (Closed, Gone):
            raise
        except Exception as error:
            return refusing(error, identity)

    async def _answers(self, asked: Asked, identity: str) -> AsyncGenerator[dict[str, Any]]:
        call = await self._identify(identity)
        if asked.kind.value != "subscription":
            yield await asked.answer(call)
            return
        async with aclosing(asked.answers(call)) as answers:
            async for answer in answers:
                yield answer

    # -- whether it may ------------------------------------------------------------------------------

    async def _identify(self, identity: str = "") -> Call:
        """Who the client is and where it works, as of now.

        Raises: Closed, when it may not be here; Unavailable.
        """
        try:
            return await requests.call_by(await self._who(), self._headers, identity)
        except Unavailable:
            raise
        except SyrosError as error:
            raise closing(error) from None

    async def _who(self) -> Caller:
        """Raises: Unauthenticated, Forbidden, Unavailable."""
        headers, scope = self._headers, self.scope
        known = (
            None if requests.credential(headers) else await by_own_page(scope, headers.host, headers.origin)
        )
        return known or await requests.caller_of(headers, peer_of(scope))

    async def _wait_for_init(self) -> None:
        await asyncio.sleep(INIT_SECONDS)
        if not self._is_initialised:
            await self._end(Closed(INIT_TIMEOUT, "Connection initialisation timeout"))

    async def _watch(self) -> None:
        """Close the connection of a client whose credential is revoked or has run out."""
        await self._end(closing(await turned_away(self._who)))


def closing(error: SyrosError) -> Closed:
    """How a connection ends whose client may not be here."""
    return Closed(UNAUTHENTICATED if isinstance(error, Unauthenticated) else FORBIDDEN, error.detail)


def refusing(error: Exception, identity: str) -> dict[str, Any]:
    """What is said last of an operation that was refused, or broke."""
    if not isinstance(error, Unanswerable):
        error = requests.refusal(error, "a document", identity)
    return {"kind": "error", "payload": refusal(error, identity)[1]["errors"]}


def read_message(data: bytes) -> dict[str, Any]:
    """Raises: Closed."""
    try:
        found = requests.read_json(data)
    except Malformed as error:
        raise Closed(INVALID, error.detail) from None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise Closed(INVALID, "A message is an object with a type")
    return found


def read_id(message: dict[str, Any]) -> str:
    """Raises: Closed."""
    found = message.get("id")
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID:
        raise Closed(INVALID, f"id is a text of 1 to {MAX_ID} characters")
    return found
