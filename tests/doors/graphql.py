"""GraphQL, over a real socket: a client that knows the checked-in schema and writes its documents from it."""

from functools import cache
from pathlib import Path
from typing import Any

import httpx
from graphql import GraphQLInputObjectType, GraphQLList, build_schema, get_nullable_type
from graphql.type import GraphQLSchema

from core.operations import Operation
from tests.doors.base import HEADERS, Answer, Door

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "contracts" / "schema.graphql"
client = httpx.Client(timeout=60)


@cache
def schema() -> GraphQLSchema:
    return build_schema(SCHEMA.read_text())


def camel(name: str) -> str:
    first, *rest = name.replace(".", "_").split("_")
    return first + "".join(part.capitalize() for part in rest)


def is_connection(gives: dict[str, Any]) -> bool:
    return set(gives.get("properties", ())) == {"items", "next_cursor"}


def variants(gives: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that an answer may be; none, for a scalar or any JSON."""
    if "anyOf" in gives:
        return [found for option in gives["anyOf"] for found in variants(option, definitions)]
    if "$ref" in gives:
        return [definitions[gives["$ref"].rpartition("/")[2]]]
    if gives.get("type") == "array":
        return variants(gives["items"], definitions)
    return [gives] if "properties" in gives else []


def selection(gives: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Every field of an answer."""
    fields = {n: each for found in variants(gives, definitions) for n, each in found["properties"].items()}
    inside = " ".join(camel(name) + selection(each, definitions) for name, each in fields.items())
    return f" {{ {inside} }}" if inside else ""


def back(value: Any, gives: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """An answer as REST would write it."""
    if isinstance(value, list) and gives.get("type") == "array":
        return [back(each, gives["items"], definitions) for each in value]
    found = variants(gives, definitions)
    if not found or not isinstance(value, dict):
        return value
    return {
        name: back(value[camel(name)], each, definitions)
        for variant in found
        for name, each in variant["properties"].items()
        # Of several objects in one type, and of a replay without its secret, some fields are not there.
        if value[camel(name)] is not None or "null" in str(each) or not each.get("type")
    }


def forth(value: Any, kind: Any) -> Any:
    """A value as GraphQL takes it: the fields of input objects in camel case."""
    kind = kind and get_nullable_type(kind)
    if isinstance(kind, GraphQLList) and isinstance(value, list):
        return [forth(each, kind.of_type) for each in value]
    if isinstance(kind, GraphQLInputObjectType) and isinstance(value, dict):
        fields = {name: kind.fields.get(camel(name)) for name in value}
        return {camel(name): forth(value[name], each and each.type) for name, each in fields.items()}
    return value


class GraphQL(Door):
    name = "graphql"

    def ask(self, query: str, variables: dict[str, Any], **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.served.port}/graphql"
        body = {"query": query, "variables": variables}
        return client.post(url, json=body, headers={HEADERS["namespace"]: self.namespace, **headers})

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        query, variables = self.document(operation, params, about)
        response = self.ask(query, variables, **{HEADERS["namespace"]: about["namespace"]})
        body = response.json()
        headers = dict(response.headers)
        if errors := body.get("errors"):
            problem = errors[0]["extensions"]
            return Answer(problem["status"], problem, headers)
        told = body["extensions"]["syros"]["answer"]
        headers["idempotency-replayed"] = str(told["replayed"]).lower()
        return Answer(told["status"], self.read(operation, body["data"]["answer"]), headers)

    def document(
        self, operation: Operation, params: dict[str, Any], about: dict[str, str]
    ) -> tuple[str, dict[str, Any]]:
        kind, field = self.field(operation)
        names = {"limit": "first", "cursor": "after"} if is_connection(operation.gives) else {}
        given = {names.get(name, camel(name)): value for name, value in params.items()}
        if "key" in about:
            given["idempotencyKey"] = about["key"]
        types = {name: field.args[name].type if name in field.args else "JSON" for name in given}
        variables = {
            name: forth(value, field.args.get(name) and types[name]) for name, value in given.items()
        }
        declared = ", ".join(f"${name}: {types[name]}" for name in given)
        passed = ", ".join(f"{name}: ${name}" for name in given)
        head = f"{kind}({declared})" if given else kind
        arguments = f"({passed})" if given else ""
        return f"{head} {{ answer: {camel(operation.name)}{arguments}{self.selected(operation)} }}", variables

    def field(self, operation: Operation) -> tuple[str, Any]:
        name = camel(operation.name)
        for kind, root in (("query", schema().query_type), ("mutation", schema().mutation_type)):
            if root and name in root.fields:
                return kind, root.fields[name]
        raise AssertionError(f"{name} is not in the schema")

    def selected(self, operation: Operation) -> str:
        gives = operation.gives
        if is_connection(gives):
            nodes = selection(gives["properties"]["items"], gives["$defs"])
            return f" {{ nodes{nodes} pageInfo {{ hasNextPage endCursor }} }}"
        return selection(gives, gives.get("$defs", {}))

    def read(self, operation: Operation, value: Any) -> Any:
        gives = operation.gives
        if is_connection(gives):
            page = value["pageInfo"]
            assert page["hasNextPage"] is (page["endCursor"] is not None)
            items = back(value["nodes"], gives["properties"]["items"], gives["$defs"])
            return {"items": items, "next_cursor": page["endCursor"]}
        return back(value, gives, gives.get("$defs", {}))
