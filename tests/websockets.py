"""WebSocket clients for tests: one that says and hears frames, and one whose bytes are one's own."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.doors import Served

PATIENCE = 15.0
SMALL = 1 << 17  # bytes that the kernel takes for one that does not read; on the other side it takes some MB


class Peer:
    """A client that says and hears frames."""

    def __init__(self, connection: ClientConnection, namespace: str) -> None:
        self.connection, self.namespace = connection, namespace

    def say(self, op: str, name: str = "1", **params: Any) -> None:
        self.connection.send(
            json.dumps({"id": name, "op": op, "params": params, "namespace": self.namespace})
        )

    def send(self, **frame: Any) -> None:
        self.connection.send(json.dumps(frame))

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.connection.recv(PATIENCE))
        return found

    def ask(self, op: str, name: str = "1", **params: Any) -> dict[str, Any]:
        self.say(op, name, **params)
        return self.hear()

    def subscribe(self, name: str = "s", **params: Any) -> int:
        """The position that the subscription begins after."""
        answer = self.ask("subscribe", name, **params)
        assert answer == {"id": name, "subscribed": True, "position": answer.get("position")}, answer
        found: int = answer["position"]
        return found

    def events(self, count: int, name: str = "s") -> list[dict[str, Any]]:
        """The next events; heartbeats may come between."""
        found = []
        while len(found) < count:
            frame = self.hear()
            assert frame["id"] == name, frame
            if "heartbeat" not in frame:
                found.append(frame["event"])
        return found

    def closed(self) -> tuple[int, str]:
        """The code and reason that the server closes with, whatever it says before."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.connection.recv(PATIENCE)
        assert self.connection.close_code is not None
        return self.connection.close_code, self.connection.close_reason or ""


@contextlib.contextmanager
def opened(served: Served, namespace: str, path: str = "/ws", **options: Any) -> Iterator[Peer]:
    url = f"ws://127.0.0.1:{served.port}{path}"
    with connect(url, compression=None, max_size=None, proxy=None, close_timeout=1, **options) as connection:
        yield Peer(connection, namespace)


def refusal(frame: dict[str, Any]) -> tuple[int, str]:
    return frame["error"]["status"], frame["error"]["code"]


class Raw:
    """A connection whose bytes are one's own."""

    def __init__(self, served: Served, headers: dict[str, str], receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", served.port))
        about = {"Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers}  # fmt: skip
        lines = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in about.items()), "", ""]
        self.send("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 101"), head
        self.code = 0

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *error: Any) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def recv(self) -> bytes:
        return self.socket.recv(1 << 16)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each frame, until the server hangs up."""
        buffer = b""
        while True:
            while len(buffer) < 2 or len(buffer) < (size := frame_size(buffer))[0] + size[1]:
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = self.recv()
                if not data:
                    return
                buffer += data
            head, length = frame_size(buffer)
            yield buffer[0] & 15, buffer[head : head + length]
            buffer = buffer[head + length :]

    def until_closed(self) -> bytes:
        """All that the server says in text; then `code` is what it closed with."""
        said = b""
        for opcode, payload in self.frames():
            if opcode == 8:
                self.code = int.from_bytes(payload[:2])
                self.reason = payload[2:].decode()
                break
            if opcode == 1:
                said += payload + b"\n"
        return said


def frame_size(buffer: bytes) -> tuple[int, int]:
    """Bytes of a server's frame's head and of its payload."""
    length = buffer[1] & 127
    if length == 126:
        return 4, int.from_bytes(buffer[2:4].ljust(2, b"\xff"))
    if length == 127:
        return 10, int.from_bytes(buffer[2:10].ljust(8, b"\xff"))
    return 2, length


def text_frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame, masked by nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8)
    return bytes([first]) + length + b"\0\0\0\0" + payload
