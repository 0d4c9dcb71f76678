"""The serving process: HTTP over uvicorn, the runtime in its loop, a graceful end."""

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from core.runtime import runtime

logger = logging.getLogger("syros.serving")

DRAIN_SECONDS = 20
REQUEST_SECONDS = 60.0  # for a request to arrive whole
HEAD_BYTES = 64 << 10  # of a request's line and headers


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: one place stops everything, in order."""

    def install_signal_handlers(self) -> None:
        return


class OneWrite:
    """A transport that sends the head of a response together with what follows it: one system call, not two."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)  # a body that is long in coming must not hold the head back
            return
        if not self._transport.is_closing():  # uvloop's raises, once the peer has hung up
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class Protocol(HttpToolsProtocol):
    """uvicorn's, which answers in one write, and neither waits for ever for a request to be complete nor collects
    a head without end."""

    _complete = True
    _head_complete = False
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._be_patient()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes = 0 if self._head_complete else self._head_bytes + len(data)
        if self._head_bytes > HEAD_BYTES:
            self.transport.close()
        if self._complete:
            if self._patience:
                self._patience.cancel()
                self._patience = None
        elif not self._patience:
            self._be_patient()

    def on_message_begin(self) -> None:
        self._complete = self._head_complete = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_complete = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._complete = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience:
            self._patience.cancel()
        super().connection_lost(exc)

    def _be_patient(self) -> None:
        self._patience = self.loop.call_later(REQUEST_SECONDS, self.transport.close)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that several processes may share."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def config(application: Any) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        # The peer is who the socket says it is: development mode trusts no header.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


async def serve(application: Any, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT: then refuse, drain, finish the batch, end this process's lease."""
    await runtime.start()
    server = Server(config(application))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin_stop, server)
    tune()
    try:
        await server.serve(sockets=sockets)
    finally:
        await runtime.stop()


def begin_stop(server: Server) -> None:
    runtime.release_waiters()
    server.should_exit = True


def tune() -> None:
    # The engine's thread and the loop share the interpreter: switch ten times sooner than the default 5 ms,
    # so that neither waits long for the other.
    sys.setswitchinterval(0.0005)
    # What was loaded at start stays; the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def supervise(listener: socket.socket, count: int, environment: dict[str, str]) -> None:
    """Run `count` serving processes on one listening socket; one that dies is replaced.

    Ends on SIGTERM or SIGINT, when the processes have ended.
    """
    listener.set_inheritable(True)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    workers = [start_worker(listener, environment) for _ in range(count)]
    while not stopping.wait(0.5):
        for index, worker in enumerate(workers):
            if worker.poll() is not None:
                logger.error("worker %d ended with %s; starting another", worker.pid, worker.returncode)
                workers[index] = start_worker(listener, environment)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(DRAIN_SECONDS + 15)


def start_worker(listener: socket.socket, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, sys.argv[0], "serve", "web", "--fd", str(listener.fileno())]
    return subprocess.Popen(
        command,
        pass_fds=[listener.fileno()],
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches the supervisor, which ends them in order
    )
