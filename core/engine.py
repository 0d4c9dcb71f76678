"""Group commit: everything that changes state goes through here, many commands to a transaction.

One writer thread, one connection. It takes what is queued, loads every aggregate the commands touch, decides
in memory, stores with one statement a table, writes the log and commits once. While one batch commits, the
next one collects; it never waits to fill one.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg
from orjson import Fragment
from psycopg import errors as pg

from core import log
from core.callers import Call
from core.database import conninfo
from core.encoding import decode, encode
from core.errors import IdempotencyKeyReused, Internal, OutcomeUnknown, SyrosError, Unavailable
from core.log import Entry
from core.models import Aggregate, Answer, Event, Stream
from core.operations import Operation, Waiting, guard
from core.pipeline import Pipeline
from core.records import Table, array, columns_of, table

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
)
PROCESS_TTL = 3.0  # seconds; a process beats every second
OUTAGE = 3.0  # seconds without any process's beat after which leases are extended
RERUNS = 8  # of a batch that lost a race, before it is split
HEAD = 8  # members of a queue that are loaded at a time

Model = TypeVar("Model", bound=Aggregate)
Key = tuple[type[Aggregate], str]


@dataclass(slots=True)
class Job:
    """A command on its way: what to do, for whom, and, when it is done, what came of it."""

    operation: Operation
    params: dict[str, Any]
    call: Call
    future: Any = None  # of the serving loop; none for what nobody waits for
    size: int = 0
    answer_id: str | None = None  # where the answer is kept, for a call with an Idempotency-Key
    fingerprint: str = ""
    value: Any = None
    error: SyrosError | None = None
    replayed: bool = False
    status: int = 200
    twin: "Job | None" = None  # the job of the same batch and key, whose answer is this one's too
    granted: Any = None  # the future of a caller that waits
    told: bool = False
    place: Any = None  # in the waiting room, see core.waiting


@dataclass(frozen=True, slots=True)
class Head:
    """The next members of a queue: rows whose id is `owner#number`, after `after`."""

    model: type[Aggregate]
    owner: str
    after: str


@dataclass(frozen=True, slots=True)
class Named:
    """The event of that id."""

    namespace: int
    event_id: str


@dataclass(slots=True)
class Members:
    """What is known of a queue: ids in order, and whether there are more in the database."""

    addresses: list[str] = field(default_factory=list)
    complete: bool = False


class Needs(Exception):
    """The command must see more than was loaded; the engine loads that too and decides again."""

    def __init__(self, need: Key | Head | Named) -> None:
        self.need = need


class Record:
    """An aggregate in a batch and what it was when it was loaded (None: it was not there)."""

    __slots__ = ("instance", "pristine", "table")

    def __init__(self, kind: Table, instance: Any) -> None:
        self.table, self.instance = kind, instance
        self.pristine = dict(instance.__dict__) if instance is not None else None

    def reset(self) -> None:
        if self.pristine is None:
            self.instance = None
        else:
            if self.instance is None:
                self.instance = self.table.model.__new__(self.table.model)
            self.instance.__dict__.clear()
            self.instance.__dict__.update(self.pristine)


class Transaction:
    """What one command sees: aggregates, the time, the log. All of it is undone if the command fails."""

    __slots__ = ("_batch", "_emitted", "_undo", "call", "epoch", "job", "now")

    def __init__(self, batch: "Batch", job: Job) -> None:
        self._batch, self.job, self.call = batch, job, job.call
        self.now: datetime = batch.now
        self.epoch: int = batch.epoch
        self._emitted = len(batch.entries)
        self._undo: dict[Key, tuple[Any, dict[str, Any] | None]] = {}

    @property
    def namespace(self) -> int:
        return self.call.namespace.number

    @property
    def process_id(self) -> str:
        """The process that this command runs in: its lease is that of the callers who wait here."""
        return self._batch.process_id

    def address(self, name: str) -> str:
        return f"{self.call.namespace.name}/{name}"

    def get(self, model: type[Model], name: str) -> Model | None:
        """The aggregate of that name in this namespace, or None. Change it in place."""
        return self.at(model, f"{self.call.namespace.name}/{name}")

    def at(self, model: type[Model], address: str) -> Model | None:
        key = (model, address)
        record = self._batch.records.get(key)
        if record is None:
            raise Needs(key)
        if key not in self._undo:
            instance = record.instance
            self._undo[key] = (instance, None if instance is None else dict(instance.__dict__))
        found: Model | None = record.instance
        return found

    def add(self, model: type[Model], name: str, **values: Any) -> Model:
        """A new aggregate, stored with the batch."""
        return self.add_at(model, f"{self.call.namespace.name}/{name}", **values)

    def add_at(self, model: type[Model], address: str, **values: Any) -> Model:
        key = (model, address)
        if key not in self._batch.records:  # a name that is new by construction, such as a ticket's
            self._batch.records[key] = Record(table(model), None)
        self.at(model, address)
        instance: Any = table(model).new(address, values)
        self._batch.records[key].instance = instance
        if "#" in address:
            self._batch.join(model, address)
        found: Model = instance
        return found

    def remove(self, instance: Aggregate) -> None:
        key = (type(instance), instance.id)
        self.at(*key)
        self._batch.records[key].instance = None

    def queue(self, model: type[Model], owner: Aggregate) -> Iterator[Model]:
        """The members of an aggregate's queue (rows `owner#number`) in order; only the head is loaded."""
        for address in self._batch.members(model, owner.id):
            member = self.at(model, address)
            if member is not None:
                yield member

    def emit(
        self,
        source: Any,
        kind: str,
        data: dict[str, Any] | str,
        *,
        metadata: str | None = None,
        event_id: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
    ) -> Entry:
        """Write an event of `source`, an aggregate with a `stream` name and a `version`, in this transaction."""
        source.version += 1
        entry = Entry(
            self.call.namespace.number, source.stream, source.version, kind,
            data if type(data) is str else encode(data).decode(),
            self.call.caller.principal, metadata, event_id,
            correlation_id or self.call.correlation_id, causation_id,
        )  # fmt: skip
        self._batch.entries.append(entry)
        if event_id:
            self._batch.appended[Named(entry.namespace, event_id)] = entry
        return entry

    def stream(self, name: str) -> Stream:
        """The stream of that name, made if there is none."""
        found = self.get(Stream, name)
        if found is None:
            found = self.add(Stream, name, created_at=self.now, changed_at=self.now)
        found.changed_at = self.now
        return found

    def event(self, event_id: str) -> Entry | None:
        """The event of that id in this namespace, or None."""
        return self._batch.event(self.namespace, event_id)

    def answering(self, job: Job | None, answer_id: str = "") -> Job | None:
        """Note the job that is answering a key in this batch, or say which one is."""
        if job is None:
            return self._batch.answering.get(answer_id)
        self._batch.answering[job.answer_id or ""] = job
        return job

    def undo(self) -> None:
        for key, (instance, values) in self._undo.items():
            record = self._batch.records[key]
            record.instance = instance
            if values is not None:
                instance.__dict__.clear()
                instance.__dict__.update(values)
        for entry in self._batch.entries[self._emitted :]:
            if entry.event_id:
                del self._batch.appended[Named(entry.namespace, entry.event_id)]
        del self._batch.entries[self._emitted :]
        self._undo.clear()


