"""Group commit: everything that changes state goes through here, many commands to a transaction.

One writer thread, one connection. It takes what is queued, loads every aggregate the commands touch, decides
in memory, stores with one statement a table, writes the log and commits once (core.batch). While one batch
commits, the next one collects; only patient commands wait to fill one.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from math import inf
from typing import Any

import psycopg
from psycopg import errors as pg

from core.batch import Batch, Job, Order
from core.database import conninfo
from core.errors import Internal, OutcomeUnknown, SyrosError, Unavailable
from core.log import Entry
from core.pipeline import Pipeline

logger = logging.getLogger("syros.engine")

BATCH = 512  # commands in one transaction at most
BATCH_BYTES = 4 << 20  # and their payload
BEAT_SECONDS = 1.0
SESSION = (
    "set synchronous_commit = on",
    "set lock_timeout = '2s'",
    # A process that is stopped in the middle of a batch must not hold the log's head against all others.
    "set idle_in_transaction_session_timeout = '3s'",
    "set statement_timeout = '30s'",
    # Everything goes by primary key, so one plan a connection does for good; planning each batch anew costs half of
    # PostgreSQL's time. It may be made while a table is still empty, and must not read it whole all the same:
    # after 50,000 locks that would cost five times the throughput.
    "set plan_cache_mode = force_generic_plan",
    "set enable_seqscan = off",
    "set enable_hashjoin = off",
    "set enable_mergejoin = off",
)
PROCESS_TTL = 3.0  # seconds; a process beats every second
OUTAGE = 3.0  # seconds without any process's beat after which leases are extended
RERUNS = 8  # of a batch that lost a race, before it is split
# A row that somebody else sits on: whoever wants it is found by halving, and for this long, in seconds, no batch
# waits for it as patiently as before, so that the others go on.
HURRY_SECONDS = 5.0
HURRIED = "set local lock_timeout = '250ms'"


class Engine:
    """The writer of this process: a thread, a connection, and the queue before them.

    Parameters: `deliver(jobs, entries, orders)`, called in the writer's thread after a commit, or after a failure
    with neither entries nor orders; `expecting(jobs)`, called before a commit with the jobs whose callers will wait;
    `limit`, how many commands may queue.
    """

    def __init__(
        self,
        deliver: Callable[[list[Job], list[Entry], list[Order]], None],
        expecting: Callable[[list[Job]], None],
        *,
        limit: int = 10_000,
    ) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._deliver, self._expecting, self._limit = deliver, expecting, limit
        self._connection: psycopg.Connection[Any] | None = None
        self._pipeline: Pipeline | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._batch: Batch | None = None  # the last that was begun
        self._beaten = self._hurried = 0.0
        self._seen: datetime | None = None  # the database's time when this engine last spoke to it
        self.process_id = f"system/{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.batches = self.commands = 0
        self.connected = False

    # -- from outside --------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="syros-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a command; its future is resolved by `deliver`.

        Raises: Unavailable, when the queue is full.
        """
        if self._stopping or self._queue.qsize() >= self._limit:
            raise Unavailable("The queue of commands is full." if not self._stopping else "Stopping.")
        self._queue.put(job)

    @property
    def depth(self) -> int:
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def revive(self) -> None:
        """Replace a writer that died; who was in its batch has been told, who queues is served."""
        if not self.is_alive and not self._stopping:
            logger.error("the engine's thread died; starting another")
            self._disconnect()
            self.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what is queued, end this process's lease, close."""
        self._stopping = True
        self._queue.put(None)
        if self._thread:
            self._thread.join(timeout)

    # -- the writer's loop ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            jobs = self._collect()
            if jobs:
                self._carry(jobs)
            elif self._stopping:
                self._farewell()
                return
            self._beat_in_time()

    def _collect(self) -> list[Job]:
        """Everything that is queued, up to a batch. Waits for the first; for more only while nobody is in a hurry."""
        try:
            first = self._queue.get(timeout=BEAT_SECONDS)
        except queue.Empty:
            return []
        jobs, size = [first] if first else [], first.call.size if first else 0
        began, until = time.monotonic(), inf
        while jobs and len(jobs) < BATCH and size < BATCH_BYTES:
            patience = jobs[-1].operation.patience
            until = min(until, began + patience) if patience else 0.0
            try:
                job = self._next_one(until)
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
            size += job.call.size
        return jobs

    def _next_one(self, until: float) -> Job | None:
        left = until - time.monotonic() if until else 0.0
        return self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()

    def _beat_in_time(self) -> None:
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._beat()

    def _beat(self) -> None:
        """Say that this process lives; an idle engine notices here that its connection broke."""
        self._beaten = time.monotonic()
        try:
            pipeline = self._connect()
            now = pipeline.execute("select clock_timestamp()").rows()[0][0]
            if self._seen and (now - self._seen).total_seconds() > OUTAGE:
                self._disconnect()  # connecting again looks how long the absence was
                self._connect()
                return
            pipeline.execute(BEAT, self._identity())
            pipeline.sync()
            self._seen = now
        except Unavailable:
            pass
        except psycopg.Error as error:
            logger.warning("the database is away: %s", first_line(error))
            self._disconnect()

    def _identity(self) -> list[Any]:
        return [self.process_id, socket.gethostname(), os.getpid(), PROCESS_TTL]

    def _carry(self, jobs: list[Job]) -> None:
        """Commit the jobs, or tell each why not. Whatever happens, nobody is left without an answer."""
        try:
            self._commit_or_split(jobs)
        except BaseException:
            self._disconnect()
            untold = [job for job in jobs if not job.told]
            self._refuse(untold, OutcomeUnknown if self._may_be_committed else Unavailable)
            raise

    def _commit_or_split(self, jobs: list[Job]) -> None:
        try:
            batch = self._commit(jobs)
        except (Unavailable, OutcomeUnknown) as failure:
            self._refuse(jobs, type(failure))
        except Exception as failure:
            if len(jobs) == 1:
                self._give_up(jobs, failure)
                return
            # One poisonous command must not take the others with it: halve until it is alone.
            half = len(jobs) // 2
            self._commit_or_split(jobs[:half])
            self._commit_or_split(jobs[half:])
        else:
            self.batches += 1
            self.commands += len(jobs)
            self._tell(jobs, batch.entries, batch.orders)

    def _give_up(self, jobs: list[Job], failure: Exception) -> None:
        name = jobs[0].operation.name
        if isinstance(failure, RACES):
            logger.warning("gave up on %s: %s", name, first_line(failure))
            self._refuse(jobs, Unavailable)
        else:
            logger.error("a command broke its batch: %s", name, exc_info=failure)
            self._refuse(jobs, Internal)

    @property
    def _may_be_committed(self) -> bool:
        return self._batch is not None and self._batch.is_committing

    def _refuse(self, jobs: list[Job], error: type[SyrosError]) -> None:
        for job in jobs:
            job.error = error()  # its value stays: what it would have taken may have to be given back
        self._tell(jobs, [], [])

    def _tell(self, jobs: list[Job], entries: list[Entry], orders: list[Order]) -> None:
        for job in jobs:
            job.told = True
        self._deliver(jobs, entries, orders)

    def _commit(self, jobs: list[Job]) -> Batch:
        """One transaction. A lost race (two processes made the same row, a deadlock) runs it again."""
        for attempt in range(1, RERUNS + 1):
            self._beat_in_time()  # halving may take longer than this process's lease
            pipeline = self._connect()
            self._batch = Batch(jobs, pipeline, self.process_id)
            try:
                return self._transact(self._batch)
            except RACES as error:
                self._rollback(pipeline)
                if isinstance(error, pg.LockNotAvailable):
                    self._hurried = time.monotonic() + HURRY_SECONDS
                    raise
                if attempt == RERUNS:
                    raise
            except pg.ReadOnlySqlTransaction as error:
                self._disconnect()  # a standby, or a primary that was demoted: look for the new one
                raise Unavailable from error
            except psycopg.OperationalError as error:
                # What the server refused is not committed; a commit on a connection that broke may be.
                told = error.sqlstate is not None and not isinstance(error, LOST)
                self._disconnect()
                logger.warning("the database is away: %s", first_line(error))
                raise (OutcomeUnknown if self._may_be_committed and not told else Unavailable) from error
            except BaseException:
                self._rollback(pipeline)
                raise
        raise Unavailable

    def _transact(self, batch: Batch) -> Batch:
        batch.begin(HURRIED if time.monotonic() < self._hurried else None)
        if self._seen and (batch.now - self._seen).total_seconds() > OUTAGE:
            self._rollback(batch.pipeline)
            self._disconnect()  # connecting again looks how long the absence was
            raise Unavailable
        self._seen = batch.now
        batch.decide()
        self._expecting(batch.jobs)
        batch.commit()
        return batch

    # -- the connection ------------------------------------------------------------------------------

    def _connect(self) -> Pipeline:
        """The connection, made anew if it is gone.

        Raises: Unavailable, at once: callers decide whether to try again.
        """
        if self._pipeline is not None:
            return self._pipeline
        try:
            self._connection = psycopg.connect(conninfo(), autocommit=True)
            for setting in SESSION:
                self._connection.execute(setting)
            self._resume(self._connection)
            self._pipeline = Pipeline(self._connection)
        except psycopg.Error as error:
            self._disconnect()
            raise Unavailable from error
        self.connected = True
        return self._pipeline

    def _disconnect(self) -> None:
        self.connected = False
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = self._pipeline = None

    def _rollback(self, pipeline: Pipeline) -> None:
        try:
            pipeline.execute("rollback")
            pipeline.sync()
        except psycopg.Error:
            self._disconnect()

    def _resume(self, connection: psycopg.Connection[Any]) -> None:
        """Back after an absence: if no process at all has beaten meanwhile, every lease gets the time back.

        The first process to come back does it; for the others the absence is over when they look.
        """
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(7306)")
            row = connection.execute("select clock_timestamp(), max(beat_at) from core_process").fetchone()
            mind_timeline(connection)
            now, beaten = row or (None, None)
            if beaten and (away := (now - beaten).total_seconds()) > OUTAGE:
                logger.warning("nobody served for %.1f s; leases are extended by it", away)
                for extend in outages:
                    connection.execute(extend, {"away": away, "since": beaten})
            connection.pgconn.exec_params(BEAT.encode(), [str(v).encode() for v in self._identity()])
            self._seen = now

    def _farewell(self) -> None:
        """End this process's lease at once, so that nobody waits for it to run out."""
        with contextlib.suppress(psycopg.Error, SyrosError):
            pipeline = self._connect()
            pipeline.execute(
                "update core_process set expires_at = clock_timestamp() where id = $1", [self.process_id]
            )
            pipeline.sync()
        self._disconnect()


