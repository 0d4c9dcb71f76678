"""What is particular to gRPC: its protocol, limits, floods, cancelled calls, absent peers, TLS, the end."""

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from api.grpc import aio, calls, execute, health, server
from api.grpc.server import Grpc
from api.grpc.status import code_of, fitted
from api.messages import messages
from api.pages import known
from api.proto import contract
from core.errors import Invalid, OutcomeUnknown, SyrosError, TooLarge, TooManyOperations, Unavailable
from core.operations import registry
from core.runtime import runtime
from tests.doors import Lane, Refused, Served, free_port
from tests.doors.grpc import Grpc as GrpcDoor
from tests.doors.grpc import Stream, channel, varint
from tests.test_events import many
from tests.test_locks import queue, until

ACQUIRE, GET = "/syros.v1.LocksService/Acquire", "/syros.v1.LocksService/Get"


@pytest.fixture
def door(served: Served, namespace: str) -> GrpcDoor:
    return GrpcDoor(served, namespace)


@pytest.fixture
def stream(served: Served, namespace: str) -> Iterator[Stream]:
    found = Stream(channel(served), namespace)
    yield found
    found.call.cancel()


@dataclass
class Beside:
    """Further servers in the loop that serves, each on a port of its own unless one is given."""

    served: Served
    stops: list[tuple[asyncio.Event, "Future[None]"]] = field(default_factory=list)

    def __call__(self, port: int | None = None) -> int:
        stopping, port = asyncio.Event(), port or free_port()
        serving = Grpc("127.0.0.1", port).serve(stopping)
        self.stops.append((stopping, asyncio.run_coroutine_threadsafe(serving, self.served.loop)))
        until(lambda: answers(port))
        return port

    def stop(self, number: int = -1) -> float:
        """Stop one; how long its end took."""
        stopping, serving = self.stops.pop(number)
        started = time.monotonic()
        self.served.loop.call_soon_threadsafe(stopping.set)
        serving.result(30)
        return time.monotonic() - started


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def beside(served: Served) -> Iterator[Beside]:
    found = Beside(served)
    yield found
    while found.stops:
        found.stop()


def message(name: str, **parts: Any) -> Any:
    kind: Any = messages()[name]
    return kind(**parts)


def acquire(owner: str, key: str = "a", **more: Any) -> Any:
    return message("LocksServiceAcquireRequest", key=key, owner=owner, **more)


def command(owner: str, key: str = "a", number: str = "", **more: Any) -> Any:
    return message("Command", id=number, locks_acquire={"key": key, "owner": owner, **more})


def ask(over: grpc.Channel, path: str, body: bytes, namespace: str = "", **more: Any) -> Any:
    """Call a method with these bytes: what it answers, or a grpc.RpcError."""
    metadata = [("syros-namespace", namespace)] if namespace else []
    return over.unary_unary(path)(body, metadata=[*metadata, *more.pop("metadata", ())], timeout=20, **more)


def code(work: Callable[[], Any]) -> StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        work()
    found: StatusCode = error.value.code()
    return found


# -- by reflection, as grpcurl does it -----------------------------------------------------------------


class Reflected:
    """A client that knows nothing but the address."""

    def __init__(self, over: grpc.Channel, version: str) -> None:
        self._over, self._pool = over, descriptor_pool.DescriptorPool()
        self._ask = over.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

    def services(self) -> set[str]:
        (found,) = self._ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return {service.name for service in found.list_services_response.service}

    def call(self, service: str, method: str, params: dict[str, Any], metadata: Any = ()) -> dict[str, Any]:
        self._learn(service)
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        request: Any = message_factory.GetMessageClass(found.input_type)()
        response: Any = message_factory.GetMessageClass(found.output_type)
        json_format.ParseDict(params, request)
        body = self._over.unary_unary(f"/{service}/{method}")(request.SerializeToString(), metadata=metadata)
        return json_format.MessageToDict(response.FromString(body))

    def _learn(self, symbol: str) -> None:
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        (found,) = self._ask(iter([question]))
        files = [
            FileDescriptorProto.FromString(b) for b in found.file_descriptor_response.file_descriptor_proto
        ]
        known: set[str] = set()
        while len(known) < len(files):
            for file in files:
                if file.name not in known and known.issuperset(file.dependency):
                    self._pool.AddSerializedFile(file.SerializeToString())
                    known.add(file.name)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_client_that_knows_only_the_address_takes_a_lock(
    served: Served, namespace: str, version: str
) -> None:
    client = Reflected(channel(served), version)
    assert client.services() >= {
        "syros.v1.LocksService", "syros.v1.EventsService", "syros.v1.CoordinationService", "grpc.health.v1.Health",
    }  # fmt: skip
    params = {"key": "a", "owner": "me", "ttlSeconds": 5, "metadata": {"why": ["x"]}}
    grant = client.call("syros.v1.LocksService", "Acquire", params, [("syros-namespace", namespace)])
    assert (grant["key"], grant["owner"], grant["ttlSeconds"], grant["permits"]) == ("a", "me", 5, "1")
    until(lambda: client.call("grpc.health.v1.Health", "Check", {}) == {"status": "SERVING"})


def test_reflection_knows_what_errors_are_made_of(served: Served) -> None:
    client = Reflected(channel(served), "v1alpha")
    client._learn("google.rpc.ErrorInfo")
    assert client._pool.FindMessageTypeByName("google.rpc.BadRequest")


# -- health --------------------------------------------------------------------------------------------


def check(over: grpc.Channel, service: str) -> Any:
    body = ask(
        over,
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(service=service).SerializeToString(),
    )
    return health_pb2.HealthCheckResponse.FromString(body).status


def test_every_service_is_healthy_and_no_other_is_known(served: Served) -> None:
    over = channel(served)
    for service in ("", "syros.v1.LocksService", "syros.v1.CoordinationService"):
        until(lambda service=service: check(over, service) == health_pb2.HealthCheckResponse.SERVING)
    assert code(lambda: check(over, "syros.v1.NoService")) is StatusCode.NOT_FOUND
    listed = health_pb2.HealthListResponse.FromString(ask(over, "/grpc.health.v1.Health/List", b"")).statuses
    assert {"", "syros.v1.LocksService", "syros.v1.CoordinationService"} <= set(listed)


