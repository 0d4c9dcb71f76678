"""A participant over gRPC for tests, in the test's own process; and servers on whose port something else speaks."""

import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from sagas.participant_messages import METHOD, Request, Response

Script = Callable[[Any], Any]
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"  # the frame with which HTTP/2 begins


class Refuse(Exception):
    """Answer with this status, and these of Google's error details; or with bytes in their place."""

    def __init__(self, code: StatusCode, message: str = "", *details: Message | bytes) -> None:
        self.code, self.message, self.details = code, message, details


class GrpcParticipant:
    """Serves on a free port of this machine. `script[action]` says what is answered: the parts of a response, bytes
    that are sent as they are, seconds to wait before that; or it raises Refuse."""

    def __init__(
        self, credentials: grpc.ServerCredentials | None = None, options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self.script: dict[str, Script] = defaultdict(
            lambda: lambda asked: {"succeeded": {"output": json.dumps({"did": asked.action}).encode()}}
        )
        self.asked: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.peers: set[str] = set()
        self.hosts: set[str] = set()  # by which it was asked
        self._over = threading.Event()
        self._server = grpc.server(
            ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1), *options]
        )
        handler = grpc.unary_unary_rpc_method_handler(self._carry_out, Request.FromString, serialized)
        service, _, method = METHOD[1:].partition("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self.port = (
            self._server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else self._server.add_insecure_port("127.0.0.1:0")
        )

    def __enter__(self) -> "GrpcParticipant":
        self._server.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._server.stop(0).wait(10)

    def actions(self) -> list[str]:
        return [asked.action for asked in self.asked]

    def _carry_out(self, asked: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(asked)
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        self.hosts.add(context._rpc_event.call_details.host.decode())
        try:
            found = self.script[asked.action](asked)
        except Refuse as refusal:
            refuse(context, refusal)
        if isinstance(found, float):
            self._over.wait(found)
            found = {}
        return found if isinstance(found, bytes) else Response(**found)


def serialized(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


def refuse(context: grpc.ServicerContext, refusal: Refuse) -> None:
    status, raw = Status(code=refusal.code.value[0], message=refusal.message), b""
    for detail in refusal.details:
        if isinstance(detail, bytes):
            raw += detail
        else:
            status.details.add().Pack(detail)
    if refusal.details:
        context.set_trailing_metadata((("grpc-status-details-bin", raw or status.SerializeToString()),))
    context.abort(refusal.code, refusal.message)


@contextmanager
def something_else(answers: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which every connection, one after the other, is answered so and then reset."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, args=(listening, answers), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def accept(listening: socket.socket, answers: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(5)
            try:
                answers(connection)
            except OSError:
                pass


def after_a_request(answer: bytes) -> Callable[[socket.socket], None]:
    """Begins as gRPC does, and ends so once a request has come."""

    def answers(connection: socket.socket) -> None:
        connection.sendall(SETTINGS)
        read = b""
        while b'"input"' not in read and (part := connection.recv(65536)):
            read += part
        connection.sendall(answer)

    return answers
