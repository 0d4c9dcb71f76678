"""What operators and other systems say to sagas. Each is decided at once, under the saga's row, and is in its log."""

from asyncio import gather
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from orjson import Fragment

from core.batch import Transaction
from core.callers import Call
from core.encoding import decode
from core.errors import SyrosError
from core.operations import command, query
from core.runtime import runtime
from core.types import Instant, Json, Text
from sagas.errors import NotPaused, NotStuck, PivotPassed, SagaOver, StepNotFound, TooManySignals
from sagas.models import Saga
from sagas.progress import Side
from sagas.rules import Course
from sagas.services.courses import course_of, saga_of, store
from sagas.services.looking import Choice, matching
from sagas.states import state_of
from sagas.types import ChosenTags, ErrorCode, SagaId, SagaName, SagaState, Status, StepName

SIGNALS = 100  # that a saga keeps for steps to come


def touches(params: dict[str, Any]) -> list[tuple[type[Any], str]]:
    return [(Saga, params["saga_id"])]


def told(
    tx: Transaction, saga_id: str, verb: str | None, say: Callable[[Course], None], **about: Any
) -> SagaState:
    """Have something said to a saga that is not over, and the saga go on.

    Raises: SagaNotFound, SagaOver.
    """
    saga = saga_of(tx, saga_id)
    course = course_of(tx, saga)
    if course.saga.is_over:
        raise SagaOver(f"The saga is {course.saga.status}.", saga_id=saga_id, saga_status=course.saga.status)
    if verb:  # else the rules say it
        tx.emit(saga, f"saga.{verb}", {name: value for name, value in about.items() if value is not None})
    say(course)
    course.proceed()
    store(tx, saga, course)
    return state_of(saga, course.plan, course.saga)


@command("POST sagas/{saga_id}/cancel", returns=SagaState, touches=touches)
def cancel(tx: Transaction, *, saga_id: SagaId, reason: Text) -> SagaState:
    """Turn a saga back: what is under way comes to its end, then everything that was done is compensated.

    Errors: `saga_not_found` (404), `saga_over` (409), `pivot_passed` (409).
    """

    def say(course: Course) -> None:
        if course.is_pivot_passed:
            raise PivotPassed("There is no way back any more.", saga_id=saga_id)
        if course.saga.status == "paused":
            course.resume()
        if course.saga.status != "compensating":
            course.cancel(reason)

    return told(tx, saga_id, "cancelled", say, reason=reason)


@command("POST sagas/{saga_id}/pause", returns=SagaState, touches=touches)
def pause(tx: Transaction, *, saga_id: SagaId, reason: Text | None = None) -> SagaState:
    """Begin nothing more until the saga is resumed; its clocks stand still. Answers that come are kept.

    Errors: `saga_not_found` (404), `saga_over` (409).
    """

    def say(course: Course) -> None:
        if course.saga.status != "paused":
            course.pause()

    return told(tx, saga_id, "paused", say, reason=reason)


@command("POST sagas/{saga_id}/resume", returns=SagaState, touches=touches)
def resume(tx: Transaction, *, saga_id: SagaId, reason: Text | None = None) -> SagaState:
    """Go on, as if no time had passed.

    Errors: `saga_not_found` (404), `saga_over`, `not_paused` (409).
    """

    def say(course: Course) -> None:
        if course.saga.status != "paused":
            raise NotPaused(
                f"The saga is {course.saga.status}.", saga_id=saga_id, saga_status=course.saga.status
            )
        course.resume()

    return told(tx, saga_id, "resumed", say, reason=reason)


@command("POST sagas/{saga_id}/terminate", returns=SagaState, touches=touches)
def terminate(tx: Transaction, *, saga_id: SagaId, reason: Text) -> SagaState:
    """End a saga where it is: nothing more is called, and what was done stays done (`dirty`).

    Errors: `saga_not_found` (404), `saga_over` (409).
    """
    return told(tx, saga_id, "terminating", lambda course: course.terminate(reason), reason=reason)


@command("POST sagas/{saga_id}/signal", returns=SagaState, touches=touches)
def signal(
    tx: Transaction, *, saga_id: SagaId, signal: StepName, payload: Json = None, reason: Text | None = None
) -> SagaState:
    """Give a signal to the steps that wait for it; with none, it is kept for the first that will, behind those that
    came before it. The payload is that step's output. The history says the `reason`. A saga keeps up to 100.

    Errors: `saga_not_found` (404), `saga_over`, `too_many_signals` (409).
    """

    def say(course: Course) -> None:
        course.signal(signal, decode(payload or "null"), reason)
        if course.kept_signals > SIGNALS:
            raise TooManySignals(f"The saga keeps {SIGNALS} signals already.", saga_id=saga_id)

    return told(tx, saga_id, None, say)


@command("POST sagas/{saga_id}/retry", returns=SagaState, touches=touches)
def retry(tx: Transaction, *, saga_id: SagaId, reason: Text) -> SagaState:
    """Try again everything of a saga in `attention` that is stuck, with the same Idempotency-Keys.

    Errors: `saga_not_found` (404), `saga_over`, `not_stuck` (409).
    """

    def say(course: Course) -> None:
        stuck = course.stuck
        if not stuck:
            raise NotStuck(
                f"The saga is {course.saga.status}.", saga_id=saga_id, saga_status=course.saga.status
            )
        for name, op in stuck.items():
            course.retry(name, op)

    return told(tx, saga_id, "retried", say, reason=reason)