def test_who_watches_hears_that_the_process_stops(beside: Beside) -> None:
    port = beside()
    watch = grpc.insecure_channel(f"127.0.0.1:{port}").unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )(b"")
    states = (found.status for found in watch)
    seen = [next(states)]
    if seen[0] != health_pb2.HealthCheckResponse.SERVING:  # it has only just begun
        seen.append(next(states))
    assert seen[-1] == health_pb2.HealthCheckResponse.SERVING
    assert beside.stop() < 5
    assert list(states) == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_who_watches_what_there_is_not_does_not_hold_the_end_up(beside: Beside) -> None:
    port = beside()
    watch = grpc.insecure_channel(f"127.0.0.1:{port}").unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )(health_pb2.HealthCheckRequest(service="no.Service").SerializeToString())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    time.sleep(1)
    assert beside.stop() < 5
    assert list(watch) == []


# -- refusals ------------------------------------------------------------------------------------------


def test_a_refusal_has_a_status_details_and_the_problem(door: GrpcDoor, served: Served) -> None:
    body = message("LocksServiceAcquireRequest", key="a b", ttl_seconds=0).SerializeToString()
    with pytest.raises(grpc.RpcError) as error:
        ask(door.channel, ACQUIRE, body, door.namespace, metadata=[("x-request-id", "mine-1")])
    assert error.value.code() is StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "Wrong type or value: /key, /owner, /ttl_seconds"
    said = dict(error.value.trailing_metadata())
    assert (said["syros-status"], said["x-request-id"]) == ("422", "mine-1")
    assert json.loads(said["syros-problem-bin"])["code"] == "invalid"
    status = status_pb2.Status.FromString(said["grpc-status-details-bin"])
    found = {any.TypeName().rpartition(".")[2]: any for any in status.details}
    info, bad, request = (
        error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RequestInfo(),
    )  # fmt: skip
    assert found["ErrorInfo"].Unpack(info)
    assert found["BadRequest"].Unpack(bad)
    assert found["RequestInfo"].Unpack(request)
    assert (info.reason, info.domain, request.request_id) == ("INVALID", "syros", "mine-1")
    assert [each.field for each in bad.field_violations] == ["/key", "/owner", "/ttl_seconds"]


ERRORS = sorted(known(SyrosError), key=lambda error: error.code)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_only_what_changed_nothing_invites_a_retry(error: type[SyrosError]) -> None:
    found = code_of(error.__new__(error))
    assert found is not StatusCode.OK
    assert (found is StatusCode.UNAVAILABLE) == (
        error is Unavailable or (error.status == 503 and error.retryable)
    )


def test_what_became_of_a_command_may_be_unknown() -> None:
    assert code_of(OutcomeUnknown()) is StatusCode.UNKNOWN


def test_a_thousand_bad_fields_are_still_an_answer(door: GrpcDoor) -> None:
    with pytest.raises(Refused) as refused:
        door("events.append", stream_id="s", events=[{"event_type": "ü" * 300} for _ in range(500)])
    assert refused.value.code == "invalid"
    assert 5 < len(refused.value.problem["errors"]) < 1000


def unknown_fields(count: int) -> bytes:
    """So many, of different numbers, each empty."""
    numbers = (n << 3 | 2 for n in range(1000, 1000 + count))
    return b"".join(varint(number) + b"\0" for number in numbers)


def test_unknown_fields_are_named_but_not_for_ever(door: GrpcDoor) -> None:
    with pytest.raises(grpc.RpcError) as error:
        ask(door.channel, ACQUIRE, acquire("me").SerializeToString() + unknown_fields(3), door.namespace)
    found = json.loads(dict(error.value.trailing_metadata())["syros-problem-bin"])
    assert [each["pointer"] for each in found["errors"]] == ["/1000", "/1001", "/1002"]
    with pytest.raises(grpc.RpcError) as error:
        ask(door.channel, ACQUIRE, acquire("me").SerializeToString() + unknown_fields(2000), door.namespace)
    found = json.loads(dict(error.value.trailing_metadata())["syros-problem-bin"])
    assert [(each["pointer"], each["code"]) for each in found["errors"]] == [("/", "extra_forbidden")]
    assert "bytes are of fields that are not known" in found["errors"][0]["detail"]


def test_a_message_of_nothing_but_unknown_fields_costs_next_to_nothing() -> None:
    method, body = calls.Method(registry["locks.acquire"]), unknown_fields(250_000)
    started = time.thread_time()
    with pytest.raises(Invalid):
        method._params(body)
    assert time.thread_time() - started < 0.1


def test_a_million_errors_are_cut_at_once() -> None:
    problem = {"detail": "no", "errors": [{"pointer": f"/{n}", "code": "x"} for n in range(1_000_000)]}
    started = time.thread_time()
    assert 5 < len(fitted(problem)["errors"]) < 100
    assert time.thread_time() - started < 0.05


