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

from core.express import Connection
from core.runtime import runtime

logger = logging.getLogger("syros.serving")

DRAIN_SECONDS = 20


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: one place stops everything, in order."""

    def install_signal_handlers(self) -> None:
        return


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
        http=Connection,
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
