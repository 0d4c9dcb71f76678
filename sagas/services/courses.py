"""Sagas in a transaction: loaded, decided about by the rules, stored with what became true. No operation is here."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from orjson import Fragment
from pydantic import TypeAdapter, ValidationError

from core.batch import Transaction
from core.encoding import decode, encode
from core.models import Process, Session
from core.sessions import end as end_session
from events.services import put
from events.types import NewEvent, StreamName
from locks.errors import CapacityMismatch, Deadlock
from locks.models import Claim
from locks.services.obtaining import give_back, granted, obtain
from locks.types import Item
from sagas import progress as stored_progress
from sagas.errors import DefinitionNotFound, SagaNotFound, TooDeep
from sagas.models import Definition, DefinitionName, Saga, Task
from sagas.participants import Attempt
from sagas.plans import Plan, plan_of
from sagas.progress import RESTING, Progress, StepProgress
from sagas.rules import Course, Outcome, Send, Wanted, wake_at
from sagas.states import instant, state_of
from sagas.worker import worker

NEAR = 5.0  # seconds; who sleeps for longer is nobody's meanwhile
PLANS = 1000
# How many sagas one can be in, each a step of the next: a definition that refers to itself comes to an end.
DEEPEST = 16
FOR_EVER = 100 * 365 * 86400.0  # seconds: how long the session of a saga lasts, which ends it
Child = tuple[str, str, str, Plan, Any, str]  # id, name, definition and what it means, input, parent
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


def named(tx: Transaction, name: str, version: int | None) -> tuple[str, Plan]:
    """Where a definition is stored, its last version unless said, and what it means.

    Raises: DefinitionNotFound.
    """
    found = tx.get(DefinitionName, name)
    version = version or (found.version if found else 0)
    if found is None or version > found.version:
        raise DefinitionNotFound(f"There is no definition {name}{f' version {version}' if version else ''}.")
    address = tx.address(versioned(name, version))
    return address, plan_for(tx, address)


def versioned(name: str, version: int) -> str:
    return f"{name}#{version:06d}"


def create(
    tx: Transaction,
    name: str,
    address: str,
    plan: Plan,
    given: str,
    *,
    metadata: str = "{}",
    tags: dict[str, str] | None = None,
    start_at: datetime | None = None,
    deadline_seconds: float | None = None,
    saga_id: str | None = None,
    parent: str | None = None,
    depth: int = 0,
    traceparent: str | None = None,
) -> tuple[Saga, Progress]:
    """A saga, and its first steps, if it is not to start later. Parameters: `given`, its input as JSON text;
    `start_at`, an instant to come; `deadline_seconds`, from its start; `parent`, the saga and the step that it is, as
    `saga.step`; `depth`, how many sagas it is in so; `traceparent`, of that saga."""
    begins = start_at or tx.now
    deadline = None if deadline_seconds is None else begins + timedelta(seconds=deadline_seconds)
    progress = begin(plan, start_at, deadline, depth)
    saga = tx.add(
        Saga,
        saga_id or tx.fresh_id(),
        title=name,
        definition=address,
        status=progress.status,
        progress="",
        input=given,
        metadata=metadata,
        tags=encode(tags or {}).decode(),
        parent=parent,
        traceparent=traceparent or tx.call.traceparent,
        created_at=tx.now,
        deadline_at=deadline,
    )
    about = {"name": name, "definition": address.partition("/")[2], "input": Fragment(given),
             "metadata": Fragment(metadata), "tags": tags or None, "parent": parent, "start_at": start_at}  # fmt: skip
    tx.emit(saga, "saga.scheduled" if start_at else "saga.started", told(about))
    course = course_of(tx, saga, progress)
    if depth > 1:
        # Its first steps have a transaction of their own: one for a whole tree would have no end.
        course.is_owner_needed = True
    else:
        course.proceed()
    store(tx, saga, course)
    return saga, progress


def saga_of(tx: Transaction, saga_id: str) -> Saga:
    """Raises: SagaNotFound."""
    if (found := tx.get(Saga, saga_id)) is None:
        raise SagaNotFound(f"There is no saga {saga_id}.", saga_id=saga_id)
    return found


def begin(plan: Plan, start_at: datetime | None, deadline: datetime | None, depth: int = 0) -> Progress:
    return Progress(
        "scheduled" if start_at else "running",
        depth=depth,
        start_at=start_at.timestamp() if start_at else None,
        deadline=deadline.timestamp() if deadline else None,
        steps={name: StepProgress() for name in plan.steps},
    )


def course_of(tx: Transaction, saga: Saga, progress: Progress | None = None) -> Course:
    """Where the saga stands; the task rows that say which workers have what are loaded where it matters."""
    progress = progress or stored_progress.from_text(saga.progress)
    scope = {
        "input": decode(saga.input),
        "saga": {"id": saga.name, "name": saga.title},
        "metadata": decode(saga.metadata or "{}"),
    }
    serves = worker.serves_in(saga.namespace) if may_call(tx, saga, progress) else None
    leases = leases_of(tx, saga, progress)
    plan = plan_for(tx, saga.definition)
    return Course(plan, progress, scope, tx.now.timestamp(), serves, leases, partial(obtain_for, tx, saga))


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
    """Write down how the saga stands, tell the log what happened, and have sent what is to be sent. What it means for
    other sagas comes last: they may have an answer at once."""
    was_over = saga.finished_at is not None
    children = name_children(tx, saga, course)
    for kind, data in course.facts:
        tx.emit(saga, kind, told(data))
    for step, op in course.withdrawn:
        if task := tx.at(Task, task_address(saga, step, op)):
            tx.remove(task)
    for event in course.appends:
        append(tx, saga, *event)
    for send in course.sends:
        (push if send.by == "push" else queue)(tx, saga, course, send)
    let_go(tx, saga, course)
    note(tx, saga, course)
    begin_children(tx, saga, course.saga.depth + 1, children)
    # All at once: each that is met one by one has the whole batch decided again.
    tx.load(*((Saga, tx.address(child)) for child in (*course.recalls, *course.ended)))
    for child in course.recalls:
        recall(tx, child, saga.name)
    for child in course.ended:
        end(tx, child, saga.name)
    if saga.parent and course.saga.is_over and not was_over:
        tell_parent(tx, saga, course.saga)


def told(data: dict[str, Any]) -> dict[str, Any]:
    """A fact as the log has it: instants as such, and `for` by its name."""
    found = {name.rstrip("_"): value for name, value in data.items() if value is not None}
    for name in ("until", "retry_at", "fetched_at"):
        if name in found:
            found[name] = instant(found[name])
    return found


def let_go(tx: Transaction, saga: Saga, course: Course) -> None:
    """Locks whose time is over, and all of them with the saga."""
    session = tx.get(Session, session_id(saga.name)) if course.released or course.saga.has_session else None
    if session is None or session.ended_at is not None:
        return
    if course.saga.is_over:
        end_session(tx, session, "closed")
        course.saga.has_session = False
    elif course.released:
        give_back(tx, session, course.released)


def append(tx: Transaction, saga: Saga, stream: str, kind: str, data: Any) -> None:
    """A step's event in another stream. A name that is none is told in the saga's own: the step is done."""
    try:
        event = NewEvent(event_type=kind, data=data, metadata={"correlation_id": saga.name})
        put(tx, TypeAdapter(StreamName).validate_python(stream), [event], "any")
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        tx.emit(saga, "step.events_failed", {"stream": stream[:300], "code": "bad_event", "message": why})


def tell_parent(tx: Transaction, saga: Saga, progress: Progress) -> None:
    """How the saga ended is what came of the step that it is."""
    parent_id, _, step = (saga.parent or "").partition(".")
    parent = tx.get(Saga, parent_id)
    if parent is None:
        return
    course = course_of(tx, parent)
    course.hear_child(step, progress)
    course.proceed()
    store(tx, parent, course)


def obtain_for(
    tx: Transaction, saga: Saga, step: str, wanted: list[Wanted], seconds: float
) -> dict[str, int] | Outcome | None:
    """Take locks for a step, with the saga's session."""
    try:
        items = [Item.model_validate(asdict(each)) for each in wanted]
        return obtain(tx, session_of(tx, saga), f"{saga.title}/{step}", items, seconds)
    except ValidationError as error:
        return Outcome("failed", code="bad_lock", message=error.errors()[0]["msg"])
    except (Deadlock, CapacityMismatch) as refusal:
        return Outcome("refused", code=refusal.code, message=str(refusal))