def mind_timeline(connection: psycopg.Connection[Any]) -> None:
    """A promotion or a restore begins another timeline of the WAL: then the epoch rises, so that tokens given
    out before it, even those that were lost with the old primary, stay the smaller ones."""
    # Some managed services do not tell; there `manage.py raise_epoch` is the operator's.
    with contextlib.suppress(*UNTOLD), connection.transaction():
        if connection.execute(MIND_TIMELINE).rowcount:
            renew_leases(connection)


def renew_leases(connection: Any) -> None:
    """After a failover or a restore: who kept a lease alive may have been told so by what is lost. All get their
    whole time again, once."""
    for statement in promotions:
        connection.execute(statement)


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


MIND_TIMELINE = """update core_cluster known
set epoch = epoch + (known.timeline is not null)::int, timeline = present.timeline
from (select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline) present
where known.timeline is distinct from present.timeline"""
UNTOLD = (pg.FeatureNotSupported, pg.UndefinedFunction, pg.InsufficientPrivilege)
RACES = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable, pg.UniqueViolation)
LOST = (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow)
BEAT = """insert into core_process (id, host, pid, started_at, beat_at, expires_at)
select $1, $2, $3::int, t.now, t.now, t.now + $4::float8 * interval '1 second' from (select clock_timestamp() as now) t
on conflict (id) do update set beat_at = excluded.beat_at, expires_at = excluded.expires_at"""
promotions: list[str] = []  # statements that give a table's leases their whole time again
outages: list[str] = [
    # Statements that extend a table's leases by %(away)s seconds, if they were live %(since)s.
    "update core_process set expires_at = expires_at + %(away)s * interval '1 second' "
    "where expires_at > %(since)s"
]
