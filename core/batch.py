"""One batch: the commands of one transaction, what they see and change, and what they leave in the log."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, TypeVar

from orjson import Fragment

from core import log
from core.callers import Call
from core.encoding import decode, encode
from core.errors import IdempotencyKeyReused, Internal, SyrosError
from core.log import Entry
from core.models import Aggregate, Answer, Event, Stream
from core.operations import Operation, Waiting, guard
from core.pipeline import Pending, Pipeline
from core.records import Table, array, columns_of, table

logger = logging.getLogger("syros.engine")

HEAD = 8  # members of a queue that are loaded at first; then as many again as there are
ROUNDS = 1000  # in which a batch must have what it needs; a command without end must not keep the others
RESTARTS = 8  # of a batch that must lock a row before those it has; then PostgreSQL's detector has to do

Model = TypeVar("Model", bound=Aggregate)
Key = tuple[type[Aggregate], str]
Order = tuple[Callable[..., None], tuple[Any, ...]]  # what is to be done after the commit


@dataclass(slots=True, eq=False)
class Job:
    """A command on its way: what to do, for whom, and, when it is done, what came of it."""

    operation: Operation
    params: dict[str, Any]
    call: Call
    future: Any = None  # of the serving loop; none for what nobody waits for
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
    ids: list[str] = field(default_factory=list)  # that its command gave out


@dataclass(frozen=True, slots=True)
class Head:
    """The next members of a queue: rows whose id is `owner#…`, after `after`; at most so many, 0 for all."""

    model: type[Aggregate]
    owner: str
    after: str
    limit: int


@dataclass(frozen=True, slots=True)
class Look:
    """What a statement answers, as the database has it: without what this batch changes, and without a lock."""

    statement: str
    params: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """The event of that id."""

    namespace: int
    event_id: str


@dataclass(slots=True)
class Members:
    """What is known of a queue: ids in order, and whether there are more in the database."""

    addresses: dict[str, None] = field(default_factory=dict)
    complete: bool = False


class Needs(Exception):
    """The command must see more than was loaded; the engine loads that too and decides again."""

    def __init__(self, *needs: Key | Head | Named | Look) -> None:
        self.needs = needs


class Record:
    """An aggregate in a batch and what it was when it was loaded (None: it was not there)."""

    __slots__ = ("instance", "pristine", "table")

    def __init__(self, kind: Table, instance: Any) -> None:
        self.table, self.instance = kind, instance
        self.pristine = dict(instance.__dict__) if instance is not None else None

    @property
    def is_changed(self) -> bool:
        return bool((self.instance and self.instance.__dict__) != self.pristine)

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

    __slots__ = ("_batch", "_emitted", "_given", "_ordered", "_undo", "call", "epoch", "floor", "job", "now")

    def __init__(self, batch: "Batch", job: Job) -> None:
        self._batch, self.job, self.call = batch, job, job.call
        self.now: datetime = batch.now
        self.epoch: int = batch.epoch
        self.floor: int = batch.floor
        self._emitted, self._ordered = len(batch.entries), len(batch.orders)
        self._given = 0
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

    def known(self, model: type[Model], address: str) -> Model:
        """The aggregate that another one points to. One that is missing was made by another process since this
        batch looked for it: there was no row to lock then, so it is looked for once more."""
        found = self.at(model, address)
        if found is None and (model, address) not in self._batch.sought:
            raise Needs((model, address))
        assert found is not None
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

    def load(self, *keys: Key) -> None:
        """Have these aggregates loaded together, rather than one after another as `at` meets them."""
        if missing := [key for key in keys if key not in self._batch.records]:
            raise Needs(*missing)

    def load_queues(self, model: type[Aggregate], owners: Iterable[Aggregate]) -> None:
        """Have the heads of these queues loaded together."""
        known = self._batch.queues
        if missing := [owner for owner in owners if (model, owner.id) not in known]:
            raise Needs(*(Head(model, owner.id, "", HEAD) for owner in missing))

    def queue(self, model: type[Model], owner: Aggregate, *, whole: bool = False) -> Iterator[Model]:
        """The members of an aggregate's queue (rows `owner#…`) in order; of a long one only the head is loaded,
        unless the whole is wanted."""
        for address in self._batch.members(model, owner.id, 0 if whole else HEAD):
            member = self.at(model, address)
            if member is not None:
                yield member

    def loaded(self, model: type[Model]) -> list[Model]:
        """All aggregates of this kind that this batch has seen or made, as they are now."""
        found: list[Model] = [
            record.instance
            for (kind, _), record in self._batch.records.items()
            if kind is model and record.instance is not None
        ]
        return found

    def is_changed(self, model: type[Aggregate], address: str) -> bool:
        """Does this batch change that aggregate?"""
        record = self._batch.records.get((model, address))
        return record is not None and record.is_changed

    def look(self, statement: str, *params: str) -> list[tuple[Any, ...]]:
        """What a statement ($1, $2 …) answers, without what this batch changes and without locking anything."""
        return self._batch.look(Look(statement, params))

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

    def fresh_id(self) -> str:
        """An id that nobody has, larger than earlier ones, of 28 hexadecimal digits. When the command is decided again,
        it is given the same ones in the same order: so that what is named after them can be looked for."""
        ids = self.job.ids
        if self._given == len(ids):
            ids.append(f"{int(self.now.timestamp() * 1000):012x}{token_hex(8)}")
        self._given += 1
        return ids[self._given - 1]

    def afterwards(self, function: Callable[..., None], *args: Any) -> None:
        """Have a function called in the serving loop of this process once the batch is committed, and only then. It
        is lost with the process: what must happen has to be found again from what was stored."""
        self._batch.orders.append((function, args))

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

    def recorded(self, stream: str, version: int) -> Entry | None:
        """The event of that version of a stream in this namespace, or None: one that never was, or is gone."""
        for entry in self._batch.entries:
            if (entry.version, entry.stream, entry.namespace) == (version, stream, self.namespace):
                return entry
        found = self.look(log.OF_STREAM, str(self.namespace), stream, str(version))
        return log.entry(self.namespace, found[0]) if found else None

    def answering(self, answer_id: str) -> Job | None:
        """The job that answers this key in this very batch."""
        return self._batch.answering.get(answer_id)

    def answers(self, job: Job) -> None:
        """Note that this job answers its key."""
        self._batch.answering[job.answer_id or ""] = job

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
        del self._batch.orders[self._ordered :]
        self._undo.clear()


class Batch:
    """The commands of one transaction and everything they see and change."""

    def __init__(self, jobs: list[Job], pipeline: Pipeline, process_id: str) -> None:
        self.jobs, self.pipeline, self.process_id = jobs, pipeline, process_id
        self.records: dict[Key, Record] = {}
        self.queues: dict[Key, Members] = {}
        self.looks: dict[Look, list[tuple[Any, ...]]] = {}
        self.joined: dict[Key, dict[str, None]] = {}
        self.sought: set[Any] = set()  # loaded a second time
        self.events: dict[Named, Entry | None] = {}
        self.appended: dict[Named, Entry] = {}  # in this batch
        self.entries: list[Entry] = []
        self.orders: list[Order] = []
        self.answering: dict[str, Job] = {}
        self.now = datetime.min.replace(tzinfo=UTC)
        self.epoch = self.floor = 0
        self._wanted = {need for job in jobs for need in touches(job)}
        self._last_locked = ("", "")
        self._setting: str | None = None
        self._restarts = 0
        self.written: Pending | None = None
        self.is_committing = False

    # -- what commands see ---------------------------------------------------------------------------

    def join(self, model: type[Aggregate], address: str) -> None:
        self.joined.setdefault((model, address.rpartition("#")[0]), {})[address] = None

    def members(self, model: type[Aggregate], owner: str, limit: int) -> Iterator[str]:
        queue = self.queues.get((model, owner))
        if queue is None:
            raise Needs(Head(model, owner, "", limit))
        yield from queue.addresses
        if not queue.complete:
            raise Needs(Head(model, owner, next(reversed(queue.addresses)), limit and len(queue.addresses)))
        yield from list(self.joined.get((model, owner), ()))

    def look(self, look: Look) -> list[tuple[Any, ...]]:
        if look not in self.looks:
            raise Needs(look)
        return self.looks[look]

    def event(self, namespace: int, event_id: str) -> Entry | None:
        name = Named(namespace, event_id)
        if name in self.appended:
            return self.appended[name]
        if name not in self.events:
            raise Needs(name)
        return self.events[name]

    # -- loading -------------------------------------------------------------------------------------

    def begin(self, setting: str | None = None) -> None:
        """Load what the commands say they touch; then, in a statement of its own, the time.

        Never now(), never the clock of the loading statement: both are stale after a wait for a row.
        Parameters: `setting`, a statement for this transaction, before all others.
        """
        self._setting = setting
        self.pipeline.execute("begin")
        if setting:
            self.pipeline.execute(setting)
        takes = self._send_loads(self._wanted)
        clock = self.pipeline.execute("select clock_timestamp(), epoch, token_floor from core_cluster")
        self._take_loads(takes)
        self.now, self.epoch, self.floor = clock.rows()[0]

    def load(self, needs: set[Any]) -> None:
        """Load what commands turned out to need. A row that comes before one that is locked already is not locked
        after it: then everything starts over, in order, so that two processes never wait in a circle."""
        self.sought |= needs & self.records.keys()
        is_late = any(place < self._last_locked for place in places_of(needs))
        if is_late and self._restarts < RESTARTS:
            self._start_over(needs)
        else:
            self._take_loads(self._send_loads(needs))

    def _start_over(self, needs: set[Any]) -> None:
        self._restarts += 1
        self._wanted |= {need for need in needs if type(need) is not Head and type(need) is not Look}
        self._last_locked = ("", "")
        for known in (self.records, self.queues, self.looks, self.events):
            known.clear()
        self.pipeline.execute("rollback")
        self.begin(self._setting)

    def _send_loads(self, needs: set[Any]) -> list[Any]:
        kinds: dict[type[Aggregate], set[str]] = {}
        heads: list[Head] = []
        looks: list[Look] = []
        named: dict[int, set[str]] = {}
        for need in needs:
            if type(need) is tuple:
                kinds.setdefault(need[0], set()).add(need[1])
            elif type(need) is Head:
                heads.append(need)
            elif type(need) is Look:
                looks.append(need)
            else:
                named.setdefault(need.namespace, set()).add(need.event_id)
        # A fixed order of kinds, rows in sorted order: two processes never wait for each other in a circle. What
        # is guarded by another row's lock comes after it, or it would be from before the wait for that row.
        self._last_locked = max([self._last_locked, *places_of(needs)])
        order = sorted(kinds, key=lambda m: (not m.engine_locks, m._meta.db_table))
        sent = [self._send_kind(table(m), kinds[m]) for m in order]
        sent += [self._send_head(head) for head in heads]
        sent += [self._send_look(look) for look in looks]
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
        limit = head.limit or None
        loaded = self.pipeline.execute(kind.head, [head.after or head.owner + "#", head.owner + "$", limit])

        def take() -> None:
            rows = loaded.rows()
            queue = self.queues.setdefault((head.model, head.owner), Members())
            queue.complete |= limit is None or len(rows) < limit
            for row in rows:
                instance: Any = kind.instance(row)
                queue.addresses[instance.id] = None  # two commands may want the same queue, in part and whole
                self.records.setdefault((head.model, instance.id), Record(kind, instance))

        return take

    def _send_look(self, look: Look) -> Any:
        sent = self.pipeline.execute(look.statement, look.params)

        def take() -> None:
            self.looks[look] = sent.rows()

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
        for _ in range(ROUNDS):
            needs = self._attempt()
            if not needs:
                self._let_twins_wait()
                return
            self._reset()
            self.load(needs)
        raise RuntimeError("a command needs more and more")

    def _let_twins_wait(self) -> None:
        """Whoever has the key of one that waits waits in its place, and is to hear of it too."""
        for job in self.jobs:
            if job.twin and isinstance(job.twin.value, Waiting):
                job.value = job.twin.value

    def _attempt(self) -> set[Any]:
        needs: set[Any] = set()
        for job in self.jobs:
            try:
                self._run(job)
            except Needs as missing:
                needs.update(missing.needs)
        return needs

    def _reset(self) -> None:
        for record in self.records.values():
            record.reset()
        self.entries.clear()
        self.orders.clear()
        self.appended.clear()
        self.joined.clear()
        self.answering.clear()

    def _run(self, job: Job) -> None:
        """One command; if it refuses, nothing of it stays but what the refusal itself records."""
        tx = Transaction(self, job)
        job.value, job.error = None, None
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

    def _store(self, late: bool) -> None:
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

    def commit(self) -> None:
        """Store everything, take the logs' heads as late as possible, and commit: in one round trip, unless
        answers are to be kept, which hold positions."""
        self.pipeline.check()
        self._store(late=False)
        if self.entries:
            self._write_log()
        if keeps := any(model is Answer for model, _ in self.records):
            self._settle()
            self._store(late=True)
        self.is_committing = True
        self.pipeline.execute("commit")
        self.pipeline.sync()
        if not keeps:
            self._settle()

    def _write_log(self) -> None:
        lengths: dict[int, int] = {}
        rows = []
        for entry in self.entries:
            place = lengths[entry.namespace] = lengths.get(entry.namespace, 0) + 1
            rows.append(entry.row(place))
        numbers = sorted(lengths)
        for number in numbers:
            self.pipeline.execute(log.TAKE_HEAD, [number])
        self.written = self.pipeline.execute(log.WRITE, [array(numbers), *columns_of(rows)])

    def _settle(self) -> None:
        """Tell every event its position and every command its answer, and fill in the answers to keep."""
        if self.written:
            rows = self.written.rows()
            heads = {number: head for number, head, _ in rows}
            for entry in self.entries:
                heads[entry.namespace] += 1
                entry.position, entry.recorded_at = heads[entry.namespace], rows[0][2]
        for job in self.jobs:
            if job.error is None and callable(job.value):  # it holds positions
                self._answer(job)
            if job.answer_id and job.error is None and not job.replayed:
                self._keep(job)
        for job in self.jobs:
            if job.twin:
                job.value, job.status = job.twin.value, job.twin.status

    @staticmethod
    def _answer(job: Job) -> None:
        try:
            job.value = job.value()
        except Exception:  # what it did may be committed by now: the batch must not run again
            job.error = Internal()
            logger.exception("answer failed", extra={"request_id": job.call.request_id})

    def _keep(self, job: Job) -> None:
        kept: Any = self.records[Answer, job.answer_id].instance  # type: ignore[index]
        if kept is None:  # who waits has left already, in this very batch
            return
        value = job.value
        if isinstance(value, Waiting):
            kept.waiting = encode(value).decode()
            return
        hidden = job.operation.secret
        if hidden:
            value = {name: part for name, part in value.items() if name not in hidden}
        kept.status, kept.body = job.status, encode(value).decode()


def places_of(needs: Iterable[Any]) -> list[tuple[str, str]]:
    """Where the rows among them that will be locked stand in the order of locking."""
    keys = (need for need in needs if type(need) is tuple)
    return [(model._meta.db_table, address) for model, address in keys if model.engine_locks]


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
        tx.answers(job)


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
        job.twin = tx.answering(kept.id)
    return True
