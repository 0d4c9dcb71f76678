"""JSON Schemas as the doors read them: each makes its own types from what the operations take and give."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def options(schema: Schema) -> list[Any]:
    """What a value may be one of; the schema itself, where it offers no choice."""
    found: list[Any] = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return found


def present(schema: Schema) -> list[Any]:
    """The same of a value that is there: without null."""
    return [option for option in options(schema) if option.get("type") != "null"]


def words(schema: Schema) -> list[Any] | None:
    """The only values that are taken; None, where there are others."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def referred(schema: Schema) -> str:
    """The name of the definition that a schema refers to; empty, if it stands for itself."""
    return str(schema.get("$ref", "")).rpartition("/")[2]
