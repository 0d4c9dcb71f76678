"""Sagas as whoever may look at them sees them."""

from datetime import UTC, datetime
from typing import Any

from orjson import Fragment

from sagas.models import Saga
from sagas.plans import Plan, StepPlan
from sagas.progress import Progress, Side, StepProgress
from sagas.types import CompensationState, SagaState, StepState


def instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def state_of(saga: Saga, plan: Plan, progress: Progress) -> SagaState:
    """A saga as it is, for whoever may look at it."""
    status: Any = progress.status
    return SagaState(
        saga.name, saga.title, status, progress.reason, saga.current_step, Fragment(saga.input), progress.output,
        progress.error, Fragment(saga.metadata or "{}"), Fragment(saga.tags or "{}"), progress.dirty,
        steps_of(plan, progress), saga.created_at, at(progress.start_at), saga.deadline_at, saga.finished_at,
    )  # fmt: skip


def steps_of(plan: Plan, progress: Progress) -> list[StepState]:
    return [step_state(plan.steps[name], step) for name, step in progress.steps.items()]


def step_state(step: StepPlan, progress: StepProgress) -> StepState:
    kind: Any = step.kind
    side = progress.action
    return StepState(
        step.name, kind, step.service, step.action, side.status, side.attempts, at(side.started),
        at(side.finished), at(side.due), progress.output, side.error, undo_state(step, progress.undo),
    )  # fmt: skip


def undo_state(step: StepPlan, side: Side) -> CompensationState | None:
    if step.compensation is None:
        return None
    status = {"succeeded": "compensated"}.get(side.status, side.status)
    return CompensationState(status, side.attempts, at(side.started), at(side.finished), side.error)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else instant(seconds)
