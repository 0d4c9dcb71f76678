"""GraphQL over HTTP: POST for everything, GET for queries; for browsers a page."""

import logging
from typing import Any

import orjson

from api import requests
from api.graphql.asking import Asked, Question, graph
from api.graphql.context import Unanswerable, refusal
from api.lane import App, Disconnected, Receive, Scope, Send, read, read_headers, while_connected, write
from api.requests import Headers
from api.sessions import by_session
from core.callers import ANONYMOUS, Call, Caller, identify
from core.encoding import encode
from core.errors import Internal, Invalid, MethodNotAllowed, NotAcceptable, SyrosError
from core.express import Reply
from core.operations import registry
from core.sockets import STRANGER_BYTES

logger = logging.getLogger("syros.graphql")

RESPONSE = "application/graphql-response+json"


class Http:
    """An ASGI application; browsers that want a page are left to the one behind it."""

    def __init__(self, pages: App) -> None:
        self._pages = pages
        self._limit = max(each.max_bytes for each in registry)
        graph()  # made now, not while somebody waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope["headers"])
        headers.idempotency_key = ""  # each field has its own
        if scope["method"] in {"GET", "HEAD"} and ("html" in headers.accept or not scope["query_string"]):
            await self._pages(scope, receive, send)
            return
        identity = requests.request_id(headers)
        try:
            caller = await caller_of(scope, headers)
            limit = self._limit if isinstance(caller, Caller) else STRANGER_BYTES
            body = await read(receive, headers, limit)
            found = await while_connected(answer(scope, headers, body, identity), receive)
        except Disconnected:
            return
        except (SyrosError, Unanswerable) as error:
            found = refused(error, headers, identity)
        except Exception:
            logger.exception("a document broke", extra={"request_id": identity})
            found = refused(Internal(), headers, identity)
        await write(send, found)


async def answer(scope: Scope, headers: Headers, body: bytes, identity: str) -> Reply:
    """Raises: SyrosError, Unanswerable."""
    asked = await graph().open(read_question(scope, headers, body))
    call = await call_of(scope, headers, identity, asked)
    check_method(scope["method"], asked)
    return reply(200, await asked.answer(call), headers, identity)


def read_question(scope: Scope, headers: Headers, body: bytes) -> Question:
    """Raises: MethodNotAllowed, Malformed, UnsupportedMediaType, Invalid."""
    if scope["method"] == "POST":
        return Question.read(requests.read_body(body, headers.content_type), len(body))
    if scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed("Here: GET, POST.", allow=["GET", "POST"])
    found: dict[str, Any] = requests.read_query(scope["query_string"].decode("latin-1"))
    for name in found.keys() & {"variables", "extensions"}:
        found[name] = read_json(name, found[name])
    return Question.read(found, len(scope["query_string"]))


def read_json(name: str, text: Any) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Invalid([{"pointer": f"/{name}", "code": "json", "detail": "JSON in the address"}]) from None


def check_method(method: str, asked: Asked) -> None:
    """Raises: MethodNotAllowed, NotAcceptable."""
    if asked.kind.value == "subscription":
        raise NotAcceptable("A subscription: ask over WebSocket, by graphql-transport-ws.")
    # Whatever makes a browser fetch an address must not change anything.
    if asked.kind.value == "mutation" and method != "POST":
        raise MethodNotAllowed("Mutations are posted.", allow=["POST"])


async def caller_of(scope: Scope, headers: Headers) -> Caller | SyrosError:
    """Who asks, by a credential or by the session of a browser; or why that is nobody, which some may be."""
    credential = requests.credential(headers)
    peer, origin = scope["client"][0] if scope["client"] else "", headers.origin or None
    try:
        known = None if credential else await by_session(scope)
        return known or await identify(credential, peer=peer, host=headers.host, origin=origin)
    except SyrosError as error:
        return error


async def call_of(scope: Scope, headers: Headers, identity: str, asked: Asked) -> Call:
    """Who asks, as of now: a body may have taken long to come.

    Raises: why the caller is nobody, where somebody must ask; NotFound (of the namespace), Invalid.
    """
    if asked.is_anonymous:
        return await requests.call_by(ANONYMOUS, headers, identity)
    caller = await caller_of(scope, headers)
    if isinstance(caller, SyrosError):
        raise caller
    return await requests.call_by(caller, headers, identity)


def reply(status: int, body: dict[str, Any], headers: Headers, identity: str) -> Reply:
    kind = RESPONSE if RESPONSE in headers.accept else "application/json"
    about = [(b"x-request-id", identity.encode()), (b"cache-control", b"no-store")]
    return Reply(status, kind.encode(), encode(body), about)


def refused(error: SyrosError | Unanswerable, headers: Headers, identity: str) -> Reply:
    first, body = refusal(error, identity)
    found = reply(first.status, body, headers, identity)
    found.headers += [(name.lower().encode(), value.encode()) for name, value in first.headers.items()]
    if isinstance(first, MethodNotAllowed):
        found.headers.append((b"allow", ", ".join(first.extra["allow"]).encode()))
    return found