def name_children(tx: Transaction, saga: Saga, course: Course) -> list[Child]:
    """The sagas that steps are, before they are made: a step whose definition is not there has failed, and so has one
    that would be too deep."""
    found = []
    while course.begins:
        begin = course.begins.pop(0)
        assert begin.step.child
        try:
            refuse_too_deep(course.saga)
            address, plan = named(tx, *begin.step.child)
        except (DefinitionNotFound, TooDeep) as refusal:
            outcome = Outcome("failed", code=refusal.code, message=str(refusal))
            course.hear(begin.step.name, "action", begin.attempt, outcome)
            course.proceed()
            continue
        child = course.saga.steps[begin.step.name].child = tx.fresh_id()
        found.append(
            (child, begin.step.child[0], address, plan, begin.input, f"{saga.name}.{begin.step.name}")
        )
    return found


def refuse_too_deep(progress: Progress) -> None:
    """Raises: TooDeep."""
    if progress.depth >= DEEPEST:
        raise TooDeep(f"The saga is in {progress.depth} others: a step of it can be none.")


def begin_children(tx: Transaction, saga: Saga, depth: int, children: list[Child]) -> None:
    for saga_id, name, address, plan, given, parent in children:
        create(tx, name, address, plan, encode(given).decode(), saga_id=saga_id, parent=parent, depth=depth,
               traceparent=saga.traceparent)  # fmt: skip


