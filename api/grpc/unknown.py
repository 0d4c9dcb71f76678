"""Calls of methods that there are not, kept away from grpc.aio's main loop.

That loop decodes the path of such a call before anything else, and ends for good where it is no UTF-8: one peer could
end the service of all. Calls of registered methods it knows without decoding; all others are answered here, unread.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from grpc import StatusCode, aio
from grpc._cython import cygrpc

ASKS_FOR_UNKNOWN = "AioServer._request_call"


async def start(server: aio.Server) -> None:
    """Start a server whose methods are all registered."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory(server))
    try:
        await server.start()  # begins to ask for calls, of each method and of unknown ones, a task each
    finally:
        loop.set_task_factory(None)


def factory(server: aio.Server) -> Callable[..., "asyncio.Future[Any]"]:
    def make(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any
    ) -> "asyncio.Task[Any]":
        if getattr(work, "__qualname__", "") == ASKS_FOR_UNKNOWN:
            work.close()
            work = refuse_all(server)
        return asyncio.Task(work, loop=loop, **more)

    return make


async def refuse_all(server: aio.Server) -> None:
    """Answer calls of unknown methods as long as the server runs."""
    loop = asyncio.get_running_loop()
    answers: set[asyncio.Task[None]] = set()
    while True:
        state = await server._server._request_call()
        answer = loop.create_task(refuse(cygrpc._ServicerContext(state, None, None, loop)))
        answers.add(answer)
        answer.add_done_callback(answers.discard)


async def refuse(context: Any) -> None:
    with contextlib.suppress(aio.BaseError):
        await context.abort(StatusCode.UNIMPLEMENTED, "There is no such method.")
