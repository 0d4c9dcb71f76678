"""What a change of a published document breaks for those who rely on it. Pure.

Parameters only widen: what was taken stays taken. Answers only grow: what was there stays there. New words in an
answer's enumeration are no break; clients are told to expect them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graphql import build_schema, find_breaking_changes

Schema = Mapping[str, Any]
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def parameters(old: Schema, new: Schema, at: str) -> Iterator[str]:
    """Why what clients send may be refused now."""
    return misfits(old, new, at, tolerant=False)


def answers(old: Schema, new: Schema, at: str) -> Iterator[str]:
    """Why what clients read may not be there now."""
    return misfits(new, old, at, tolerant=True)


def misfits(sent: Schema, expected: Schema, at: str, *, tolerant: bool) -> Iterator[str]:
    """Why a value of the schema `sent` may not be what `expected` describes.

    Parameters: two JSON Schemas without references; `tolerant`, the expecting side passes over what it does not know.
    """
    for each in alternatives(sent):
        against = (list(_misfits(each, one, at, tolerant)) for one in alternatives(expected))
        yield from min(against, key=len)


def alternatives(schema: Schema) -> list[Schema]:
    found: list[Schema] = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return found


def _misfits(sent: Schema, expected: Schema, at: str, tolerant: bool) -> Iterator[str]:
    kinds = sent.get("type"), expected.get("type")
    if kinds[1] and kinds[0] != kinds[1] and kinds != ("integer", "number"):
        yield f"{at}: {kinds[0] or 'anything'} where {kinds[1]} is expected"
        return
    yield from _limits(sent, expected, at)
    if not tolerant:
        yield from _words(sent, expected, at)
    if "items" in expected:
        yield from misfits(sent.get("items", {}), expected["items"], f"{at}[]", tolerant=tolerant)
    if "properties" in expected:
        yield from _fields(sent, expected, at, tolerant)


def _limits(sent: Schema, expected: Schema, at: str) -> Iterator[str]:
    for name in (*LOWER, *UPPER):
        if name in expected:
            limit, was = expected[name], sent.get(name)
            if was is None or (was < limit if name in LOWER else was > limit):
                yield f"{at}: {name} of {limit} where it was {was}"


def _words(sent: Schema, expected: Schema, at: str) -> Iterator[str]:
    taken = words(expected)
    if taken is None:
        return
    given = words(sent)
    lost = ["any other word"] if given is None else [word for word in given if word not in taken]
    yield from (f"{at}: {word} is not taken any more" for word in lost)


def words(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _fields(sent: Schema, expected: Schema, at: str, tolerant: bool) -> Iterator[str]:
    has, wanted = sent.get("properties", {}), expected["properties"]
    gone = sorted(wanted.keys() - has.keys() if tolerant else has.keys() - wanted.keys())
    yield from (f"{at}.{name}: is gone" for name in gone)
    for name in sorted(has.keys() & wanted.keys()):
        yield from misfits(has[name], wanted[name], f"{at}.{name}", tolerant=tolerant)
    for name in sorted(set(expected.get("required", ())) - set(sent.get("required", ())) - set(gone)):
        yield f"{at}.{name}: {'may be missing' if tolerant else 'is required'} now"


def resolved(document: Schema, schema: Any, within: tuple[str, ...] = ()) -> Any:
    """A schema with its references replaced by what they name; a type that holds itself ends at the second time."""
    if isinstance(schema, list):
        return [resolved(document, each, within) for each in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref")
    if isinstance(name, str):
        return {} if name in within else resolved(document, find(document, name), (*within, name))
    return {key: resolved(document, value, within) for key, value in schema.items()}


def find(document: Schema, reference: str) -> Any:
    """What a local reference (`#/components/schemas/Grant`) names."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


# -- whole documents ---------------------------------------------------------------------------------


def in_openapi(old: Schema, new: Schema) -> Iterator[str]:
    """What breaks between two versions of an OpenAPI document."""
    for path, methods in old["paths"].items():
        for method, operation in methods.items():
            name, after = operation["operationId"], new["paths"].get(path, {}).get(method)
            if after is None:
                yield f"{name}: {method.upper()} {path} is gone"
                continue
            yield from parameters(_query(old, operation), _query(new, after), name)
            yield from parameters(_body(old, operation), _body(new, after), name)
            yield from _answers(old, operation, new, after)


def _query(document: Schema, operation: Schema) -> Schema:
    """The parameters in path, query and headers, as one object."""
    listed = operation.get("parameters", ())
    return {
        "type": "object",
        "properties": {each["name"]: resolved(document, each["schema"]) for each in listed},
        "required": [each["name"] for each in listed if each.get("required")],
    }


def _body(document: Schema, operation: Schema) -> Schema:
    body = operation.get("requestBody", {})
    return _content(document, body) or {"type": "object", "properties": {}}


def _content(document: Schema, holder: Schema) -> Any:
    for kind in holder.get("content", {}).values():
        return resolved(document, kind.get("schema", {}))
    return {}


def _answers(old: Schema, operation: Schema, new: Schema, after: Schema) -> Iterator[str]:
    for status, response in operation["responses"].items():
        at = f"{operation['operationId']} {status}"
        if status not in after["responses"]:
            yield f"{at}: is gone"
        else:
            yield from answers(_content(old, response), _content(new, after["responses"][status]), at)


def in_asyncapi(old: Schema, new: Schema) -> Iterator[str]:
    """What breaks between two versions of an AsyncAPI document, in which the server receives, replies and sends."""
    for name, operation in old["operations"].items():
        after = new["operations"].get(name)
        if after is None:
            yield f"{name}: is gone"
            continue
        compare = parameters if operation["action"] == "receive" else answers
        yield from _messages(old, operation, new, after, compare)
        if "reply" in operation:
            yield from _messages(old, operation["reply"], new, after["reply"], answers)


def _messages(
    old: Schema,
    had: Schema,
    new: Schema,
    has: Schema,
    compare: Callable[[Schema, Schema, str], Iterator[str]],
) -> Iterator[str]:
    left = {reference["$ref"] for reference in has["messages"]}
    for reference in had["messages"]:
        at = reference["$ref"].rpartition("/")[2]
        if reference["$ref"] not in left:
            yield f"{at}: is gone"
        else:
            before, after = (resolved(each, reference)["payload"] for each in (old, new))
            yield from compare(before, after, at)


def in_sdl(old: str, new: str) -> Iterator[str]:
    """What breaks between two versions of a GraphQL schema."""
    for change in find_breaking_changes(build_schema(old), build_schema(new)):
        yield change.description


def in_proto(old: str, new: str) -> Iterator[str]:
    """What breaks between two versions of a .proto file of ours: a field, its type or its number."""
    had, has = members(old), members(new)
    for name, what in had.items():
        if name not in has:
            yield f"{name}: is gone"
        elif has[name] != what:
            yield f"{name}: {has[name]} where {what} is expected"


def members(text: str) -> dict[str, str]:
    """`Message.field: "repeated string = 3"` and `Service.Method: "(…) returns (…)"` of a .proto file."""
    found: dict[str, str] = {}
    holder = ""
    for line in text.splitlines():
        if start := re.match(r"(?:message|service) (\w+) \{", line):
            holder = start[1]
        elif method := re.match(r"  rpc (\w+)(.*);", line):
            found[f"{holder}.{method[1]}"] = method[2]
        elif member := re.match(r"\s+([\w. ]+) (\w+) = (\d+);", line):
            found[f"{holder}.{member[2]}"] = f"{member[1]} = {member[3]}"
    return found