# -- many --------------------------------------------------------------------------------------------

VERBS = {"cancel": cancel, "pause": pause, "resume": resume, "retry": retry, "terminate": terminate}
MANY = 1000  # sagas that one call is about


@dataclass(slots=True)
class NotDone:
    saga_id: str
    code: str
    detail: str


@dataclass(slots=True)
class BatchResult:
    """How many sagas were found, for how many it was done, and for which it was not. `more`: there are others yet."""

    matched: int
    done: int
    failed: list[NotDone]
    more: bool


@query("POST sagas/batch", name="sagas.batch", returns=BatchResult, changes=True)
async def batch(
    call: Call,
    *,
    verb: Literal["cancel", "pause", "resume", "retry", "terminate"],
    reason: Text,
    status: Status | None = None,
    name: SagaName | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    tag: ChosenTags = [],  # noqa: B006
    error_code: ErrorCode | None = None,
    dry_run: bool = True,
) -> BatchResult:
    """Say the same to up to 1,000 sagas that are not over, the newest first: of one `status`, `name`, begun `since`
    then and before `until`, with every `tag` (`key:value`), that failed with `error_code`. With `dry_run`, which is the
    default, it is only told how many there are.
    """
    choice = Choice(status, name, since, until, tag, error_code, is_live=True)
    found = await matching(call, choice, MANY + 1)
    ids = [item.saga_id for item in found[:MANY]]
    outcomes = [] if dry_run else await gather(*(said_to(call, verb, saga_id, reason) for saga_id in ids))
    failed = [each for each in outcomes if each is not None]
    return BatchResult(len(ids), 0 if dry_run else len(ids) - len(failed), failed, len(found) > MANY)


async def said_to(call: Call, verb: str, saga_id: str, reason: str) -> NotDone | None:
    """What went wrong, if anything did."""
    by = replace(call, idempotency_key=None, size=0)
    try:
        await runtime.run(VERBS[verb], by, {"saga_id": saga_id, "reason": reason, "fence": None})
    except SyrosError as refusal:
        return NotDone(saga_id, refusal.code, str(refusal))
    return None


# -- one step ----------------------------------------------------------------------------------------


def stuck_side(course: Course, step: str) -> str:
    """Which side of a step waits for a human.

    Raises: StepNotFound, NotStuck.
    """
    if step not in course.saga.steps:
        raise StepNotFound(f"The saga has no step {step}.", step=step)
    if step not in course.stuck:
        side: Side = course.saga.steps[step].action
        raise NotStuck(f"The step is {side.status}.", step=step, step_status=side.status)
    return course.stuck[step]


@command("POST sagas/{saga_id}/steps/{step}/retry", name="steps.retry", returns=SagaState, touches=touches)
def retry_step(
    tx: Transaction, *, saga_id: SagaId, step: StepName, reason: Text, input: Json | None = None
) -> SagaState:
    """Try a stuck step, or its stuck compensation, again, with the same Idempotency-Key; and with another
    `input`, if one is given.

    Errors: `saga_not_found`, `step_not_found` (404), `saga_over`, `not_stuck` (409).
    """

    def say(course: Course) -> None:
        op = stuck_side(course, step)
        if input is not None:
            course.saga.steps[step].edited[op] = decode(input)
        course.retry(step, op)

    given = None if input is None else Fragment(input)
    return told(tx, saga_id, "step_retried", say, step=step, reason=reason, input=given)


@command("POST sagas/{saga_id}/steps/{step}/skip", name="steps.skip", returns=SagaState, touches=touches)
def skip_step(tx: Transaction, *, saga_id: SagaId, step: StepName, reason: Text) -> SagaState:
    """Go on without a stuck step, or without its stuck compensation: the saga is `dirty` then.

    Errors: `saga_not_found`, `step_not_found` (404), `saga_over`, `not_stuck` (409).
    """
    return told(
        tx, saga_id, "step_skipped", lambda course: course.settle(step, stuck_side(course, step), "skipped"),
        step=step, reason=reason,
    )  # fmt: skip


@command(
    "POST sagas/{saga_id}/steps/{step}/complete", name="steps.complete", returns=SagaState, touches=touches
)
def complete_step(
    tx: Transaction, *, saga_id: SagaId, step: StepName, reason: Text, output: Json = None
) -> SagaState:
    """Say that a stuck step, or its stuck compensation, was done by other means, and what it answered.

    Errors: `saga_not_found`, `step_not_found` (404), `saga_over`, `not_stuck` (409).
    """

    def say(course: Course) -> None:
        course.settle(step, stuck_side(course, step), "succeeded", decode(output or "null"))

    return told(tx, saga_id, "step_completed", say, step=step, reason=reason)


@command(
    "POST sagas/{saga_id}/steps/{step}/compensate",
    name="steps.compensate",
    returns=SagaState,
    touches=touches,
)
def compensate_step(tx: Transaction, *, saga_id: SagaId, step: StepName, reason: Text) -> SagaState:
    """Give a stuck step of a saga in `attention` up, though the pivot was passed: turn back and compensate
    everything that may have had an effect, the pivot included.

    Errors: `saga_not_found`, `step_not_found` (404), `saga_over`, `not_stuck` (409).
    """

    def say(course: Course) -> None:
        stuck_side(course, step)
        course.turn_back(reason)

    return told(tx, saga_id, "step_compensated", say, step=step, reason=reason)
