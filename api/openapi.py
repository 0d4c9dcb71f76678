"""OpenAPI 3.1 from the registry, by way of drf-spectacular: one component for every error, no warnings."""

import json
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from pydantic import TypeAdapter

from core.operations import Operation, Route

REF = "#/components/schemas/{model}"
PROBLEM = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id", "retryable"],
    "properties": {
        "type": {"type": "string", "description": "a page that explains the code"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "stable, snake_case"},
        "request_id": {"type": "string"},
        "retryable": {"type": "boolean", "description": "the same request may succeed later"},
        "errors": {
            "type": "array",
            "description": "every bad field",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("pointer", "code", "detail")},
            },
        },
    },
}
HEADERS = [
    ("Syros-Namespace", "the namespace; else the credential's own"),
    ("X-Request-Id", "your name for this request, echoed"),
]
KNOWN = {"description": "entity tags; if the answer has one of them, it is 304 without a body"}
KEY_HEADER = ("Idempotency-Key", "the same key and body again: the first successful answer again")


def parameter(name: str, where: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:
    about = {"description": schema["description"]} if "description" in schema else {}
    return {"name": name, "in": where, "required": required, "schema": schema, **about}


class OperationSchema(AutoSchema):
    """What drf-spectacular asks for one path and method, answered by the operation that is there."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: Any
    ) -> dict[str, Any] | None:
        self.registry = registry
        operation: Operation = self.view.operations[method]
        route = operation.route
        if route is None or (route.method, f"/api/v1/{route.path}") != (method, path):
            return None  # an alias
        self._component("Problem", PROBLEM)
        found = {
            "operationId": operation.name.replace(".", "_"),
            "summary": operation.doc.split("\n")[0],
            "description": operation.doc,
            "tags": [operation.name.partition(".")[0]],
            "parameters": self._parameters(operation, route),
            "responses": self._responses(operation),
            "security": [{}] if operation.anonymous else [{"bearer": []}, {"apiKey": []}],
        }
        if body := self._body(operation, route):
            found["requestBody"] = body
        return found

    def _component(self, name: str, schema: dict[str, Any]) -> None:
        component = ResolvedComponent(name=name, type=ResolvedComponent.SCHEMA, schema=schema, object=name)
        self.registry.register_on_missing(component)

    def _hoist(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema whose definitions have become components."""
        for name, definition in schema.pop("$defs", {}).items():
            self._component(name, definition)
        return schema

    def _input(self, operation: Operation, route: Route) -> dict[str, Any]:
        schema = self._hoist(operation.params.model_json_schema(ref_template=REF))
        for each in schema.get("properties", {}).values():
            each.pop("title", None)
        return schema

    def _parameters(self, operation: Operation, route: Route) -> list[dict[str, Any]]:
        schema = self._input(operation, route)
        required = set(schema.get("required", ()))
        in_query = route.method in {"GET", "DELETE"}
        found = []
        for name, each in schema.get("properties", {}).items():
            if name in route.names:
                found.append(parameter(name, "path", each, True))
            elif in_query and name != "fence":
                found.append(parameter(name, "query", each, name in required))
        if not operation.anonymous:
            headers = [*HEADERS, KEY_HEADER] if operation.kind == "command" else HEADERS
            found += [
                {**parameter(name, "header", {"type": "string"}, False), "description": about}
                for name, about in headers
            ]
        if operation.etag:
            found.append({**parameter("If-None-Match", "header", {"type": "string"}, False), **KNOWN})
        return found

    def _body(self, operation: Operation, route: Route) -> dict[str, Any] | None:
        if route.method in {"GET", "DELETE"}:
            return None
        schema = self._input(operation, route)
        schema.pop("title", None)
        schema["properties"] = {n: s for n, s in schema["properties"].items() if n not in route.names}
        schema["required"] = [name for name in schema.get("required", ()) if name not in route.names]
        if not schema["required"]:
            del schema["required"]
        return {"required": "required" in schema, "content": {"application/json": {"schema": schema}}}

    def _responses(self, operation: Operation) -> dict[str, Any]:
        problem = {"$ref": REF.format(model="Problem")}
        refused = {
            "description": "Refused.",
            "content": {"application/problem+json": {"schema": problem}},
        }
        found = {str(operation.status): self._success(operation), "default": refused}
        return {**found, "304": {"description": "Not changed."}} if operation.etag else found

    def _success(self, operation: Operation) -> dict[str, Any]:
        if operation.streams:
            content = {"text/event-stream": {"schema": {"type": "string"}}}
            return {"description": "Server-sent events: `event` and `heartbeat`.", "content": content}
        schema: dict[str, Any] = {"type": "object"}
        if operation.returns is not None:
            adapter: TypeAdapter[Any] = TypeAdapter(operation.returns)
            schema = self._hoist(adapter.json_schema(mode="serialization", ref_template=REF))
        return {
            "description": "Done.",
            **self._headers(operation),
            "content": {"application/json": {"schema": schema}},
        }

    def _headers(self, operation: Operation) -> dict[str, Any]:
        if operation.location is None:
            return {}
        about = {
            "description": f"`/api/v1/{operation.location.path}`",
            "schema": {"type": "string", "format": "uri-reference"},
        }
        return {"headers": {"Location": about}}


def documents() -> dict[str, str]:
    """The OpenAPI document as it is checked in: its path and its text."""
    found = SchemaGenerator().get_schema(request=None, public=True)
    return {"docs/contracts/openapi.json": json.dumps(found, indent=1, ensure_ascii=False) + "\n"}
