"""The operations as a document for clients that are made from it: `syros`, the command line, has a command for each."""

import json
from typing import Any

from pydantic import AliasChoices

from api.schemas import present, words
from core.operations import Operation, registry

SDK = "sdks/python/syros/operations.json"
LIMITS = (
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
SCALARS = {"string", "integer", "number", "boolean"}


def documents() -> dict[str, str]:
    """The text of each document, by its path in the checkout."""
    found = {"operations": [describe(operation) for operation in registry if operation.route]}
    return {SDK: json.dumps(found, indent=1, ensure_ascii=False) + "\n"}


def describe(operation: Operation) -> dict[str, Any]:
    """One operation: its name, documentation and route, and what it takes."""
    assert operation.route
    return {
        "name": operation.name,
        "doc": operation.doc,
        "kind": operation.kind,
        "method": operation.route.method,
        "path": operation.route.path,
        "streams": operation.streams,
        "waits": "wait_seconds" in operation.params.model_fields,
        "anonymous": operation.anonymous,
        "parameters": [
            parameter(operation, name, schema) for name, schema in operation.takes["properties"].items()
        ],
    }


def parameter(operation: Operation, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One parameter; what does not apply to it is left out.

    `type` is string, integer, number, boolean, `scalar` (text that may read as a number) or `json`; `list`: several
    of these. `limits` are those of JSON Schema.
    """
    kinds = present(schema)
    is_list = len(kinds) == 1 and kinds[0].get("type") == "array" and kind(kinds[0]["items"]) != "json"
    if is_list:
        kinds = [kinds[0]["items"], kinds[0]]
    found = {
        "name": name,
        "type": kind(kinds[0]) if is_list or len(kinds) == 1 else union(kinds),
        "list": is_list,
        "required": name in operation.takes.get("required", ()),
        "default": schema.get("default"),
        "enum": [value for each in kinds for value in words(each) or ()],
        "limits": {limit: each[limit] for each in kinds for limit in LIMITS if limit in each},
        "aliases": aliases(operation, name),
        "help": schema.get("description", ""),
    }
    return {
        key: value for key, value in found.items() if value not in (None, "", [], {}) and value is not False
    }


def kind(schema: dict[str, Any]) -> str:
    found = str(schema.get("type"))
    return found if found in SCALARS else "json"


def union(schemas: list[dict[str, Any]]) -> str:
    return "json" if "json" in map(kind, schemas) else "scalar"


def aliases(operation: Operation, name: str) -> list[str]:
    """The other names that a parameter is taken by."""
    alias = operation.params.model_fields[name].validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else []
    return [other for other in names if isinstance(other, str) and other != name]
