"""Sagas in a transaction: loaded, decided about by the rules, stored with what became true. No operation is here."""

from collections.abc import Mapping
from typing import Any

from core.batch import Transaction
from core.encoding import decode, encode
from core.models import Process
from sagas import progress as stored_progress
from sagas.errors import SagaNotFound
from sagas.models import Definition, Saga, Task
from sagas.participants import Attempt
from sagas.plans import Plan, plan_of
from sagas.rules import RESTING, Course, Progress, Send, StepProgress, wake_at
from sagas.states import instant, state_of
from sagas.worker import worker

NEAR = 5.0  # seconds; who sleeps for longer is nobody's meanwhile
PLANS = 1000
_plans: dict[str, Plan] = {}  # compiled, by the address of their definition


def plan_at(address: str, body: str) -> Plan:
    if address not in _plans:
        if len(_plans) >= PLANS:
            _plans.clear()
        _plans[address] = plan_of(decode(body))
    return _plans[address]


def known_plan(address: str) -> Plan | None:
    return _plans.get(address)


def plan_for(tx: Transaction, address: str) -> Plan:
    if address in _plans:
        return _plans[address]
    found = tx.at(Definition, address)
    assert found
    return plan_at(address, found.body)


def saga_of(tx: Transaction, saga_id: str) -> Saga:
    """Raises: SagaNotFound."""
    if (found := tx.get(Saga, saga_id)) is None:
        raise SagaNotFound(f"There is no saga {saga_id}.", saga_id=saga_id)
    return found


def begin(plan: Plan, deadline: float | None) -> Progress:
    return Progress(deadline=deadline, steps={name: StepProgress() for name in plan.steps})


def course_of(tx: Transaction, saga: Saga, progress: Progress | None = None) -> Course:
    """Where the saga stands; the task rows that say which workers have what are loaded where it matters."""
    progress = progress or stored_progress.from_text(saga.progress)
    scope = {
        "input": decode(saga.input),
        "saga": {"id": saga.name, "name": saga.title},
        "metadata": decode(saga.metadata or "{}"),
    }
    serves = worker.serves_in(saga.namespace) if may_call(tx, saga, progress) else None
    plan = plan_for(tx, saga.definition)
    return Course(plan, progress, scope, tx.now.timestamp(), serves, leases_of(tx, saga, progress))


def may_call(tx: Transaction, saga: Saga, progress: Progress) -> bool:
    """Does this process call for the saga? Not while another one does."""
    if not worker.is_here:
        return False
    return saga.owner in (None, tx.process_id) or not progress.is_calling or is_dead(tx, saga.owner)


def is_dead(tx: Transaction, owner: str) -> bool:
    process = tx.at(Process, owner)
    return process is None or process.expires_at <= tx.now


def leases_of(tx: Transaction, saga: Saga, progress: Progress) -> Mapping[tuple[str, str], float]:
    sides = [(name, op, side) for name, step in progress.steps.items() for op, side in step.sides()]
    queued = [(name, op) for name, op, side in sides if side.status == "queued"]
    if not queued:
        return {}
    tx.load(*((Task, task_address(saga, *each)) for each in queued))
    tasks = {each: tx.at(Task, task_address(saga, *each)) for each in queued}
    return {each: task.lease_until.timestamp() for each, task in tasks.items() if task and task.lease_until}


def task_address(saga: Saga, step: str, op: str) -> str:
    return f"{saga.id}.{step}.{op}"


# -- storing -----------------------------------------------------------------------------------------


def store(tx: Transaction, saga: Saga, course: Course) -> None:
    """Write down how the saga stands, tell the log what happened, and have sent what is to be sent."""
    for kind, data in course.facts:
        tx.emit(saga, kind, told(data))
    for step, op in course.withdrawn:
        if task := tx.at(Task, task_address(saga, step, op)):
            tx.remove(task)
    for send in course.sends:
        (push if send.by == "push" else queue)(tx, saga, course, send)
    note(tx, saga, course)


def told(data: dict[str, Any]) -> dict[str, Any]:
    """A fact as the log has it: instants as such, and `for` by its name."""
    found = {name.rstrip("_"): value for name, value in data.items() if value is not None}
    for name in ("until", "retry_at"):
        if name in found:
            found[name] = instant(found[name])
    return found


def note(tx: Transaction, saga: Saga, course: Course) -> None:
    progress = course.saga
    saga.status, saga.reason, saga.dirty = progress.status, progress.reason, progress.dirty
    saga.error = encode(progress.error).decode() if progress.error else None
    saga.current_step = current_step(progress)
    saga.progress = stored_progress.to_text(progress)
    due = course.now if course.is_owner_needed else wake_at(progress)
    is_mine = worker.is_here and course.serves is not None and not progress.is_over
    is_near = due is not None and due <= course.now + NEAR
    if is_mine and (progress.is_calling or is_near):
        saga.owner = tx.process_id
        if is_near and due is not None:
            tx.afterwards(worker.wake_later, tx.call.namespace, saga.name, due - course.now)
    elif course.serves is not None or not progress.is_calling:
        saga.owner = None
    # Written only when it changes by more than calls do: it is indexed.
    saga.wake_at = None if due is None else instant(due)
    if progress.status in RESTING:
        tx.afterwards(worker.rests, saga.id, lambda: state_of(saga, course.plan, progress))
    if progress.is_over:
        saga.finished_at, saga.wake_at = tx.now, None
        saga.output = None if progress.output is None else encode(progress.output).decode()


def current_step(progress: Progress) -> str | None:
    """The first step that something is being done about."""
    for name, step in progress.steps.items():
        if step.action.status not in ("succeeded", "skipped", "pending") and not progress.is_over:
            return name
    return None


def key_of(saga: Saga, send: Send) -> str:
    """The same at every attempt, after every crash: what makes a participant's work happen once."""
    return f"{saga.name}.{send.step.name}.{'a' if send.op == 'action' else 'c'}"


def context_of(saga: Saga, send: Send) -> dict[str, Any]:
    return {"saga_id": saga.name, "saga_name": saga.title, "step": send.step.name, "op": send.op,
            "attempt": send.attempt, "outcome": send.outcome}  # fmt: skip


def push(tx: Transaction, saga: Saga, course: Course, send: Send) -> None:
    path = send.step.action if send.op == "action" else send.step.compensation
    assert send.step.service
    assert path
    attempt = Attempt(
        tx.call.namespace, saga.name, saga.title, send.step.name, send.op, send.attempt, send.step.service, path,
        send.step.timeout, key_of(saga, send), encode({"input": send.input, "context": context_of(saga, send)}),
        send.outcome, tx.call.correlation_id,
    )  # fmt: skip
    tx.afterwards(worker.attempt, attempt)


def queue(tx: Transaction, saga: Saga, course: Course, send: Send) -> None:
    assert send.step.service
    action = send.step.action if send.op == "action" else send.step.compensation
    body = {"saga_name": saga.title, "action": action, "idempotency_key": key_of(saga, send),
            "input": send.input, "context": context_of(saga, send)}  # fmt: skip
    queue = tx.address(send.step.service)
    tx.add_at(
        Task, task_address(saga, send.step.name, send.op), queue=queue, saga=saga.id, step=send.step.name,
        op=send.op, attempt=send.attempt, body=encode(body).decode(), queued_at=tx.now,
    )  # fmt: skip
    tx.afterwards(worker.queued, queue)
