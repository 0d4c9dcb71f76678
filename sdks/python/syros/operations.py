"""The operations of Syros, as its server describes them: operations.json is written from the server's registry."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """What an operation takes.

    `type`: string, integer, number, boolean, scalar (text that may read as a number) or json; `list`: several of it;
    `limits` as in JSON Schema (`minimum`, `maxLength` …); `aliases`: names that are taken as well.
    """

    name: str
    type: str
    list: bool = False
    required: bool = False
    default: Any = None
    enum: tuple[Any, ...] = ()
    limits: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True)
class Operation:
    """`kind`: a command changes state and takes an Idempotency-Key, a query reads. `path`: below /api/v1/, with the
    names of parameters in braces. `streams`: it answers items until the caller leaves. `waits`: it takes
    `wait_seconds`. `anonymous`: it needs no credentials."""

    name: str
    doc: str
    kind: str
    method: str
    path: str
    streams: bool
    waits: bool
    anonymous: bool
    parameters: tuple[Parameter, ...]

    @property
    def path_names(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    def takes(self, name: str) -> bool:
        return any(parameter.name == name for parameter in self.parameters)


@cache
def operations() -> dict[str, Operation]:
    """All operations, by name."""
    text = Path(__file__).with_name("operations.json").read_text(encoding="utf-8")
    return {each["name"]: read(each) for each in json.loads(text)["operations"]}


def read(description: dict[str, Any]) -> Operation:
    parameters = tuple(Parameter(**each) for each in description["parameters"])
    return Operation(**{**description, "parameters": parameters})
