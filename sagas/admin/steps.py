"""The steps of a saga as its page shows them, and what can be done about those that are stuck."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.utils.html import format_html

from core.console import Panel, fetch
from sagas import progress as stored_progress
from sagas.admin.words import failure, folded, length, saga_link, side_label
from sagas.models import Saga
from sagas.plans import Plan, StepPlan
from sagas.progress import Progress, Side
from sagas.rules import Course
from sagas.services.courses import plan_at
from sagas.states import steps_of
from sagas.types import CompensationState, StepState

STANDING = """select s.progress::text, d.body::text from sagas_saga s join sagas_definition d on d.id = s.definition
    where s.id = %s"""
WAITS = ("backoff", "waiting", "queued", "locking")  # until something is due
# What can be done about a stuck action, and about a stuck compensation.
HELP = {
    "action": [
        ("steps_retry", "Retry"),
        ("steps_skip", "Skip"),
        ("steps_complete", "Complete"),
        ("steps_compensate", "Give up and compensate"),
    ],
    "compensate": [("steps_retry", "Retry"), ("steps_skip", "Skip"), ("steps_complete", "Complete")],
}
WHAT = {"failed": "its action failed", "unknown": "nobody knows what came of its action",
        "stuck": "its compensation failed"}  # fmt: skip
NO_PLAN = Plan({}, {}, None, "reverse")


def standing(saga: Saga) -> tuple[Plan, Progress] | None:
    """What a saga is to do and how far it is; none, if it was forgotten meanwhile."""
    for progress, body in fetch(STANDING, [saga.pk]):
        return plan_at(saga.definition, body), stored_progress.from_text(progress)
    return None


def stuck_in(progress: Progress) -> dict[str, str]:
    """The steps that only a human can help, each with the op that is stuck: no matter what they are to do."""
    return Course(NO_PLAN, progress, {}, 0.0).stuck


def side_of(progress: Progress, name: str, op: str) -> Side:
    step = progress.steps[name]
    return step.action if op == "action" else step.undo


# -- all of them -------------------------------------------------------------------------------------


def steps_panel(saga: Any, plan: Plan, progress: Progress) -> Panel:
    rows = [
        [step.name, does(saga, plan.steps[step.name], progress), side_label(step.status), step.attempts,
         started(saga, step), took(saga, step), due(saga, step), answer(step), compensation(step.compensation)]
        for step in steps_of(plan, progress)
    ]  # fmt: skip
    headers = [
        "step", "does", "status", "attempts", "began after", "took", "due in", "output or error", "compensation",
    ]  # fmt: skip
    return Panel("Steps", headers, rows)


def does(saga: Saga, step: StepPlan, progress: Progress) -> str:
    if step.kind == "call":
        return f"{step.service}/{step.action}"
    if step.kind == "signal":
        return f"awaits signal {step.signal}"
    child = progress.steps[step.name].child
    if child:
        return format_html("saga {}", saga_link(f"{saga.namespace}/{child}"))
    return f"saga {step.child[0]}" if step.child else "sleeps"


def started(saga: Saga, step: StepState) -> str:
    if step.started_at is None:
        return "-"
    after = length(max(step.started_at - saga.created_at, timedelta(0)).total_seconds())
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', step.started_at.isoformat(), step.started_at, after
    )


def took(saga: Any, step: StepState) -> str:
    if step.started_at is None:
        return "-"
    return length(((step.finished_at or saga.finished_at or saga.now) - step.started_at).total_seconds())


def due(saga: Any, step: StepState) -> str:
    if step.due_at is None or step.status not in WAITS:
        return "-"
    return length(max(step.due_at - saga.now, timedelta(0)).total_seconds())


def answer(step: StepState) -> str:
    if step.error:
        return failure(step.error)
    return "-" if step.output is None else folded(step.output)


def compensation(side: CompensationState | None) -> str:
    if side is None:
        return "none"
    if side.status == "pending":
        return "-"
    attempts = f"{side.attempts} attempts" if side.attempts != 1 else "1 attempt"
    return format_html(
        "{} {} {}", side_label(side.status), attempts, failure(side.error) if side.error else ""
    )


# -- those that are stuck ----------------------------------------------------------------------------


@dataclass
class Stuck:
    """A step that waits for a human. `verbs`: actions of the page, each with what its button says."""

    step: str
    what: str
    error: str
    verbs: list[tuple[str, str]]


@dataclass
class StuckPanel(Panel):
    template: str = "admin/stuck.html"
    stuck: list[Stuck] = field(default_factory=list)


def stuck_panel(progress: Progress) -> Iterator[Panel]:
    """What waits for a human, if anything does."""
    stuck = [told(progress, name, op) for name, op in stuck_in(progress).items()]
    if stuck:
        note = "Each is tried with the same Idempotency-Key as before."
        yield StuckPanel("Stuck steps", [], note=note, stuck=stuck)


def told(progress: Progress, name: str, op: str) -> Stuck:
    side = side_of(progress, name, op)
    what = f"{WHAT.get(side.status, side.status)}, after {side.attempts} attempts"
    return Stuck(name, what, failure(side.error) if side.error else "", HELP[op])