def test_large_messages_are_converted_beside_the_loop(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, list[str]] = {"read": [], "written": []}
    read, written = calls.Method._params, calls.Method._written

    def spy(name: str, work: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def spied(self: Any, what: Any) -> Any:
            threads[name].append(threading.current_thread().name.partition("_")[0])
            return work(self, what)

        return spied

    monkeypatch.setattr(calls.Method, "_params", spy("read", read))
    monkeypatch.setattr(calls.Method, "_written", spy("written", written))
    for size, is_beside in ((10, False), (100_000, True)):
        door("events.append", stream_id=f"s{size}", event_type="t", data={"x": ["y" * size]})
        assert door("events.read", stream_id=f"s{size}")["events"][0]["data"] == {"x": ["y" * size]}
        found = threads["read"][-2] == "syros-grpc", threads["written"][-1] == "syros-grpc"
        assert found == (is_beside, is_beside)
        assert "syros-grpc" not in (threads["read"][-1], threads["written"][-2])  # the small ones


def test_an_owner_of_any_characters_can_be_told_of(door: GrpcDoor) -> None:
    owner = "😀" * 255
    door("locks.acquire", key="a", owner=owner)
    with pytest.raises(Refused) as refused:
        door("locks.acquire", key="a", owner="bob")
    assert (refused.value.status, refused.value.code) == (409, "lock_held")


def test_what_nobody_foresaw_is_internal(
    door: GrpcDoor, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(runtime, "run", broken)
    with pytest.raises(Refused) as refused:
        door("locks.get", key="a")
    assert (refused.value.status, refused.value.code) == (500, "internal")
    assert "secret" not in str(refused.value.problem)
    assert refused.value.problem["request_id"] in {
        getattr(record, "request_id", "") for record in caplog.records
    }


# -- bytes that are none of ours -------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, body: bytes = b"", stream: int = 1) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def head(path: bytes, stream: int = 1, **more: bytes) -> bytes:
    """The frame that begins a call."""
    pairs = {":method": b"POST", ":scheme": b"http", ":path": path, ":authority": b"localhost", "te": b"trailers",
             "content-type": b"application/grpc", **more}  # fmt: skip
    texts = [b"\x00" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v for n, v in pairs.items()]
    return frame(1, 4, b"".join(texts), stream)


def data(body: bytes, end: bool = True) -> bytes:
    return frame(0, int(end), b"\x00" + struct.pack(">I", len(body)) + body)


@contextlib.contextmanager
def connection(served: Served, *frames: bytes, port: int = 0) -> Iterator[socket.socket]:
    """A connection over which HTTP/2 was begun, and these frames sent."""
    with socket.create_connection(("127.0.0.1", port or served.grpc_port), 5) as found:
        found.sendall(PREFACE + frame(4, 0, stream=0) + b"".join(frames))
        yield found


def heard(found: socket.socket, *, until_has: bytes = b"", seconds: float = 5) -> bytes:
    """What comes, until it has this or the peer hangs up."""
    found.settimeout(seconds)
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while (part := found.recv(65536)) and not (until_has and until_has in said + part):
            said += part
        said += part
    return said


@pytest.mark.parametrize(
    "path", [b"/\xff\xfe/Get", b"\xff", b"/syros.v1.LocksService/\xc3(", b"", b"/", b"x"]
)
def test_a_path_that_is_none_ends_nobody_s_service(served: Served, door: GrpcDoor, path: bytes) -> None:
    with connection(served, head(path), data(b"")) as found:
        assert b"grpc-status" in heard(found, until_has=b"grpc-status", seconds=2) or path in {b"", b"x"}
    assert door("locks.get", key="a")["is_locked"] is False


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        PREFACE + b"\xff" * 5000,
        PREFACE + frame(4, 0, stream=0) + frame(1, 4, b"\xff\xff\xff\xff\xff"),
        PREFACE + frame(4, 0, stream=0) + frame(0, 0, b"\x00\x00\x00\x00\x05hello", stream=9),
        PREFACE + frame(4, 0, stream=0) + head(GET.encode()) + head(GET.encode()),
        PREFACE + frame(4, 0, stream=0) + head(GET.encode()) + frame(0, 1, b"\x07\xff\xff\xff\xff"),
        PREFACE + frame(4, 0, stream=0) + head(GET.encode()) + frame(8, 0, b"\x7f\xff\xff\xff"),
        PREFACE + frame(4, 0, stream=0) + b"".join(frame(6, 0, b"\0" * 8, 0) for _ in range(1000)),
        PREFACE + frame(4, 0, stream=0) + b"".join(frame(4, 0, stream=0) for _ in range(1000)),
    ],
)  # fmt: skip
def test_what_is_not_grpc_hurts_nobody(served: Served, door: GrpcDoor, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.grpc_port), 5) as found, contextlib.suppress(OSError):
        found.sendall(junk)
        heard(found, seconds=0.5)
    assert door("locks.get", key="a")["is_locked"] is False


def test_metadata_of_odd_bytes_is_no_credential(served: Served, door: GrpcDoor) -> None:
    body = acquire("me").SerializeToString()
    with connection(served, head(ACQUIRE.encode(), **{"x-api-key": b"\xff\xfe"}), data(body)) as found:
        assert b"grpc-status\x0216" in heard(found, until_has=b"grpc-status\x02")


@pytest.mark.parametrize(
    "body", [b"\xff\xff", b"\x0a\x05abc", b"\x0a\x01\xff", b"\x0b", b"\x3a\x02\x0a" * 300]
)
def test_bytes_that_are_no_message_are_malformed(door: GrpcDoor, body: bytes) -> None:
    with pytest.raises(grpc.RpcError) as error:
        ask(door.channel, ACQUIRE, body, door.namespace)
    assert error.value.code() is StatusCode.INVALID_ARGUMENT
    assert json.loads(dict(error.value.trailing_metadata())["syros-problem-bin"])["code"] == "malformed"
    assert door("locks.get", key="a")["is_locked"] is False


def test_json_that_nests_too_deep_is_malformed(door: GrpcDoor) -> None:
    value: Any = message("google.protobuf.Value", number_value=1)
    for _ in range(200):  # as bytes: no library builds it
        inner = value if isinstance(value, bytes) else value.SerializeToString()
        length = (
            struct.pack("B", len(inner))
            if len(inner) < 128
            else bytes([len(inner) & 127 | 128, len(inner) >> 7])
        )
        body = b"\x0a" + length + inner
        length = (
            struct.pack("B", len(body)) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])
        )
        value = b"\x32" + length + body
    number = messages()["EventsServiceAppendRequest"].DESCRIPTOR.fields_by_name["data"].number
    size = bytes([len(value) & 127 | 128, len(value) >> 7])
    body = message("EventsServiceAppendRequest", stream_id="s", event_type="t").SerializeToString()
    path = "/syros.v1.EventsService/Append"
    deep = body + bytes([number << 3 | 2]) + size + value
    assert code(lambda: ask(door.channel, path, deep, door.namespace)) is StatusCode.INVALID_ARGUMENT


def test_a_call_without_a_message_is_malformed(door: GrpcDoor) -> None:
    call = door.channel.stream_unary(ACQUIRE)
    assert code(lambda: call(iter(()), timeout=20)) is StatusCode.INVALID_ARGUMENT


def test_a_second_message_changes_nothing(door: GrpcDoor) -> None:
    call = door.channel.stream_unary(ACQUIRE)
    bodies = [acquire(owner, key).SerializeToString() for owner, key in (("alice", "a"), ("bob", "b"))]
    call(iter(bodies), timeout=20, metadata=[("syros-namespace", door.namespace)])
    assert door("locks.get", key="a")["is_locked"] is True
    assert door("locks.get", key="b")["is_locked"] is False


@pytest.mark.parametrize(
    "path", ["/syros.v1.LocksService/Steal", "/syros.v1.NoService/Get", "/syros.v2.LocksService/Get"]
)
def test_what_there_is_not_is_unimplemented(door: GrpcDoor, path: str) -> None:
    assert code(lambda: ask(door.channel, path, b"")) is StatusCode.UNIMPLEMENTED


