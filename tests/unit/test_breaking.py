"""Which changes break a client, and which do not."""

import json
from pathlib import Path
from typing import Any

import pytest

from api import breaking

ROOT = Path(__file__).resolve().parent.parent.parent

NUMBER = {"type": "number", "minimum": 0, "maximum": 300}
WORD = {"type": "string", "enum": ["a", "b"]}
SMALL = {"type": "string", "pattern": "^[a-z]*$"}
DAY, TIME = {"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}


def thing(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def either(*schemas: Any) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


NULL, TEXT, WHOLE, ANY = {"type": "null"}, {"type": "string"}, {"type": "integer"}, dict[str, Any]()

SAME = [
    ANY, TEXT, NUMBER, WORD, SMALL, DAY, thing(("a",), a=NUMBER), either(TEXT, NULL), {"type": "array", "items": WORD},
]  # fmt: skip


@pytest.mark.parametrize("schema", SAME)
def test_what_stays_breaks_nobody(schema: Any) -> None:
    assert list(breaking.parameters(schema, schema, "x")) == []
    assert list(breaking.answers(schema, schema, "x")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (WHOLE, {"type": "number"}),
        (TEXT, either(TEXT, NULL)),
        (TEXT, ANY),
        (NUMBER, {"type": "number", "minimum": -1, "maximum": 301}),
        (NUMBER, {"type": "number"}),
        (WORD, {"type": "string", "enum": ["a", "b", "c"]}),
        (WORD, TEXT),
        (SMALL, TEXT),
        (DAY, TEXT),
        (thing(("a",), a=TEXT), thing(a=TEXT)),
        (thing(a=TEXT), thing(a=TEXT, b=TEXT)),
        ({"type": "array", "items": WHOLE}, {"type": "array", "items": either(WHOLE, TEXT)}),
    ],
)
def test_parameters_may_widen(old: Any, new: Any) -> None:
    assert list(breaking.parameters(old, new, "x")) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"type": "number"}, WHOLE, "number where integer"),
        (either(TEXT, NULL), TEXT, "null where string"),
        (ANY, TEXT, "anything where string"),
        (NUMBER, {"type": "number", "minimum": 1}, "minimum of 1"),
        ({"type": "string"}, {"type": "string", "maxLength": 5}, "maxLength of 5"),
        (TEXT, SMALL, "pattern None where ^[a-z]*$"),
        (SMALL, {"type": "string", "pattern": "^[a-y]*$"}, "pattern ^[a-z]*$ where ^[a-y]*$"),
        (TEXT, DAY, "format None where date"),
        (DAY, TIME, "format date where date-time"),
        (WORD, {"type": "string", "enum": ["a"]}, "b is not taken"),
        (TEXT, WORD, "any other word"),
        (thing(a=TEXT), thing(("a",), a=TEXT), "x.a: is required"),
        (thing(a=TEXT), thing(("b",), a=TEXT, b=TEXT), "x.b: is required"),
        (thing(a=TEXT), thing(), "x.a: is gone"),
        (thing(a=thing(b=TEXT)), thing(a=thing(b=WHOLE)), "x.a.b: string where integer"),
        ({"type": "array", "items": TEXT}, {"type": "array", "items": WHOLE}, "x[]: string where integer"),
    ],
)
def test_parameters_may_not_narrow(old: Any, new: Any, said: str) -> None:
    (complaint,) = breaking.parameters(old, new, "x")
    assert said in complaint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "number"}, WHOLE),
        (either(TEXT, NULL), TEXT),
        (thing(("a",), a=TEXT), thing(("a", "b"), a=TEXT, b=TEXT)),
        (thing(a=TEXT), thing(("a",), a=TEXT)),
        (WORD, {"type": "string", "enum": ["a", "b", "c"]}),
        (TEXT, SMALL),
        (TEXT, DAY),
    ],
)
def test_answers_may_grow(old: Any, new: Any) -> None:
    assert list(breaking.answers(old, new, "x")) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (WHOLE, {"type": "number"}, "number where integer"),
        (TEXT, either(TEXT, NULL), "null where string"),
        (DAY, TIME, "format date-time where date"),
        (DAY, TEXT, "format None where date"),
        (thing(("a",), a=TEXT), thing(a=TEXT), "x.a: may be missing"),
        (thing(("a",), a=TEXT), thing(), "x.a: is gone"),
        (thing(a=TEXT), thing(), "x.a: is gone"),
        (thing(a=either(thing(b=TEXT), NULL)), thing(a=either(thing(), NULL)), "x.a.b: is gone"),
    ],
)
def test_answers_may_not_shrink(old: Any, new: Any, said: str) -> None:
    (complaint,) = breaking.answers(old, new, "x")
    assert said in complaint