def recall(tx: Transaction, saga_id: str, by: str) -> None:
    """Have the saga that a step is take back what it did."""
    saga = tx.get(Saga, saga_id)
    if saga is not None:
        course = course_of(tx, saga)
        course.be_recalled(f"Saga {by} turned back.")
        course.proceed()
        was_over = saga.finished_at is not None
        store(tx, saga, course)
        if was_over and course.saga.is_over:  # again, or as ever: whoever asks waits to hear of it
            tell_parent(tx, saga, course.saga)


def end(tx: Transaction, saga_id: str, by: str) -> None:
    """End the saga that a step is where it is, as the one was that it is a step of."""
    saga = tx.get(Saga, saga_id)
    if saga is not None and saga.finished_at is None:
        course = course_of(tx, saga)
        course.terminate(f"Saga {by} was terminated.")
        store(tx, saga, course)


def session_id(saga_id: str) -> str:
    return f"saga-{saga_id}"


def session_of(tx: Transaction, saga: Saga) -> Session:
    """The saga's own, which has its locks: it ends with the saga and no sooner."""
    found = tx.get(Session, session_id(saga.name))
    if found is None:
        found = tx.add(
            Session, session_id(saga.name), owner=f"saga {saga.title}", ttl_seconds=FOR_EVER, opened_at=tx.now,
            lock_delay_seconds=0.0, expires_at=tx.now + timedelta(seconds=FOR_EVER),
        )  # fmt: skip
        tx.emit(found, "session.opened", {"owner": found.owner})
    return found


