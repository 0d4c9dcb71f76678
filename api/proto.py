"""The contract in protobuf, from the registry: a service for each collection, a method for each operation.

From one description come the messages that this process speaks (api.messages; nobody generates Python) and the text
that is checked in under proto/ for people and for other languages (`manage.py make_proto`).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from django.conf import settings
from pydantic import TypeAdapter

from api.schemas import options, present, referred, words
from core.operations import Operation, registry

PACKAGE = "syros.v1"
FOLDER = "proto"
NUMBERS = f"{FOLDER}/numbers.json"
TIMESTAMP, VALUE, STRUCT = "google.protobuf.Timestamp", "google.protobuf.Value", "google.protobuf.Struct"
SOURCES = {
    TIMESTAMP: "google/protobuf/timestamp.proto",
    VALUE: "google/protobuf/struct.proto",
    STRUCT: "google/protobuf/struct.proto",
}
SCALARS = {"string": "string", "integer": "int64", "number": "double", "boolean": "bool"}
ANSWER = "answer"  # the field of an answer that has none of its own
WIDTH = 110  # of a comment's line

Schema = dict[str, Any]
Numbers = dict[str, dict[str, int]]  # of each message's fields


# -- what the contract has beside the operations ------------------------------------------------------


@dataclass
class FieldError:
    """A field that has a wrong type or value. `pointer` is a JSON pointer (RFC 6901)."""

    pointer: str
    code: str
    detail: str


@dataclass
class Problem:
    """Why a command was refused: the problem object (RFC 9457) that every transport of Syros gives.

    `code` is stable; `extra` has what else this code says, `retryable` whether the same command may succeed later.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    errors: list[FieldError]
    extra: dict[str, Any]


COMMAND: Schema = {
    "id": {"type": "string", "description": "Your name for it; its result has the same."},
    "idempotency_key": {
        "type": "string",
        "description": "The same key and command again: the first successful answer again.",
    },
    "namespace": {"type": "string", "description": "Absent: the stream's own."},
}
RESULT: Schema = {
    "id": {"type": "string", "description": "The command's."},
    "status": {"type": "integer", "description": "As over REST: 200 or 201, or the error's."},
    "replayed": {"type": "boolean", "description": "The answer was kept from an earlier use of this key."},
}
EXECUTE = """Carry out commands in batches, as many at a time as you like.

The commands of a batch are submitted together, in their order, and share a commit; their results come as they are
ready, not always together and not always in order: a lock that is waited for holds nobody up. End the stream on your
side when you have sent all: what is under way is finished and answered. Break it off, and what waits leaves its queue.
A stream is read no further while 1,000 of its commands are under way, those that wait included."""


# -- the description ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Field:
    """A field: its type is a scalar's name or a message's full one."""

    name: str
    type: str
    repeated: bool = False
    comment: str = ""
    group: str = ""  # of the fields of which one is given

    @property
    def shape(self) -> tuple[str, str, bool]:
        """What must be the same in two types of one name."""
        return self.name, self.type, self.repeated

    @property
    def is_message(self) -> bool:
        return "." in self.type

    @property
    def is_optional(self) -> bool:
        """Every scalar tells whether it is there: a zero is not an absence."""
        return not (self.repeated or self.is_message or self.group)


@dataclass(slots=True)
class MessageType:
    name: str
    comment: str
    fields: list[Field]
    retired: dict[str, int] = field(default_factory=dict)  # fields that there were


@dataclass(slots=True)
class Method:
    name: str
    comment: str
    takes: str
    gives: str
    takes_stream: bool = False
    gives_stream: bool = False


@dataclass(slots=True)
class File:
    """One .proto file: messages and at most one service."""

    name: str
    comment: str
    messages: list[MessageType] = field(default_factory=list)
    service: str = ""
    methods: list[Method] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"{PACKAGE.replace('.', '/')}/{self.name}.proto"


def pascal(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))


def service_of(operation: Operation) -> str:
    return f"{pascal(operation.name.split('.')[0])}Service"


def method_of(operation: Operation) -> str:
    return pascal(operation.name.split(".", 1)[1])


def full(message: str) -> str:
    return f"{PACKAGE}.{message}"


def field_of(operation: Operation) -> str:
    """The field of Command and Result that has this operation."""
    return operation.name.replace(".", "_")


def is_command(operation: Operation) -> bool:
    """Can it be one of a batch?"""
    return operation.kind == "command" and not operation.anonymous


