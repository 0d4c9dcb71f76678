"""What a change of a published document breaks for those who rely on it. Pure.

Parameters only widen: what was taken stays taken. Answers only grow: what was there stays there. New words in an
answer's enumeration are no break; clients are told to expect them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from graphql import build_schema, find_breaking_changes

from api.schemas import Schema, options, referred, words

Comparison = Callable[[Schema, Schema, str], Iterator[str]]
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
FORMS = ("pattern", "format")  # whether one is narrower than another cannot be told


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
    for each in options(sent):
        against = (list(_misfits(each, one, at, tolerant)) for one in options(expected))
        yield from min(against, key=len)


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
    for name in FORMS:
        if name in expected and sent.get(name) != expected[name]:
            yield f"{at}: {name} {sent.get(name)} where {expected[name]} is expected"


def _words(sent: Schema, expected: Schema, at: str) -> Iterator[str]:
    taken = words(expected)
    if taken is None:
        return
    given = words(sent)
    lost = ["any other word"] if given is None else [word for word in given if word not in taken]
    yield from (f"{at}: {word} is not taken any more" for word in lost)


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
            if after["operationId"] != name:
                yield f"{name}: is called {after['operationId']} now"
            yield from parameters(_listed(old, operation), _listed(new, after), name)
            yield from _body(old, operation, new, after)
            yield from _answers(old, operation, new, after)
            yield from _security(old, operation, new, after)


def _listed(document: Schema, operation: Schema) -> Schema:
    """The parameters in path, query and headers, as one object."""
    listed = {f"{each['in']}.{each['name']}": each for each in operation.get("parameters", ())}
    return {
        "type": "object",
        "properties": {name: resolved(document, each["schema"]) for name, each in listed.items()},
        "required": [name for name, each in listed.items() if each.get("required")],
    }


def _body(old: Schema, operation: Schema, new: Schema, after: Schema) -> Iterator[str]:
    at, had, has = operation["operationId"], operation.get("requestBody", {}), after.get("requestBody", {})
    if has.get("required") and not had.get("required"):
        yield f"{at}: a body is required now"
    yield from _contents(old, had, new, has, at, parameters)


def _contents(
    old: Schema, had: Schema, new: Schema, has: Schema, at: str, compare: Comparison
) -> Iterator[str]:
    """A body or an answer: each content type that there was."""
    left = has.get("content", {})
    for kind, before in had.get("content", {}).items():
        if kind not in left:
            yield f"{at}: {kind} is gone"
        else:
            schemas = resolved(old, before.get("schema", {})), resolved(new, left[kind].get("schema", {}))
            yield from compare(*schemas, at)


def _answers(old: Schema, operation: Schema, new: Schema, after: Schema) -> Iterator[str]:
    for status, response in operation["responses"].items():
        at = f"{operation['operationId']} {status}"
        if status not in after["responses"]:
            yield f"{at}: is gone"
        else:
            yield from _contents(old, response, new, after["responses"][status], at, answers)


def _security(old: Schema, operation: Schema, new: Schema, after: Schema) -> Iterator[str]:
    """What sufficed as credentials suffices still: an alternative asks for no more than that."""
    asked = list(map(set, _credentials(new, after)))
    for given in map(set, _credentials(old, operation)):
        if not any(each <= given for each in asked):
            known = " and ".join(sorted(given)) or "to be anonymous"
            yield f"{operation['operationId']}: {known} is not enough any more"


def _credentials(document: Schema, operation: Schema) -> list[Schema]:
    """The alternatives, each with its schemes; where nothing is said, none is needed."""
    return operation.get("security", document.get("security")) or [{}]


def in_operations(old: Schema, new: Schema) -> Iterator[str]:
    """What breaks between two versions of the operations that the command line is made from."""
    left = {operation["name"]: operation for operation in new["operations"]}
    for operation in old["operations"]:
        name = operation["name"]
        if name not in left:
            yield f"{name}: is gone"
        else:
            yield from parameters(_options(operation), _options(left[name]), name)


def _options(operation: Schema) -> Schema:
    """What a command takes, by every name, as one object."""
    listed = operation["parameters"]
    return {
        "type": "object",
        "properties": {
            name: _option(each) for each in listed for name in (each["name"], *each.get("aliases", ()))
        },
        "required": [each["name"] for each in listed if each.get("required")],
    }


def _option(parameter: Schema) -> Schema:
    one = {key: parameter[key] for key in ("type", "enum") if key in parameter}
    whole = {"type": "array", "items": one} if parameter.get("list") else one
    return {**whole, **parameter.get("limits", {})}


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
            yield from _messages(old, operation["reply"], new, after.get("reply", {"messages": []}), answers)


def _messages(
    old: Schema,
    had: Schema,
    new: Schema,
    has: Schema,
    compare: Comparison,
) -> Iterator[str]:
    left = {reference["$ref"] for reference in has["messages"]}
    for reference in had["messages"]:
        at = referred(reference)
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
    """What breaks between two versions of a .proto file of ours: its package, a field, its type or its number."""
    had, has = members(old), members(new)
    for name, what in had.items():
        if name not in has:
            yield f"{name}: is gone"
        elif has[name] != what:
            yield f"{name}: {has[name]} where {what} is expected"


def members(text: str) -> dict[str, str]:
    """`Message.field: "repeated string = 3"`, `Message.choice: "oneof"`, `Service.Method: "(…) returns (…)"` and
    `package: "…"` of a .proto file."""
    found: dict[str, str] = {}
    holder = ""
    for line in text.splitlines():
        if start := re.match(r"(?:message|service) (\w+) \{", line):
            holder = start[1]
        elif package := re.match(r"package ([\w.]+);", line):
            found["package"] = package[1]
        elif choice := re.match(r"\s+oneof (\w+) \{", line):
            found[f"{holder}.{choice[1]}"] = "oneof"
        elif method := re.match(r"  rpc (\w+)(.*);", line):
            found[f"{holder}.{method[1]}"] = method[2]
        elif member := re.match(r"\s+([\w. ]+) (\w+) = (\d+);", line):
            found[f"{holder}.{member[2]}"] = f"{member[1]} = {member[3]}"
    return found
