"""Guards: a database of one's own refuses the writes of who holds a lock no longer; in real databases.

What SQL databases have in common is written once. MySQL is not there: of its guard only the form is looked at.
"""

import asyncio
import io
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from django.core.management import CommandError, call_command
from psycopg import errors

from syros import guard as guards
from syros.guard import StaleToken, guard, install, script, statements
from tests.doors import Door, Served
from tests.servers import WORKER, database
from tests.test_docs import blocks, missing_lines, read

ROOT = Path(__file__).resolve().parent.parent
LARGE = 8191 << 40  # beyond it a Lua number is no longer exact
Later = Callable[..., "Future[Any]"]


def printed(name: str) -> str:
    out = io.StringIO()
    call_command("print_guard", f"--{name}", stdout=out)
    return out.getvalue()


class Database:
    """A database of somebody's own, with the guard and a document; `connect()` as often as one likes."""

    dialect = ""

    def __init__(self) -> None:
        self._connections: list[Any] = []

    def connect(self, **options: Any) -> Any:
        self._connections.append(self._connect(**options))
        return self._connections[-1]

    def _connect(self, **options: Any) -> Any:
        raise NotImplementedError

    def until_somebody_waits(self) -> None:
        raise NotImplementedError

    def tokens(self) -> dict[str, int]:
        return dict(self.rows("select resource, token from syros_guard"))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        cursor = self.connect().cursor()
        cursor.execute(query)
        found = cursor.fetchall()
        cursor.connection.rollback()
        return list(found)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class Postgres(Database):
    dialect = "postgres"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        with psycopg.connect(url) as connection:
            connection.execute("drop table if exists syros_guard, document, orders")
            connection.execute(printed("postgres"))
            connection.execute("create table document (written bigint)")
            connection.execute("insert into document values (0)")

    def _connect(self, **options: Any) -> Any:
        return psycopg.connect(self.url, **options)

    def until_somebody_waits(self) -> None:
        waiting = """select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'"""
        deadline = time.monotonic() + 20
        while self.rows(waiting) == [(0,)]:
            assert time.monotonic() < deadline, "nobody waits"


class Sqlite(Database):
    dialect = "sqlite"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "shop.db"
        connection = self.connect()
        connection.execute("pragma journal_mode = wal")
        connection.executescript(printed("sqlite"))
        connection.executescript("create table document (written integer); insert into document values (0)")

    def _connect(self, **options: Any) -> Any:
        return sqlite3.connect(self.file, timeout=30, check_same_thread=False, **options)

    def until_somebody_waits(self) -> None:
        time.sleep(0.2)  # nobody can see it; who came later would be answered the same


@pytest.fixture(scope="module")
def url() -> str:
    return database(f"syros_guard_{WORKER}")


