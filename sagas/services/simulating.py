"""Trying definitions out: what would become of a saga, if participants answered so? Nothing is called or stored."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from core.callers import Call
from core.encoding import decode
from core.errors import Invalid
from core.operations import query
from core.types import Json
from sagas.plans import Plan, Problem, compile_plan, problem
from sagas.progress import Progress, StepProgress
from sagas.rules import Course, Outcome, wake_at
from sagas.types import Order, StepName, Steps, Strict

ROUNDS = 20_000  # after which a saga counts as one that does not end
LOCK = 1  # the token of every lock here


class Supplied(Strict):
    """What a participant answers: every time, or the first `times` (then it succeeds)."""

    outcome: Literal["succeeded", "failed", "refused", "unknown"] = "succeeded"
    output: Json = None
    code: Annotated[str, Field(max_length=100)] | None = None
    times: Annotated[int, Field(ge=1, le=1000)] | None = None


Answers = Annotated[dict[StepName, Supplied], Field(max_length=500)]


@dataclass(slots=True)
class Happening:
    at_seconds: float
    type: str
    data: Any


@dataclass(slots=True)
class Simulation:
    """How it would end, after how many seconds, and everything that would happen on the way."""

    status: str
    reason: str | None
    output: Any
    error: Any
    dirty: bool
    seconds: float
    events: list[Happening]


@query("POST saga-definitions/simulate", name="definitions.simulate", returns=Simulation)
async def simulate(
    call: Call,
    *,
    steps: Steps,
    input: Json = None,
    output: Json | None = None,
    compensation_order: Order = "reverse",
    deadline_seconds: Annotated[float, Field(gt=0)] | None = None,
    answers: Answers = {},  # noqa: B006
    compensations: Answers = {},  # noqa: B006
) -> Simulation:
    """What would become of a saga with these steps. `answers` says what each step's participant answers, or gives a
    signal's payload as `output`, and `compensations` the same for what takes a step back; whoever is not mentioned
    succeeds. Signals come at once, steps that are sagas succeed unless they are said not to, locks are free, and nobody
    knows what became of an action whose participant is asked to `verify` it.

    Errors: `invalid` (422) names every fault.
    """
    plan = compile_plan(steps, output, compensation_order)
    check_answers(plan, {"answers": answers, "compensations": compensations})
    progress = Progress(deadline=deadline_seconds, steps={name: StepProgress() for name in plan.steps})
    given = decode(input or "null")
    return Playing(plan, progress, given, {"action": answers, "compensate": compensations}).to_the_end()


def check_answers(plan: Plan, said: dict[str, dict[str, Supplied]]) -> None:
    """Raises: Invalid, of what is said of steps that are not there, or that nobody answers for."""
    bad: list[Problem] = []
    for field, answers in said.items():
        answered = ("call", "saga") if field == "compensations" else ("call", "saga", "signal")
        for name in answers:
            at = f"/{field}/{name}"
            if name not in plan.steps:
                bad.append(problem(at, "unknown_step", f"there is no step {name}"))
            elif plan.steps[name].kind not in answered:
                bad.append(problem(at, "not_for_kind", f"nobody answers for a {plan.steps[name].kind} here"))
    if bad:
        raise Invalid(bad)


class Playing:
    """A saga whose participants are made up."""

    def __init__(
        self, plan: Plan, progress: Progress, given: Any, answers: dict[str, dict[str, Supplied]]
    ) -> None:
        self._plan, self._progress, self._answers = plan, progress, answers
        self._scope = {"input": given, "saga": {"id": "simulated", "name": "simulated"}, "metadata": {}}
        self._events: list[Happening] = []
        self._now = 0.0

    def to_the_end(self) -> Simulation:
        for _ in range(ROUNDS):
            if not self._go_on():
                break
        saga = self._progress
        return Simulation(
            saga.status, saga.reason, saga.output, saga.error, saga.dirty, round(self._now, 3), self._events
        )

    def _go_on(self) -> bool:
        """One decision, and what it leads to; whether there is more."""
        course = self._course()
        course.proceed()
        has_heard = self._hear(course)
        self._note(course)
        if self._progress.is_over or self._progress.status == "attention":
            return False
        if not (has_heard or self._signals()):
            due = wake_at(self._progress, self._now)
            self._now = max(self._now, due) if due is not None else self._now
            return due is not None
        return True

    def _course(self) -> Course:
        return Course(
            self._plan, self._progress, self._scope, self._now, lambda service: True,
            obtain=lambda step, wanted, seconds: {each.key: LOCK for each in wanted},
        )  # fmt: skip

    def _hear(self, course: Course) -> bool:
        """Whether anything was asked, and so was answered."""
        asked = [(send.step.name, send.op, send.attempt, None) for send in course.sends]
        asked += [(begin.step.name, "action", begin.attempt, begin.input) for begin in course.begins]
        asked += [(name, "compensate", step.undo.attempts, None) for name, step in self._progress.steps.items()
                  if step.undo.status == "waiting"]  # fmt: skip
        for step, op, attempt, unsaid in asked:
            course.hear(step, op, attempt, self._outcome(step, op, attempt, unsaid))
        return bool(asked)

    def _outcome(self, step: str, op: str, attempt: int, unsaid: Any) -> Outcome:
        """Parameter: `unsaid`, the output of what succeeds where nothing is said."""
        if op == "verify":
            return Outcome("unknown")
        said = self._answers[op].get(step)
        if said is None or (said.times is not None and attempt > said.times):
            return Outcome("succeeded", unsaid)
        return Outcome(said.outcome, decode(said.output or "null"), said.code)

    def _signals(self) -> bool:
        """Give every step that waits for one its signal."""
        waiting = [step for step in self._plan.steps.values()
                   if step.kind == "signal" and self._progress.steps[step.name].action.status == "waiting"]  # fmt: skip
        for step in waiting:
            course = self._course()
            said = self._answers["action"].get(step.name)
            course.signal(step.signal, decode(said.output or "null") if said else None)
            self._note(course)
        return bool(waiting)

    def _note(self, course: Course) -> None:
        self._events += [Happening(round(self._now, 3), kind, plain(data)) for kind, data in course.facts]


def plain(data: dict[str, Any]) -> dict[str, Any]:
    return {name.rstrip("_"): value for name, value in data.items() if value is not None}
