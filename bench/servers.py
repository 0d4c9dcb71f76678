"""The servers that are measured: throwaway ones, each in a folder of its own on a loopback port."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.processes import children, cpu_of_children, cpu_of_threads
from core.embedded import end_with_parent

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90.0
STOP_SECONDS = 40.0
# What the environment of a developer may say, and a throwaway server must not follow.
FOREIGN = ("ETCD_", "SYROS_", "DATABASE_URL", "REDIS_URL", "JWT_SECRET", "LOG_")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone at the end. Embedded PostgreSQL, of another user when root starts it, may pass."""
    path = Path(tempfile.mkdtemp(prefix="syros-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A child process that is ready when a URL answers 200, and ends with this one."""

    name = ""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    def ready(self) -> str:
        """The path that answers when the server is ready."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process, "not started"
        return self._process.pid

    def __enter__(self) -> Any:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=ROOT, env={**inherited, **self.environment()}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{self.name} did not start:\n{end}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.ready(), timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Syros(Server):
    """Syros as `manage.py serve` starts it, with embedded PostgreSQL and Valkey; or, `beside` another, one process more
    on the same ones."""

    name = "syros"

    def __init__(self, home: Path, beside: "Syros | None" = None) -> None:
        number = 2 if beside else 1
        super().__init__(home / f"syros-{number}.log")
        self.var, self._beside = home / "syros", beside
        self.grpc_port = free_port()
        self.api_key: str = beside.api_key if beside else ""

    @property
    def pids(self) -> list[int]:
        """The processes that serve, the first one first."""
        beside = [pid for pid, name in children(self.pid).items() if name.startswith("python")]
        return [self.pid, *beside]

    @property
    def postgres(self) -> int:
        return next(pid for pid, name in children(self.pid).items() if name == "postgres")

    def cpu(self) -> float:
        """CPU seconds so far of all that serve: the processes, and PostgreSQL with its backends."""
        serving = sum(sum(cpu_of_threads(pid).values()) for pid in self.pids)
        return serving + cpu_of_children(self.postgres)

    def command(self) -> list[str]:
        role = ["web"] if self._beside else []
        return [sys.executable, "manage.py", "serve", *role]

    def environment(self) -> dict[str, str]:
        # A second process of the same folder finds there the addresses and the secret of the first.
        return {
            "SYROS_DEV": "1",
            "SYROS_VAR": str(self.var),
            "CONFIG_FILE": str(self.var / "no-config.toml"),
            "SERVER_HOST": "127.0.0.1",
            "REST_PORT": str(self.port),
            "GRPC_PORT": str(self.grpc_port),
            "WS_PORT": "0",  # what it answers, the other port does too
        }

    def ready(self) -> str:
        return "/ready"

    def _start(self) -> None:
        super()._start()
        if not self.api_key:
            # Measured with a credential, as in production, although development mode would do without.
            self.api_key = self.post("/api/v1/auth/api-keys", {"name": "bench"})["key"]

    def post(
        self, path: str, body: dict[str, Any], *, method: str = "POST", namespace: str = "default"
    ) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Syros-Namespace": namespace}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found


class Etcd(Server):
    """One etcd member, as its package starts it: every write is synced to the disk, as in Syros."""

    name = "etcd"

    def __init__(self, home: Path) -> None:
        super().__init__(home / "etcd.log")
        self._data = home / "etcd"
        self._peers = f"http://127.0.0.1:{free_port()}"

    def command(self) -> list[str]:
        return [
            "etcd", "--data-dir", str(self._data), "--log-level", "error", "--logger", "zap",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self._peers, "--initial-advertise-peer-urls", self._peers,
            "--initial-cluster", f"default={self._peers}",
        ]  # fmt: skip

    def ready(self) -> str:
        return "/health"


@contextmanager
def both() -> Iterator[tuple[Syros, Etcd | None]]:
    """A fresh Syros and, where it is installed, a fresh etcd, on the same disk."""
    with folder() as home, Syros(home) as syros:
        if shutil.which("etcd") is None:
            yield syros, None
            return
        with Etcd(home) as etcd:
            yield syros, etcd
