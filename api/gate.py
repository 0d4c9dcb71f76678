"""Where a request goes that came in by ASGI: WebSockets to their consumers, paths with a server of their own, the rest
to the lane."""

from typing import Any

from api.lane import App, Lane, Receive, Request, Scope, Send
from core.runtime import runtime


class Gate:
    """The ASGI application. `http` and `websocket` are further applications by path."""

    def __init__(
        self, lane: Lane, http: dict[str, App] | None = None, websocket: dict[str, App] | None = None
    ) -> None:
        self._lane, self._http, self._websocket = lane, http or {}, websocket or {}

    def wants(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], peer: str
    ) -> Request | None:
        return self._lane.wants(method, path, query, headers, peer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind: Any = scope["type"]
        if kind == "lifespan":
            await live(receive, send)
            return
        if not runtime.is_running:
            await runtime.start()  # a server that has no lifespan, such as daphne
        apps = self._websocket if kind == "websocket" else self._http
        if app := apps.get(scope["path"]):
            await app(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted: 403
        else:
            await self._lane(scope, receive, send)


async def live(receive: Receive, send: Send) -> None:
    """Start and stop with an ASGI server that says when; `manage.py serve` does it by itself."""
    while (await receive())["type"] != "lifespan.shutdown":
        await runtime.start()
        await send({"type": "lifespan.startup.complete"})
    await runtime.stop()
    await send({"type": "lifespan.shutdown.complete"})
