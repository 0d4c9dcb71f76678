"""The WebSocket: one connection a door, whose calls are under way side by side."""

import json
import threading
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from core.operations import Operation
from tests.doors.base import Answer, Door, Served

PATIENCE = 60.0


class WebSocket(Door):
    """Over a real socket, by the library that most of Python's clients use."""

    name = "websocket"

    def __init__(self, served: Served, namespace: str) -> None:
        super().__init__(served, namespace)
        url = f"ws://127.0.0.1:{served.port}/ws"
        self._connection = connect(url, max_size=None, compression=None, legacy=True)
        self._ids, self._asked = count(1), dict[str, Future[Any]]()
        threading.Thread(target=listen, args=(self._connection, self._asked), daemon=True).start()

    def close(self) -> None:
        self._connection.close()

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        frame = {"id": str(next(self._ids)), "op": operation.name, "params": params}
        more = {"namespace": about.get("namespace"), "idempotency_key": about.get("key")}
        answer = self._ask({**frame, **{name: value for name, value in more.items() if value}})
        if "error" in answer:
            return Answer(answer["error"]["status"], answer["error"])
        headers = {"idempotency-replayed": "true"} if answer.get("replayed") else {}
        return Answer(answer["status"], answer["result"], headers)

    def _ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        self._asked[frame["id"]] = future = Future[Any]()
        self._connection.send(json.dumps(frame))
        found: dict[str, Any] = future.result(PATIENCE)
        return found


def listen(connection: ClientConnection, asked: dict[str, Future[Any]]) -> None:
    """Hand the answers to whoever asked."""
    with suppress(ConnectionClosed):
        for text in connection:
            frame = json.loads(text)
            asked.pop(frame["id"]).set_result(frame)
    for future in asked.values():
        future.set_exception(ConnectionError("the connection was closed"))