def test_references_are_followed_each_in_its_own_document() -> None:
    def document(kind: str) -> dict[str, Any]:
        return {"defs": {"A": thing(a={"$ref": "#/defs/B"}), "B": {"type": kind}}}

    old, new = (breaking.resolved(document(kind), {"$ref": "#/defs/A"}) for kind in ("string", "integer"))
    assert list(breaking.answers(old, new, "x")) == ["x.a: integer where string is expected"]


def test_a_type_that_holds_itself_comes_to_an_end() -> None:
    tree = {"defs": {"Tree": thing(left={"$ref": "#/defs/Tree"})}}
    assert breaking.resolved(tree, {"$ref": "#/defs/Tree"}) == thing(left={})


def body(kind: str = "application/json", *, is_required: bool = False, **properties: Any) -> dict[str, Any]:
    schema = thing(tuple(properties), **properties)
    return {"required": is_required, "content": {kind: {"schema": schema}}}


BODY = body(owner=TEXT)


def openapi(**changes: Any) -> dict[str, Any]:
    operation = {
        "operationId": "locks_get",
        "parameters": [{"name": "key", "in": "path", "required": True, "schema": TEXT}],
        "requestBody": BODY,
        "responses": {
            "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}
        },
        "security": [{"bearer": []}, {"apiKey": []}],
    }
    return {
        "paths": {"/locks": {"get": {**operation, **changes}}},
        "components": {"schemas": {"A": thing(("a",), a=TEXT)}},
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operationId": "locks_look"}, "locks_get: is called locks_look now"),
        ({"parameters": []}, "locks_get.path.key: is gone"),
        (
            {"parameters": [{"name": "key", "in": "header", "required": False, "schema": TEXT}]},
            "locks_get.path.key: is gone",
        ),
        ({"requestBody": body(owner=TEXT, key=TEXT)}, "locks_get.key: is required now"),
        ({"requestBody": body(owner=TEXT, is_required=True)}, "locks_get: a body is required now"),
        ({"requestBody": body("text/xml", owner=TEXT)}, "locks_get: application/json is gone"),
        ({"requestBody": {}}, "locks_get: application/json is gone"),
        ({"responses": {"201": {}}}, "locks_get 200: is gone"),
        ({"responses": {"200": {}}}, "locks_get 200: application/json is gone"),
        ({"responses": {"200": BODY}}, "locks_get 200.a: is gone"),
        ({"security": [{"bearer": []}]}, "locks_get: apiKey is not enough any more"),
        (
            {"security": [{"bearer": []}, {"apiKey": [], "mtls": []}]},
            "locks_get: apiKey is not enough any more",
        ),
    ],
)
def test_a_document_of_openapi(changes: Any, said: str) -> None:
    assert list(breaking.in_openapi(openapi(), openapi())) == []
    assert list(breaking.in_openapi(openapi(), openapi(**changes))) == [said]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "parameters": [
                *openapi()["paths"]["/locks"]["get"]["parameters"],
                {"name": "x", "in": "query", "schema": TEXT},
            ]
        },
        {"requestBody": {"content": {**BODY["content"], "text/xml": {}}}},
        {"security": [{"bearer": []}, {"apiKey": []}, {"mtls": []}]},
        {"security": []},
    ],
)
def test_a_document_of_openapi_may_grow(changes: Any) -> None:
    assert list(breaking.in_openapi(openapi(), openapi(**changes))) == []


def test_what_was_open_to_all_and_is_no_more() -> None:
    """Also when it is said of the whole document."""
    said = ["locks_get: to be anonymous is not enough any more"]
    assert list(breaking.in_openapi(openapi(security=[{}]), openapi())) == said
    old, new = openapi(), {**openapi(), "security": [{"bearer": []}]}
    for document in (old, new):
        del document["paths"]["/locks"]["get"]["security"]
    assert list(breaking.in_openapi(old, new)) == said


def operations(**changes: Any) -> dict[str, Any]:
    ttl = {"name": "ttl_seconds", "type": "number", "limits": {"maximum": 9}, "aliases": ["ttl"], **changes}
    return {"operations": [{"name": "locks.acquire", "parameters": [ttl]}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "life"}, ["ttl_seconds: is gone"]),
        ({"aliases": []}, ["ttl: is gone"]),
        ({"required": True}, ["ttl_seconds: is required now"]),
        (
            {"type": "string"},
            ["ttl: number where string is expected", "ttl_seconds: number where string is expected"],
        ),
        (
            {"list": True},
            ["ttl: number where array is expected", "ttl_seconds: number where array is expected"],
        ),
        ({"limits": {"maximum": 10}, "aliases": ["ttl", "t"], "help": "…"}, []),
    ],
)
def test_the_operations_of_the_command_line(changes: Any, said: list[str]) -> None:
    assert list(breaking.in_operations(operations(), operations())) == []
    complaints = list(breaking.in_operations(operations(), operations(**changes)))
    assert complaints == [f"locks.acquire.{each}" for each in said]
    assert list(breaking.in_operations(operations(), {"operations": []})) == ["locks.acquire: is gone"]