def test_a_message_over_the_operation_s_limit_is_refused(door: GrpcDoor) -> None:
    body = acquire("me", metadata={"x": "y" * (1 << 20)}).SerializeToString()
    with pytest.raises(grpc.RpcError) as error:
        ask(door.channel, ACQUIRE, body, door.namespace)
    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert json.loads(dict(error.value.trailing_metadata())["syros-problem-bin"])["limit"] == 1 << 20


def test_a_batch_of_events_may_be_larger(door: GrpcDoor) -> None:
    events = [{"event_type": "t", "data": "y" * 10_000}] * 400
    assert door("events.append", stream_id="s", events=events).status == 201


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_all_limits_is_not_taken_in(door: GrpcDoor, compression: Any) -> None:
    body = b"\0" * (200 << 20)
    before = resident()
    refused = code(lambda: ask(door.channel, ACQUIRE, body, compression=compression))
    assert refused is StatusCode.RESOURCE_EXHAUSTED
    assert resident() - before < 300  # MB; the client is in this process and has all of it, once or twice


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024


# -- who calls -------------------------------------------------------------------------------------------


@pytest.fixture
def production(settings: Any) -> None:
    from core.callers import verdicts

    settings.DEV = False
    verdicts.clear()


def whoami(over: grpc.Channel, *metadata: tuple[str, str]) -> Any:
    return messages()["AuthServiceWhoamiResponse"].FromString(
        ask(over, "/syros.v1.AuthService/Whoami", b"", metadata=metadata)
    )


def test_a_caller_on_this_machine_needs_no_credentials(served: Served) -> None:
    assert whoami(channel(served)).principal == "developer"


def test_without_development_mode_everybody_needs_credentials(
    served: Served, door: GrpcDoor, production: None, settings: Any
) -> None:
    body = acquire("me").SerializeToString()
    assert code(lambda: ask(door.channel, ACQUIRE, body, door.namespace)) is StatusCode.UNAUTHENTICATED
    bad = [("authorization", "Bearer nonsense")]
    assert code(lambda: ask(door.channel, ACQUIRE, body, metadata=bad)) is StatusCode.UNAUTHENTICATED
    settings.DEV = True
    assert door("locks.get", key="a")["is_locked"] is False


def test_a_peer_from_elsewhere_needs_credentials(door: GrpcDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calls, execute):
        monkeypatch.setattr(module, "peer_of", lambda context: "192.0.2.7")
    forwarded = [("x-forwarded-for", "127.0.0.1")]
    body = acquire("me").SerializeToString()
    assert code(lambda: ask(door.channel, ACQUIRE, body, metadata=forwarded)) is StatusCode.UNAUTHENTICATED
    assert Stream(door.channel, door.namespace).join() is StatusCode.UNAUTHENTICATED


def test_who_is_refused_need_not_send_anything(served: Served, production: None) -> None:
    with connection(served, head(ACQUIRE.encode())) as found:  # and no message
        assert b"grpc-status\x0216" in heard(found, until_has=b"grpc-status\x02")


def test_a_key_calls_until_it_is_revoked(served: Served, lane: Lane, production: None, settings: Any) -> None:
    settings.DEV = True
    made = lane("api_keys.create", name="ci")
    settings.DEV = False
    over = channel(served)
    for credential in (("x-api-key", made["key"]), ("authorization", f"Bearer {made['key']}")):
        found = whoami(over, credential)
        assert (found.principal, found.namespace) == (f"key:{made['id']}", lane.namespace)
    with pytest.raises(grpc.RpcError) as error:
        whoami(over, ("x-api-key", made["key"]), ("syros-namespace", "default"))
    assert error.value.code() is StatusCode.NOT_FOUND
    stream = Stream(over, lane.namespace, made["key"])
    assert stream.send(command("me")).result(5).status == 201
    settings.DEV = True
    lane("api_keys.revoke", key_id=made["id"])
    settings.DEV = False

    def is_out() -> bool:
        try:
            whoami(over, ("x-api-key", made["key"]))
        except grpc.RpcError as refused:
            return bool(refused.code() is StatusCode.UNAUTHENTICATED)
        return False

    until(is_out)
    stream.send(command("me", "b"))  # the credentials of a stream are looked at again and again
    assert stream.join() is StatusCode.UNAUTHENTICATED
    settings.DEV = True
    assert lane("locks.get", key="b")["is_locked"] is False


def test_a_user_logs_in_without_credentials(served: Served, namespace: str, production: None) -> None:
    from django.contrib.auth.models import User

    User.objects.create_user(f"alice-{namespace}", password="correct horse", is_staff=True)
    over = channel(served)
    body = message("AuthServiceLoginRequest", username=f"alice-{namespace}", password="correct horse")
    tokens: Any = messages()["AuthServiceLoginResponse"].FromString(
        ask(over, "/syros.v1.AuthService/Login", body.SerializeToString())
    )
    found = whoami(over, ("authorization", f"Bearer {tokens.access}"))
    assert (found.principal, found.is_admin) == (f"user:alice-{namespace}", True)
    body.password = "wrong"
    wrong = body.SerializeToString()
    assert code(lambda: ask(over, "/syros.v1.AuthService/Login", wrong)) is StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv6:[2001:db8::1]:443", "2001:db8::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1%eth0"),
        ("unix:/tmp/x", ""),
        ("unknown", ""),
    ],
)
def test_a_peer_s_address_is_read(peer: str, address: str) -> None:
    assert calls.address(peer) == address


# -- calls that end early --------------------------------------------------------------------------------


def waits(door: GrpcDoor, **options: Any) -> Any:
    """A call that waits for the lock `a` and is in its queue."""
    door("locks.acquire", key="a", owner="alice")
    call = door.channel.unary_unary(ACQUIRE).future(
        acquire("bob", wait_seconds=60).SerializeToString(),
        metadata=[("syros-namespace", door.namespace)],
        **options,
    )
    until(lambda: queue(door, "a") == ["bob"])
    return call


def test_a_cancelled_call_leaves_the_queue(door: GrpcDoor) -> None:
    waits(door).cancel()
    until(lambda: queue(door, "a") == [])
    kinds = [event["event_type"] for event in door("events.read", stream_id="$lock:a")["events"]]
    assert kinds == ["lock.acquired", "lock.queued", "lock.withdrawn"]


def test_a_call_past_its_deadline_leaves_the_queue(door: GrpcDoor) -> None:
    assert waits(door, timeout=1).exception().code() is StatusCode.DEADLINE_EXCEEDED
    until(lambda: queue(door, "a") == [])


