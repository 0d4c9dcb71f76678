"""A database in memory: the real batches, transactions and commands over dictionaries, thousands a second.

What a statement answers is said here once more, in Python, by the constant it is known by; an unknown one breaks.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from django.db.models.base import ModelState

from core import sessions
from core.batch import Batch, Head, Job, Look, Members, Record
from core.callers import SYSTEM, Call, Namespace
from core.log import Entry
from core.models import Process, Session
from core.operations import registry
from core.records import Table, table
from discovery.models import Instance
from discovery.services import registering
from locks.models import Claim, Hold, Lock
from locks.services import deadlocks, elections, holds, queues, upkeep

START = datetime(2026, 1, 1, tzinfo=UTC)
CALL = Call(SYSTEM, Namespace("n", 1))
Row = dict[str, Any]
Rows = list[tuple[Any, ...]]


class Memory:
    """Tables, the time, the epoch; what a PostgreSQL has, as far as commands can see."""

    def __init__(self) -> None:
        self.tables: dict[type[Any], dict[str, Row]] = {}
        self.now, self.epoch, self.floor = START, 1, 0

    def execute(self, statement: str) -> None:
        """What a batch says when it starts over; nothing is written before the commit, so there is nothing to do."""
        assert statement == "rollback"

    def rows(self, model: type[Any]) -> dict[str, Row]:
        return self.tables.setdefault(model, {})

    def between(self, model: type[Any], after: str, before: str) -> list[Row]:
        found = self.rows(model)
        return [found[address] for address in sorted(found) if after < address < before]

    def members(self, model: type[Any], address: str) -> list[Row]:
        return self.between(model, f"{address}#", f"{address}$")

    def look(self, statement: str, *params: str) -> Rows:
        return ANSWERS[statement](self, *params)

    def run(self, jobs: list[Job], process: str, *, commits: bool = True) -> dict[Job, list[Entry]]:
        """One batch. The events of each command, in order."""
        batch = MemoryBatch(jobs, self, process)
        batch.begin()
        batch.decide()
        if commits:
            batch.commit()
        return {job: batch.entries[start:end] for job, (start, end) in batch.spans.items()}


def job(name: str, /, **params: Any) -> Job:
    """A command as a transport would submit it, its parameters checked where clients can send it."""
    operation = registry[name]
    return Job(operation, operation.parse(params) if operation.route else params, CALL)


class MemoryBatch(Batch):
    """A batch that loads from memory and commits to it; all else is the engine's."""

    def __init__(self, jobs: list[Job], memory: Memory, process: str) -> None:
        super().__init__(jobs, memory, process)  # type: ignore[arg-type]
        self.memory = memory
        self.spans: dict[Job, tuple[int, int]] = {}

    def begin(self, setting: str | None = None) -> None:
        self._take_loads(self._send_loads(self._wanted))
        self.now, self.epoch, self.floor = self.memory.now, self.memory.epoch, self.memory.floor

    def _send_kind(self, kind: Table, ids: set[str]) -> Callable[[], None]:
        def take() -> None:
            found = self.memory.rows(kind.model)
            for address in ids:
                self.records.setdefault((kind.model, address), record(kind, found.get(address)))

        return take

    def _send_head(self, head: Head) -> Callable[[], None]:
        def take() -> None:
            found = self.memory.between(head.model, head.after or f"{head.owner}#", f"{head.owner}$")
            found = found[: head.limit or None]
            queue = self.queues.setdefault((head.model, head.owner), Members())
            queue.complete |= not head.limit or len(found) < head.limit
            for row in found:
                queue.addresses[row["id"]] = None
                self.records.setdefault((head.model, row["id"]), record(table(head.model), row))

        return take

    def _send_look(self, look: Look) -> Callable[[], None]:
        return lambda: self.looks.update({look: self.memory.look(look.statement, *look.params)})

    def _run(self, job: Job) -> None:
        start = len(self.entries)
        super()._run(job)
        self.spans[job] = (start, len(self.entries))

    def commit(self) -> None:
        self._settle()
        for (model, address), kept in self.records.items():
            if kept.instance is None:
                self.memory.rows(model).pop(address, None)
            else:
                self.memory.rows(model)[address] = stored(kept.table, kept.instance)


def record(kind: Table, row: Row | None) -> Record:
    if row is None:
        return Record(kind, None)
    instance = kind.model.__new__(kind.model)
    instance.__dict__.update(row, _state=ModelState())
    return Record(kind, instance)


