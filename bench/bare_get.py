"""What there is to do at least: an ASGI handler that asks Redis for one value. `uvicorn bench.bare_get:app`."""

import os
from typing import Any

import redis.asyncio as redis

client: Any = redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=64)
VALUE = b'{"text":"' + b"x" * 200 + b'"}'


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body = await client.get(scope["path"])
    if body is None:
        body = VALUE
        await client.set(scope["path"], body)
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})
