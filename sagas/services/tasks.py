"""Work for those who come for it: workers that poll, and participants that answer later."""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from core.batch import Transaction
from core.callers import Call
from core.database import Row, rows
from core.encoding import decode
from core.operations import command, query
from core.runtime import runtime, stopping
from core.types import Json, Text, Wait, check_text
from discovery.types import ServiceName
from sagas import progress as stored_progress
from sagas.errors import LeaseLost, TaskNotFound
from sagas.models import Saga, Task
from sagas.participants import token_for
from sagas.progress import Progress
from sagas.rules import Outcome
from sagas.services.courses import course_of, store
from sagas.services.driving import heard
from sagas.services.looking import heard_of
from sagas.states import instant
from sagas.types import ErrorCode, Strict, TaskDone, Tasks
from sagas.types import Task as TaskState
from sagas.worker import worker

TaskId = Annotated[
    str, Field(max_length=150, pattern=r"^[A-Za-z0-9-]+\.[A-Za-z0-9_-]+\.(action|compensate)$")
]
LeaseToken = Annotated[str, AfterValidator(check_text), Field(min_length=1, max_length=64)]
LeaseSeconds = Annotated[float, Field(ge=1, le=86400)]
Most = Annotated[int, Field(ge=1, le=100)]
Message = Annotated[str, AfterValidator(check_text), Field(max_length=1000)]
Effect = Literal["none", "unknown"]
RetryAfter = Annotated[float, Field(ge=0, le=3600)]
LEASE_TOKEN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as PostgreSQL writes them
LAST = 100  # calls whose tokens are known again when they come too late
LOOK_AGAIN = 0.25  # seconds until who waits for a task looks whether another process queued one
# Beside the engine: it decides nothing, and whoever polls must not have a batch of others wait for what it finds.
LEASE = """with due as (
    select id from sagas_task where queue = %s and lease_token is null order by queued_at, id limit %s
    for update skip locked)
update sagas_task t set worker = %s, fetched_at = clock_timestamp(), lease_token = gen_random_uuid(),
    lease_seconds = s.seconds, lease_until = clock_timestamp() + s.seconds * interval '1 second'
from due, (select %s::float8 as seconds) s where t.id = due.id
returning t.id, t.lease_token, t.lease_until, t.saga, t.step, t.op, t.attempt, t.body::text, t.queued_at"""


# -- fetching ----------------------------------------------------------------------------------------


@query("POST workers/{service}/poll", name="workers.poll", returns=Tasks, hot=True, changes=True)
async def poll(
    call: Call,
    *,
    service: ServiceName,
    worker_id: Text,
    max: Most = 10,
    wait_seconds: Wait = 0.0,
    lease_seconds: LeaseSeconds = 30.0,
) -> Tasks:
    """Fetch up to `max` (100) tasks of a service, the oldest first, waiting up to `wait_seconds` (300) for one.

    Each is yours for `lease_seconds` (1 to 86400): say `tasks.complete` or `tasks.fail` before that, or
    `tasks.heartbeat`. If the lease runs out nobody knows what came of it: the task is given out again, with the same
    Idempotency-Key, and your answer comes too late.
    """
    queue, until = f"{call.namespace.name}/{service}", monotonic() + wait_seconds
    while True:
        with worker.news_of(queue) as news:
            leased = await rows(LEASE, [queue, max, worker_id, lease_seconds])
            found = [given(row[:-1]) for row in sorted(leased, key=itemgetter(-1, 0))]
            left = until - monotonic()
            if found or left <= 0:
                return Tasks(found)
            if runtime.stopping:
                raise stopping()
            await heard_of(news, min(left, LOOK_AGAIN))


def given(row: Row) -> TaskState:
    address, token, until, saga, step, op, attempt, text = row
    body = decode(text)
    return TaskState(
        address.partition("/")[2], token, saga.partition("/")[2], body["saga_name"], step, op, body["action"],
        attempt, body["idempotency_key"], body["input"], body["context"], until,
    )  # fmt: skip


# -- answering ---------------------------------------------------------------------------------------


class Done(Strict):
    """A task that is done, and what it gave."""

    task_id: TaskId
    lease_token: LeaseToken
    output: Json = None

    @property
    def outcome(self) -> Outcome:
        return Outcome("succeeded", decode(self.output or "null"))


class TaskFailed(Strict):
    """A task that failed, and how: what `tasks.fail` is told."""

    task_id: TaskId
    lease_token: LeaseToken
    code: ErrorCode = "failed"
    message: Message = ""
    effect: Effect = "none"
    retryable: bool = False
    retry_after_seconds: RetryAfter | None = None

    @property
    def outcome(self) -> Outcome:
        return failure(self.code, self.message, self.effect, self.retryable, self.retry_after_seconds)


class TaskHeld(Strict):
    """A task that is to be kept."""

    task_id: TaskId
    lease_token: LeaseToken
    lease_seconds: LeaseSeconds | None = None


@dataclass(slots=True)
class Settled:
    """What became of each: the status of its step, `late`, or the code of the refusal."""

    task_id: str
    status: str


