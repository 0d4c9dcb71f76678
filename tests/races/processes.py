"""Real Syros processes: `manage.py serve`, each in a process of its own, with real signals."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
import uvloop

from tests.doors import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
MANAGE = [sys.executable, "manage.py"]
PATIENCE = 30.0  # seconds that something may take on a busy machine before it counts as not happening
Found = TypeVar("Found")


def run(coroutine: Coroutine[Any, Any, Found], seconds: float = 120.0) -> Found:
    """Run a test's coroutine; nothing may hang for longer than this."""

    async def bounded() -> Found:
        async with asyncio.timeout(seconds):
            return await coroutine

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


def until(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "it") -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.02)
    return found


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = PATIENCE) -> None:
    """Wait until an awaited condition is true."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def environment(database_url: str, redis_url: str, var: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SYROS_DEV": "1",
        "JWT_SECRET": "a secret for tests only, 0123456789abcdef",
        "SYROS_VAR": str(var),
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "json",
        **more,
    }


def migrate(environ: dict[str, str]) -> None:
    subprocess.run([*MANAGE, "migrate", "-v0"], cwd=ROOT, env=environ, check=True)


class Syros:
    """One `manage.py serve`. `name` is that of its log, `<var>/<name>.log`."""

    def __init__(
        self,
        environ: dict[str, str],
        name: str = "a",
        *,
        role: str | None = "web",
        workers: int = 1,
        manage: Sequence[str] = MANAGE,
    ) -> None:
        self.environ, self.name, self.manage = environ, name, manage
        self.role = [*([role] if role else []), "--workers", str(workers)]
        self.port, self.ws_port, self.grpc_port = free_port(), free_port(), free_port()
        self.log = Path(environ["SYROS_VAR"]) / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> list[str]:
        ports = {"--port": self.port, "--ws-port": self.ws_port, "--grpc-port": self.grpc_port}
        return ["--host", "127.0.0.1", *(text for name, port in ports.items() for text in (name, str(port)))]

    def spawn(self) -> "Syros":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.manage, "serve", *self.role, *self.address],
                cwd=ROOT, env=self.environ, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def start(self) -> "Syros":
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = PATIENCE) -> None:
        until(self.is_ready, seconds, f"{self.name} ready (see {self.log})")

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended; its log: {self.log.read_text()[-2000:]}"
        with contextlib.suppress(httpx.TransportError):
            return self.get("/ready").status_code == 200
        return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As the kernel would: nothing is said good-bye to."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(seconds)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def mebibytes(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def complaints(self) -> list[str]:
        """What it logged as an error, and what is no log line at all, such as a traceback."""
        return [line for line in self.log.read_text().splitlines() if is_complaint(line)]


def is_complaint(line: str) -> bool:
    try:
        entry = json.loads(line)
        level, text = entry["level"], entry["event"]
    except (ValueError, KeyError, TypeError):
        return True
    # Django notes every 503 as an error; here it is what callers are promised.
    return level in {"error", "critical"} and not text.startswith("Service Unavailable: ")


@contextlib.contextmanager
def serving(environ: dict[str, str], *names: str) -> Iterator[list[Syros]]:
    """Some processes on the same servers."""
    processes = [Syros(environ, name) for name in names]
    try:
        for process in processes:
            process.spawn()
        for process in processes:
            process.wait_ready()
        yield processes
    finally:
        for process in processes:
            process.end()


def new_namespace(database_url: str, prefix: str = "n") -> str:
    """A namespace of its own for a test: its log begins at position 1."""
    name = f"{prefix.replace('_', '-')}-{uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("insert into syros.core_namespace (name, floor) values (%s, 0)", [name])
    return name
