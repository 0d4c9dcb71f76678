"""Many statements, one round trip: libpq's pipeline mode by hand, for the engine alone.

psycopg's own pipeline costs 21 µs of Python a statement, eight statements a batch; this one costs 3. Every
parameter travels as text (the engine sends array literals), every result comes back binary and is read by
psycopg's C loaders. Statements are prepared once a connection.
"""

import select
from collections.abc import Sequence
from itertools import count
from typing import Any

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer

PATIENCE_MS = 40_000  # longer than the server's own statement_timeout: then the connection is dead
LAST_WORDS = ("FATAL", "PANIC")  # what a server says of itself before it hangs up


class Pending:
    """A statement that was sent; its rows are there after the next sync."""

    __slots__ = ("_pipeline", "prepares", "result")

    def __init__(self, pipeline: "Pipeline", prepares: str | None = None) -> None:
        self._pipeline, self.prepares = pipeline, prepares
        self.result: Any = None

    def rows(self) -> list[tuple[Any, ...]]:
        """The rows, synchronizing first if that has not happened yet.

        Raises: psycopg.Error, the first one since the last sync.
        """
        if self.result is None:
            self._pipeline.sync()
        return self._pipeline.load(self.result)


class Pipeline:
    """A connection in pipeline mode. Statements use $1, $2 …; nothing is answered before `sync`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._pg = connection.pgconn
        self._names: dict[str, bytes] = {}
        self._numbers = count()
        self._sent: list[Pending] = []
        self._transformer = Transformer(connection)
        self._poll = select.poll()
        self._farewell = ""
        connection.add_notice_handler(self._hear)
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()

    def execute(self, query: str, params: Sequence[str | int | float | None] = ()) -> Pending:
        """Send a statement.

        Raises: psycopg.OperationalError, when the connection is gone.
        """
        name = self._names.get(query)
        if name is None:
            name = self._names[query] = f"s{next(self._numbers)}".encode()
            self._pg.send_prepare(name, query.encode())
            self._sent.append(Pending(self, prepares=query))
        values = [None if p is None else p.encode() if type(p) is str else str(p).encode() for p in params]
        self._pg.send_query_prepared(name, values, result_format=pq.Format.BINARY)
        pending = Pending(self)
        self._sent.append(pending)
        return pending

    def sync(self) -> None:
        """Send what is not sent yet and take every answer.

        Raises: the first error; what came after it was not executed, and the transaction must be rolled back.
        """
        sent, self._sent = self._sent, []
        self._pg.pipeline_sync()
        while self._pg.flush():
            self._wait(select.POLLIN | select.POLLOUT)
        failure: psycopg.Error | None = None
        for pending in sent:
            result = self._take()
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failure = failure or errors.error_from_result(result, "utf-8")
            elif result.status != pq.ExecStatus.PIPELINE_ABORTED:
                pending.result = result
            if pending.prepares and pending.result is None:
                del self._names[pending.prepares]
            self._next()  # the None that ends a statement
        self._take()  # the sync's own
        if failure is not None:
            raise failure

    def check(self) -> None:
        """Notice that the server has hung up, before anything is sent that it might still have carried out.

        Raises: psycopg.OperationalError.
        """
        self._poll.register(self._pg.socket, select.POLLIN)
        # Its last words come before the end of the connection, and others have the locks in between.
        while self._poll.poll(0):
            self._pg.consume_input()
            self._pg.is_busy()  # hears what came
            if self._farewell:
                raise psycopg.OperationalError(self._farewell)

    def _hear(self, said: errors.Diagnostic) -> None:
        if said.severity_nonlocalized in LAST_WORDS:
            self._farewell = said.message_primary or said.severity_nonlocalized

    def load(self, result: Any) -> list[tuple[Any, ...]]:
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _take(self) -> Any:
        result = self._next()
        if result is None or self._pg.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection to the server was lost")
        return result

    def _next(self) -> Any:
        while self._pg.is_busy():
            self._wait(select.POLLIN)
        return self._pg.get_result()

    def _wait(self, events: int) -> None:
        """Until the socket is ready, without the interpreter's lock.

        Raises: psycopg.OperationalError.
        """
        self._poll.register(self._pg.socket, events)
        ready = self._poll.poll(PATIENCE_MS)
        if not ready:
            raise psycopg.OperationalError("the server did not answer in time")
        if ready[0][1] & ~select.POLLOUT:
            self._pg.consume_input()