@dataclass(slots=True)
class SettledMany:
    items: list[Settled]


@dataclass(slots=True)
class Kept:
    """`cancel_requested`: the saga turned back meanwhile, or was ended. Stop, if you can: what you have done will be
    compensated, or is nobody's business any more."""

    task_id: str
    lease_expires_at: datetime
    cancel_requested: bool


@dataclass(slots=True)
class KeptTask:
    """What became of each: `kept`, or the code of the refusal, with no lease then."""

    task_id: str
    status: str
    lease_expires_at: datetime | None
    cancel_requested: bool


@dataclass(slots=True)
class KeptMany:
    items: list[KeptTask]


def place(task_id: str) -> tuple[str, str, str]:
    saga_id, step, op = task_id.split(".")
    return saga_id, step, op


def touches_of(task_id: str) -> Sequence[tuple[type[Any], str]]:
    return ((Task, task_id), (Saga, place(task_id)[0]))


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return touches_of(params["task_id"])


def touches_all(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return [touch for each in params["tasks"] for touch in touches_of(each.task_id)]


@command("POST tasks/{task_id}/complete", name="tasks.complete", returns=TaskDone, hot=True, touches=touches)
def complete(tx: Transaction, *, task_id: TaskId, lease_token: LeaseToken, output: Json = None) -> TaskDone:
    """Say that a task is done, and what it gave (any JSON). Also for a participant that was called and answered 202:
    its token came as `Syros-Task-Token`.

    Errors: `task_not_found` (404), `lease_lost` (409): the answer came too late, and changed nothing but that the
    history says so.
    """
    return settle(tx, task_id, lease_token, Outcome("succeeded", decode(output or "null")))


@command(
    "POST tasks/complete-many", name="tasks.complete_many", returns=SettledMany, hot=True, max_bytes=16 << 20,
    touches=touches_all,
)  # fmt: skip
def complete_many(
    tx: Transaction, *, tasks: Annotated[list[Done], Field(min_length=1, max_length=100)]
) -> SettledMany:
    """The same for up to 100 tasks. One that is refused, for the reasons `tasks.complete` has, is none of the others'
    business: its `status` is the code."""
    return SettledMany([settled(tx, each) for each in tasks])


def settled(tx: Transaction, task: Done | TaskFailed) -> Settled:
    try:
        done = settle(tx, task.task_id, task.lease_token, task.outcome)
    except (TaskNotFound, LeaseLost) as refusal:
        if refusal.aftermath:
            refusal.aftermath(tx)
        return Settled(task.task_id, refusal.code)
    return Settled(task.task_id, done.status)


@command("POST tasks/{task_id}/fail", name="tasks.fail", returns=TaskDone, hot=True, touches=touches)
def fail(
    tx: Transaction,
    *,
    task_id: TaskId,
    lease_token: LeaseToken,
    code: ErrorCode = "failed",
    message: Message = "",
    effect: Effect = "none",
    retryable: bool = False,
    retry_after_seconds: RetryAfter | None = None,
) -> TaskDone:
    """Say that a task failed. `effect` none: nothing was done, so nothing is to be compensated; it is tried again
    only if `retryable`. Unknown: it is tried again, and compensated if that leads nowhere.

    Errors: `task_not_found` (404), `lease_lost` (409).
    """
    outcome = failure(code, message, effect, retryable, retry_after_seconds)
    return settle(tx, task_id, lease_token, outcome)


def failure(code: str, message: str, effect: Effect, retryable: bool, retry_after: float | None) -> Outcome:
    kind = "unknown" if effect == "unknown" else "refused" if retryable else "failed"
    return Outcome(kind, code=code, message=message, retry_after=retry_after)


@command(
    "POST tasks/fail-many", name="tasks.fail_many", returns=SettledMany, hot=True, max_bytes=16 << 20,
    touches=touches_all,
)  # fmt: skip
def fail_many(
    tx: Transaction, *, tasks: Annotated[list[TaskFailed], Field(min_length=1, max_length=100)]
) -> SettledMany:
    """The same for up to 100 tasks, each with a failure of its own. One that is refused, for the reasons `tasks.fail`
    has, is none of the others' business: its `status` is the code."""
    return SettledMany([settled(tx, each) for each in tasks])


@command("POST tasks/{task_id}/heartbeat", name="tasks.heartbeat", returns=Kept, hot=True, touches=touches)
def heartbeat(
    tx: Transaction, *, task_id: TaskId, lease_token: LeaseToken, lease_seconds: LeaseSeconds | None = None
) -> Kept:
    """Keep a task for another `lease_seconds`, as many as before unless said. Of a saga that was ended nothing is
    kept: `cancel_requested`, and the lease as it was.

    Errors: `task_not_found` (404), `lease_lost` (409).
    """
    return keep(tx, task_id, lease_token, lease_seconds)


@command(
    "POST tasks/heartbeat-many", name="tasks.heartbeat_many", returns=KeptMany, hot=True, max_bytes=16 << 20,
    touches=touches_all,
)  # fmt: skip
def heartbeat_many(
    tx: Transaction, *, tasks: Annotated[list[TaskHeld], Field(min_length=1, max_length=100)]
) -> KeptMany:
    """The same for up to 100 tasks. One that is refused, for the reasons `tasks.heartbeat` has, is none of the others'
    business: its `status` is the code."""
    return KeptMany([kept(tx, each) for each in tasks])


def kept(tx: Transaction, task: TaskHeld) -> KeptTask:
    try:
        done = keep(tx, task.task_id, task.lease_token, task.lease_seconds)
    except (TaskNotFound, LeaseLost) as refusal:
        return KeptTask(task.task_id, refusal.code, None, False)
    return KeptTask(task.task_id, "kept", done.lease_expires_at, done.cancel_requested)


def keep(tx: Transaction, task_id: str, lease_token: str, lease_seconds: float | None) -> Kept:
    """Raises: TaskNotFound, LeaseLost."""
    saga, progress, task = found(tx, task_id, lease_token)
    _, step, op = place(task_id)
    if progress.is_over:
        due = progress.steps[step].side(op).due
        return Kept(task_id, instant(due) if due else tx.now, True)
    if task is None:
        until = keep_accepted(tx, saga, task_id, lease_seconds or 30.0)
    else:
        task.lease_seconds = lease_seconds or task.lease_seconds or 30.0
        until = task.lease_until = tx.now + timedelta(seconds=task.lease_seconds)
    return Kept(task_id, until, op == "action" and progress.heading == "compensating")


def keep_accepted(tx: Transaction, saga: Saga, task_id: str, seconds: float) -> datetime:
    """The same for a call that was accepted: no earlier than it would be given up anyway."""
    _, step, op = place(task_id)
    course = course_of(tx, saga)
    due = course.keep(step, op, seconds)
    store(tx, saga, course)
    return instant(due)


def settle(tx: Transaction, task_id: str, lease_token: str, outcome: Outcome) -> TaskDone:
    """Raises: TaskNotFound, LeaseLost."""
    try:
        saga, progress, task = found(tx, task_id, lease_token)
    except LeaseLost as refusal:
        refusal.aftermath = partial(note_late, task_id=task_id, lease_token=lease_token, outcome=outcome)
        raise
    saga_id, step, op = place(task_id)
    side = progress.steps[step].side(op)
    if task is not None:
        since: datetime | None = task.fetched_at
        outcome = replace(outcome, fetched=since.timestamp() if since else None)
        tx.remove(task)
    status = heard(tx, saga, step, op, side.attempts, outcome, progress)
    return TaskDone(task_id, saga_id, step, status)


def note_late(tx: Transaction, task_id: str, lease_token: str, outcome: Outcome) -> None:
    """What came too late changes nothing, and is told: it may be what an operator looks for."""
    saga_id, step, op = place(task_id)
    saga = tx.get(Saga, saga_id)
    assert saga
    attempts = stored_progress.from_text(saga.progress).steps[step].side(op).attempts
    attempt = attempt_of(saga, task_id, lease_token, attempts)
    if attempt or LEASE_TOKEN.fullmatch(lease_token):
        about = {"attempt": attempt} if attempt else {}
        tx.emit(saga, "step.late_result", {"step": step, "op": op, **about, "outcome": outcome.kind})


def attempt_of(saga: Saga, task_id: str, token: str, attempts: int) -> int | None:
    """The call that the token came with, if it is one of the last. Of leases that are over nothing is kept."""
    for number in range(attempts, max(attempts - LAST, 0), -1):
        if is_same(token_for(saga.namespace, *place(task_id), number), token):
            return number
    return None


def found(tx: Transaction, task_id: str, lease_token: str) -> tuple[Saga, Progress, Task | None]:
    """The saga, how far it is, and the task; none, if the participant was called and answers later.

    Raises: TaskNotFound, LeaseLost.
    """
    saga_id, step, op = place(task_id)
    saga, task = tx.get(Saga, saga_id), tx.get(Task, task_id)
    if saga is None:
        raise TaskNotFound(f"There is no task {task_id}.", task_id=task_id)
    progress = stored_progress.from_text(saga.progress)
    if step not in progress.steps:
        raise TaskNotFound(f"There is no task {task_id}.", task_id=task_id)
    if task is not None:
        refuse_unless(task.lease_token is not None and is_same(task.lease_token, lease_token), task_id)
        return saga, progress, task
    side = progress.steps[step].side(op)
    if not side.attempts:
        raise TaskNotFound(f"There is no task {task_id}.", task_id=task_id)
    if side.status not in ("calling", "waiting"):
        raise LeaseLost(
            f"The task {task_id} is over: {side.status}.", task_id=task_id, step_status=side.status
        )
    refuse_unless(is_same(token_for(saga.namespace, saga_id, step, op, side.attempts), lease_token), task_id)
    return saga, progress, None


def is_same(token: str, said: str) -> bool:
    return hmac.compare_digest(token.encode(), said.encode())  # of texts it takes ASCII only


def refuse_unless(holds: bool, task_id: str) -> None:
    """Raises: LeaseLost."""
    if not holds:
        raise LeaseLost(f"This lease of {task_id} is over.", task_id=task_id)
