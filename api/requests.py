"""What a request says, read the same way by every door; and who says it."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from random import getrandbits
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson

from core.callers import Call, Caller, Who, identify, namespaces
from core.encoding import MAX_DEPTH, decode, depth, encode
from core.errors import Internal, Invalid, Malformed, SyrosError, UnsupportedMediaType
from core.operations import Operation, Outcome

logger = logging.getLogger("syros.api")

PREFIX = "/api/v1/"
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")
# W3C: version ff and ids of zeros alone are none.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})")


@dataclass(slots=True)
class Headers:
    """The headers that Syros looks at."""

    authorization: str = ""
    api_key: str = ""
    namespace: str = ""
    idempotency_key: str = ""
    request_id: str = ""
    traceparent: str = ""
    content_type: str = ""
    accept: str = ""
    host: str = ""
    origin: str = ""
    content_length: str = ""
    last_event_id: str = ""
    cookie: str = ""
    if_none_match: str = ""


NAMES = {
    "authorization": "authorization",
    "x-api-key": "api_key",
    "syros-namespace": "namespace",
    "idempotency-key": "idempotency_key",
    "x-request-id": "request_id",
    "traceparent": "traceparent",
    "content-type": "content_type",
    "accept": "accept",
    "host": "host",
    "origin": "origin",
    "content-length": "content_length",
    "last-event-id": "last_event_id",
    "cookie": "cookie",
    "if-none-match": "if_none_match",
}


def refusal(error: Exception, what: str, identity: str) -> SyrosError:
    """A refusal as it is; in the place of an error that nobody foresaw, one that leads to the log."""
    if isinstance(error, SyrosError):
        return error
    logger.error("%s broke", what, exc_info=error, extra={"request_id": identity})
    return Internal()


def request_id(headers: Headers) -> str:
    """The request's id: the client's if it is printable, else a new one."""
    given = headers.request_id
    return given if given and _PRINTABLE.fullmatch(given) else f"{getrandbits(64):016x}"


def credential(headers: Headers) -> str | None:
    if headers.api_key:
        return headers.api_key
    scheme, _, token = headers.authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def call_of(headers: Headers, identity: str, peer: str) -> Call:
    """Who calls and where.

    Raises: Unauthenticated, Forbidden, NotFound (of the namespace), Invalid.
    """
    return await call_of_whom(partial(caller_of, headers, peer), headers, identity)


async def call_of_whom(who: Who, headers: Headers, identity: str) -> Call:
    """The same, for a door that tells callers in another way as well."""
    call = await call_by(await who(), headers, identity)
    call.who = who
    return call


async def caller_of(headers: Headers, peer: str) -> Caller:
    """Who calls, by what the headers say.

    Raises: Unauthenticated, Forbidden.
    """
    return await identify(credential(headers), peer=peer, host=headers.host, origin=headers.origin or None)


async def call_by(caller: Caller, headers: Headers, identity: str) -> Call:
    namespace = await namespaces.of(caller, headers.namespace)
    call = Call(caller, namespace, identity)
    if headers.idempotency_key:
        call.idempotency_key = check_idempotency_key(headers.idempotency_key)
    if headers.traceparent and (trace := _TRACEPARENT.fullmatch(headers.traceparent)):
        call.correlation_id = trace[1][:32]
        call.traceparent = f"00-{trace[1]}"
    return call


def location(operation: Operation, outcome: Outcome) -> str | None:
    """Where what was made is to be found."""
    if operation.location is None:
        return None
    made, path = outcome.value, operation.location.path
    if isinstance(made, orjson.Fragment):  # an answer that was kept
        made = decode(encode(made))
    for name in operation.location.names:
        value = made[name] if isinstance(made, dict) else getattr(made, name)
        path = path.replace(f"{{{name}}}", quote(str(value)))
    return PREFIX + path


def etag(operation: Operation, outcome: Outcome) -> str | None:
    """The entity tag of an answer that has one."""
    if operation.etag is None or getattr(outcome.value, "stale", False):
        return None  # of what is stale more is to be said than that it has not changed
    return f'"{getattr(outcome.value, operation.etag)}"'


def is_known(tag: str, headers: Headers) -> bool:
    """Has the client this already? Compared weakly (RFC 9110, 13.1.2)."""
    given = [each.strip().removeprefix("W/") for each in headers.if_none_match.split(",")]
    return tag in given or given == ["*"]


def check_idempotency_key(key: str) -> str:
    if len(key) > 255 or not key.isprintable():
        problem = {
            "pointer": "/Idempotency-Key",
            "code": "bad_key",
            "detail": "1 to 255 printable characters",
        }
        raise Invalid([problem])
    return key


def is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def read_body(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in a body; nothing is an empty one.

    Raises: UnsupportedMediaType, Malformed, Invalid.
    """
    if not body:
        return {}
    if not is_json(content_type):
        raise UnsupportedMediaType("Send Content-Type: application/json.")
    return read_object(body)


def read_object(text: bytes, deepest: int = MAX_DEPTH) -> dict[str, Any]:
    """A JSON object that nests no deeper than this.

    Raises: Malformed, Invalid.
    """
    found = read_json(text, deepest)
    if not isinstance(found, dict):
        raise Invalid([{"pointer": "/", "code": "object_type", "detail": "the body is a JSON object"}])
    return found


def read_json(text: bytes, deepest: int = MAX_DEPTH) -> Any:
    """A JSON value that nests no deeper than this.

    Raises: Malformed.
    """
    if depth(text) > deepest:
        raise Malformed(f"JSON nests deeper than {deepest}.")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"Not JSON: {error}") from None


def read_query(text: str) -> dict[str, Any]:
    """Query parameters; one that repeats is a list.

    Raises: Malformed.
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=200)
    except ValueError as error:
        raise Malformed(f"Bad query string: {error}") from None
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            known = found[name]
            found[name] = [*known, value] if isinstance(known, list) else [known, value]
        else:
            found[name] = value
    return found


def parameters(
    operation: Operation, method: str, path: Mapping[str, str], query: dict[str, Any], body: dict[str, Any]
) -> dict[str, Any]:
    """Path, query string and body as the operation's parameters.

    Raises: Invalid; Malformed, when the same name is given twice with different values.
    """
    query = as_pairs(operation, query)
    if not body and (query or path or method == "GET"):
        return operation.parse(as_lists(operation, {**query, **path}), strict=False)
    if query:
        body = {**query, **body}
    for name, value in path.items():
        if body.setdefault(name, value) != value:
            raise Invalid([{"pointer": f"/{name}", "code": "mismatch", "detail": "path and body disagree"}])
    return operation.parse(body, strict=not query)


def as_pairs(operation: Operation, query: dict[str, Any]) -> dict[str, Any]:
    """`tag.order=42` is `tag=order:42`, where a list has items of that form."""
    for name in operation.pairs:
        for each in [each for each in query if each.startswith(f"{name}.")]:
            items = [f"{each.removeprefix(f'{name}.')}:{value}" for value in listed(query.pop(each))]
            query[name] = [*listed(query.get(name, [])), *items]
    return query


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def as_lists(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """A query string gives a list of one as a single value."""
    return {name: listed(value) if name in operation.lists else value for name, value in values.items()}
