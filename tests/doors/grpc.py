"""The doors of gRPC, with Google's client over a real socket: a call each, and Execute's batches of one."""

import itertools
import queue
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from api.messages import messages
from api.proto import field_of, full, is_command, method_of, service_of
from core.encoding import decode
from core.operations import Operation
from tests.doors.base import Answer, Door, Served

HEADERS = {
    "key": "idempotency-key",
    "namespace": "syros-namespace",
    "request_id": "x-request-id",
    "trace": "traceparent",
}
UNKNOWN = 1000  # the number of a field that there is not


class Grpc(Door):
    """A unary call for each operation."""

    name = "grpc"
    has_empty_lists = False

    def __init__(self, served: Served, namespace: str) -> None:
        super().__init__(served, namespace)
        self.channel = channel(served)

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        path = f"/{full(service_of(operation))}/{method_of(operation)}"
        asked = Asked(messages().request(operation), params)
        metadata = [(HEADERS[name], value) for name, value in about.items()]
        try:
            body, done = self.channel.unary_unary(path).with_call(asked.body, timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            return refusal(error, asked)
        said = dict(done.trailing_metadata())
        found = messages().response(operation).FromString(body)
        return Answer(int(said["syros-status"]), answer(found, operation), said)


class Batches(Grpc):
    """Execute for commands, through one stream for all calls of a door."""

    name = "grpc-execute"

    def __init__(self, served: Served, namespace: str) -> None:
        super().__init__(served, namespace)
        self._stream = Stream(self.channel, namespace)
        weakref.finalize(self, self._stream.end)

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        if not is_command(operation):
            return super().carry(operation, params, about)
        asked = Asked(messages().request(operation), params)
        command = messages()["Command"](namespace=about["namespace"], idempotency_key=about.get("key"))
        getattr(command, field_of(operation)).MergeFromString(asked.body)
        getattr(command, field_of(operation)).SetInParent()
        result = self._stream.send(command).result(60)
        if result.WhichOneof("outcome") == "error":
            return Answer(result.status, asked.renamed(problem(result.error)))
        replayed = {"idempotency-replayed": "true"} if result.replayed else {}
        return Answer(result.status, answer(getattr(result, field_of(operation)), operation), replayed)


class Stream:
    """An Execute stream: commands go out, each result comes to who asked for it."""

    def __init__(self, over: grpc.Channel, namespace: str, api_key: str = "", **options: Any) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.responses: list[Any] = []
        metadata = [("syros-namespace", namespace), *([("x-api-key", api_key)] if api_key else [])]
        self.call = over.stream_stream(
            f"/{full('CoordinationService')}/Execute",
            request_serializer=lambda batch: batch.SerializeToString(),
            response_deserializer=messages()["CoordinationServiceExecuteResponse"].FromString,
        )(iter(self._outgoing.get, None), metadata=metadata, **options)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, *commands: Any) -> "Future[Any]":
        """Send one batch; the future of the last command's result."""
        found: Future[Any] = Future()
        for command in commands:
            found = Future()
            command.id = command.id or f"{next(self._numbers)}"
            self._waiting[command.id] = found
        kind: Any = messages()["CoordinationServiceExecuteRequest"]
        self._outgoing.put(kind(commands=commands))
        return found

    def end(self) -> None:
        """Say that no more will come."""
        self._outgoing.put(None)

    def join(self, seconds: float = 20) -> grpc.StatusCode:
        """Wait for the end of the stream; what it ended with."""
        self._reader.join(seconds)
        assert not self._reader.is_alive(), "the stream does not end"
        return self.call.code()

    def _read(self) -> None:
        try:
            for response in self.call:
                self.responses.append(response)
                for result in response.results:
                    self._waiting.pop(result.id).set_result(result)
        except grpc.RpcError as error:
            for future in self._waiting.values():
                future.set_exception(error)


def channel(served: Served) -> grpc.Channel:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", options)


# -- to messages -------------------------------------------------------------------------------------