def test_a_lost_connection_leaves_the_queue(served: Served, door: GrpcDoor) -> None:
    door("locks.acquire", key="a", owner="alice")
    body = acquire("bob", wait_seconds=60).SerializeToString()
    begin = head(ACQUIRE.encode(), **{"syros-namespace": door.namespace.encode()})
    with connection(served, begin, data(body, end=False)):
        until(lambda: queue(door, "a") == ["bob"])
    until(lambda: queue(door, "a") == [])


def test_a_peer_that_answers_no_ping_leaves_the_queue(
    served: Served, door: GrpcDoor, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    quick = dict.fromkeys(names, 1000)
    monkeypatch.setattr(server, "OPTIONS", [(name, quick.get(name, value)) for name, value in server.OPTIONS])
    port = beside()
    door("locks.acquire", key="a", owner="alice")
    body = acquire("bob", wait_seconds=60).SerializeToString()
    begin = head(ACQUIRE.encode(), **{"syros-namespace": door.namespace.encode()})
    with connection(served, begin, data(body, end=False), port=port):  # which says nothing more, and stays
        until(lambda: queue(door, "a") == ["bob"])
        until(lambda: queue(door, "a") == [], 10)


def test_a_message_must_arrive_in_time(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "REQUEST_SECONDS", 0.3)
    for late in ((), (frame(0, 0, b"\x00\x00\x00\x00\x05he"),)):
        with connection(served, head(ACQUIRE.encode()), *late) as found:
            assert b"grpc-status\x013" in heard(found, until_has=b"grpc-status\x01")
    assert door("locks.get", key="a")["is_locked"] is False


LOGIN, CHECK, WATCH = (
    "/syros.v1.AuthService/Login",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
)
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def test_strangers_are_listened_to_a_few_at_a_time_and_not_for_ever(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STRANGER_SECONDS", 2.0)
    silent = head(LOGIN.encode())

    def is_full() -> bool:
        started = time.monotonic()
        refused = code(lambda: ask(door.channel, LOGIN, b""))
        assert time.monotonic() - started < 1  # they are refused, and do not queue
        return refused is StatusCode.RESOURCE_EXHAUSTED

    with contextlib.ExitStack() as stack:
        for _ in range(calls.STRANGERS):
            stack.enter_context(connection(served, silent))
        until(is_full)
        assert check(door.channel, "") == health_pb2.HealthCheckResponse.SERVING
        until(lambda: not is_full())


def test_addresses_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    places = calls.Places()
    with places.take("a", 2, 3), places.take("a", 2, 3), places.take("b", 2, 3):
        for peer in "abc":
            with pytest.raises(TooManyOperations), places.take(peer, 2, 3):
                pass
    with places.take("a", 1, 1):
        pass


@pytest.mark.parametrize("path", [LOGIN, CHECK, WATCH, REFLECT])
def test_silent_strangers_hold_up_nobody_who_says_who_it_is(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(aio, "CALLS", 30)
    crowd = b"".join(head(path.encode(), stream=2 * n + 1) for n in range(60))
    with connection(served, crowd) as found:
        heard(found, until_has=b"grpc-status")  # some are refused by now
        assert door("locks.get", key="a")["is_locked"] is False


def test_those_who_watch_are_counted_for_themselves(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "CALLS", 30)
    monkeypatch.setattr(health, "WATCHES", 50)
    watches = [door.channel.unary_stream(WATCH)(b"") for _ in range(50)]
    assert all(next(watch) for watch in watches)
    assert code(lambda: next(door.channel.unary_stream(WATCH)(b""))) is StatusCode.RESOURCE_EXHAUSTED
    assert check(door.channel, "") == health_pb2.HealthCheckResponse.SERVING
    assert door("locks.get", key="a")["is_locked"] is False
    for watch in watches:
        watch.cancel()

    def has_room() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(next(door.channel.unary_stream(WATCH)(b"")))
        return False

    until(has_room)


# -- floods ------------------------------------------------------------------------------------------------


def test_a_thousand_waiting_calls_hold_nobody_up_and_leave_together(served: Served, door: GrpcDoor) -> None:
    door("locks.acquire", key="a", owner="alice")
    crowd = channel(served)
    metadata = [("syros-namespace", door.namespace)]
    waiting = [
        crowd.unary_unary(ACQUIRE).future(
            acquire(f"w{n}", wait_seconds=60).SerializeToString(), metadata=metadata
        )
        for n in range(900)
    ]
    until(lambda: door("locks.get", key="a")["queue_length"] == 900, 30)
    started = time.monotonic()
    assert door("locks.acquire", key="b", owner="other").status == 201
    assert time.monotonic() - started < 2
    for call in waiting:
        call.cancel()
    until(lambda: door("locks.get", key="a")["queue_length"] == 0, 30)
    crowd.close()


def test_a_process_has_a_limit_for_calls(door: GrpcDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = waits(door)
    monkeypatch.setattr(aio, "CALLS", 1)
    assert code(lambda: ask(door.channel, GET, b"")) is StatusCode.RESOURCE_EXHAUSTED
    waiting.cancel()
    monkeypatch.undo()
    assert door("locks.acquire", key="b", owner="me").status == 201


def test_connections_that_begin_and_break_off_leave_nothing(served: Served, door: GrpcDoor) -> None:
    before = served.do(tasks_of_calls())
    for _ in range(200):
        with connection(served, head(ACQUIRE.encode()), frame(3, 0, b"\x00\x00\x00\x08")):
            pass
    assert door("locks.acquire", key="a", owner="me").status == 201
    until(lambda: served.do(tasks_of_calls()) <= before)


async def tasks_of_calls() -> int:
    return sum("HandleExceptions" in task.get_name() for task in asyncio.all_tasks())


# -- following ---------------------------------------------------------------------------------------------


def follow(door: GrpcDoor, key: str = "", **params: Any) -> Any:
    return door.channel.unary_stream(
        "/syros.v1.EventsService/Follow",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=messages()["EventsServiceFollowResponse"].FromString,
    )(
        message("EventsServiceFollowRequest", **params),
        metadata=[("syros-namespace", door.namespace), *([("x-api-key", key)] if key else [])],
        timeout=60,
    )


def test_following_catches_up_and_goes_on_live(door: GrpcDoor) -> None:
    door("events.append", stream_id="s", events=many(3))
    items = follow(door, from_position=2)
    assert next(items).heartbeat.position == 1
    assert [next(items).event.position for _ in range(2)] == [2, 3]
    door("events.append", stream_id="s", event_type="Live", data={"x": 1.5})
    event = next(items).event
    assert (event.event_type, event.position, event.data.struct_value["x"]) == ("Live", 4, 1.5)
    items.cancel()


def test_who_follows_is_cut_off_when_the_key_is_revoked(door: GrpcDoor) -> None:
    made = door("api_keys.create", name="ci")
    items = follow(door, made["key"], heartbeat_seconds=60)
    assert next(items).heartbeat
    door("api_keys.revoke", key_id=made["id"])
    assert code(lambda: list(items)) is StatusCode.UNAUTHENTICATED


def test_who_waits_leaves_the_queue_when_the_key_is_revoked(door: GrpcDoor) -> None:
    made = door("api_keys.create", name="ci")
    door("locks.acquire", key="a", owner="alice")
    body = acquire("bob", wait_seconds=60).SerializeToString()
    call = door.channel.unary_unary(ACQUIRE).future(body, metadata=[("x-api-key", made["key"])])
    until(lambda: queue(door, "a") == ["bob"])
    door("api_keys.revoke", key_id=made["id"])
    until(lambda: queue(door, "a") == [], 8)
    assert call.exception(timeout=2).code() is StatusCode.UNAUTHENTICATED


def test_following_from_ahead_is_refused(door: GrpcDoor) -> None:
    assert code(lambda: next(follow(door, from_position=9))) is StatusCode.ABORTED
    assert code(lambda: next(follow(door, heartbeat_seconds=0))) is StatusCode.INVALID_ARGUMENT


def test_who_follows_and_does_not_read_hurts_nobody(door: GrpcDoor, served: Served) -> None:
    slow = channel(served).unary_stream("/syros.v1.EventsService/Follow")(
        message("EventsServiceFollowRequest", from_position=1).SerializeToString(),
        metadata=[("syros-namespace", door.namespace)],
    )
    time.sleep(0.2)
    before = resident()
    for _ in range(10):
        door("events.append", stream_id="s", events=[{"event_type": "t", "data": "y" * 10_000}] * 400)
    assert door("events.read", stream_id="s", limit=1)["version"] == 4000
    assert resident() - before < 300  # MB, for a log of 40
    slow.cancel()


# -- Execute -------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_command_by_command(stream: Stream, door: GrpcDoor) -> None:
    stream.send(
        command("alice", "a", "1"),
        command("bob", "a", "2"),
        command("bob", "b c", "3"),
        message(
            "Command",
            id="4",
            events_append={"stream_id": "s", "event_type": "t", "data": {"number_value": 1}},
        ),
        message("Command", id="5"),
    ).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 5)
    found = {result.id: result for response in stream.responses for result in response.results}
    assert [found[n].status for n in "12345"] == [201, 409, 422, 201, 422]
    assert found["1"].locks_acquire.owner == "alice"
    assert (found["2"].error.code, found["2"].error.extra["key"]) == ("lock_held", "a")
    assert [(e.pointer, e.code) for e in found["3"].error.errors] == [("/key", "bad_name")]
    assert found["4"].events_append.version == 1
    assert [e.pointer for e in found["5"].error.errors] == ["/operation"]
    stream.end()
    assert stream.join() is StatusCode.OK


def test_a_batch_is_carried_out_in_its_order(stream: Stream, door: GrpcDoor) -> None:
    stream.send(*(command(f"o{n}", "a", f"{n}") for n in range(20))).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 20)
    results = [result for response in stream.responses for result in response.results]
    assert [result.id for result in results if result.status == 201] == ["0"]
    assert door("locks.get", key="a")["holders"][0]["owner"] == "o0"


def test_a_batch_shares_its_commits(stream: Stream, served: Served) -> None:
    assert runtime.engine
    stream.send(command("me", "warm")).result(5)
    batches, commands = runtime.engine.batches, runtime.engine.commands
    stream.send(*(command("me", f"k{n}") for n in range(64))).result(5)
    until(lambda: runtime.engine.commands - commands >= 64)
    assert runtime.engine.batches - batches <= 16


def test_a_command_that_waits_holds_no_other_up(stream: Stream, door: GrpcDoor) -> None:
    held = door("locks.acquire", key="a", owner="alice")
    stream.send(command("bob", wait_seconds=30, number="waits"), command("bob", "b", "goes")).result(5)
    assert queue(door, "a") == ["bob"]
    release = message("Command", id="gives", locks_release={"key": "a", "lock_id": held["lock_id"]})
    stream.send(release).result(5)
    until(lambda: len([r for response in stream.responses for r in response.results]) == 3)
    order = [result.id for response in stream.responses for result in response.results]
    assert order[0] == "goes"
    assert set(order[1:]) == {"waits", "gives"}


def test_the_end_of_the_commands_is_not_the_end_of_the_answers(stream: Stream, door: GrpcDoor) -> None:
    held = door("locks.acquire", key="a", owner="alice")
    waiting = stream.send(command("bob", wait_seconds=30))
    until(lambda: queue(door, "a") == ["bob"])
    stream.end()
    time.sleep(0.1)
    assert queue(door, "a") == ["bob"]
    door("locks.release", key="a", lock_id=held["lock_id"])
    assert waiting.result(5).locks_acquire.owner == "bob"
    assert stream.join() is StatusCode.OK


def test_a_stream_that_breaks_off_leaves_every_queue(stream: Stream, door: GrpcDoor) -> None:
    for key in "abc":
        door("locks.acquire", key=key, owner="alice")
    stream.send(*(command("bob", key, wait_seconds=60) for key in "abc"))
    until(lambda: [queue(door, key) for key in "abc"] == [["bob"]] * 3)
    stream.call.cancel()
    until(lambda: [queue(door, key) for key in "abc"] == [[]] * 3)


def test_a_stream_over_its_deadline_leaves_every_queue(served: Served, door: GrpcDoor) -> None:
    door("locks.acquire", key="a", owner="alice")
    stream = Stream(channel(served), door.namespace, timeout=1)
    stream.send(command("bob", wait_seconds=60))
    assert stream.join() is StatusCode.DEADLINE_EXCEEDED
    until(lambda: queue(door, "a") == [])


def test_the_same_key_in_a_batch_has_one_effect(stream: Stream, door: GrpcDoor) -> None:
    batch = [command("me", "a", f"{n}") for n in range(5)]
    for each in batch:
        each.idempotency_key = "k1"
    stream.send(*batch).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 5)
    results = [result for response in stream.responses for result in response.results]
    assert len({result.locks_acquire.lock_id for result in results}) == 1
    assert sum(not result.replayed for result in results) == 1


def test_a_command_has_a_namespace_of_its_own(stream: Stream, door: GrpcDoor) -> None:
    elsewhere = command("me", f"only-{door.namespace}")
    elsewhere.namespace = "default"
    assert stream.send(elsewhere).result(5).status == 201
    assert door("locks.get", key=f"only-{door.namespace}")["is_locked"] is False
    nowhere = command("me")
    nowhere.namespace = "nowhere"
    assert stream.send(nowhere).result(5).error.code == "not_found"


def test_what_a_later_version_may_know_is_refused_alone(stream: Stream, door: GrpcDoor) -> None:
    later = message("Command", id="1")
    later.MergeFromString(b"\xfa\x3e\x00")  # field 1007, empty
    known = command("me", "b", "2")
    known.MergeFromString(b"\xfa\x3e\x00")
    fine = command("me", "c", "3")
    stream.send(later, known, fine).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 3)
    found = {result.id: result for response in stream.responses for result in response.results}
    assert [found[n].error.code for n in "12"] == ["not_found", "invalid"]
    assert found["2"].error.errors[0].pointer == "/1007"
    assert door("locks.get", key="b")["is_locked"] is False
    assert door("locks.get", key="c")["is_locked"] is True


