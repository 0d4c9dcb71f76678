"""A pytest plugin that brings the servers: real PostgreSQL and Valkey, embedded, one of each a run, and a
database of its own for each pytest-xdist worker. Loaded with `-p tests.servers` before Django reads its settings.

With SYROS_TEST_DATABASE_URL and SYROS_TEST_REDIS_URL the suite runs against servers of one's own.
"""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")


def start() -> None:
    """Start what the environment does not name; the workers of this run inherit it."""
    postgres, valkey = (os.environ.get(f"SYROS_TEST_{kind}_URL") for kind in ("DATABASE", "REDIS"))
    if postgres and valkey:
        return
    from core.embedded import Embedded

    var = Path(tempfile.mkdtemp(prefix="syros-test-"))
    embedded = Embedded(var, postgres=not postgres, valkey=not valkey)
    embedded.start()
    atexit.register(shutil.rmtree, var, ignore_errors=True)
    atexit.register(embedded.stop)
    if embedded.postgres:
        hurry(embedded.postgres.url)
        os.environ["SYROS_TEST_DATABASE_URL"] = embedded.postgres.url
    if embedded.valkey:
        os.environ["SYROS_TEST_REDIS_URL"] = embedded.valkey.url


def hurry(url: str) -> None:
    """Nobody pulls the plug of this server: what dies in the suite has a PostgreSQL of its own (`tests/faults`)."""
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sql.SQL("alter system set {} = off").format(sql.Identifier(setting)))
        connection.execute("select pg_reload_conf()")


def database(name: str) -> str:
    """The URL of a fresh database on the test server."""
    base = os.environ["SYROS_TEST_DATABASE_URL"]
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=f"/{name}"))


# What is loaded stays, thousands of tests as well: looking at it again and again takes longer than loading it.
gc.set_threshold(50_000, 20, 20)
# Who starts the suite in the background may have these ignored, and so would be what the tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A run has a hundred processes: each would compile everything again where this is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
start()
os.environ.update(
    DATABASE_URL=database(f"syros_test_{WORKER}"),
    REDIS_URL=os.environ["SYROS_TEST_REDIS_URL"],
    SYROS_DEV="1",
    SYROS_WORKS="1",
    JWT_SECRET="a secret for tests only, 0123456789abcdef",
    SYROS_VAR=tempfile.mkdtemp(prefix=f"syros-test-var-{WORKER}-"),
    LOG_LEVEL="warning",
)
atexit.register(shutil.rmtree, os.environ["SYROS_VAR"], ignore_errors=True)
# Each new client of httpx, and so each `httpx.get`, reads the certificates of the whole world, for 20 ms; here is none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.environ["SYROS_VAR"]
