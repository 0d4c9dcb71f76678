"""What every door has in common, and the three that speak REST or nothing: in process, Django, the fast lane."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvloop
from django.test import Client

from core import serving
from core.callers import DEVELOPER, Call, namespaces
from core.encoding import decode, encode
from core.errors import SyrosError
from core.operations import Operation, registry
from core.runtime import runtime

HEADERS = {
    "key": "Idempotency-Key",
    "namespace": "Syros-Namespace",
    "request_id": "X-Request-Id",
    "trace": "traceparent",
}


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = 1500  # of each worker's own
_ports = itertools.cycle(range(10_000 + WORKER % 14 * PORTS, 10_000 + (WORKER % 14 + 1) * PORTS))


class Refused(Exception):
    """The problem that an operation answered."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem, self.code = status, problem, problem["code"]
        super().__init__(f"{status} {problem['code']}: {problem['detail']}")


@dataclass
class Answer:
    status: int
    value: Any
    headers: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotency-replayed") == "true"


def free_port() -> int:
    """A port that nobody has, and that nobody is given before it is used: neither who asks for any port at all, for
    those are higher ones, nor another pytest-xdist worker."""
    for port in itertools.islice(_ports, PORTS):
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("This worker has no port left.")


class Served:
    """A serving loop in a thread of the test process, with the lane on a real socket."""

    def __init__(self) -> None:
        from syros_project.asgi import doors

        self.listener = serving.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.grpc_port = free_port()
        self.loop = uvloop.new_event_loop()
        self._doors = doors([self.listener], "127.0.0.1", self.grpc_port)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10), "the serving loop did not start"

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._life())

    async def _life(self) -> None:
        await runtime.start()
        self.loop.call_later(0.1, self._started.set)
        self._stopping = asyncio.Event()
        await asyncio.gather(*(door.serve(self._stopping) for door in self._doors))
        await runtime.stop()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)


class Door:
    """One way in. `door("locks.acquire", key="a", owner="me")` answers or raises Refused."""

    name = ""
    can_wait = True
    has_empty_lists = True

    def __init__(self, served: Served, namespace: str) -> None:
        self.served, self.namespace = served, namespace

    def __call__(self, operation: str, /, *, _: dict[str, str] | None = None, **params: Any) -> Answer:
        """Parameters: `_` has the headers `key` (Idempotency-Key) and `namespace`; the rest is the operation's."""
        about = {"namespace": self.namespace, **(_ or {})}
        answer = self.carry(registry[operation], params, about)
        if answer.status >= 400:
            raise Refused(answer.status, answer.value)
        return answer

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        """Hang up, where there is a connection."""


class Python(Door):
    name = "python"

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        try:
            space = self.served.do(namespaces.get(about["namespace"]))
            call = Call(DEVELOPER, space, "test", about.get("key"))
            outcome = runtime.run_from_thread(operation, call, operation.parse(params))
        except SyrosError as error:
            return Answer(error.status, decode(encode(error.problem())))
        headers = {"idempotency-replayed": "true"} if outcome.replayed else {}
        return Answer(outcome.status, decode(encode(outcome.value)), headers)


def request(operation: Operation, params: dict[str, Any]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Method, path, query and body of an operation over REST."""
    route = operation.route
    assert route is not None
    params = dict(params)
    path = route.path
    for name in route.names:
        path = path.replace(f"{{{name}}}", str(params.pop(name)))
    query = params if route.method in {"GET", "DELETE"} else {}
    return route.method, f"/api/v1/{path}", query, {} if query is params else params


def textual(query: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}


class Django(Door):
    """Django REST framework, in process; what waits is for the lane only."""

    name = "drf"
    can_wait = False

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        method, path, query, body = request(operation, params)
        response = Client(headers={"host": "localhost"}).generic(
            method, path, json.dumps(body) if method not in {"GET", "DELETE"} else "",
            content_type="application/json", query_params=textual(query), headers=headers_of(about),
        )  # fmt: skip
        found = {name.lower(): value for name, value in response.items()}
        return Answer(response.status_code, json.loads(response.content), found)


class Lane(Door):
    """The fast lane, over a real socket."""

    name = "lane"

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        method, path, query, body = request(operation, params)
        response = httpx.request(
            method, f"http://127.0.0.1:{self.served.port}{path}", params=textual(query) or None,
            content=json.dumps(body) if method not in {"GET", "DELETE"} else None,
            headers={"content-type": "application/json", **headers_of(about)}, timeout=60,
        )  # fmt: skip
        return Answer(response.status_code, response.json(), dict(response.headers))


def headers_of(about: dict[str, str]) -> dict[str, str]:
    return {HEADERS[name]: value for name, value in about.items()}