@pytest.fixture(params=["postgres", "sqlite"])
def shop(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[Database]:
    found = Postgres(url) if request.param == "postgres" else Sqlite(tmp_path)
    yield found
    found.close()


@pytest.fixture
def postgres(url: str) -> Iterator[Database]:
    found = Postgres(url)
    yield found
    found.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    found = Sqlite(tmp_path)
    yield found
    found.close()


def pass_guard(connection: Any, token: int, resource: str = "a") -> None:
    guard(connection.cursor(), resource, token)


# -- what every SQL guard does -----------------------------------------------------------------------


def test_the_same_and_a_larger_token_are_taken(shop: Database) -> None:
    connection = shop.connect()
    for token in (5, 5, 6, 2**63 - 1):
        pass_guard(connection, token)
        connection.commit()
        assert shop.tokens() == {"a": token}


def test_a_smaller_token_is_refused_and_nothing_changes(shop: Database) -> None:
    connection = shop.connect()
    pass_guard(connection, 6)
    connection.commit()
    before = shop.rows("select * from syros_guard")
    with pytest.raises(StaleToken, match="stale fencing token 5 of a") as refusal:
        pass_guard(connection, 5)
    connection.rollback()
    assert (refusal.value.resource, refusal.value.token) == ("a", 5)
    assert shop.rows("select * from syros_guard") == before


def test_each_resource_has_its_own_token(shop: Database) -> None:
    connection = shop.connect()
    for resource, token in (("a", 9), ("A", 3), ("ä/%s 'x'", 4)):
        pass_guard(connection, token, resource)
    connection.commit()
    assert shop.tokens() == {"a": 9, "A": 3, "ä/%s 'x'": 4}


def test_the_second_transaction_waits_and_is_refused(shop: Database, later: Later) -> None:
    first, second = shop.connect(), shop.connect()
    pass_guard(first, 2)
    waiter = later(pass_guard, second, 1)
    shop.until_somebody_waits()
    assert not waiter.done()
    first.commit()
    with pytest.raises(StaleToken):
        waiter.result(30)
    second.rollback()
    assert shop.tokens() == {"a": 2}


def test_the_second_transaction_waits_and_is_taken(shop: Database, later: Later) -> None:
    first, second = shop.connect(), shop.connect()
    pass_guard(first, 1)
    waiter = later(pass_guard, second, 2)
    shop.until_somebody_waits()
    first.commit()
    waiter.result(30)
    second.commit()
    assert shop.tokens() == {"a": 2}


def test_a_rollback_forgets_the_token(shop: Database, later: Later) -> None:
    first, second = shop.connect(), shop.connect()
    pass_guard(first, 1)
    first.commit()
    pass_guard(first, 3)
    waiter = later(pass_guard, second, 2)
    shop.until_somebody_waits()
    first.rollback()
    waiter.result(30)
    second.commit()
    assert shop.tokens() == {"a": 2}


@pytest.mark.parametrize(("resource", "token"), [("a", None), ("a", 0), ("a", -1), ("a", "x"), (None, 1)])
def test_what_is_no_token_is_an_error_and_no_refusal(shop: Database, resource: Any, token: Any) -> None:
    connection = shop.connect()
    with pytest.raises((psycopg.Error, sqlite3.Error)):
        guard(connection.cursor(), resource, token)
    connection.rollback()
    assert shop.tokens() == {}


def test_a_guard_that_shares_no_transaction_is_an_error(shop: Database) -> None:
    alone: dict[str, Any] = {"autocommit": True} if shop.dialect == "postgres" else {"isolation_level": None}
    connection = shop.connect(**alone)
    with pytest.raises(RuntimeError, match="transaction"):
        pass_guard(connection, 1)
    connection.cursor().execute("begin")
    pass_guard(connection, 1)


def test_installing_again_keeps_the_tokens(shop: Database) -> None:
    connection = shop.connect()
    pass_guard(connection, 7)
    connection.commit()
    install(connection.cursor())
    connection.commit()
    assert shop.tokens() == {"a": 7}


def test_writes_of_many_come_in_the_order_of_their_tokens(shop: Database) -> None:
    """Whoever wrote with a larger token, nobody writes after it with a smaller one."""
    tokens = random.sample(range(1, 1000), 160)
    problems: list[Any] = []

    def write(mine: list[int]) -> None:
        connection = shop.connect()
        cursor = connection.cursor()
        for token in mine:
            try:
                guard(cursor, "document", token)
            except StaleToken:
                connection.rollback()
                continue
            (written,) = cursor.execute("select written from document").fetchone()
            if written > token:
                problems.append((written, token))
            cursor.execute(f"update document set written = {token}")
            connection.commit()

    threads = [threading.Thread(target=write, args=(tokens[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert shop.rows("select written from document") == [(max(tokens),)]


# -- PostgreSQL --------------------------------------------------------------------------------------


def test_postgres_says_which_token_it_has_seen_and_refuses_the_rest(postgres: Database) -> None:
    connection = postgres.connect()
    connection.execute("select syros_guard('a', 6)")
    connection.commit()
    with pytest.raises(psycopg.Error) as refusal:
        connection.execute("select syros_guard('a', 5)")
    assert refusal.value.sqlstate == "SY409"
    assert refusal.value.diag.message_primary == "stale fencing token 5 of a: 6 has been seen"
    with pytest.raises(errors.InFailedSqlTransaction):
        connection.execute("update document set written = 5")


@pytest.mark.parametrize("level", [2, 3], ids=["repeatable read", "serializable"])
@pytest.mark.parametrize("token", [1, 3])
def test_an_old_snapshot_is_not_let_in(postgres: Database, level: int, token: int) -> None:
    """It would not see what the other transaction has written, whichever token is the larger one."""
    first, second = postgres.connect(), postgres.connect()
    pass_guard(first, 1)
    first.commit()
    second.isolation_level = psycopg.IsolationLevel(level + 1)
    second.execute("select written from document")
    pass_guard(first, 2)
    first.commit()
    with pytest.raises(errors.SerializationFailure):
        pass_guard(second, token)
    second.rollback()
    if token == 1:
        with pytest.raises(StaleToken):
            pass_guard(second, token)
    else:
        pass_guard(second, token)


def test_who_waits_with_a_snapshot_is_not_let_in(postgres: Database, later: Later) -> None:
    first, second = postgres.connect(), postgres.connect()
    second.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    pass_guard(first, 2)
    waiter = later(pass_guard, second, 1)
    postgres.until_somebody_waits()
    first.commit()
    with pytest.raises(errors.SerializationFailure):
        waiter.result(30)


def test_the_table_is_found_whatever_the_search_path(postgres: Database) -> None:
    connection = postgres.connect()
    connection.execute("set search_path = pg_catalog")
    connection.execute("select public.syros_guard('a', 1)")
    connection.commit()
    assert postgres.tokens() == {"a": 1}


def test_an_asynchronous_cursor_is_an_error(url: str) -> None:
    """Its statement would never be carried out, and nothing be guarded."""

    async def call() -> None:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            guard(connection.cursor(), "a", 1)

    with pytest.raises(TypeError, match="asynchronous"):
        asyncio.run(call())


# -- SQLite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", ["", "or ignore", "or replace", "or fail"])
def test_sqlite_refuses_whatever_the_insert_says(sqlite: Database, conflict: str) -> None:
    connection = sqlite.connect()
    pass_guard(connection, 6)
    connection.commit()
    with pytest.raises(sqlite3.IntegrityError, match=r"^stale fencing token$"):
        connection.execute(f"insert {conflict} into syros_guard_call (resource, token) values ('a', 5)")
    connection.rollback()
    assert sqlite.tokens() == {"a": 6}


def test_who_has_read_before_the_guard_is_not_let_in_by_sqlite(sqlite: Database) -> None:
    first, second = sqlite.connect(), sqlite.connect(isolation_level=None)
    second.execute("begin")
    second.execute("select * from document").fetchall()
    pass_guard(first, 1)
    first.commit()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        pass_guard(second, 2)


# -- Redis -------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Any]:
    """`store(token, command, *rest)` on one guarded key of the suite's Valkey."""
    name = f"{{guards-{uuid4().hex}}}"
    with redis.Redis.from_url(os.environ["SYROS_TEST_REDIS_URL"], decode_responses=True) as client:
        run = client.register_script(printed("redis"))
        yield lambda token, *command: run(keys=[f"syros_guard:{name}", name], args=[token, *command])
        client.delete(name, f"syros_guard:{name}")


def test_redis_writes_with_the_same_and_a_larger_token(store: Any) -> None:
    assert store(9, "INCRBY", 5) == 5
    assert store(9, "INCRBY", 5) == 10
    assert store(10, "INCRBY", 5) == 15
    assert store(11, "GET") == "15"


@pytest.mark.parametrize(
    ("seen", "token"), [(10, 9), (LARGE + 2, LARGE + 1), (2**63 - 1, 2**63 - 2), (11, 10)]
)
def test_redis_refuses_a_smaller_token_and_writes_nothing(store: Any, seen: int, token: int) -> None:
    store(seen, "SET", "mine")
    with pytest.raises(
        redis.ResponseError, match=rf"^STALE stale fencing token {token} of .*: {seen} has been seen"
    ):
        store(token, "SET", "theirs")
    assert store(seen, "GET") == "mine"
    with pytest.raises(redis.ResponseError, match="STALE"):
        store(token, "GET")


@pytest.mark.parametrize("token", ["", "x", "-1", "0", "01", "1.5", "1e3", "9" * 20])
def test_redis_takes_no_token_that_is_none(store: Any, token: str) -> None:
    with pytest.raises(redis.ResponseError, match="a fencing token is a positive integer"):
        store(token, "SET", "x")
    assert store(1, "GET") is None


def test_redis_needs_a_command(store: Any) -> None:
    with pytest.raises(redis.ResponseError, match="no command"):
        store(1)


# -- MySQL, which is not there -----------------------------------------------------------------------


def test_the_mysql_guard_is_three_statements() -> None:
    table, drop, procedure = statements("mysql")
    assert table.startswith("create table if not exists syros_guard (")
    assert drop == "drop procedure if exists syros_guard;"
    assert procedure.startswith("create procedure syros_guard(")
    assert procedure.endswith("\nend")
    assert "delimiter" not in procedure


def test_the_mysql_guard_compares_before_it_signals() -> None:
    (body,) = re.findall(r"^begin\n(.*)\nend$", statements("mysql")[2], re.DOTALL | re.MULTILINE)
    code = " ".join(re.sub(r"--.*", "", body).split())
    order = ["insert into syros_guard", "on duplicate key update", "token = greatest(token, fencing_token);",
             "for update;", "if seen > fencing_token then", "signal sqlstate '45000'", "end if;"]  # fmt: skip
    places = [code.index(each) for each in order]
    assert places == sorted(places)
    assert code.index("guarded_at = if(fencing_token >= token") < code.index("token = greatest")
    assert code.count("(") == code.count(")")
    assert guards.STALE in code


def test_the_mysql_script_sets_its_delimiter_back() -> None:
    text = printed("mysql")
    assert re.findall(r"^delimiter (.*)$", text, re.MULTILINE) == ["//", ";"]
    assert re.search(r"^end //\ndelimiter ;\n\Z", text, re.MULTILINE)


def test_a_driver_is_known_by_its_cursor() -> None:
    class Cursor:
        __module__ = "pymysql.cursors"
        line = ("", ())
        connection = type("Connection", (), {"server_status": 1})

        def execute(self, *line: Any) -> None:
            self.line = line

    class Mine(Cursor):
        __module__ = "somewhere"

    cursor = Mine()
    guard(cursor, "a", 1)
    assert cursor.line == ("call syros_guard(%s, %s)", ("a", 1))
    Cursor.connection.server_status = 2  # autocommit, and in no transaction
    with pytest.raises(RuntimeError):
        guard(cursor, "a", 1)
    Cursor.connection.server_status, Cursor.__module__ = 1, "unheard_of"
    with pytest.raises(TypeError, match="say which dialect"):
        guard(cursor, "a", 1)
    guard(cursor, "a", 1, dialect="sqlite")
    assert cursor.line[0] == "insert into syros_guard_call (resource, token) values (?, ?)"


# -- printing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["postgres", "mysql", "sqlite", "redis"])
def test_what_is_printed_is_what_the_sdk_installs(name: str) -> None:
    text = printed(name)
    assert text == script(name)
    assert text.startswith("-- A fencing guard for your own ")
    assert "\n-- For exclusive locks only. " in text


@pytest.mark.parametrize("line", [[], ["--postgres", "--redis"], ["--oracle"]])
def test_exactly_one_database_is_named(line: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("print_guard", *line)


def test_the_guard_needs_neither_django_nor_a_connection_to_syros() -> None:
    program = "import sys; import syros.guard; print([n for n in ('django', 'httpx') if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "sdks/python")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "[]\n"


def test_the_guards_are_in_the_package(tmp_path: Path) -> None:
    """Where pip installs it, too: what package-data names is what there is."""
    about = tomllib.loads(read("sdks/python/pyproject.toml"))["tool"]["setuptools"]
    package = ROOT / "sdks/python/syros"
    named = {path for pattern in about["package-data"]["syros"] for path in package.glob(pattern)}
    assert set((package / "guards").iterdir()) <= named


# -- the example and the documents -------------------------------------------------------------------


def run_example(url: str, namespace: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "sdks/python"), "SYROS_URL": url, "SYROS_NAMESPACE": namespace,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "examples/fencing/run.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_the_example_loses_money_without_the_guard_and_none_with_it(
    served: Served, namespace: str, lane: Door
) -> None:
    found = run_example(f"http://127.0.0.1:{served.port}", namespace)
    assert found.returncode == 0, found.stdout + found.stderr
    (shown,) = [
        block.text for block in blocks(read("examples/fencing/README.md")) if block.language == "text"
    ]
    assert missing_lines(shown, found.stdout) == []
    (refused,) = lane("events.read", stream_id="$fence")["events"]
    assert (refused["event_type"], refused["data"]["operation"]) == ("fence.refused", "locks.check")


def test_the_example_fails_without_syros() -> None:
    found = run_example("http://127.0.0.1:1", "default")
    assert found.returncode == 1
    assert "gives up" in found.stderr


def examples(name: str) -> str:
    (text,) = [
        each.text
        for each in blocks(read("docs/guards.md"))
        if each.language == "sql" and each.text.startswith(f"-- {name}")
    ]
    return text


def test_the_sql_that_is_shown_runs(shop: Database) -> None:
    title = {"postgres": "PostgreSQL", "sqlite": "SQLite"}[shop.dialect]
    connection = shop.connect()
    connection.cursor().execute("create table orders (id integer, state text)")
    connection.cursor().execute("insert into orders values (7, 'new')")
    connection.commit()
    if isinstance(connection, sqlite3.Connection):
        connection.executescript(examples(title))
    else:
        connection.execute(examples(title))
    assert shop.rows("select state from orders") == [("shipped",)]
    assert list(shop.tokens()) == ["orders/7"]
