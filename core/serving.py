"""The serving process: HTTP over uvicorn, the runtime in its loop, a graceful end."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import uvicorn

from core import sockets
from core.embedded import end_with_parent
from core.express import Connection
from core.runtime import runtime

logger = logging.getLogger("syros.serving")

DRAIN_SECONDS = 20


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: one place stops everything, in order."""

    def install_signal_handlers(self) -> None:
        return


def listen(host: str, port: int) -> socket.socket:
    """A listening socket."""
    listener = bind(host, port)
    listener.listen(2048)
    return listener


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """A listening socket for each of several processes: the kernel spreads the connections over them evenly, where
    processes that share one would leave it to chance who takes how many.

    Raises: OSError, also when somebody else listens there and would share the port.
    """
    bind(host, port).close()
    listeners = [bind(host, port, shared=True) for _ in range(count)]
    for listener in listeners:
        listener.listen(2048)
    return listeners


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    found.setblocking(False)
    return found


class Door(Protocol):
    """A server beside HTTP's, in the same loop."""

    async def serve(self, stopping: asyncio.Event) -> None:
        """Serve until that is set; then refuse, drain and return."""


def config(application: Any) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=Connection,
        ws=sockets.Connection,
        ws_per_message_deflate=False,  # a window a connection: more memory than all the rest of it
        lifespan="off",
        access_log=False,
        log_config=None,
        # The peer is who the socket says it is: development mode trusts no header.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


class Web:
    """The door for HTTP and WebSocket: an ASGI application behind uvicorn, on sockets that listen already."""

    def __init__(self, application: Any, listeners: list[socket.socket]) -> None:
        self._server, self._listeners = Server(config(application)), listeners

    async def serve(self, stopping: asyncio.Event) -> None:
        ending = asyncio.ensure_future(self._end(stopping))
        try:
            await self._server.serve(sockets=self._listeners)
        finally:
            ending.cancel()

    async def _end(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._server.should_exit = True


async def serve(doors: Sequence[Door], workers: "Workers") -> None:
    """Serve until SIGTERM or SIGINT: then refuse, drain, finish the batch, end this process's lease."""
    await runtime.start()
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin_stop, stopping, workers)
    tune()
    try:
        async with asyncio.TaskGroup() as group:
            for door in doors:
                group.create_task(door.serve(stopping))
    finally:
        await runtime.stop()


def begin_stop(stopping: asyncio.Event, workers: "Workers") -> None:
    workers.terminate()
    runtime.release_waiters()
    stopping.set()


def tune() -> None:
    # Each connection is a file, and the usual limit of 1024 is one for programs that call select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The engine's thread and the loop share the interpreter: switch ten times sooner than the default 5 ms,
    # so that neither waits long for the other.
    sys.setswitchinterval(0.0005)
    # What was loaded at start stays; the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class Workers:
    """Further processes that serve beside this one, each on a socket of its own; one that dies is replaced.

    They end with this process, even if it is killed. Leaving the context ends them and waits for them.
    """

    def __init__(
        self, listeners: list[list[socket.socket]], environment: dict[str, str], arguments: Sequence[str] = ()
    ) -> None:
        self._listeners, self._environment, self._arguments = listeners, environment, arguments
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()

    def __enter__(self) -> "Workers":
        self._processes = [self._start(listeners) for listeners in self._listeners]
        if self._processes:
            threading.Thread(target=self._watch, name="syros-workers", daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.terminate()
        for process in self._processes:
            process.wait(DRAIN_SECONDS + 15)

    def terminate(self) -> None:
        """Begin their end."""
        self._stopping.set()
        for process in self._processes:
            process.terminate()

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            for index, process in enumerate(self._processes):
                if process.poll() is not None and not self._stopping.is_set():
                    logger.error("worker %d ended with %s; starting another", process.pid, process.returncode)
                    self._processes[index] = self._start(self._listeners[index])

    def _start(self, listeners: list[socket.socket]) -> "subprocess.Popen[bytes]":
        inherited = [listener.fileno() for listener in listeners]
        return subprocess.Popen(
            [sys.executable, sys.argv[0], "serve", *self._arguments, "--fd", *map(str, inherited)],
            pass_fds=inherited,
            env={**os.environ, **self._environment},
            start_new_session=True,  # Ctrl-C reaches this process, which ends them in order
            preexec_fn=end_with_parent,
        )
