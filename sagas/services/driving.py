"""How sagas go on without anybody asking: what participants answered, and what time has done."""

from core.batch import Transaction
from core.operations import command
from sagas import progress as stored_progress
from sagas.models import Saga
from sagas.progress import Progress
from sagas.rules import Course, Outcome
from sagas.services.courses import course_of, is_dead, store


@command(touches=lambda params: [(Saga, params["saga_id"])])
def hear(tx: Transaction, *, saga_id: str, step: str, op: str, attempt: int, outcome: Outcome) -> str:
    """What came of a call of this process: the step goes on, and the next call is decided in the same transaction.
    Of a saga that another process took over meanwhile it changes nothing: what came of it is not this one's to say."""
    saga = tx.get(Saga, saga_id)
    if saga is None:
        return "gone"
    if saga.owner != tx.process_id:
        tx.emit(
            saga, "step.late_result", {"step": step, "op": op, "attempt": attempt, "outcome": outcome.kind}
        )
        return "late"
    return heard(tx, saga, step, op, attempt, outcome)


def heard(
    tx: Transaction,
    saga: Saga,
    step: str,
    op: str,
    attempt: int,
    outcome: Outcome,
    progress: Progress | None = None,
) -> str:
    """Whoever heard it. Returns the status of the step's side after that, or `late`."""
    course = course_of(tx, saga, progress)
    was_awaited = course.hear(step, op, attempt, outcome)
    course.proceed()
    store(tx, saga, course)
    if not was_awaited:
        return "late"
    return course.saga.steps[step].side(op).status


@command(touches=lambda params: [(Saga, saga_id) for saga_id in params["ids"]])
def wake(tx: Transaction, *, ids: list[str]) -> int:
    """Look at sagas for which something is due, or that a dead process left; take over what is left."""
    for saga_id in ids:
        saga = tx.get(Saga, saga_id)
        if saga is None:
            continue
        progress = stored_progress.from_text(saga.progress)
        if saga.owner not in (None, tx.process_id) and progress.is_calling and not is_dead(tx, saga.owner):
            continue
        go_on(tx, saga, progress, is_lost=saga.owner not in (None, tx.process_id))
    return len(ids)


@command(touches=lambda params: [(Saga, saga_id) for saga_id in params["ids"]])
def revive(tx: Transaction, *, ids: list[str]) -> int:
    """Make the calls again of which this process, whose they are, knows nothing."""
    for saga_id in ids:
        saga = tx.get(Saga, saga_id)
        if saga is not None and saga.owner == tx.process_id:
            go_on(tx, saga, stored_progress.from_text(saga.progress), is_lost=True)
    return len(ids)


def go_on(tx: Transaction, saga: Saga, progress: Progress, *, is_lost: bool) -> None:
    course = course_of(tx, saga, progress)
    if is_lost:
        lose_calls(course)
    course.proceed()
    store(tx, saga, course)


def lose_calls(course: Course) -> None:
    """Nobody knows what came of the calls that are under way."""
    for name, step in course.saga.steps.items():
        for op, side in step.sides():
            if side.status == "calling":
                course.lost(name, op)
