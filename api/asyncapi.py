"""AsyncAPI 3.0 of the WebSocket, from the registry: what may be said on a connection, and what is heard."""

import json
from typing import Any

from django.conf import settings

from api.openapi import PROBLEM
from api.schemas import present
from api.websocket import FOLLOW, Ask, Auth, End
from core.operations import Operation, registry

PATH = "docs/contracts/asyncapi.json"
SOCKET = {"$ref": "#/channels/socket"}
ID = {"type": "string", "description": "that of the frame which asked"}
ABOUT = (
    "Every operation and every stream over one connection. A client sends text frames of JSON, each with an `id` of "
    "its choice; what it is told bears the id of what it asked. Calls on a connection go on side by side and are "
    "answered as they end. Receive and send are the server's."
)


def documents() -> dict[str, str]:
    """The text of each contract that is kept in the repository, by its path there."""
    return {PATH: json.dumps(document(), indent=2, ensure_ascii=False) + "\n"}


def document() -> dict[str, Any]:
    return Document().build()


class Document:
    """The parts, as they come together."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {"Problem": PROBLEM}
        self.messages: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}

    def build(self) -> dict[str, Any]:
        self._common()
        for operation in registry:
            if operation.route:
                self._add(operation, operation.name)
        self._add(registry[FOLLOW], "subscribe")
        return {
            "asyncapi": "3.0.0",
            "info": {"title": "Syros", "version": settings.VERSION, "description": ABOUT},
            "defaultContentType": "application/json",
            "servers": {"http": server(8080), "websocket": server(8081)},
            "channels": {"socket": self._channel()},
            "operations": self.operations,
            "components": {
                "schemas": self.schemas,
                "messages": self.messages,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "apiKey": {"type": "httpApiKey", "in": "header", "name": "X-API-Key"},
                },
            },
        }

    def _channel(self) -> dict[str, Any]:
        texts = {"type": "string"}
        query = {"namespace": {**texts, "description": "for frames that name none"}}
        headers = {"Syros-Namespace": texts, "X-Request-Id": texts, "traceparent": texts}
        handshake = {
            "method": "GET",
            "query": {"type": "object", "properties": query},
            "headers": {"type": "object", "properties": headers},
        }
        messages = {name: {"$ref": f"#/components/messages/{name}"} for name in self.messages}
        about = "On 8081 also `/`. A browser says its token as the subprotocol `syros.bearer.<token>`."
        return {"address": "/ws", "description": about, "messages": messages, "bindings": {"ws": handshake}}

    def _common(self) -> None:
        """What does not depend on an operation."""
        problem = {"$ref": "#/components/schemas/Problem"}
        names = {"oneOf": [ID, {"type": "null"}]}
        self._message("error", "A refusal.", said({"id": names, "error": problem}))
        for name, kind, answer in (
            ("auth", Auth, said({"id": ID, "authenticated": true(), "principal": {"type": "string"}}, "id")),
            ("cancel", End, said({"id": ID, "cancelled": true()})),
            ("unsubscribe", End, said({"id": ID, "unsubscribed": true()})),
        ):
            frame = self._hoist(kind.model_json_schema())
            frame["properties"]["op"] = {"const": name}
            self._message(name, frame.pop("description"), frame)
            self._message(f"{name}_done", "It is done.", answer)
            self._operation(name, self.messages[name]["summary"], [f"{name}_done", "error"])

    def _add(self, operation: Operation, op: str) -> None:
        """The frame that asks for an operation, and what is answered."""
        name = op.replace(".", "_")
        self._message(name, operation.doc.split("\n")[0], self._ask(operation, op))
        answer = f"{name}_subscribed" if operation.streams else f"{name}_result"
        if operation.streams:
            begun = said({"id": ID, "subscribed": true(), "position": {"type": "integer"}}, "position")
            self._message(answer, "It begins after this position.", begun)
            self._items(operation, name)
        else:
            about = {"id": ID, "result": self._hoist(operation.gives), "status": {"type": "integer"}}
            self._message(answer, "What it answers.", said({**about, "replayed": true()}, "replayed"))
        self._operation(name, operation.doc, [answer, "error"])

    def _ask(self, operation: Operation, op: str) -> dict[str, Any]:
        frame = self._hoist(Ask.model_json_schema())
        params = self._hoist(operation.takes)
        frame["properties"] |= {"op": {"const": op}, "params": params}
        if params.get("required"):
            frame["required"] = [*frame["required"], "params"]
        if operation.kind != "command":
            del frame["properties"]["idempotency_key"]
        del frame["description"]
        return frame

    def _items(self, operation: Operation, name: str) -> None:
        """What a stream sends, of its own accord: one of the fields of its items at a time."""
        for field, schema in self._hoist(operation.gives)["properties"].items():
            value = present(schema)[0]
            self._message(f"{name}_{field}", f"The next {field}.", said({"id": ID, field: value}))
            told = [{"$ref": f"#/channels/socket/messages/{name}_{field}"}]
            self.operations[f"{name}_{field}"] = {"action": "send", "channel": SOCKET, "messages": told}

    def _message(self, name: str, summary: str, payload: dict[str, Any]) -> None:
        self.messages[name] = {"name": name, "summary": summary, "payload": payload}

    def _operation(self, name: str, about: str, answers: list[str]) -> None:
        replies = [{"$ref": f"#/channels/socket/messages/{each}"} for each in answers]
        self.operations[name] = {
            "action": "receive",
            "channel": SOCKET,
            "summary": about.split("\n")[0],
            "description": about,
            "messages": [{"$ref": f"#/channels/socket/messages/{name}"}],
            "reply": {"channel": SOCKET, "messages": replies},
        }

    def _hoist(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema of one's own, whose definitions have become components.

        Raises: ValueError, for two that have the same name.
        """
        found: dict[str, Any] = json.loads(json.dumps(schema).replace('"#/$defs/', '"#/components/schemas/'))
        for name, definition in found.pop("$defs", {}).items():
            if self.schemas.setdefault(name, definition) != definition:
                raise ValueError(f"two schemas are called {name}")
        return found


def server(port: int) -> dict[str, Any]:
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in ("bearer", "apiKey")]
    return {"host": f"localhost:{port}", "protocol": "ws", "security": security}


def said(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    """A frame of the server's."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def true() -> dict[str, Any]:
    return {"const": True}
