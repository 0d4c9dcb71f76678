"""A stand-in for a Consul agent: the part of its HTTP API that its documentation describes and Syros uses.

Blocking queries (`index`, `wait`, `X-Consul-Index`), the catalogue, health of a service by node and service checks,
registration with the agent, TTL checks that turn critical when nobody passes them, ACL tokens. And what can go wrong.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NODE = {
    "ID": "40e4a748-2192-161a-0510-9bf59fe950b5",
    "Node": "node-a",
    "Address": "10.1.10.12",
    "Datacenter": "dc1",
}


@dataclass
class Service:
    """A service of the agent's node, and its check."""

    about: dict[str, Any]
    node: dict[str, Any] = field(default_factory=lambda: dict(NODE))
    status: str = "passing"
    ttl: float | None = None
    passed_at: float = field(default_factory=time.monotonic)

    @property
    def health(self) -> str:
        is_late = self.ttl is not None and time.monotonic() - self.passed_at > self.ttl
        return "critical" if is_late else self.status

    def entry(self) -> dict[str, Any]:
        check = {
            "Node": self.node["Node"], "CheckID": self.about.get("CheckID", f"service:{self.about['ID']}"),
            "Name": "a check", "Status": self.health, "Notes": "", "Output": "", "ServiceID": self.about["ID"],
            "ServiceName": self.about["Service"], "ServiceTags": self.about["Tags"],
        }  # fmt: skip
        serf = {
            "Node": self.node["Node"], "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing",
            "Notes": "", "Output": "", "ServiceID": "", "ServiceName": "", "ServiceTags": [],
        }  # fmt: skip
        return {"Node": self.node, "Service": self.about, "Checks": [check, serf]}


class Consul:
    """One agent that is its own server. What `fault` gives for a path is answered as it is, bytes on the wire."""

    def __init__(self) -> None:
        self.index = 10
        self.services: dict[tuple[str, str], Service] = {}
        self.token = ""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.fault: Callable[[str], bytes | None] = lambda path: None
        self.headers: dict[str, str] = {}
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    # -- being there -----------------------------------------------------------------------------------

    def start(self) -> "Consul":
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.handle(self)

            do_PUT = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *args: Any) -> None:
                pass  # a client that has gone

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        self.is_up = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Go, and hang up on everybody."""
        assert self._server
        self.is_up = False
        self.change()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- what is in it ---------------------------------------------------------------------------------

    def change(self, index: int | None = None) -> None:
        with self._changed:
            self.index = self.index + 1 if index is None else index
            self._changed.notify_all()

    def put(
        self, service: str, service_id: str, *, node: dict[str, Any] | None = None, **about: Any
    ) -> Service:
        about = {
            "Tags": [],
            "Address": "",
            "Meta": {},
            "Port": 8000,
            "Weights": {"Passing": 1, "Warning": 1},
            **about,
        }
        found = Service({"ID": service_id, "Service": service, **about}, {**NODE, **(node or {})})
        self.services[found.node["Node"], service_id] = found
        self.change()
        return found

    def drop(self, service_id: str, node: str = "node-a") -> None:
        del self.services[node, service_id]
        self.change()

    def turn(self, service_id: str, status: str) -> None:
        self.services["node-a", service_id].status = status
        self.change()

    # -- the API ---------------------------------------------------------------------------------------

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(parts.path).removeprefix("/v1/")
        self.requests.append((f"{request.command} {path}", query))
        with suppress(OSError):
            if (raw := self.fault(path)) is not None:
                request.wfile.write(raw)
                request.close_connection = True
            elif self.token and request.headers.get("X-Consul-Token") != self.token:
                self._answer(request, 403, b"Permission denied")
            else:
                self._route(request, path, query, json.loads(body or b"null"))

    def _route(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Any) -> None:
        match [request.command, *path.split("/", 3)]:
            case ["GET", "catalog", "services"]:
                self._block(request, query, self._catalogue)
            case ["GET", "health", "service", name]:
                self._block(request, query, lambda: self._health(name, query))
            case ["PUT", "agent", "service", "register"]:
                self._register(body)
                self._answer(request, 200, b"")
            case ["PUT", "agent", "service", "deregister", service_id]:
                found = self.services.pop(("node-a", service_id), None)
                self.change()
                self._answer(request, 200 if found else 404, b"" if found else b"Unknown service ID")
            case ["PUT", "agent", "check", "update", check_id]:
                self._update(request, check_id, body)
            case _:
                self._answer(request, 404, b"no such page")

    def _block(self, request: BaseHTTPRequestHandler, query: dict[str, str], read: Callable[[], Any]) -> None:
        """A newer state than `index`, or after `wait` whatever there is."""
        after = int(query.get("index", 0))
        wait = query.get("wait", "5m")
        seconds = float(wait.rstrip("ms")) * (60 if wait.endswith("m") else 1)
        with self._changed:
            if after:
                self._changed.wait_for(lambda: self.index > after or not self.is_up, seconds)
            if not self.is_up:
                request.close_connection = True
                return
            found, index = read(), self.index
        self._answer(request, 200, json.dumps(found).encode(), {"X-Consul-Index": str(index), **self.headers})

    def _catalogue(self) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {"consul": set()}
        for service in self.services.values():
            found.setdefault(service.about["Service"], set()).update(service.about["Tags"])
        return {name: sorted(tags) for name, tags in found.items()}

    def _health(self, name: str, query: dict[str, str]) -> list[dict[str, Any]]:
        return [
            service.entry()
            for service in self.services.values()
            if service.about["Service"] == name
            and ("passing" not in query or service.health == "passing")
            and ("tag" not in query or query["tag"] in service.about["Tags"])
        ]

    def _register(self, body: dict[str, Any]) -> None:
        about = {name: body[name] for name in ("Port", "Meta", "Address", "Tags", "Weights") if name in body}
        check = body.get("Check") or {}
        found = self.put(body["Name"], body.get("ID", body["Name"]), **about)
        if check:
            found.about["CheckID"] = check.get("CheckID", f"service:{found.about['ID']}")
            found.ttl, found.status = float(check["TTL"].rstrip("s")), check.get("Status", "critical")

    def _update(self, request: BaseHTTPRequestHandler, check_id: str, body: dict[str, Any]) -> None:
        for service in self.services.values():
            if service.about.get("CheckID") == check_id:
                service.status, service.passed_at = body["Status"], time.monotonic()
                return self._answer(request, 200, b"")
        return self._answer(request, 404, f'Unknown check ID "{check_id}"'.encode())

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