def test_an_operation_that_is_gone() -> None:
    gone = list(breaking.in_openapi(openapi(), {**openapi(), "paths": {}}))
    assert gone == ["locks_get: GET /locks is gone"]


def test_a_graphql_schema() -> None:
    old, new = "type Query { a: String, b: Int! }", "type Query { b: Int! }"
    assert list(breaking.in_sdl(old, old)) == []
    assert list(breaking.in_sdl(old, new)) == ["Query.a was removed."]


PROTO = """package p.v1;

service S {
  rpc Get(A) returns (B);
}

message A {
  // a comment = 7;
  optional int64 a = 1;
  oneof more {
    C c = 2;
  }
}
"""


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("  optional int64 a = 1;", "  reserved 1;", "A.a: is gone"),
        ("int64 a = 1", "double a = 1", "A.a: optional double = 1 where optional int64 = 1 is expected"),
        ("p.v1", "p.v2", "package: p.v2 where p.v1 is expected"),
        ("oneof more", "oneof less", "A.more: is gone"),
        ("C c = 2", "C c = 3", "A.c: C = 3 where C = 2 is expected"),
        ("(B)", "(stream B)", "S.Get: (A) returns (stream B) where (A) returns (B) is expected"),
    ],
)
def test_a_proto_file(was: str, now: str, said: str) -> None:
    assert list(breaking.in_proto(PROTO, PROTO)) == []
    assert list(breaking.in_proto(PROTO, PROTO.replace("C c = 2;", "C c = 2;\n    D d = 3;"))) == []
    assert list(breaking.in_proto(PROTO, PROTO.replace(was, now))) == [said]


def asyncapi(**messages: Any) -> dict[str, Any]:
    known = {"ask": thing(("id",), id=TEXT, key=TEXT), "told": thing(("id",), id=TEXT), **messages}

    def references(name: str) -> list[dict[str, str]]:
        return [{"$ref": f"#/messages/{name}"}] if name in known else []

    operation = {
        "action": "receive",
        "messages": references("ask"),
        "reply": {"messages": references("told")},
    }
    return {
        "operations": {"ask": operation},
        "messages": {name: {"payload": payload} for name, payload in known.items()},
    }


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ({"ask": thing(("id",), id=TEXT)}, "ask.key: is gone"),
        ({"ask": thing(("id", "key"), id=TEXT, key=TEXT)}, "ask.key: is required now"),
        ({"told": thing()}, "told.id: is gone"),
        ({"told": thing(("id",), id={"oneOf": [TEXT, NULL]})}, "told.id: null where string is expected"),
    ],
)
def test_a_document_of_asyncapi(messages: Any, said: str) -> None:
    assert list(breaking.in_asyncapi(asyncapi(), asyncapi())) == []
    assert list(breaking.in_asyncapi(asyncapi(), asyncapi(more=thing()))) == []
    assert list(breaking.in_asyncapi(asyncapi(), asyncapi(**messages))) == [said]
    assert list(breaking.in_asyncapi(asyncapi(), {"operations": {}})) == ["ask: is gone"]
    silent = {
        "ask": {each: value for each, value in asyncapi()["operations"]["ask"].items() if each != "reply"}
    }
    assert list(breaking.in_asyncapi(asyncapi(), {**asyncapi(), "operations": silent})) == ["told: is gone"]


def test_the_document_of_today_is_compared_whole() -> None:
    """Not only the little ones of these tests: with every operation in it, nothing breaks, and any loss is seen."""
    for path, compare in (
        ("docs/contracts/openapi.json", breaking.in_openapi),
        ("sdks/python/syros/operations.json", breaking.in_operations),
    ):
        document = json.loads((ROOT / path).read_text())
        assert list(compare(document, document)) == []
    old = json.loads((ROOT / "docs/contracts/asyncapi.json").read_text())
    assert list(breaking.in_asyncapi(old, old)) == []
    for name in old["operations"]:
        left = {each: value for each, value in old["operations"].items() if each != name}
        assert list(breaking.in_asyncapi(old, {**old, "operations": left})) == [f"{name}: is gone"]