@granted
def wake_who_waits(tx: Transaction, claim: Claim) -> None:
    """A saga has its lock: this process looks, if it is a worker; else whoever looks next."""
    name = claim.session or ""
    if worker.is_here and name.startswith("saga-"):
        tx.afterwards(worker.wake_later, tx.call.namespace, name.removeprefix("saga-"), 0.0)


def note(tx: Transaction, saga: Saga, course: Course) -> None:
    progress = course.saga
    saga.status, saga.reason, saga.dirty = progress.status, progress.reason, progress.dirty
    saga.deadline_at = instant(progress.deadline) if progress.deadline is not None else saga.deadline_at
    saga.error = encode(progress.error).decode() if progress.error else None
    note_failure(tx, saga, course)
    saga.current_step = current_step(progress)
    saga.progress = stored_progress.to_text(progress)
    due = course.now if course.is_owner_needed else wake_at(progress, course.now)
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
    saga.finished_at = (saga.finished_at or tx.now) if progress.is_over else None
    if progress.is_over:
        saga.wake_at = None
        saga.output = None if progress.output is None else encode(progress.output).decode()


def note_failure(tx: Transaction, saga: Saga, course: Course) -> None:
    side, code = course.failure
    if (side, code) != (saga.failed_side, saga.failed_code):
        saga.failed_side, saga.failed_code = side, code
        saga.failed_at = tx.now if code else None


def current_step(progress: Progress) -> str | None:
    """The first step that something is being done about."""
    for name, step in progress.steps.items():
        if step.action.status not in ("succeeded", "skipped", "pending") and not progress.is_over:
            return name
    return None


def key_of(saga: Saga, send: Send) -> str:
    """The same at every attempt, after every crash: what makes a participant's work happen once."""
    return f"{saga.name}.{send.step.name}.{send.op[0]}"


def path_of(send: Send) -> str | None:
    step = send.step
    return {"action": step.action, "compensate": step.compensation, "verify": step.verify}[send.op]


def context_of(tx: Transaction, saga: Saga, send: Send, tokens: dict[str, int] | None) -> dict[str, Any]:
    trace = trace_of(tx, saga)
    more = {"traceparent": trace} if trace else {}
    return {"saga_id": saga.name, "saga_name": saga.title, "step": send.step.name, "op": send.op,
            "attempt": send.attempt, "outcome": send.outcome, "fencing_tokens": tokens, **more}  # fmt: skip


def push(tx: Transaction, saga: Saga, course: Course, send: Send) -> None:
    path = path_of(send)
    assert send.step.service
    assert path
    tokens = course.tokens.get(send.step.name)
    body = encode({"input": send.input, "context": context_of(tx, saga, send, tokens)})
    attempt = Attempt(
        tx.call.namespace, saga.name, saga.title, send.step.name, send.op, send.attempt, send.step.service, path,
        send.step.timeout, key_of(saga, send), body, send.outcome, tokens, tx.call.correlation_id, trace_of(tx, saga),
    )  # fmt: skip
    tx.afterwards(worker.attempt, attempt)


def trace_of(tx: Transaction, saga: Saga) -> str | None:
    """The trace that a call belongs to: its saga's from beginning to end or, if it has none, that of who caused it."""
    traceparent: str | None = saga.traceparent or tx.call.traceparent
    return traceparent


def queue(tx: Transaction, saga: Saga, course: Course, send: Send) -> None:
    assert send.step.service
    body = {"saga_name": saga.title, "action": path_of(send), "idempotency_key": key_of(saga, send),
            "input": send.input, "context": context_of(tx, saga, send, course.tokens.get(send.step.name))}  # fmt: skip
    queue = tx.address(send.step.service)
    tx.add_at(
        Task, task_address(saga, send.step.name, send.op), queue=queue, saga=saga.id, step=send.step.name,
        op=send.op, attempt=send.attempt, body=encode(body).decode(), queued_at=tx.now,
    )  # fmt: skip
    tx.afterwards(worker.queued, queue)