class Batch:
    """The commands of one transaction and everything they see and change."""

    def __init__(self, jobs: list[Job], pipeline: Pipeline, process_id: str) -> None:
        self.jobs, self.pipeline, self.process_id = jobs, pipeline, process_id
        self.records: dict[Key, Record] = {}
        self.queues: dict[Key, Members] = {}
        self.joined: dict[Key, dict[str, None]] = {}
        self.events: dict[Named, Entry | None] = {}
        self.appended: dict[Named, Entry] = {}  # in this batch
        self.entries: list[Entry] = []
        self.answering: dict[str, Job] = {}
        self.now = datetime.min
        self.epoch = 0

    # -- what commands see ---------------------------------------------------------------------------

    def join(self, model: type[Aggregate], address: str) -> None:
        self.joined.setdefault((model, address.rpartition("#")[0]), {})[address] = None

    def members(self, model: type[Aggregate], owner: str) -> Iterator[str]:
        queue = self.queues.get((model, owner))
        if queue is None:
            raise Needs(Head(model, owner, ""))
        yield from queue.addresses
        if not queue.complete:
            raise Needs(Head(model, owner, queue.addresses[-1]))
        yield from list(self.joined.get((model, owner), ()))

    def event(self, namespace: int, event_id: str) -> Entry | None:
        name = Named(namespace, event_id)
        if name in self.appended:
            return self.appended[name]
        if name not in self.events:
            raise Needs(name)
        return self.events[name]

    # -- loading -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Load what the commands say they touch; then, in a statement of its own, the time.

        Never now(), never the clock of the loading statement: both are stale after a wait for a row.
        """
        self.pipeline.execute("begin")
        needs = [need for job in self.jobs for need in touches(job)]
        takes = self._send_loads(needs)
        clock = self.pipeline.execute("select clock_timestamp(), epoch from core_cluster")
        self._take_loads(takes)
        self.now, self.epoch = clock.rows()[0]

    def load(self, needs: Iterable[Any]) -> None:
        self._take_loads(self._send_loads(needs))

    def _send_loads(self, needs: Iterable[Any]) -> list[Any]:
        kinds: dict[type[Aggregate], set[str]] = {}
        heads: list[Head] = []
        named: dict[int, set[str]] = {}
        for need in needs:
            if type(need) is tuple:
                kinds.setdefault(need[0], set()).add(need[1])
            elif type(need) is Head:
                heads.append(need)
            else:
                named.setdefault(need.namespace, set()).add(need.event_id)
        # A fixed order of kinds, rows in sorted order: two processes never wait for each other in a circle.
        sent = [self._send_kind(table(m), kinds[m]) for m in sorted(kinds, key=lambda m: m._meta.db_table)]
        sent += [self._send_head(head) for head in heads]
        return sent + [self._send_named(number, ids) for number, ids in named.items()]

    def _send_kind(self, kind: Table, ids: set[str]) -> Any:
        loaded = self.pipeline.execute(kind.load, [array(list(ids))])

        def take() -> None:
            for address in ids:
                self.records.setdefault((kind.model, address), Record(kind, None))
            for row in loaded.rows():
                instance: Any = kind.instance(row)
                self.records[kind.model, instance.id] = Record(kind, instance)

        return take

    def _send_head(self, head: Head) -> Any:
        kind = table(head.model)
        loaded = self.pipeline.execute(
            kind.head, [head.after or head.owner + "#", head.owner + "$", HEAD]
        )

        def take() -> None:
            rows = loaded.rows()
            queue = self.queues.setdefault((head.model, head.owner), Members())
            queue.complete = len(rows) < HEAD
            for row in rows:
                instance: Any = kind.instance(row)
                queue.addresses.append(instance.id)
                self.records.setdefault((head.model, instance.id), Record(kind, instance))

        return take

    def _send_named(self, number: int, ids: set[str]) -> Any:
        places = {place: event_id for event_id in ids if (place := log.place_of(event_id)) is not None}
        chosen = [event_id for event_id in ids if event_id not in places.values()]
        loaded = self.pipeline.execute(log.NAMED, [number, array(chosen), array(list(places))])

        def take() -> None:
            for event_id in ids:
                self.events[Named(number, event_id)] = None
            for row in loaded.rows():
                found = log.entry(number, row)
                self.events[Named(number, found.event_id or places[row[0]])] = found

        return take

    def _take_loads(self, takes: list[Any]) -> None:
        for take in takes:
            take()

    # -- deciding ------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Run every command in arrival order; as long as one needs more, load that and run all again."""
        while needs := self._attempt():
            self._reset()
            self.load(needs)

    def _attempt(self) -> set[Any]:
        needs: set[Any] = set()
        for job in self.jobs:
            try:
                self._run(job)
            except Needs as missing:
                needs.add(missing.need)
        return needs

    def _reset(self) -> None:
        for record in self.records.values():
            record.reset()
        self.entries.clear()
        self.appended.clear()
        self.joined.clear()
        self.answering.clear()

    def _run(self, job: Job) -> None:
        """One command; if it refuses, nothing of it stays but what the refusal itself records."""
        tx = Transaction(self, job)
        job.error, job.replayed = None, False
        try:
            run_job(tx, job)
        except Needs:
            tx.undo()
            raise
        except SyrosError as refusal:
            tx.undo()
            job.error = refusal
            if refusal.aftermath:
                refusal.aftermath(tx)
        except Exception:
            tx.undo()
            job.error = Internal()
            logger.exception("command failed", extra={"request_id": job.call.request_id})

    # -- storing -------------------------------------------------------------------------------------

    def store(self, late: bool) -> None:
        """One statement a table for what is new, changed or gone. Kept answers go late: they hold positions."""
        changes: dict[Table, tuple[list[Any], list[Any], list[Any]]] = {}
        for (model, _), record in self.records.items():
            if (model is Answer) is not late:
                continue
            instance, pristine = record.instance, record.pristine
            if instance is None:
                if pristine is not None:
                    changes.setdefault(record.table, ([], [], []))[2].append(pristine["id"])
            elif pristine is None:
                changes.setdefault(record.table, ([], [], []))[0].append(record.table.values(instance))
            elif instance.__dict__ != pristine:
                changes.setdefault(record.table, ([], [], []))[1].append(record.table.values(instance))
        for kind in sorted(changes, key=lambda kind: kind.name):
            added, changed, gone = changes[kind]
            if added:
                # Sorted, so that two processes that make the same rows wait in one direction only. A plain
                # insert: who comes second breaks on the key, and the batch runs again and sees the row.
                self.pipeline.execute(kind.insert, columns_of(sorted(added)))
            if changed:
                self.pipeline.execute(kind.update, columns_of(changed))
            if gone:
                self.pipeline.execute(kind.delete, [array(gone)])

    def take_log(self) -> None:
        """Take the logs' heads, as late as possible, and give every event its position."""
        numbers = sorted({entry.namespace for entry in self.entries})
        for number in numbers:
            self.pipeline.execute(log.TAKE_HEAD, [number])
        rows = self.pipeline.execute(log.READ_HEAD, [array(numbers)]).rows()
        heads = {number: head for number, head, _ in rows}
        recorded_at = rows[-1][2]
        for entry in self.entries:
            heads[entry.namespace] += 1
            entry.position, entry.recorded_at = heads[entry.namespace], recorded_at

    def write_log(self) -> None:
        rows = [entry.row() for entry in self.entries]
        self.pipeline.execute(log.INSERT, [str(self.entries[0].recorded_at), *columns_of(rows)])

    def finish(self) -> None:
        """Answers that hold positions are functions: call them now. Then fill in the kept ones."""
        for job in self.jobs:
            if job.error is None and callable(job.value):
                job.value = job.value()
            if job.answer_id and job.error is None and not job.replayed:
                self._keep(job)
        for job in self.jobs:
            if job.twin:
                job.value, job.status = job.twin.value, job.twin.status

    def _keep(self, job: Job) -> None:
        kept: Any = self.records[Answer, job.answer_id].instance  # type: ignore[index]
        value = job.value
        if isinstance(value, Waiting):
            kept.waiting = encode(value).decode()
            return
        hidden = job.operation.secret
        if hidden:
            value = {name: part for name, part in value.items() if name not in hidden}
        kept.status, kept.body = job.status, encode(value).decode()


