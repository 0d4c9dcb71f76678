"""PostgreSQL and Valkey of one's own, to be killed, frozen and kept away; and two Syros processes on them."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from core.embedded import Embedded, Server
from tests.races.client import Client
from tests.races.processes import Syros, environment, migrate, new_namespace, until


class House:
    """Servers in a folder, watched as `serve` watches them."""

    def __init__(self, var: Path) -> None:
        self.var = var
        self.embedded = Embedded(var)
        self._kept_away: set[str] = set()
        self._ended = threading.Event()
        # The servers end with the thread that started them, so the one that watches lives as long as they do.
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> "House":
        self.embedded.start()
        self._watcher.start()
        # Both processes carry sagas out.
        self.environ = environment(self.postgres.url, self.valkey.url, self.var, SYROS_WORKS="1")
        migrate(self.environ)
        return self

    def stop(self) -> None:
        self._ended.set()
        self._watcher.join()
        self.embedded.stop()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            for server in self.embedded.servers:
                if server.name not in self._kept_away:
                    server.revive()

    @property
    def postgres(self) -> Any:
        assert self.embedded.postgres
        return self.embedded.postgres

    @property
    def valkey(self) -> Any:
        assert self.embedded.valkey
        return self.embedded.valkey

    @contextlib.contextmanager
    def away(self, server: Server, number: signal.Signals) -> Iterator[None]:
        """Ended by this signal, and not brought back before the block ends; then it is up again."""
        self._kept_away.add(server.name)
        try:
            self.hit(server, number)
            yield
        finally:
            self._kept_away.discard(server.name)
            self.wait_for(server)

    @staticmethod
    def hit(server: Server, number: signal.Signals) -> None:
        """End it by this signal."""
        assert server.process
        process = server.process
        process.send_signal(number)
        process.wait(20)

    @staticmethod
    def wait_for(server: Server) -> float:
        """Until it answers; the moment of that."""

        def answers() -> bool:
            with contextlib.suppress(Exception):
                server.ping()
                return True
            return False

        until(answers, what=f"{server.name} up")
        return time.monotonic()

    @contextlib.contextmanager
    def frozen(self, server: Server) -> Iterator[None]:
        """All its processes stand still, and connections to it stay open."""
        pids = family(server)
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.postgres.url, autocommit=True)

    def query(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(statement, params).fetchall()


def family(server: Server) -> list[int]:
    """A server's process and its children."""
    assert server.process
    pid = server.process.pid
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [pid, *map(int, found.stdout.split())]


class Couple:
    """Two processes on a house, brought back for each test, and a namespace of the test's own."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.a, self.b = (Syros(house.environ, name) for name in ("a", "b"))
        self.namespace = ""

    @property
    def both(self) -> tuple[Syros, Syros]:
        return self.a, self.b

    def prepare(self) -> None:
        for server in self.house.embedded.servers:
            self.house.wait_for(server)
        for process in self.both:
            if process.process is None or process.process.poll() is not None:
                process.spawn()
        for process in self.both:
            process.wait_ready()
        self.namespace = new_namespace(self.house.postgres.url)

    def end(self) -> None:
        for process in self.both:
            process.end()

    def client(self, process: Syros) -> Client:
        return Client(process.port, self.namespace)
