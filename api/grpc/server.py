"""The door for gRPC: every operation as a method, Execute, health and reflection, on a port that processes share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
from django.conf import settings
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ServicerContext as Context
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection

from api.grpc.aio import Server
from api.grpc.calls import (
    PROCESS_STRANGERS,
    STRANGER_SECONDS,
    STRANGERS,
    Method,
    Places,
    decoded,
    peer_of,
    receive,
)
from api.grpc.execute import Commands
from api.grpc.health import Health
from api.grpc.status import refuse
from api.messages import messages
from api.proto import contract, full, method_of, service_of
from core.errors import SyrosError
from core.serving import DRAIN_SECONDS

MESSAGE_BYTES = 16 << 20  # the largest that an operation takes
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1000),  # of one connection
    # Who does not answer a ping is gone, and its place in every queue with it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.server_handshake_timeout_ms", 20_000),
]
HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Grpc:
    """A server in the loop that serves (a core.serving.Door)."""

    def __init__(self, host: str, port: int) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until that is set; then refuse new calls, let those under way end, and return.

        Raises: OSError, when the port or a certificate cannot be had.
        """
        commands, health = Commands(contract().operations, messages()), Health(contract().services)
        server = Server(OPTIONS, dict(methods(commands)), dict(open_methods(health)))
        self._listen(server)
        await server.start()
        following = asyncio.ensure_future(health.follow())
        await stopping.wait()
        following.cancel()
        health.leave()
        commands.leave()
        await server.shutdown(DRAIN_SECONDS)

    def _listen(self, server: Server) -> None:
        address = self._address.encode()
        secure = bool(settings.GRPC_TLS_CERT)
        port = server.add_secure_port(address, credentials()) if secure else server.add_insecure_port(address)
        if not port:
            raise OSError(f"Cannot listen on {self._address} for gRPC.")


def credentials() -> grpc.ServerCredentials:
    """TLS with the server's certificate; with an authority for clients, they must have one of it (mTLS)."""
    pair = Path(settings.GRPC_TLS_KEY).read_bytes(), Path(settings.GRPC_TLS_CERT).read_bytes()
    authority = Path(settings.GRPC_TLS_CLIENT_CA).read_bytes() if settings.GRPC_TLS_CLIENT_CA else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


# Each method reads its messages itself, so that it knows the caller before.
one, many = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
Methods = Iterator[tuple[str, grpc.RpcMethodHandler]]


def methods(commands: Commands) -> Methods:
    """Path and handler of every method whose caller must say who it is."""
    yield from operations(anonymous=False)
    yield f"/{full('CoordinationService')}/Execute", many(commands.execute)


def open_methods(health: Health) -> Methods:
    """Path and handler of every other one."""
    yield from operations(anonymous=True)
    yield f"/{HEALTH}/Check", one(health.check)
    yield f"/{HEALTH}/List", one(health.list)
    yield f"/{HEALTH}/Watch", many(health.watch)
    reflect = Reflection()
    for name in REFLECTION:
        yield f"/{name}/ServerReflectionInfo", many(reflect.answer)


def operations(*, anonymous: bool) -> Methods:
    for operation in contract().operations:
        if operation.anonymous == anonymous:
            method = Method(operation)
            handler = many(method.stream) if operation.streams else one(method.answer)
            yield f"/{full(service_of(operation))}/{method_of(operation)}", handler


class Reflection:
    """grpc.reflection.v1 and v1alpha, which differ by name only: the contract, health, and Google's error details."""

    def __init__(self) -> None:
        pool = messages().pool
        for module in (any_pb2, duration_pb2, error_details_pb2, status_pb2, health_pb2, reflection_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        names = [*contract().services, HEALTH, REFLECTION[1]]
        self._servicer = reflection.ReflectionServicer(names, pool=pool)
        self._places = Places()

    async def answer(self, _: object, context: Context) -> None:
        try:
            with self._places.take(peer_of(context), STRANGERS, PROCESS_STRANGERS):
                async for found in self._servicer.ServerReflectionInfo(questions(context), context):
                    await context.write(found.SerializeToString())
        except SyrosError as error:
            refuse(context, error, "")


async def questions(context: Context) -> AsyncIterator[Any]:
    """What a peer asks, until it asks no more or for some time not."""
    while True:
        try:
            body = await receive(context, STRANGER_SECONDS)
            yield decoded(reflection_pb2.ServerReflectionRequest, body)
        except SyrosError:
            return