def touches(job: Job) -> Iterator[Any]:
    """What a command says beforehand that it will look at."""
    name = job.call.namespace.name
    if job.answer_id:
        yield Answer, job.answer_id
    if fence := job.params.get("fence"):
        for model, key in guard.touches(fence):
            yield model, f"{name}/{key}"
    if job.operation.touches:
        for model, key in job.operation.touches(job.params):
            if model is Event:
                yield Named(job.call.namespace.number, key)
            else:
                yield model, f"{name}/{key}"


def run_job(tx: Transaction, job: Job) -> None:
    """A command, once: what its Idempotency-Key already answered, or the fence, then the function."""
    job.replayed, job.twin, job.status = False, None, job.operation.status
    if job.answer_id and _replay(tx, job):
        return
    params = job.params
    if job.operation.fenced:
        params = dict(params)
        fence = params.pop("fence")
        if fence is not None:
            guard.check(tx, fence)
    job.value = job.operation.function(tx, **params)
    if job.answer_id:
        tx.add_at(Answer, job.answer_id, fingerprint=job.fingerprint, created_at=tx.now)
        tx.answering(job)


def _replay(tx: Transaction, job: Job) -> bool:
    kept = tx.at(Answer, job.answer_id or "")
    if kept is None:
        return False
    if kept.fingerprint != job.fingerprint:
        raise IdempotencyKeyReused
    job.replayed = True
    if kept.body is not None:
        job.value, job.status = Fragment(kept.body), kept.status or 200
    elif kept.waiting is not None:
        job.value = Waiting(**decode(kept.waiting))
    else:
        job.twin = tx.answering(None, job.answer_id)
    return True


