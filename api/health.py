"""/health, /ready and /live: what they say was looked at when they said it."""

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import Any

from django.conf import settings

from core.database import pool
from core.errors import SyrosError
from core.runtime import runtime

PATIENCE_SECONDS = 2.0
PATHS = {"/health", "/ready", "/live"}


async def look(path: str) -> tuple[int, dict[str, Any]]:
    """The status and body of one of PATHS.

    /live: the process answers. /ready: it can do its work. /health: every part, with its latency; without
    Valkey it is `degraded`, because that costs latency and never safety.
    """
    if path == "/live":
        return 200, {"status": "live", "version": settings.VERSION}
    parts = dict(
        zip(
            ("postgresql", "valkey", "engine", "tail"),
            await asyncio.gather(
                measured(postgresql()), measured(valkey()), measured(engine()), measured(tail())
            ),
            strict=True,
        )
    )
    down = [name for name, part in parts.items() if part["status"] != "up"]
    works = not set(down) - {"valkey"} and not runtime.stopping
    if path == "/ready":
        checks = [{"name": name, **part} for name, part in parts.items()]
        return (200 if works else 503), {"ready": works, "checks": checks}
    status = "healthy" if not down else "degraded" if works else "unhealthy"
    body = {"status": status, "version": settings.VERSION, "parts": parts}
    return (200 if works else 503), body


async def measured(part: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """A part's report, with its latency; what fails or takes too long is down."""
    started = perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = {"status": "up", **await part}
    except (SyrosError, TimeoutError, OSError) as error:
        found = {"status": "down", "detail": str(error) or type(error).__name__}
    return {**found, "latency_ms": round((perf_counter() - started) * 1000, 2)}


async def postgresql() -> dict[str, Any]:
    ((version,),) = await pool.rows("select current_setting('server_version')")
    return {"server": version.split()[0]}


async def valkey() -> dict[str, Any]:
    if runtime.tail is None:
        raise OSError("not started")
    return await runtime.tail.ping()


async def engine() -> dict[str, Any]:
    found = runtime.engine
    if found is None or not found.is_alive:
        raise OSError("the writer is not running")
    if not found.connected:
        raise OSError("the writer has no connection")
    return {"queued": found.depth, "commands": found.commands, "batches": found.batches}


async def tail() -> dict[str, Any]:
    found = runtime.tail
    if found is None:
        raise OSError("not started")
    age = asyncio.get_running_loop().time() - found.polled_at
    if age > 5:
        raise OSError(f"has not looked for {age:.0f} s")
    return {"waiting": len(runtime.waiters) + len(runtime.pending), "looked_seconds_ago": round(age, 2)}
