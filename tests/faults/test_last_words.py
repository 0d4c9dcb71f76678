"""PostgreSQL says that it ends a connection, lets its locks go, and hangs up a little later."""

import asyncio
import os
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from core.pipeline import Pipeline
from tests.faults.link import Link, place_of
from tests.races.processes import until


class Endless(Link):
    """Everything arrives but that the other side hung up."""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


def test_they_are_heard_before_the_commit_is_sent() -> None:
    """Who sent it then would not know whether it was carried out, though it cannot have been."""
    url = os.environ["SYROS_TEST_DATABASE_URL"]
    with Endless(place_of(url)) as way:
        through = make_conninfo(url, host="127.0.0.1", port=way.port)
        with closing(psycopg.connect(through, autocommit=True)) as connection:
            connection.execute("set idle_in_transaction_session_timeout = '10ms'")
            pipeline = Pipeline(connection)
            pipeline.execute("begin")
            pipeline.sync()
            with pytest.raises(psycopg.OperationalError, match="idle-in-transaction"):
                until(lambda: pipeline.check())


def test_what_else_a_server_says_unasked_ends_nothing() -> None:
    with psycopg.connect(os.environ["SYROS_TEST_DATABASE_URL"], autocommit=True) as connection:
        pipeline = Pipeline(connection)
        pipeline.execute("do $$ begin raise warning 'mind the gap'; end $$")
        pipeline.sync()
        pipeline.check()
        assert pipeline.execute("select 1").rows() == [(1,)]
