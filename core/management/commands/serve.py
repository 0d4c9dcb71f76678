"""serve: the one entry. Everything on a laptop, or one role of a deployment."""

import asyncio
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import uvloop
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from core import logs, serving


class Command(BaseCommand):
    help = (
        "Serve Syros. Without a role: everything, with embedded PostgreSQL and Valkey where DATABASE_URL or "
        "REDIS_URL is not set, migrations and a first administrator. `web`: only HTTP and WebSocket; `grpc`: only "
        "gRPC; `worker`: carries sagas out, and serves HTTP as well. A port of 0 is not opened."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "role", nargs="?", choices=["all", "web", "grpc", "worker", "beside"], default="all"
        )
        parser.add_argument("--host", default=settings.SERVER_HOST)
        parser.add_argument("--port", type=int, default=settings.REST_PORT)
        parser.add_argument("--ws-port", type=int, default=settings.WS_PORT)
        parser.add_argument("--grpc-port", type=int, default=settings.GRPC_PORT)
        parser.add_argument("--dns-port", type=int, default=settings.DNS_PORT)
        parser.add_argument("--workers", type=int, help="processes that serve; without a role two, else one")
        parser.add_argument("--fd", type=int, nargs="*", help="inherited listening sockets, for one process")

    def handle(self, *args: Any, **options: Any) -> None:
        logs.configure(settings.LOG_LEVEL, settings.LOG_FORMAT)
        check_secret()
        settings.WORKS = settings.WORKS or options["role"] in ("all", "worker")
        if options["role"] == "all":
            with Servers() as servers:
                prepare()
                greet(self.stdout, options)
                self.listen(options, servers)
        else:
            check_urls()
            self.listen(options, None)

    def listen(self, options: dict[str, Any], servers: "Servers | None") -> None:
        workers = options["workers"] or (min(2, os.cpu_count() or 1) if servers else 1)
        listeners, *others = (
            [[socket.socket(fileno=number) for number in options["fd"]]]
            if options["fd"] is not None
            else open_ports(options, workers)
        )
        if servers:
            servers.watch()
        opened = open_doors(listeners, options)
        grpc = ["--host", options["host"], "--grpc-port", str(options["grpc_port"] * serves_grpc(options))]
        with (
            serving.Workers(others, {**environment(), **of_role()}, ["beside", *grpc]) as beside,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(serving.serve(opened, beside))


def serves_grpc(options: dict[str, Any]) -> bool:
    return options["role"] not in ("web", "worker")


def open_doors(listeners: list[socket.socket], options: dict[str, Any]) -> list[serving.Door]:
    """Raises: CommandError, when DNS cannot have its port, or a setting of it or of Consul is wrong."""
    from syros_project.asgi import doors, doors_of_one

    found = doors(listeners, options["host"], options["grpc_port"] if serves_grpc(options) else 0)
    if options["role"] == "beside":
        return found
    # Only those that work know where services are.
    dns = options["dns_port"] if settings.WORKS else 0
    try:
        return [*found, *doors_of_one(options["port"] if listeners else 0, dns)]
    except OSError as error:
        place = f"{settings.DNS_HOST}:{dns}"
        raise CommandError(f"Cannot listen on {place} (DNS_PORT): {error.strerror}.") from error
    except ValueError as error:
        raise CommandError(str(error)) from error


def open_ports(options: dict[str, Any], count: int) -> list[list[socket.socket]]:
    """For each process its sockets. gRPC opens its own, which all processes share; here it is only looked at.

    Raises: CommandError, naming the port that somebody else has.
    """
    host: str = options["host"]
    found: list[list[socket.socket]] = [[] for _ in range(count)]
    for name in ("port", "ws_port") if options["role"] != "grpc" else ():
        if options[name]:
            for sockets, listener in zip(found, open_port(host, options[name], name, count), strict=True):
                sockets.append(listener)
    if serves_grpc(options) and options["grpc_port"]:
        with open_port(host, options["grpc_port"], "grpc_port", 1)[0]:
            pass
    return found


def open_port(host: str, port: int, name: str, count: int) -> list[socket.socket]:
    try:
        return serving.listen_together(host, port, count) if count > 1 else [serving.listen(host, port)]
    except OSError as error:
        setting = "REST_PORT" if name == "port" else name.upper()
        raise CommandError(f"Cannot listen on {host}:{port} ({setting}): {error.strerror}.") from error


def check_secret(*, may_be_kept: bool = False) -> None:
    """Refuse to go on with a secret that others know, or that is not the servers'.

    Parameter: `may_be_kept`, the one that development made for its database will do; not to serve with, in earnest.
    Raises: CommandError.
    """
    if settings.DEV or settings.SECRET_IS_SAFE or (may_be_kept and settings.SECRET_IS_KEPT):
        return
    raise CommandError(
        "JWT_SECRET is missing, well known or shorter than 32 characters. Set it (or JWT_SECRET_FILE), "
        "or SYROS_DEV=1 on a laptop."
    )


def check_urls() -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        if not getattr(settings, name):
            raise CommandError(f"{name} is not set; `serve` without a role brings its own servers.")


class Servers:
    """The embedded servers that are needed, started and watched."""

    def __init__(self) -> None:
        from core.embedded import Embedded

        postgres, valkey = settings.EMBED_POSTGRES, settings.EMBED_VALKEY
        self._embedded = Embedded(settings.VAR, postgres=postgres, valkey=valkey)
        self._ended = threading.Event()

    def __enter__(self) -> "Servers":
        from core.embedded import EmbeddedInUse
        from syros_project.settings import channel_layers, database

        try:
            self._embedded.start()
        except EmbeddedInUse as error:
            raise CommandError(str(error)) from error
        if self._embedded.postgres:
            settings.DATABASE_URL = self._embedded.postgres.url
            settings.DATABASES["default"].update(database(settings.DATABASE_URL))
            del connections["default"]  # the one from before there was an address
        if self._embedded.valkey:
            settings.REDIS_URL = self._embedded.valkey.url
            settings.CHANNEL_LAYERS = channel_layers(settings.REDIS_URL)
        note = settings.VAR / "serving.json"
        write_private(note, json.dumps(environment()))
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._embedded.stop()

    def watch(self) -> None:
        """Once a second, bring back what has died."""
        threading.Thread(target=self._watch, name="syros-embedded", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._embedded.watch()


def environment() -> dict[str, str]:
    return {"DATABASE_URL": settings.DATABASE_URL, "REDIS_URL": settings.REDIS_URL}


def of_role() -> dict[str, str]:
    """What the processes beside this one are told of its role."""
    return {"SYROS_WORKS": "1" if settings.WORKS else "0"}


def write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


# -- the first time ----------------------------------------------------------------------------------


def password_file() -> Path:
    found: Path = settings.VAR / "secrets" / "admin-password"
    return found


def prepare() -> None:
    """Migrate, and make the first administrator."""
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0, interactive=False)
    if not User.objects.filter(is_superuser=True).exists():
        password = secrets.token_urlsafe(12)
        User.objects.create_superuser("admin", password=password)
        write_private(password_file(), password)


def known_password() -> str | None:
    """The first administrator's password, as long as nobody has changed it."""
    from django.contrib.auth.models import User

    path = password_file()
    user = User.objects.filter(username="admin", is_active=True).first()
    password = path.read_text() if path.exists() else ""
    return password if user and password and user.check_password(password) else None


def greet(out: Any, options: dict[str, Any]) -> None:
    base = f"http://localhost:{options['port']}"
    password = known_password()
    port = options["dns_port"]
    dns = f"\n  DNS      dig @localhost -p {port} SRV <service>.svc.{settings.DNS_DOMAIN}" if port else ""
    login = f"admin / {password}" if password else "as you have set it"
    out.write(f"""
Syros {settings.VERSION}
  REST     {base}/api/v1      docs {base}/api/docs
  Admin    {base}/admin       login: {login}
  Health   {base}/health
  GraphQL  {base}/graphql
  gRPC     localhost:{options["grpc_port"]}
  Socket   ws://localhost:{options["port"]}/ws{dns}

A first lock:
  curl -X POST {base}/api/v1/locks -H "Content-Type: application/json" \\
    -d '{{"key": "jobs/nightly", "owner": "me", "ttl_seconds": 30}}'
""")
    out.flush()
