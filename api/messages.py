"""Protobuf messages of the contract, made in this process, and what they say as plain values and back."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any

from google.protobuf import descriptor_pool, message_factory, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from orjson import Fragment

from api.proto import (
    ANSWER,
    PACKAGE,
    STRUCT,
    TIMESTAMP,
    VALUE,
    Contract,
    Field,
    File,
    MessageType,
    contract,
    full,
    method_of,
    service_of,
    shapes_of,
)
from core.encoding import decode, encode
from core.errors import Invalid
from core.operations import Operation
from core.types import MAX_NUMBER

# Decoders of protobuf take 100 levels of messages, and an object of JSON takes three. What nests deeper goes as text.
LEVELS = 30
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Values = dict[str, Any]
Read = Callable[[Any], Any]
Write = Callable[[Any], Any]


class Misfit:
    """What came for a field and is not of its type; no parser takes it, so that it is complained of by name."""


MISFIT = Misfit()

# What is not known costs more to look at, byte by byte, than all else: so only this much of it is, and named.
UNKNOWN_BYTES = 4096
UNKNOWN_FIELDS = 100


# -- the classes -------------------------------------------------------------------------------------


def describe(contract: Contract, file: File) -> FileDescriptorProto:
    found = FileDescriptorProto(name=file.path, package=PACKAGE, syntax="proto3")
    found.dependency.extend(contract.sources(file))
    for message in file.messages:
        describe_message(found.message_type.add(name=message.name), message, contract.numbers[message.name])
    if file.service:
        service = found.service.add(name=file.service)
        for method in file.methods:
            service.method.add(
                name=method.name, input_type=f".{full(method.takes)}", output_type=f".{full(method.gives)}",
                client_streaming=method.takes_stream or None, server_streaming=method.gives_stream or None,
            )  # fmt: skip
    return found


def describe_message(target: DescriptorProto, message: MessageType, numbers: Mapping[str, int]) -> None:
    groups = [group_of(each) for each in message.fields if each.group]
    # protoc puts the groups that stand in the text before those that `optional` makes.
    groups += [group_of(each) for each in message.fields if each.is_optional]
    groups = list(dict.fromkeys(groups))
    for group in groups:
        target.oneof_decl.add(name=group)
    for each in message.fields:
        found = target.field.add(name=each.name, number=numbers[each.name], **kind_of(each))
        if each.is_optional:
            found.proto3_optional = True
        if each.is_optional or each.group:
            found.oneof_index = groups.index(group_of(each))
    for name, number in message.retired.items():
        target.reserved_name.append(name)
        target.reserved_range.add(start=number, end=number + 1)


def group_of(each: Field) -> str:
    return each.group or f"_{each.name}"


def kind_of(each: Field) -> dict[str, Any]:
    form = FieldDescriptorProto
    label = form.LABEL_REPEATED if each.repeated else form.LABEL_OPTIONAL
    if each.is_message:
        return {"type": form.TYPE_MESSAGE, "type_name": f".{each.type}", "label": label}
    return {"type": form.Type.Value(f"TYPE_{each.type.upper()}"), "label": label}


class Messages:
    """The message classes of a contract, in a pool of their own."""

    def __init__(self, contract: Contract) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        for known in (timestamp_pb2, struct_pb2):
            self.pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        waiting = {file.path: describe(contract, file) for file in contract.files}
        while waiting:  # files come after those that they import
            path = next(p for p, found in waiting.items() if not waiting.keys() & set(found.dependency))
            self.pool.AddSerializedFile(waiting.pop(path).SerializeToString())
        self._readers: dict[str, Read] = {}
        self._writers: dict[str, Write] = {}

    def __getitem__(self, name: str) -> type[Message]:
        """The class of a message of the contract, or of Google's by its full name."""
        descriptor = self.pool.FindMessageTypeByName(name if "." in name else full(name))
        found: type[Message] = message_factory.GetMessageClass(descriptor)
        return found

    def request(self, operation: Operation) -> type[Message]:
        return self[f"{service_of(operation)}{method_of(operation)}Request"]

    def response(self, operation: Operation) -> type[Message]:
        return self[f"{service_of(operation)}{method_of(operation)}Response"]

    # -- from messages -------------------------------------------------------------------------------

    def reader(self, kind: Any) -> Read:
        """A function from a message to what it says: the fields that are there, by name.

        What this process does not know is there too, under its number, so that it is refused and not passed over:
        a field of a later version may be what makes the rest safe.
        """
        if kind.full_name not in self._readers:
            converters: dict[int, Read] = {}
            self._readers[kind.full_name] = compile_reader(converters)
            for each in kind.fields:  # which may be of this type themselves
                if convert := self._field_reader(each):
                    converters[each.number] = convert
        return self._readers[kind.full_name]

    def _field_reader(self, each: Any) -> Read | None:
        if each.message_type is None:
            return list if each.is_repeated else None
        convert = WELL_KNOWN_READERS.get(each.message_type.full_name) or self.reader(each.message_type)
        return (lambda found: [convert(one) for one in found]) if each.is_repeated else convert

    # -- to messages ---------------------------------------------------------------------------------

    def writer(self, kind: Any) -> Write:
        """A function from a value (a dataclass, a model, a dict, JSON) to the keyword arguments of the message."""
        if kind.full_name not in self._writers:
            plan: list[tuple[str, Write | None]] = []
            self._writers[kind.full_name] = compile_writer(plan)
            plan += [(each.name, self._field_writer(each)) for each in kind.fields]
        return self._writers[kind.full_name]

    def answer_writer(self, operation: Operation) -> Write:
        """The writer of an operation's answers."""
        write = self.writer(self.response(operation).DESCRIPTOR)
        return write if shapes_of(operation) else lambda value: write({ANSWER: value})

    def _field_writer(self, each: Any) -> Write | None:
        if each.message_type is None:
            return None
        name = each.message_type.full_name
        convert = {TIMESTAMP: write_instant, VALUE: self._value, STRUCT: self._struct}.get(name)
        write = convert or self.writer(each.message_type)
        return (lambda found: [write(one) for one in found]) if each.is_repeated else write

    def _value(self, value: Any) -> Message:
        found: Message = self[VALUE]()
        fill(found, plain(value), LEVELS)
        return found

    def _struct(self, value: Any) -> Message:
        found: Message = self[STRUCT]()
        fill_object(found, plain(value), LEVELS - 1)
        return found