class Asked:
    """Parameters as the bytes of a message; what its types cannot say is sent all the same, with a wrong wire type."""

    def __init__(self, kind: type[Message], params: dict[str, Any]) -> None:
        self._names: dict[str, str] = {}
        self.body = self._written(kind.DESCRIPTOR, params)

    def renamed(self, problem: dict[str, Any]) -> dict[str, Any]:
        """The problem, with the names of the fields that went out as a number."""
        for error in problem.get("errors", ()):
            error["pointer"] = self._names.get(error["pointer"], error["pointer"])
        return problem

    def _written(self, kind: Any, params: dict[str, Any]) -> bytes:
        body = b""
        for name, value in params.items():
            each = kind.fields_by_name.get(name)
            if each is None:
                number = UNKNOWN + len(self._names)
                self._names[f"/{number}"] = f"/{name}"
                body += wrong(number, None)
            elif each.is_repeated and isinstance(value, list):
                body += b"".join(self._field(each, one) for one in value)
            else:
                body += self._field(each, value)
        return body

    def _field(self, each: Any, value: Any) -> bytes:
        nested = each.message_type
        if nested and not nested.file.name.startswith("google/") and isinstance(value, dict):
            inner = self._written(nested, value)
            return tag(each.number, 2) + varint(len(inner)) + inner
        message: Any = messages()[each.containing_type.full_name]()
        try:
            json_format.ParseDict({each.name: [value] if each.is_repeated else value}, message)
        except json_format.ParseError:
            return wrong(each.number, each)
        fits = (
            nested
            or type(value) in {int: (int,), float: (float, int), str: (str,), bool: (bool,)}[kind_of(each)]
        )
        return message.SerializeToString() if fits else wrong(each.number, each)


def kind_of(each: Any) -> type:
    """Of one value, also where the field takes several."""
    names = {
        each.CPPTYPE_STRING: str,
        each.CPPTYPE_BOOL: bool,
        each.CPPTYPE_DOUBLE: float,
        each.CPPTYPE_FLOAT: float,
    }
    return names.get(each.cpp_type, int)


def wrong(number: int, each: Any) -> bytes:
    """A field with a wire type that is not its own: bytes for a number, a number for all else."""
    if each is not None and each.message_type is None and kind_of(each) in {int, float, bool}:
        return tag(number, 2) + varint(1) + b"x"
    return tag(number, 0) + varint(1)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def varint(number: int) -> bytes:
    found = []
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


# -- from messages -----------------------------------------------------------------------------------


def refusal(error: Any, asked: Asked) -> Answer:
    said = dict(error.trailing_metadata())
    assert "syros-problem-bin" in said, (error.code(), error.details())
    return Answer(int(said["syros-status"]), asked.renamed(decode(said["syros-problem-bin"])), said)


def problem(message: Any) -> dict[str, Any]:
    found = json_format.MessageToDict(message, preserving_proto_field_name=True)
    found["retryable"], found["status"] = message.retryable, message.status
    return {**found, **whole(found.pop("extra", {}))}


def answer(message: Message, operation: Operation) -> Any:
    """An answer as REST has it: a field that the schema says may be null and is not there is null."""
    schema = operation.gives
    return restored(message, schema, schema.get("$defs", {}))


def restored(message: Any, schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    there = {each.name: value for each, value in message.ListFields()}
    found = {}
    for name, about in shape(schema, defs, set(there))["properties"].items():
        options = about.get("anyOf", [about])
        if name in there:
            found[name] = value_of(there[name], next(o for o in options if o.get("type") != "null"), defs)
        elif about.get("type") == "array":
            found[name] = []
        elif {"type": "null"} in options:
            found[name] = None
    return found


def shape(schema: dict[str, Any], defs: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The object that it is, of those that it may be."""
    shapes = [defs[s["$ref"].rpartition("/")[2]] if "$ref" in s else s for s in schema.get("anyOf", [schema])]
    return next(found for found in shapes if names <= found["properties"].keys())


def value_of(value: Any, schema: dict[str, Any], defs: dict[str, Any]) -> Any:
    if schema.get("type") == "array":
        return [value_of(one, schema["items"], defs) for one in value]
    if not isinstance(value, Message):
        return value
    if value.DESCRIPTOR.full_name.startswith("google."):
        return whole(json_format.MessageToDict(value))
    return restored(value, schema, defs)


def whole(value: Any) -> Any:
    """JSON whose whole numbers are integers again."""
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
