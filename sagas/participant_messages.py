"""The messages that participants over gRPC get and give, made in this process.

proto/syros/v1/participant_service.proto is written by hand, for people and other languages; tests/test_proto.py says
that these are its messages.
"""

from typing import Any

from google.protobuf import descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

PATH, PACKAGE, SERVICE = "syros/v1/participant_service.proto", "syros.v1", "ParticipantService"
METHOD = f"/{PACKAGE}.{SERVICE}/CarryOut"
ENTRY = ".syros.v1.CarryOutRequest.FencingTokensEntry"
# A field's number is its place.
REQUEST = {
    "idempotency_key": "string", "namespace": "string", "saga_id": "string", "saga_name": "string", "step": "string",
    "op": "string", "action": "string", "attempt": "int64", "deadline": ".google.protobuf.Timestamp",
    "task_token": "string", "outcome": "string", "fencing_tokens": ENTRY, "body": "bytes",
}  # fmt: skip
OUTCOMES: dict[str, dict[str, str]] = {
    "Succeeded": {"output": "bytes"},
    "Accepted": {},
    "Ongoing": {"retry_after_seconds": "double"},
    "Failed": {"code": "string", "message": "string"},
}


def described() -> FileDescriptorProto:
    found = FileDescriptorProto(name=PATH, package=PACKAGE, syntax="proto3")
    found.dependency.append(timestamp_pb2.DESCRIPTOR.name)
    add_request(found.message_type.add(name="CarryOutRequest"))
    add_response(found.message_type.add(name="CarryOutResponse"))
    kinds = {"input_type": ".syros.v1.CarryOutRequest", "output_type": ".syros.v1.CarryOutResponse"}
    found.service.add(name=SERVICE).method.add(name="CarryOut", **kinds)
    return found


def add_request(message: DescriptorProto) -> None:
    add_fields(message, REQUEST)
    message.field[-2].label = FieldDescriptorProto.LABEL_REPEATED  # a map is a list of its entries
    entry = message.nested_type.add(name="FencingTokensEntry")
    add_fields(entry, {"key": "string", "value": "int64"})
    entry.options.map_entry = True


def add_response(message: DescriptorProto) -> None:
    for name, fields in OUTCOMES.items():
        add_fields(message.nested_type.add(name=name), fields)
    ongoing = message.nested_type[2]
    ongoing.oneof_decl.add(name="_retry_after_seconds")
    ongoing.field[0].oneof_index, ongoing.field[0].proto3_optional = 0, True
    message.oneof_decl.add(name="outcome")
    add_fields(message, {name.lower(): f".syros.v1.CarryOutResponse.{name}" for name in OUTCOMES})
    for each in message.field:
        each.oneof_index = 0


def add_fields(message: DescriptorProto, fields: dict[str, str]) -> None:
    form = FieldDescriptorProto
    for number, (name, kind) in enumerate(fields.items(), 1):
        each = message.field.add(name=name, number=number, label=form.LABEL_OPTIONAL)
        each.type = form.TYPE_MESSAGE if "." in kind else form.Type.Value(f"TYPE_{kind.upper()}")
        if "." in kind:
            each.type_name = kind


def classes() -> tuple[Any, Any]:
    """In a pool of their own: nobody else's file of this name is in their way."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(described().SerializeToString())
    names = ("CarryOutRequest", "CarryOutResponse")
    request, response = (pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in names)
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(response)


Request, Response = classes()