class Contract:
    """All files, from the operations that have a route.

    Parameters: the numbers that fields were given before; further fields get the next free ones.
    Raises: ValueError, when two types of one name differ.
    """

    def __init__(self, operations: Iterable[Operation], given: Numbers) -> None:
        self._types = File("types", "What several services share.")
        self._begun: set[str] = set()
        self.operations = [operation for operation in operations if operation.route]
        services: dict[str, File] = {}
        for operation in self.operations:
            collection, name = operation.name.split(".")[0], service_of(operation)
            file = File(f"{collection}_service", f"The operations {collection}.*", service=name)
            self._add(services.setdefault(name, file), operation)
        services["CoordinationService"] = self._coordination()
        self.files = [self._types, *(services[name] for name in sorted(services))]
        self._types.messages.sort(key=lambda message: message.name)
        self.numbers = self._number(given)

    @property
    def messages(self) -> Iterator[MessageType]:
        return (message for file in self.files for message in file.messages)

    @property
    def services(self) -> list[str]:
        return [full(file.service) for file in self.files if file.service]

    def sources(self, file: File) -> list[str]:
        """The files that a file imports."""
        homes = {**SOURCES, **{full(m.name): each.path for each in self.files for m in each.messages}}
        used = {each.type for message in file.messages for each in message.fields if each.is_message}
        used |= {full(name) for method in file.methods for name in (method.takes, method.gives)}
        return sorted({homes[name] for name in used} - {file.path})

    # -- from the registry ---------------------------------------------------------------------------

    def _add(self, file: File, operation: Operation) -> None:
        method = method_of(operation)
        takes, gives = f"{file.service}{method}Request", f"{file.service}{method}Response"
        assert operation.route
        rest = f"REST: {operation.route.method} /{operation.route.path}"
        comment = f"{operation.doc}\n\n{rest}" if operation.doc else rest
        file.methods.append(Method(method, comment, takes, gives, gives_stream=operation.streams))
        schema = operation.takes
        fields = self._fields(schema.get("properties", {}), schema.get("$defs", {}))
        file.messages.append(MessageType(takes, f"What {operation.name} takes.", fields))
        file.messages.append(self._answer(gives, operation))

    def _answer(self, name: str, operation: Operation) -> MessageType:
        schema, defs = operation.gives, operation.gives.get("$defs", {})
        shapes = shapes_of(operation)
        if not shapes:
            return MessageType(name, f"What {operation.name} answers.", self._fields({ANSWER: schema}, defs))
        found: dict[str, Any] = {}
        for shape in shapes:
            for part, about in shape["properties"].items():
                found.setdefault(part, about)
        comment = next((shape["description"] for shape in shapes if "description" in shape), "")
        return MessageType(name, comment or f"What {operation.name} answers.", self._fields(found, defs))

    def _fields(self, properties: Schema, defs: Schema) -> list[Field]:
        found = []
        for name, schema in properties.items():
            kind, repeated = self._kind(schema, defs)
            found.append(Field(name, kind, repeated, remark(schema)))
        return found

    def _kind(self, schema: Schema, defs: Schema) -> tuple[str, bool]:
        """The type that a schema is in protobuf, and whether it repeats."""
        kinds = present(schema)
        if len(kinds) != 1:
            return VALUE, False
        (only,) = kinds
        if name := referred(only):
            target = resolve(only, defs)
            if "properties" in target:
                return self._share(name, target, defs), False
            return self._kind(target, defs)
        if only.get("type") == "array":
            kind, repeated = self._kind(only.get("items", {}), defs)
            return (VALUE if repeated else kind), True
        if only.get("format") == "date-time":
            return TIMESTAMP, False
        return (STRUCT if only.get("type") == "object" else SCALARS.get(only.get("type", ""), VALUE)), False

    def _share(self, name: str, schema: Schema, defs: Schema) -> str:
        """The full name of the message of a type that others refer to; it may refer to itself."""
        message = pascal(name)
        if message in self._begun:
            return full(message)
        self._begun.add(message)
        fields = self._fields(schema["properties"], defs)
        known = next((each for each in self._types.messages if each.name == message), None)
        if known is None:
            self._types.messages.append(MessageType(message, schema.get("description", ""), fields))
        elif [each.shape for each in known.fields] != [each.shape for each in fields]:
            raise ValueError(f"Two types that differ are called {message}: give one another name.")
        self._begun.discard(message)
        return full(message)

    def _coordination(self) -> File:
        """The service that belongs to no collection."""
        schema = TypeAdapter(Problem).json_schema()
        problem = self._share("Problem", schema, schema["$defs"])
        commands = [operation for operation in self.operations if is_command(operation)]
        command = self._fields(COMMAND, {})
        result = [*self._fields(RESULT, {}), Field("error", problem, group="outcome")]
        for operation in commands:
            name, of = field_of(operation), f"{service_of(operation)}{method_of(operation)}"
            command.append(Field(name, full(f"{of}Request"), group="operation"))
            result.append(Field(name, full(f"{of}Response"), group="outcome"))
        takes, gives = "CoordinationServiceExecuteRequest", "CoordinationServiceExecuteResponse"
        return File(
            "coordination_service", "Commands in batches.",
            [
                MessageType("Command", "A command of a batch.", command),
                MessageType("Result", "What came of a command.", result),
                MessageType(takes, "A batch of commands.", [Field("commands", full("Command"), True)]),
                MessageType(gives, "Results, as they are ready.", [Field("results", full("Result"), True)]),
            ],
            "CoordinationService", [Method("Execute", EXECUTE, takes, gives, True, True)],
        )  # fmt: skip

    def _number(self, given: Numbers) -> Numbers:
        """A number for every field, for good: what was given stays, also for fields that are no more."""
        found = {name: dict(numbers) for name, numbers in given.items()}
        for message in self.messages:
            numbers = found.setdefault(message.name, {})
            names = [each.name for each in message.fields]
            for name in names:
                numbers.setdefault(name, max(numbers.values(), default=0) + 1)
            message.retired = {name: number for name, number in numbers.items() if name not in names}
        return found


