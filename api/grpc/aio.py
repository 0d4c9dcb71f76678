"""grpc.aio's server, without the loop that takes its calls.

That loop decodes the path of a call before anything else, and ends for good where it is no UTF-8: one peer could end
the service of all. And it waits for all methods at once, which costs every call more, the more methods there are. Here
the calls of each method are taken by a task of its own, which knows the path; those of unknown methods by one more,
which answers them unread. All this is grpcio's inside: tests/test_grpc.py says whether it still is so.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import grpc
from grpc import aio
from grpc._cython import cygrpc


def is_of_interest(record: logging.LogRecord) -> bool:
    """A peer that went away just when it was written to is no error."""
    return not (record.exc_info and isinstance(record.exc_info[1], cygrpc.ExecuteBatchError))


logging.getLogger("grpc._cython.cygrpc").addFilter(is_of_interest)

CALLS = 10_000  # of methods that need credentials, of all peers under way; more are told to come again
Methods = Mapping[str, grpc.RpcMethodHandler]


class Server(cygrpc.AioServer):
    """Serves methods by their paths (`/package.Service/Method`). Those that are open to everybody see for themselves
    that they are not too many, and take no room from the others.
    """

    def __init__(self, options: list[tuple[str, Any]], methods: Methods, open_methods: Methods) -> None:
        super().__init__(asyncio.get_running_loop(), None, (), (), options, None)
        self._methods = {**methods, **open_methods}
        self._calls: set[asyncio.Task[None]] = set()
        self._open_calls: set[asyncio.Task[None]] = set()
        self._open_methods = open_methods
        self.add_registered_method_handlers(self._methods)

    def _make_request_call_future(self, path: bytes | None) -> "asyncio.Task[None]":
        """Called by grpcio at the start, for each path and for all others, and again when what it was given failed."""
        return asyncio.ensure_future(self._take(path.decode()) if path else self._refuse_unknown())

    async def _take(self, path: str) -> None:
        """Take the calls of a method until the server ends, which is an exception to grpcio."""
        loop, key = asyncio.get_running_loop(), path.encode()
        is_open = path in self._open_methods
        calls = self._open_calls if is_open else self._calls
        while True:
            state = await self._request_registered_call(key)
            work = cygrpc._handle_rpc(path, self, (), state, loop, not is_open and len(calls) >= CALLS)
            keep(calls, loop.create_task(cygrpc._schedule_rpc_coro(work, state, loop, path)))

    def resolve_handler(self, details: Any) -> grpc.RpcMethodHandler:
        return self._methods[details.method]

    async def _refuse_unknown(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            state = await self._request_call()
            context = cygrpc._ServicerContext(state, None, None, loop)
            keep(self._open_calls, loop.create_task(refuse(context)))


def keep(calls: "set[asyncio.Task[None]]", task: "asyncio.Task[None]") -> None:
    calls.add(task)
    task.add_done_callback(calls.discard)


async def refuse(context: Any) -> None:
    with contextlib.suppress(aio.BaseError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There is no such method.")