@cache
def messages() -> Messages:
    """The messages of this process's registry."""
    return Messages(contract())


def build(kind: type[Message], parts: Values) -> Message:
    """The message of these keyword arguments, the items of its lists one by one: other threads have their turns
    between them."""
    lists = {name: part for name, part in parts.items() if isinstance(part, list)}
    found = kind(**{name: part for name, part in parts.items() if name not in lists})
    for name, part in lists.items():
        field = getattr(found, name)
        for one in part:
            field.add(**one) if isinstance(one, dict) else field.append(one)
    return found


# -- reading -----------------------------------------------------------------------------------------


def compile_reader(converters: Mapping[int, Read]) -> Read:
    def read(message: Message) -> Values:
        found: Values = {}
        for each, value in message.ListFields():
            convert = converters.get(each.number)
            found[each.name] = convert(value) if convert else value
        if unknown := UnknownFieldSet(message):
            add_unknown(message, unknown, found)
        return found

    return read


def check_known(message: Message, body: bytes) -> None:
    """Refuse a message that is, with all in it, made of more unknown fields than anybody looks at.

    Raises: Invalid.
    """
    if len(body) <= UNKNOWN_BYTES:
        return
    known = type(message).FromString(body)
    known.DiscardUnknownFields()
    # To measure is as dear as to write: the whole is measured only where the body may be longer for other reasons.
    size = known.ByteSize()
    if len(body) - size > UNKNOWN_BYTES and (unknown := message.ByteSize() - size) > UNKNOWN_BYTES:
        detail = f"{unknown} bytes are of fields that are not known, too many to name them"
        raise Invalid([{"pointer": "/", "code": "extra_forbidden", "detail": detail}])


def add_unknown(message: Message, unknown: Any, found: Values) -> None:
    """The first fields whose number is not known, and known ones that came with another wire type than theirs."""
    known = message.DESCRIPTOR.fields_by_number
    for each in islice(unknown, UNKNOWN_FIELDS):
        field = known.get(each.field_number)
        if field is None:
            found[str(each.field_number)] = MISFIT
        elif field.is_repeated:
            found.setdefault(field.name, []).append(MISFIT)
        else:
            found[field.name] = MISFIT


def read_instant(message: Any) -> Any:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return MISFIT


def read_value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "string_value":
        return message.string_value
    if kind == "number_value":
        return read_number(message.number_value)
    if kind == "struct_value":
        return read_struct(message.struct_value)
    if kind == "list_value":
        return [read_value(one) for one in message.list_value.values]
    if kind == "bool_value":
        return message.bool_value
    return None if kind == "null_value" else MISFIT


def read_struct(message: Any) -> Values:
    return {name: read_value(part) for name, part in message.fields.items()}


def read_number(number: float) -> float:
    """JSON has one kind of number and so has Value: what is whole was meant as an integer."""
    return int(number) if number.is_integer() and abs(number) <= MAX_NUMBER else number


WELL_KNOWN_READERS: dict[str, Read] = {TIMESTAMP: read_instant, VALUE: read_value, STRUCT: read_struct}


# -- writing -----------------------------------------------------------------------------------------


def compile_writer(plan: list[tuple[str, Write | None]]) -> Write:
    def write(value: Any) -> Values:
        if isinstance(value, Fragment):
            value = plain(value)
        get = value.get if isinstance(value, dict) else lambda name: getattr(value, name, None)
        found: Values = {}
        for name, convert in plan:
            part = get(name)
            if part is not None:
                found[name] = convert(part) if convert else part
        return found

    return write


def write_instant(value: datetime | str) -> dict[str, int]:
    since = (datetime.fromisoformat(value) if isinstance(value, str) else value) - EPOCH
    return {"seconds": since.days * 86400 + since.seconds, "nanos": since.microseconds * 1000}


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return decode(encode(value))


def fill(target: Any, value: Any, levels: int) -> None:
    """Write JSON into a Value, in place: nothing is copied on the way up."""
    if isinstance(value, str):
        target.string_value = value
    elif value is None:
        target.null_value = 0
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif not levels:
        target.string_value = encode(value).decode()
    elif isinstance(value, list):
        target.list_value.SetInParent()
        for part in value:
            fill(target.list_value.values.add(), part, levels - 1)
    else:
        target.struct_value.SetInParent()
        fill_object(target.struct_value, value, levels - 1)


def fill_object(target: Any, value: Values, levels: int) -> None:
    for name, part in value.items():
        fill(target.fields[name], part, levels)