def test_a_malformed_batch_ends_the_stream_after_what_was_asked(served: Served, door: GrpcDoor) -> None:
    good = message("CoordinationServiceExecuteRequest", commands=[command("me")]).SerializeToString()
    call = channel(served).stream_stream("/syros.v1.CoordinationService/Execute")(
        iter([good, b"\xff\xff"]), metadata=[("syros-namespace", door.namespace)]
    )
    first: Any = messages()["CoordinationServiceExecuteResponse"].FromString(next(call))
    assert first.results[0].status == 201
    assert code(lambda: next(call)) is StatusCode.INVALID_ARGUMENT


def test_a_batch_has_a_limit(stream: Stream, door: GrpcDoor) -> None:
    stream.send(*(command("me", f"k{n}") for n in range(execute.COMMANDS + 1)))
    assert stream.join() is StatusCode.RESOURCE_EXHAUSTED
    assert door("locks.find")["items"] == []


def test_a_command_over_its_operation_s_limit_is_refused_alone(stream: Stream, door: GrpcDoor) -> None:
    large = command("me", "a", "1", metadata={"x": "y" * (1 << 20)})
    stream.send(large, command("me", "b", "2")).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 2)
    found = {result.id: result.status for response in stream.responses for result in response.results}
    assert found == {"1": 413, "2": 201}


