"""The small async pool that hot reads, the tail and authentication share, and the engine's own connection."""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connections
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from core.errors import Unavailable

Row = tuple[Any, ...]
# Seconds, longer than the server's own statement_timeout: then nothing comes through any more.
PATIENCE = 11.0


def conninfo(options: str = "") -> str:
    """The DSN of Django's default database, as libpq takes it; with further settings of the session."""
    params = dict(connections["default"].get_connection_params())
    for name in ("pool", "cursor_factory", "prepare_threshold", "context"):
        params.pop(name, None)
    # Instants are shown in the session's zone, whatever the server's.
    params["options"] = f"{params.get('options', '')} -c timezone=UTC {options}".strip()
    return make_conninfo("", **params, application_name="syros", connect_timeout=3)


class Pool:
    """Opened by the process that serves; reads wait at most two seconds for a connection, and run for at most ten. One
    that answers nothing for longer, as if the network swallowed it, is given up.

    Parameters: `size`, how many connections at most; `options`, further settings of their sessions.
    """

    def __init__(self, size: int, options: str = "") -> None:
        self._size, self._options = size, options
        self._pool: AsyncConnectionPool[Any] | None = None

    async def open(self) -> None:
        self._pool = AsyncConnectionPool(
            conninfo(f"-c statement_timeout=10s {self._options}"), min_size=1, max_size=self._size, timeout=2.0,
            open=False, reconnect_timeout=5, kwargs={"autocommit": True, "prepare_threshold": 1},
        )  # fmt: skip
        await self._pool.open()

    async def close(self) -> None:
        if self._pool:
            await self._pool.close(timeout=2)

    async def rows(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] = (), attempts: int = 2
    ) -> list[Row]:
        """Parameters: `attempts`, 1 for what must not be done twice.

        Raises: Unavailable.
        """
        if self._pool is None:
            raise Unavailable("This process is not serving.")
        clock = asyncio.get_running_loop()
        until = clock.time() + PATIENCE
        # A pooled connection may have died with the server since it was used last.
        for attempt in range(1, attempts + 1):
            try:
                async with self._pool.connection() as connection:
                    with ended_at(until, connection):
                        return await answer(connection, query, params)
            except psycopg.OperationalError as error:
                if isinstance(error, PoolTimeout) or attempt == attempts or clock.time() >= until:
                    raise Unavailable from error
                await asyncio.sleep(0.05)
        raise Unavailable


@contextmanager
def ended_at(until: float, connection: psycopg.AsyncConnection[Any]) -> Iterator[None]:
    """Whoever still waits for the connection then, by the loop's clock, is told that it is gone. Cancelling alone would
    ask the server first, and wait for that too."""
    timer = asyncio.get_running_loop().call_at(until, shut, connection)
    try:
        yield
    finally:
        timer.cancel()


def shut(connection: psycopg.AsyncConnection[Any]) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        peer.shutdown(socket.SHUT_RDWR)


async def answer(
    connection: psycopg.AsyncConnection[Any], query: str, params: Sequence[Any] | Mapping[str, Any]
) -> list[Row]:
    # Prepared without parameters, it would keep the plan that was right while its tables were empty.
    cursor = await connection.execute(query, params, prepare=None if params else False, binary=True)
    return await cursor.fetchall()


pool = Pool(4)
READERS = 2  # of them at most for reads together
tail_pool = Pool(1)  # the tail's own: readers that keep the others busy must not hold up who waits
FOLLOWERS = 2  # who follow a log and are behind read this many pages of it at a time
follow_pool = Pool(FOLLOWERS)
pools = [pool, tail_pool, follow_pool]  # what a serving process opens
rows = pool.rows


class Together:
    """Rows by their ids, of many who ask at once in one statement: while it is under way, the next ones collect. None
    is read before it was asked for, so nobody is told what was true before.

    Parameters: a statement for the rows whose ids are in an array, its only parameter; the id is its first column.
    """

    def __init__(self, statement: str) -> None:
        self._statement = statement
        self._wanted: dict[str, asyncio.Future[Row | None]] = {}
        self._reading: set[asyncio.Task[None] | None] = set()

    async def row(self, address: str) -> Row | None:
        """Raises: Unavailable."""
        future = self._wanted.get(address)
        if future is None:
            future = self._wanted[address] = asyncio.get_running_loop().create_future()
            if len(self._reading) < READERS:
                task = asyncio.create_task(self._read())
                self._reading.add(task)
        return await asyncio.shield(future)

    async def _read(self) -> None:
        try:
            await self._read_all()
        finally:  # in the same step that found nothing more: a callback would come later than the next who asks
            self._reading.discard(asyncio.current_task())

    async def _read_all(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            try:
                found = {row[0]: row for row in await rows(self._statement, [list(wanted)])}
            except Exception as error:
                for future in wanted.values():
                    future.set_exception(error)
                    future.exception()  # somebody who asked may be gone
            else:
                for address, future in wanted.items():
                    future.set_result(found.get(address))