class Engine:
    """The writer of this process: a thread, a connection, and the queue before them.

    Parameters: `deliver(jobs, entries)`, called in the writer's thread after a commit, or after a failure
    with no entries; `expecting(jobs)`, called before a commit with the jobs whose callers will wait;
    `limit`, how many commands may queue.
    """

    def __init__(
        self,
        deliver: Callable[[list[Job], list[Entry]], None],
        expecting: Callable[[list[Job]], None],
        *,
        limit: int = 10_000,
    ) -> None:
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._deliver, self._expecting, self._limit = deliver, expecting, limit
        self._connection: psycopg.Connection[Any] | None = None
        self._pipeline: Pipeline | None = None
        self._thread: threading.Thread | None = None
        self._stopping = self._committing = False
        self._beaten = 0.0
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
            if time.monotonic() - self._beaten >= BEAT_SECONDS:
                self._beat()

    def _collect(self) -> list[Job]:
        """Everything that is queued, up to a batch. Waits for the first, never for more."""
        try:
            first = self._queue.get(timeout=BEAT_SECONDS)
        except queue.Empty:
            return []
        jobs, size = [first] if first else [], first.size if first else 0
        while jobs and len(jobs) < BATCH and size < BATCH_BYTES:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
            size += job.size
        return jobs

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
            self._refuse(untold, OutcomeUnknown if self._committing else Unavailable)
            raise

    def _commit_or_split(self, jobs: list[Job]) -> None:
        try:
            entries = self._commit(jobs)
        except (Unavailable, OutcomeUnknown) as failure:
            self._refuse(jobs, type(failure))
        except Exception as failure:
            if len(jobs) == 1:
                logger.exception("a command broke its batch: %s", jobs[0].operation.name)
                self._refuse(jobs, Unavailable if isinstance(failure, RACES) else Internal)
                return
            # One poisonous command must not take the others with it: halve until it is alone.
            half = len(jobs) // 2
            self._commit_or_split(jobs[:half])
            self._commit_or_split(jobs[half:])
        else:
            self.batches += 1
            self.commands += len(jobs)
            self._tell(jobs, entries)

    def _refuse(self, jobs: list[Job], error: type[SyrosError]) -> None:
        for job in jobs:
            job.value, job.error = None, error()
        self._tell(jobs, [])

    def _tell(self, jobs: list[Job], entries: list[Entry]) -> None:
        for job in jobs:
            job.told = True
        self._deliver(jobs, entries)

    def _commit(self, jobs: list[Job]) -> list[Entry]:
        """One transaction. A lost race (two processes made the same row, a deadlock) runs it again."""
        for attempt in range(1, RERUNS + 1):
            pipeline = self._connect()
            self._committing = False
            try:
                return self._transact(Batch(jobs, pipeline, self.process_id))
            except RACES as error:
                self._rollback(pipeline)
                if attempt == RERUNS or (isinstance(error, pg.LockNotAvailable) and attempt == 2):
                    raise
            except psycopg.OperationalError as error:
                # What the server refused is not committed; a commit on a connection that broke may be.
                told = error.sqlstate is not None and not isinstance(error, LOST)
                self._disconnect()
                logger.warning("the database is away: %s", first_line(error))
                raise (OutcomeUnknown if self._committing and not told else Unavailable) from error
            except BaseException:
                self._rollback(pipeline)
                raise
        raise Unavailable

    def _transact(self, batch: Batch) -> list[Entry]:
        batch.begin()
        if self._seen and (batch.now - self._seen).total_seconds() > OUTAGE:
            self._rollback(batch.pipeline)
            self._disconnect()  # connecting again looks how long the absence was
            raise Unavailable
        self._seen = batch.now
        batch.decide()
        self._expecting(batch.jobs)
        batch.store(late=False)
        if batch.entries:
            batch.take_log()
        batch.finish()
        if batch.entries:
            batch.write_log()
        batch.store(late=True)
        self._committing = True
        batch.pipeline.execute("commit")
        batch.pipeline.sync()
        return batch.entries

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


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


RACES = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable, pg.UniqueViolation)
LOST = (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow)
BEAT = """insert into core_process (id, host, pid, started_at, beat_at, expires_at)
select $1, $2, $3::int, t.now, t.now, t.now + $4::float8 * interval '1 second' from (select clock_timestamp() as now) t
on conflict (id) do update set beat_at = excluded.beat_at, expires_at = excluded.expires_at"""
outages: list[str] = [
    # Statements that extend a table's leases by %(away)s seconds, if they were live %(since)s.
    "update core_process set expires_at = expires_at + %(away)s * interval '1 second' "
    "where expires_at > %(since)s"
]