def test_a_command_over_its_operation_s_limit_is_not_read() -> None:
    commands = execute.Commands(contract().operations, messages())
    commands._readers.clear()
    large = command("me", metadata={"x": "y" * (1 << 20)})
    with pytest.raises(TooLarge):
        commands.read(large, large.SerializeToString())


def test_a_command_of_unknown_fields_is_refused_alone(stream: Stream) -> None:
    odd = command("me", "a", "1")
    odd.locks_acquire.MergeFromString(unknown_fields(100_000))
    stream.send(odd, command("me", "b", "2")).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 2)
    found = {result.id: result for response in stream.responses for result in response.results}
    assert [found[n].status for n in "12"] == [422, 201]
    assert "bytes are of fields that are not known" in found["1"].error.errors[0].detail


def test_a_large_batch_is_read_beside_the_loop(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    read = execute.Execution._asked

    def spied(self: Any, body: bytes) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0] == "syros-grpc")
        return read(self, body)

    monkeypatch.setattr(execute.Execution, "_asked", spied)
    stream.send(command("me", "a")).result(5)
    stream.send(*(command("me", f"{'k' * 200}{n}") for n in range(500))).result(5)
    assert threads == [False, True]


@pytest.fixture
def odd_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks whoever asks for it, and one that takes its time."""
    call_by = execute.requests.call_by

    async def odd(caller: Any, headers: Any, identity: str) -> Any:
        if headers.namespace == "broken":
            raise ZeroDivisionError
        if headers.namespace == "slow":
            await asyncio.sleep(1)
            headers.namespace = "default"
        return await call_by(caller, headers, identity)

    monkeypatch.setattr(execute.requests, "call_by", odd)


def in_namespace(name: str, *about: str) -> Any:
    found = command(*about)
    found.namespace = name
    return found


def test_what_nobody_foresaw_is_the_command_s_problem_alone(stream: Stream, odd_namespaces: None) -> None:
    stream.send(in_namespace("broken", "me", "a", "1"), command("me", "b", "2")).result(5)
    until(lambda: sum(len(response.results) for response in stream.responses) == 2)
    found = {result.id: result for response in stream.responses for result in response.results}
    assert (found["1"].error.code, found["2"].status) == ("internal", 201)
    assert stream.send(command("me", "c")).result(5).status == 201


def test_a_namespace_that_is_none_is_the_command_s_problem_alone(stream: Stream) -> None:
    assert stream.send(in_namespace("\0", "me")).result(5).status in {404, 500}
    assert stream.send(command("me")).result(5).status == 201


def test_a_process_that_stops_within_a_batch_answers_all_of_it(
    beside: Beside, door: GrpcDoor, odd_namespaces: None
) -> None:
    stream = Stream(grpc.insecure_channel(f"127.0.0.1:{beside()}"), door.namespace)
    last = stream.send(
        command("me", "a", "first"),
        in_namespace("slow", "me", "a", "slow"),
        *(command("me", f"k{n}") for n in range(50)),
    )
    until(lambda: bool(stream.responses))
    assert beside.stop() < 5
    assert last.result(1).error.code == "unavailable"
    results = [result for response in stream.responses for result in response.results]
    assert (len(results), {each.status for each in results}) == (52, {201, 503})
    assert stream.join() is StatusCode.UNAVAILABLE


def test_a_stream_ends_when_its_key_is_revoked(served: Served, door: GrpcDoor) -> None:
    made = door("api_keys.create", name="ci")
    door("locks.acquire", key="a", owner="alice")
    stream = Stream(channel(served), door.namespace, made["key"])
    waiting = stream.send(command("bob", wait_seconds=60))
    until(lambda: queue(door, "a") == ["bob"])
    door("api_keys.revoke", key_id=made["id"])
    until(lambda: queue(door, "a") == [], 8)
    assert waiting.result(2).error.code == "unauthenticated"
    assert stream.join(2) is StatusCode.UNAUTHENTICATED


def test_a_stream_nobody_reads_ends_when_its_key_is_revoked(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, run = threading.Event(), execute.Execution.run

    async def spied(self: Any) -> None:
        try:
            await run(self)
        finally:
            ended.set()

    monkeypatch.setattr(execute.Execution, "run", spied)
    made = door("api_keys.create", name="ci")
    commands = [command("me", f"{'k' * 200}{n}") for n in range(500)]
    batch = message("CoordinationServiceExecuteRequest", commands=commands).SerializeToString()
    call = channel(served).stream_stream("/syros.v1.CoordinationService/Execute")(
        iter([batch] * 20), metadata=[("x-api-key", made["key"])]
    )
    assert not ended.wait(1)
    door("api_keys.revoke", key_id=made["id"])
    assert ended.wait(8)
    call.cancel()


def test_a_stream_is_not_read_further_than_it_is_answered(
    served: Served, door: GrpcDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "COMMANDS", 10)
    door("locks.acquire", key="a", owner="alice")
    stream = Stream(channel(served), door.namespace)
    for _ in range(20):
        stream.send(command("bob", wait_seconds=60))
    until(lambda: door("locks.get", key="a")["queue_length"] == 10)
    time.sleep(0.2)
    assert door("locks.get", key="a")["queue_length"] == 10
    stream.call.cancel()
    until(lambda: door("locks.get", key="a")["queue_length"] == 0)


def test_a_process_has_a_limit_for_all_streams(
    served: Served, door: GrpcDoor, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    door("locks.acquire", key="a", owner="alice")
    monkeypatch.setattr(execute, "PROCESS_COMMANDS", 3)
    crowd = Stream(channel(served), door.namespace)
    crowd.send(*(command("bob", wait_seconds=60) for _ in range(3)))
    until(lambda: door("locks.get", key="a")["queue_length"] == 3)
    assert stream.send(command("carol", "b")).result(5).error.code == "unavailable"
    crowd.call.cancel()
    until(lambda: door("locks.get", key="a")["queue_length"] == 0)
    assert stream.send(command("carol", "b")).result(5).status == 201


def test_who_sends_and_does_not_read_hurts_nobody(served: Served, door: GrpcDoor) -> None:
    many_keys = [command("me", f"{'k' * 200}{n}") for n in range(500)]
    batch = message("CoordinationServiceExecuteRequest", commands=many_keys).SerializeToString()
    stop = threading.Event()
    endless = iter(lambda: batch if not stop.is_set() else None, None)
    before = resident()
    call = channel(served).stream_stream("/syros.v1.CoordinationService/Execute")(
        endless, metadata=[("syros-namespace", door.namespace)]
    )
    time.sleep(2)
    assert door("locks.acquire", key="other", owner="me").status == 201
    assert resident() - before < 100  # MB
    stop.set()
    call.cancel()


# -- the end ---------------------------------------------------------------------------------------------------


def test_a_process_that_stops_answers_what_is_under_way(
    beside: Beside, served: Served, door: GrpcDoor
) -> None:
    port = beside()
    over = grpc.insecure_channel(f"127.0.0.1:{port}")
    door("locks.acquire", key="a", owner="alice")
    idle, busy = Stream(over, door.namespace), Stream(over, door.namespace)
    idle.send(command("me", "b")).result(5)
    waiting = busy.send(command("bob", wait_seconds=1.0))
    call = over.unary_unary(ACQUIRE).future(
        acquire("carol", wait_seconds=1.0).SerializeToString(), metadata=[("syros-namespace", door.namespace)]
    )
    until(lambda: len(queue(door, "a")) == 2)
    assert beside.stop() < 5
    assert idle.join() is StatusCode.UNAVAILABLE
    assert waiting.result(1).error.code == "lock_wait_timeout"
    assert busy.join() is StatusCode.UNAVAILABLE
    assert call.exception().code() is StatusCode.ABORTED
    assert not answers(port)


def test_processes_share_a_port_and_one_that_goes_is_not_missed(beside: Beside, door: GrpcDoor) -> None:
    port = beside()
    beside(port)
    options = [("grpc.use_local_subchannel_pool", 1)]
    clients = [grpc.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(8)]
    assert {whoami(over).principal for over in clients} == {"developer"}
    beside.stop(0)
    assert {whoami(over).principal for over in clients} == {"developer"}


def test_a_port_that_somebody_else_has_is_told(served: Served) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="Cannot listen"):
            served.do(Grpc("127.0.0.1", other.getsockname()[1]).serve(asyncio.Event()))


# -- TLS -------------------------------------------------------------------------------------------------------


@dataclass
class Certificates:
    """An authority, and certificates of it for the server and a client."""

    folder: Path

    def __post_init__(self) -> None:
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=authority",
                      "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
        for name in ("server", "client"):
            self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                          "-out", f"{name}.csr")  # fmt: skip
            (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
            self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                          "-days", "1", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def secure(port: int, certificates: Certificates, *, client: bool) -> grpc.Channel:
    pair = (certificates.read("client.key"), certificates.read("client.pem")) if client else (None, None)
    return grpc.secure_channel(
        f"localhost:{port}", grpc.ssl_channel_credentials(certificates.read("ca.pem"), *pair)
    )


def test_tls_by_setting(beside: Beside, certificates: Certificates, settings: Any) -> None:
    settings.GRPC_TLS_CERT, settings.GRPC_TLS_KEY = (
        str(certificates.folder / f"server.{x}") for x in ("pem", "key")
    )
    port = beside()
    assert whoami(secure(port, certificates, client=False)).principal == "developer"
    assert code(lambda: whoami(grpc.insecure_channel(f"127.0.0.1:{port}"))) is StatusCode.UNAVAILABLE


def test_with_an_authority_for_clients_others_are_not_let_in(
    beside: Beside, certificates: Certificates, settings: Any
) -> None:
    settings.GRPC_TLS_CERT, settings.GRPC_TLS_KEY = (
        str(certificates.folder / f"server.{x}") for x in ("pem", "key")
    )
    settings.GRPC_TLS_CLIENT_CA = str(certificates.folder / "ca.pem")
    port = beside()
    assert whoami(secure(port, certificates, client=True)).principal == "developer"
    assert code(lambda: whoami(secure(port, certificates, client=False))) is StatusCode.UNAVAILABLE
