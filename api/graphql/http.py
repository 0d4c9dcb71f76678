"""GraphQL over HTTP: POST for everything, GET for queries; for browsers a page."""

from functools import partial
from typing import Any

from api import requests
from api.graphql.asking import Asked, Question, graph
from api.graphql.context import Unanswerable, refusal
from api.lane import (
    App,
    Disconnected,
    Receive,
    Scope,
    Send,
    peer_of,
    read,
    read_headers,
    while_connected,
    write,
)
from api.requests import Headers
from api.sessions import by_session
from core.callers import ANONYMOUS, Call, Caller
from core.encoding import encode
from core.errors import MethodNotAllowed, NotAcceptable, SyrosError
from core.express import Reply
from core.operations import registry
from core.sockets import STRANGER_BYTES

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
            body = await read(
                receive, headers, self._limit if await is_known(scope, headers) else STRANGER_BYTES
            )
            found = await while_connected(answer(scope, headers, body, identity), receive)
        except Disconnected:
            return
        except Unanswerable as error:
            found = refused(error, headers, identity)
        except Exception as error:
            found = refused(requests.refusal(error, "a document", identity), headers, identity)
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
        found[name] = requests.read_json("".join(found[name]).encode())
    return Question.read(found, len(scope["query_string"]))


def check_method(method: str, asked: Asked) -> None:
    """Raises: MethodNotAllowed, NotAcceptable."""
    if asked.kind.value == "subscription":
        raise NotAcceptable("A subscription: ask over WebSocket, by graphql-transport-ws.")
    # Whatever makes a browser fetch an address must not change anything.
    if asked.kind.value == "mutation" and method != "POST":
        raise MethodNotAllowed("Mutations are posted.", allow=["POST"])


async def caller_of(scope: Scope, headers: Headers) -> Caller:
    """Who asks, by a credential or by the session of a browser.

    Raises: Unauthenticated, Forbidden.
    """
    known = None if requests.credential(headers) else await by_session(scope)
    return known or await requests.caller_of(headers, peer_of(scope))


async def is_known(scope: Scope, headers: Headers) -> bool:
    """Is it somebody, of whom more may be read? Some may be nobody."""
    try:
        await caller_of(scope, headers)
    except SyrosError:
        return False
    return True


async def call_of(scope: Scope, headers: Headers, identity: str, asked: Asked) -> Call:
    """Who asks, as of now: a body may have taken long to come.

    Raises: Unauthenticated, Forbidden, NotFound (of the namespace), Invalid.
    """
    if asked.is_anonymous:
        return await requests.call_by(ANONYMOUS, headers, identity)
    return await requests.call_of_whom(partial(caller_of, scope, headers), headers, identity)


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