def shapes_of(operation: Operation) -> list[Schema]:
    """The objects that an operation may answer, whose fields are the message's; none, if it answers something else."""
    defs = operation.gives.get("$defs", {})
    found = [resolve(each, defs) for each in options(operation.gives)]
    return found if all("properties" in shape for shape in found) else []


def resolve(schema: Schema, defs: Schema) -> Schema:
    found: Schema = defs[name] if (name := referred(schema)) else schema
    return found


def remark(schema: Schema) -> str:
    """What a schema says beyond the type: the description, the words it takes, the limits, the default."""
    parts = [schema["description"]] if "description" in schema else []
    for option in options(schema):
        if taken := words(option):
            parts.append(f"{'One of' if len(taken) > 1 else 'Only'} {', '.join(map(json.dumps, taken))}.")
        parts += limits(option)
    if schema.get("default") not in (None, "", [], {}):
        parts.append(f"Default: {json.dumps(schema['default'])}.")
    return " ".join(parts)


def limits(schema: Schema) -> Iterator[str]:
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if least is not None or most is not None:
        above = "above " if "exclusiveMinimum" in schema else ""
        yield f"{above}{least} to {most}.".capitalize() if most is not None else f"At least {least}."
    for kind, what in (("Length", "characters"), ("Items", "items")):
        if f"max{kind}" in schema:
            yield f"{schema.get(f'min{kind}', 0)} to {schema[f'max{kind}']} {what}."


@cache
def contract() -> Contract:
    """The contract of this process's registry."""
    return Contract(registry, read_numbers())


def read_numbers() -> Numbers:
    path = Path(settings.BASE_DIR) / NUMBERS
    found: Numbers = json.loads(path.read_text()) if path.exists() else {}
    return found


# -- as text -----------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """What is checked in: the text of each file, by its path in the repository."""
    found = {f"{FOLDER}/{file.path}": text(contract(), file) for file in contract().files}
    return {**found, NUMBERS: json.dumps(contract().numbers, indent=1) + "\n"}


def text(contract: Contract, file: File) -> str:
    head = [
        "// Written by `manage.py make_proto` from the operations; do not edit.",
        f"// {file.comment}",
        "",
        'syntax = "proto3";',
        "",
        f"package {PACKAGE};",
    ]
    parts = [head, [f'import "{path}";' for path in contract.sources(file)]]
    if file.service:
        parts.append(service_text(file))
    parts += [message_text(message, contract.numbers[message.name]) for message in file.messages]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def service_text(file: File) -> list[str]:
    methods = ["\n".join(method_text(method)) for method in file.methods]
    return [f"service {file.service} {{", "\n\n".join(methods), "}"]


def method_text(method: Method) -> Iterator[str]:
    yield from comment(method.comment, "  ")
    takes = f"{'stream ' if method.takes_stream else ''}{method.takes}"
    gives = f"{'stream ' if method.gives_stream else ''}{method.gives}"
    yield f"  rpc {method.name}({takes}) returns ({gives});"


def message_text(message: MessageType, numbers: Mapping[str, int]) -> list[str]:
    head, body = comment(message.comment, ""), list(members_text(message, numbers))
    if not body:
        return [*head, f"message {message.name} {{}}"]
    return [*head, f"message {message.name} {{", *body, "}"]


def members_text(message: MessageType, numbers: Mapping[str, int]) -> Iterator[str]:
    for name, number in message.retired.items():
        yield from (f"  reserved {number};", f'  reserved "{name}";')
    for group, fields in groupby(message.fields, lambda each: each.group):
        if group:
            yield f"  oneof {group} {{"
        for each in fields:
            yield from field_text(each, numbers[each.name], "    " if group else "  ")
        if group:
            yield "  }"


def field_text(each: Field, number: int, indent: str) -> Iterator[str]:
    yield from comment(each.comment, indent)
    kind = each.type.removeprefix(f"{PACKAGE}.")
    label = "repeated " if each.repeated else "optional " if each.is_optional else ""
    yield f"{indent}{label}{kind} {each.name} = {number};"


def comment(said: str, indent: str) -> list[str]:
    """Lines of at most WIDTH; each paragraph flows anew."""
    lines = []
    for paragraph in filter(None, said.split("\n\n")):
        lines += [*wrap(paragraph, WIDTH - len(indent) - 3), ""]
    return [f"{indent}// {line}".rstrip() for line in lines[:-1]]
