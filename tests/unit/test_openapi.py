"""The OpenAPI document: every public operation, every error, every reference."""

import json
import re
from typing import Any

import pytest
from django.urls import get_resolver
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator

from core.operations import Operation, registry
from tests.documents import walk

PUBLIC = [operation for operation in registry if operation.route]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    assert get_resolver().url_patterns
    GENERATOR_STATS.reset()
    found = SchemaGenerator().get_schema(request=None, public=True)
    return json.loads(json.dumps(found))


def described(schema: dict[str, Any], operation: Operation) -> dict[str, Any]:
    assert operation.route
    found: dict[str, Any] = schema["paths"][f"/api/v1/{operation.route.path}"][operation.route.method.lower()]
    return found


def inputs(about: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The path and query parameters by name, and the body's properties."""
    parameters = {each["name"]: each for each in about["parameters"] if each["in"] in {"path", "query"}}
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return parameters, body.get("properties", {})


def test_version_is_3_1(schema: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", schema["openapi"])
    assert schema["info"]["title"] == "Syros"


def test_generating_warns_of_nothing(schema: dict[str, Any]) -> None:
    assert not GENERATOR_STATS


def test_every_public_operation_is_there_once_and_nothing_else(schema: dict[str, Any]) -> None:
    found = [about["operationId"] for methods in schema["paths"].values() for about in methods.values()]
    assert sorted(found) == sorted(operation.name.replace(".", "_") for operation in PUBLIC)


@pytest.mark.parametrize("operation", PUBLIC, ids=lambda operation: operation.name)
class TestOperation:
    def test_documentation_is_its_docstring(self, schema: dict[str, Any], operation: Operation) -> None:
        about = described(schema, operation)
        assert about["description"] == operation.doc
        assert about["summary"] == operation.doc.split("\n")[0]

    def test_errors_are_problems(self, schema: dict[str, Any], operation: Operation) -> None:
        refused = described(schema, operation)["responses"]["default"]
        assert refused["content"] == {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        }

    def test_success_has_the_operations_status_and_a_schema(
        self, schema: dict[str, Any], operation: Operation
    ) -> None:
        about = described(schema, operation)
        assert set(about["responses"]) == {
            str(operation.status),
            "default",
            *(["304"] if operation.etag else []),
        }
        content = about["responses"][str(operation.status)]["content"]
        assert list(content) == ["text/event-stream" if operation.streams else "application/json"]
        assert all(each["schema"] for each in content.values())

    def test_every_parameter_is_documented_in_one_place(
        self, schema: dict[str, Any], operation: Operation
    ) -> None:
        assert operation.route
        parameters, body = inputs(described(schema, operation))
        expected = set(operation.params.model_fields)
        if operation.route.method in {"GET", "DELETE"}:
            expected -= {"fence"}
        assert set(parameters) | set(body) == expected
        assert not set(parameters) & set(body)
        assert {name for name, each in parameters.items() if each["in"] == "path"} == set(
            operation.route.names
        )
        assert all(each["required"] for each in parameters.values() if each["in"] == "path")

    def test_headers_are_documented(self, schema: dict[str, Any], operation: Operation) -> None:
        headers = [
            each["name"] for each in described(schema, operation)["parameters"] if each["in"] == "header"
        ]
        expected = [] if operation.anonymous else ["Syros-Namespace", "X-Request-Id"]
        expected += ["Idempotency-Key"] if operation.kind == "command" else []
        assert headers == expected + (["If-None-Match"] if operation.etag else [])

    def test_credentials_are_asked_of_all_but_the_anonymous(
        self, schema: dict[str, Any], operation: Operation
    ) -> None:
        security = described(schema, operation)["security"]
        assert security == ([{}] if operation.anonymous else [{"bearer": []}, {"apiKey": []}])


def test_every_reference_resolves(schema: dict[str, Any]) -> None:
    references = {each["$ref"] for each in walk(schema) if isinstance(each.get("$ref"), str)}
    assert "#/components/schemas/Problem" in references
    for reference in references:
        found: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert isinstance(found, dict)
        assert found


def test_no_component_is_there_for_nothing(schema: dict[str, Any]) -> None:
    references = {each["$ref"] for each in walk(schema) if isinstance(each.get("$ref"), str)}
    assert {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]} == references


def test_no_definitions_are_left_inside(schema: dict[str, Any]) -> None:
    assert [each for each in walk(schema) if "$defs" in each] == []


def test_problem_is_that_of_the_errors(schema: dict[str, Any]) -> None:
    problem = schema["components"]["schemas"]["Problem"]
    assert problem["required"] == ["type", "title", "status", "detail", "code", "request_id", "retryable"]
    assert set(problem["properties"]) == {*problem["required"], "errors"}
    assert set(problem["properties"]["errors"]["items"]["properties"]) == {"pointer", "code", "detail"}


def test_both_credentials_are_described(schema: dict[str, Any]) -> None:
    assert schema["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }


def test_limits_are_in_the_schema(schema: dict[str, Any]) -> None:
    body = described(schema, registry["locks.acquire"])["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert body["required"] == ["key", "owner"]
    assert body["additionalProperties"] is False
    key, wait = body["properties"]["key"], body["properties"]["wait_seconds"]
    assert (key["type"], key["minLength"], key["maxLength"]) == ("string", 1, 255)
    assert (wait["type"], wait["minimum"], wait["maximum"], wait["default"]) == ("number", 0, 300, 0.0)
    assert body["properties"]["fence"]["anyOf"][0] == {"$ref": "#/components/schemas/Fence"}


def test_document_is_valid_openapi(schema: dict[str, Any]) -> None:
    from drf_spectacular.validation import validate_schema

    validate_schema(schema)
