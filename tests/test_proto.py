"""The contract in protobuf: what is checked in, what this process speaks, and that neither ever changes its numbers."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import grpc_tools
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from orjson import Fragment

from api import proto
from api.messages import LEVELS, MISFIT, Messages, describe, messages
from core.operations import Operation, registry
from sagas import participant_messages

ROOT = Path(settings.BASE_DIR)


# -- what is checked in ------------------------------------------------------------------------------


def test_the_files_are_up_to_date() -> None:
    call_command("make_proto", "--check")


def test_files_are_written_and_those_of_former_services_removed(settings: Any, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    former = tmp_path / "proto/syros/v1/former_service.proto"
    former.parent.mkdir(parents=True)
    former.write_text("//")
    with pytest.raises(CommandError, match=r"types\.proto.*former_service\.proto"):
        call_command("make_proto", "--check", stderr=StringIO())
    with pytest.raises(CommandError, match="Nothing was written"):
        call_command("make_proto", stderr=StringIO())
    assert list(tmp_path.rglob("*.proto")) == [former]
    call_command("make_proto", "--breaking", stdout=StringIO(), stderr=StringIO())
    written = {
        str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()
    }
    assert written == proto.documents()


def test_a_file_that_is_written_by_hand_is_left_alone(settings: Any, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    path = tmp_path / "proto" / participant_messages.PATH
    path.parent.mkdir(parents=True)
    path.write_text("// by hand")
    call_command("make_proto", stdout=StringIO())
    call_command("make_proto", "--check")
    assert path.read_text() == "// by hand"


def test_buf_finds_nothing_to_say() -> None:
    buf = Path(sys.prefix) / "bin/buf"
    found = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def compiled() -> dict[str, FileDescriptorProto]:
    """The files on the disk as protoc understands them."""
    paths = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    known = Path(grpc_tools.__file__).parent / "_proto"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-Iproto",
        f"-I{known}",
        "--descriptor_set_out=/dev/stdout",
    ]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, check=True)
    return {file.name: file for file in FileDescriptorSet.FromString(done.stdout).file}


def test_the_text_means_what_this_process_speaks() -> None:
    contract = proto.contract()
    found = compiled()
    assert found.keys() == {*(file.path for file in contract.files), participant_messages.PATH}
    for file in contract.files:
        assert bare(found[file.path]) == describe(contract, file)


def test_participants_are_spoken_to_as_their_file_says() -> None:
    assert bare(compiled()[participant_messages.PATH]) == participant_messages.described()


def bare(told: FileDescriptorProto) -> FileDescriptorProto:
    """Without what protoc spells out though it follows from the names."""
    for message in told.message_type:
        for each in (message, *message.nested_type):
            for field in each.field:
                field.ClearField("json_name")
    return told


def test_every_operation_with_a_route_is_a_method() -> None:
    methods = {f"{file.service}/{method.name}" for file in proto.contract().files for method in file.methods}
    expected = {f"{proto.service_of(each)}/{proto.method_of(each)}" for each in registry if each.route}
    assert methods == expected | {"CoordinationService/Execute"}


# -- numbers -----------------------------------------------------------------------------------------


def operation(function: Callable[..., Any], route: str = "POST things", **more: Any) -> Operation:
    return Operation(
        function, route, kind="command", name=f"things.{function.__name__}", fenced=False, **more
    )


def put(tx: Any, *, key: str, size: int = 1) -> dict[str, Any]:
    """Put a thing."""
    return {}


def put_more(tx: Any, *, colour: str, key: str, weight: float = 1) -> dict[str, Any]:
    return {}


def fields(contract: proto.Contract, name: str) -> dict[str, int]:
    kind = Messages(contract)[name].DESCRIPTOR
    return {field.name: field.number for field in kind.fields}


def test_a_field_keeps_its_number_whatever_comes_before_it() -> None:
    first = proto.Contract([operation(put)], {})
    name = "ThingsServicePutRequest"
    assert fields(first, name) == {"key": 1, "size": 2}
    put_more.__name__ = "put"
    second = proto.Contract([operation(put_more)], first.numbers)
    assert fields(second, name) == {"colour": 3, "key": 1, "weight": 4}
    assert "reserved 2;" in proto.text(second, second.files[-1])
    assert 'reserved "size";' in proto.text(second, second.files[-1])
    third = proto.Contract([operation(put)], second.numbers)
    assert fields(third, name) == {"key": 1, "size": 2}
    assert proto.Contract([], third.numbers).numbers[name] == {"key": 1, "size": 2, "colour": 3, "weight": 4}


def test_two_types_of_one_name_that_differ_are_told_apart_by_nobody() -> None:
    def shaped(kind: type) -> type:
        @dataclass
        class Thing:
            size: kind  # type: ignore[valid-type]

        @dataclass
        class Things:
            items: list[Thing]

        return Things

    proto.Contract([operation(put, returns=shaped(int)), operation(put, returns=shaped(int))], {})
    with pytest.raises(ValueError, match="called Thing"):
        proto.Contract([operation(put, returns=shaped(int)), operation(put, returns=shaped(str))], {})


def test_an_answer_that_has_no_fields_is_one() -> None:
    known = Messages(proto.Contract([operation(put)], {}))
    kind = known["ThingsServicePutResponse"]
    written: Any = kind(**known.answer_writer(operation(put))({"any": [1, {"x": None}]}))
    assert known.reader(kind.DESCRIPTOR)(written) == {"answer": {"any": [1, {"x": None}]}}


# -- values ------------------------------------------------------------------------------------------


def append(**params: Any) -> dict[str, Any]:
    """What events.append takes, there and back."""
    kind = messages().request(registry["events.append"])
    body = kind(**messages().writer(kind.DESCRIPTOR)(params)).SerializeToString()
    found: dict[str, Any] = messages().reader(kind.DESCRIPTOR)(kind.FromString(body))
    return found


@pytest.mark.parametrize(
    "data", [0, "", [], {}, [1, None, {"a": []}], "text", 2**53 - 1, -1.5, False, {"": {"a": [True]}}, 1e300]
)
def test_any_json_goes_there_and_back(data: Any) -> None:
    found = append(stream_id="s", data=data, metadata={"x": data})
    assert found == {"stream_id": "s", "data": data, "metadata": {"x": data}}
    assert type(found["data"]) is type(data)


def test_what_is_there_is_told_from_what_is_not() -> None:
    kind: Any = messages().request(registry["locks.acquire"])
    read = messages().reader(kind.DESCRIPTOR)
    assert read(kind()) == {}
    assert read(kind(ttl_seconds=0, key="")) == {"ttl_seconds": 0, "key": ""}


@pytest.mark.parametrize("seconds", [-62135596801, 253402300800, 2**62])
def test_an_instant_that_no_calendar_has_does_not_fit(seconds: int) -> None:
    kind: Any = messages().request(registry["events.read"])
    found = messages().reader(kind.DESCRIPTOR)(kind(since={"seconds": seconds}))
    assert found == {"since": MISFIT}


def test_an_instant_keeps_its_microseconds() -> None:
    kind: Any = messages().response(registry["streams.get"])
    write, read = messages().writer(kind.DESCRIPTOR), messages().reader(kind.DESCRIPTOR)
    at = datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)
    assert read(kind(**write({"created_at": at, "changed_at": "2026-11-25T04:10:13.000001Z"}))) == {
        "created_at": at, "changed_at": datetime(2026, 11, 25, 4, 10, 13, 1, UTC),
    }  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}])
def test_what_nests_deeper_than_decoders_go_comes_as_text(wrap: Callable[[Any], Any]) -> None:
    deep: Any = 1
    for _ in range(64):
        deep = wrap(deep)
    page: Any = messages().response(registry["events.read"])
    event = {"data": Fragment(json.dumps(deep)), "metadata": {}}
    body = page(**messages().answer_writer(registry["events.read"])({"events": [event]})).SerializeToString()
    found = messages().reader(page.DESCRIPTOR)(page.FromString(body))["events"][0]["data"]
    for _ in range(LEVELS):
        (found,) = found.values() if isinstance(found, dict) else found
    text = json.loads(found)
    for _ in range(64 - LEVELS):
        (text,) = text.values() if isinstance(text, dict) else text
    assert text == 1