def stored(kind: Table, instance: Any) -> Row:
    """The row of an instance, which has every column that must have a value."""
    row = dict(zip(kind.attributes, kind.values(instance), strict=True))
    missing = [field.attname for field in kind.model._meta.concrete_fields
               if not field.null and row[field.attname] is None]  # fmt: skip
    assert not missing, f"{instance} is stored without {missing}"
    return row


# -- what the statements answer ----------------------------------------------------------------------


def lease(memory: Memory, address: str) -> Rows:
    row = memory.rows(Session).get(address)
    is_live = row is not None and row["ended_at"] is None and row["expires_at"] > memory.now
    return [(row["expires_at"],)] if row and is_live else []


def expiry(memory: Memory, address: str) -> Rows:
    row = memory.rows(Session).get(address)
    return [(row["expires_at"],)] if row else []


def of_session(memory: Memory, model: type[Any], session: str) -> list[Row]:
    return [row for row in memory.rows(model).values() if row["session"] == session]


def holdings(memory: Memory, session: str) -> Rows:
    found: Rows = [(row["id"], None) for m in (Lock, Hold) for row in of_session(memory, m, session)]
    return found + [(row["id"], row["lock_id"]) for row in of_session(memory, Claim, session)]


def suspect(memory: Memory, session: str, wanted: str) -> Rows:
    locks = memory.rows(Lock)
    held = [row["id"].partition("#")[0] for m in (Lock, Hold) for row in of_session(memory, m, session)]
    is_awaited = any(locks[address]["queued"] or address in wanted.split(" ") for address in held)
    return [(is_awaited or bool(of_session(memory, Claim, session)),)]


def picture(memory: Memory, after: str, before: str) -> Rows:
    found: Rows = []
    for lock in memory.between(Lock, after, before):
        if not lock["queued"]:
            continue
        about = (lock["id"], lock["capacity"])
        if lock["lock_id"] is not None:
            hold = (lock["owner"], "exclusive", lock["capacity"], lock["last_token"], 0.0)
            found.append((*about, False, lock["session"], None, *hold))
        for row in memory.members(Hold, lock["id"]):
            hold = (row["owner"], row["mode"], row["permits"], row["token"], 0.0)
            found.append((*about, False, row["session"], None, *hold))
        for row in memory.members(Claim, lock["id"]):
            claim = (row["owner"], row["mode"], row["permits"], row["ticket"], row["since"].timestamp())
            found.append((*about, True, row["session"], row["lead"], *claim))
    return found


def standing(memory: Memory, address: str, owner: str) -> Rows:
    return [(row["id"],) for row in memory.members(Claim, address) if row["owner"] == owner][:8]


def overdue(memory: Memory) -> Rows:
    return [(row["id"],) for row in memory.rows(Session).values()
            if row["ended_at"] is None and row["expires_at"] <= memory.now]  # fmt: skip


def registered(memory: Memory, session: str) -> Rows:
    return addresses(of_session(memory, Instance, session))


def orphans(memory: Memory) -> Rows:
    processes = memory.rows(Process)
    alive = {name for name, row in processes.items() if row["expires_at"] > memory.now}
    return [(row["id"],) for row in memory.rows(Claim).values() if row["process"] not in {"", *alive}]


def contended(memory: Memory) -> Rows:
    return addresses(row for row in memory.rows(Lock).values() if row["queued"] and is_moving(memory, row))


def is_moving(memory: Memory, row: Row) -> bool:
    if any(at is not None and at <= memory.now for at in (row["expires_at"], row["not_before"])):
        return True
    if row["lock_id"] is not None or row["used"] + row["shared"] or row["not_before"] is not None:
        return False
    waiting = [claim for claim in memory.rows(Claim) if claim.startswith(row["id"] + "#")]
    return bool(waiting) and memory.rows(Claim)[min(waiting)]["lead"] is None


def forgotten(memory: Memory) -> Rows:
    return addresses(row for row in memory.rows(Lock).values()
                     if row["expires_at"] is not None and row["expires_at"] <= memory.now)  # fmt: skip


def addresses(found: Iterable[Row]) -> Rows:
    return [(row["id"],) for row in found]


ANSWERS: dict[str, Callable[..., Rows]] = {
    queues.LEASE: lease,
    queues.HOLDINGS: holdings,
    holds.EXPIRY: expiry,
    deadlocks.SUSPECT: suspect,
    deadlocks.PICTURE.format("$1", "$2"): picture,
    elections.FIRST: standing,
    sessions.OVERDUE: overdue,
    upkeep.ORPHANS: orphans,
    upkeep.CONTENDED: contended,
    upkeep.FORGOTTEN: forgotten,
    registering.OF_SESSION: registered,
}
