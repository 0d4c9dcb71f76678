"""What sagas promise, over random graphs, outcomes and interruptions, as a referee sees it who keeps a ledger of what
was sent and what is known of it, and is too simple to be wrong.

He decides nothing: no order of work is his, only what is legal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sagas import progress as stored
from sagas.plans import Plan, StepPlan, compile_plan
from sagas.progress import FINAL, Progress, StepProgress
from sagas.rules import CHECKS, CONFIGURATION_ATTEMPTS, DONE, OUT, Course, Outcome, Send, wake_at
from sagas.types import RetryPolicy, Step

START = 1_000_000.0
SCOPE: dict[str, Any] = {"input": {}, "saga": {"id": "s", "name": "n"}, "metadata": {}}
LEASE = 10.0
BEGUN = ("step.dispatched", "step.queued", "step.waiting", "step.succeeded")
SENT = {"step.dispatched": "action", "step.queued": "action",
        "compensation.dispatched": "compensate", "compensation.queued": "compensate"}  # fmt: skip
QUIET = settings(
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# -- graphs ------------------------------------------------------------------------------------------

AT_ONCE = RetryPolicy(max_attempts=2, initial_delay_seconds=0.0)
POLICIES = [
    None,
    AT_ONCE,
    RetryPolicy(max_attempts=1),
    RetryPolicy(max_attempts=2, backoff_strategy="fixed", initial_delay_seconds=0.5, jitter="none"),
    RetryPolicy(max_attempts=9, non_retryable=["fatal"]),
    RetryPolicy(max_elapsed_seconds=6.0, backoff_strategy="linear", initial_delay_seconds=2.0),
]
# Each is made once: a strategy that is made while another one draws is examined anew at every draw.
KINDS = st.sampled_from(["call"] * 6 + ["sleep", "signal"])
CONDITIONS = st.sampled_from([None] * 8 + ["true", "false", "input.nothing"])
RETRIES = st.sampled_from(POLICIES)
NAPS = st.sampled_from([0, 3])
UNDOING = st.sampled_from(["undo", "undo", None])
UNDONE_WITH = st.sampled_from([None] * 7 + ["${input.nothing}"])
PIVOTS = st.sampled_from([False] * 5 + [True])
SERVICES = {found: st.sampled_from(found) for found in (("pushed",), ("pushed", "polled"))}
MOST = 6  # steps
PARENTS = [
    st.none() | st.lists(st.sampled_from([f"s{number}" for number in range(place)]), max_size=3, unique=True)
    for place in range(1, MOST)
]


@st.composite
def steps(draw: Any, place: int, services: tuple[str, ...]) -> Step:
    """One that may depend on those before it."""
    parents = draw(PARENTS[place - 1]) if place else []
    kind = draw(KINDS)
    said: dict[str, Any] = {
        "name": f"s{place}", "kind": kind, "depends_on": parents, "when": draw(CONDITIONS),
    }  # fmt: skip
    if kind == "sleep":
        return Step(**said, seconds=draw(NAPS))
    if kind == "signal":
        return Step(**said, signal="go", timeout_seconds=30.0)
    undoing = draw(UNDOING)
    return Step(
        **said, service=draw(SERVICES[services]), action="do", timeout_seconds=8.0, compensation=undoing,
        retry_policy=draw(RETRIES), compensation_input=draw(UNDONE_WITH) if undoing else None,
        compensation_retry_policy=draw(RETRIES), pivot=draw(PIVOTS),
    )  # fmt: skip


STEPS = {services: [steps(place, services) for place in range(MOST)] for services in SERVICES}
CHOICES, COUNTS = st.sampled_from([*SERVICES]), st.integers(1, MOST)
ORDERS = st.sampled_from(["reverse", "sequential", "parallel"])


@dataclass
class Graph:
    steps: list[Step]
    order: str

    def __repr__(self) -> str:
        """Short enough to be read when it is the one that went wrong."""
        return f"{self.order}: {[step.model_dump(exclude_defaults=True) for step in self.steps]}"


@st.composite
def graphs(draw: Any) -> Graph:
    found, order = STEPS[draw(CHOICES)], draw(ORDERS)
    return Graph([draw(step) for step in found[: draw(COUNTS)]], order)


# -- the referee -------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What is known of a step's action, or of its compensation.

    `effect`: none; elsewhere, it was accepted or goes on; denied, after that; unknown. `has`: who has the attempt that
    is under way: a participant that is `called` or has `accepted`, the `queue`, a `worker`.
    """

    attempts: int = 0
    has: str | None = None
    until: float = 0.0  # no earlier may it be given up
    effect: str = "none"
    is_done: bool = False
    is_settled: bool = False  # by an operator
    failures: int = 0
    first_failure: float = 0.0
    is_spent: bool = False
    not_before: float = 0.0
    place: int = 0

    @property
    def may_have_happened(self) -> bool:
        return not self.is_settled and (self.is_done or self.effect in ("elsewhere", "unknown"))


class Referee:
    """He hears of answers, sees what is said and sent, and blows the whistle at what was not allowed."""

    def __init__(self, plan: Plan, start_at: float = START) -> None:
        self.plan, self.start_at, self.now, self.was_paused = plan, start_at, START, False
        self.ledgers = {(name, op): Ledger() for name in plan.steps for op in ("action", "compensate")}
        self.awake: dict[str, float] = {}  # when a sleep ends
        self.is_turned = False
        self.final: str | None = None
        self.dispatched = 0

    def of(self, op: str) -> Iterator[tuple[StepPlan, Ledger]]:
        return ((self.plan.steps[name], each) for (name, of), each in self.ledgers.items() if of == op)

    @property
    def is_pivot_passed(self) -> bool:
        """One that is called for the first time is left out: see `test_pivot_that_is_under_way_is_in_doubt`."""
        return any(step.pivot and ledger.may_have_happened for step, ledger in self.of("action"))

    def policy(self, name: str, op: str) -> Any:
        step = self.plan.steps[name]
        return step.policy if op == "action" else step.undo_policy

    # -- what he hears -------------------------------------------------------------------------------

    def hears(self, name: str, op: str, outcome: Outcome) -> None:
        ledger, was = self.ledgers[name, op], self.ledgers[name, op].has
        ledger.has = None
        if outcome.kind == "succeeded":
            ledger.is_done = True
        elif outcome.kind == "accepted":
            ledger.has, ledger.until = "accepted", self.now + self.plan.steps[name].timeout
            ledger.effect = "unknown" if ledger.effect == "unknown" else "elsewhere"
        elif outcome.kind in ("ongoing", "deferred"):
            if outcome.kind == "ongoing":
                ledger.effect = "unknown" if ledger.effect == "unknown" else "elsewhere"
            ledger.not_before = self.now + (outcome.retry_after or 1.0)
        else:
            self.hears_failure(name, op, outcome, was)

    def hears_failure(self, name: str, op: str, outcome: Outcome, was: str | None) -> None:
        ledger = self.ledgers[name, op]
        if outcome.kind == "unknown":
            ledger.effect = "unknown"
        elif ledger.effect == "elsewhere" and (outcome.kind == "failed" or was == "accepted"):
            ledger.effect = "denied"
        ledger.first_failure = ledger.first_failure if ledger.failures else self.now
        ledger.failures += 1
        ledger.not_before = self.now + (outcome.retry_after or 0.0)
        ledger.is_spent = self.is_enough(name, op, outcome)

    def is_enough(self, name: str, op: str, outcome: Outcome) -> bool:
        """Patience with pauses is left to `test_patience_stands_still_in_a_pause`."""
        ledger, policy = self.ledgers[name, op], self.policy(name, op)
        return (
            (outcome.kind == "failed" and op == "action")
            or (outcome.kind == "misconfigured" and ledger.failures >= CONFIGURATION_ATTEMPTS)
            or (policy.attempts is not None and ledger.failures >= policy.attempts)
            or (outcome.code in policy.final)
            or (
                not self.was_paused
                and policy.patience is not None
                and self.now - ledger.first_failure >= policy.patience
            )
        )

    def loses(self, name: str, op: str) -> None:
        """Whoever made a call is gone."""
        ledger = self.ledgers[name, op]
        ledger.has, ledger.effect = None, "unknown"

    def is_told(self, name: str, op: str, verb: str) -> None:
        """By an operator."""
        ledger = self.ledgers[name, op]
        if verb == "retry":
            ledger.failures, ledger.is_spent, ledger.not_before = 0, False, 0.0
        else:
            ledger.is_settled = True

    # -- what he sees --------------------------------------------------------------------------------

    def sees(self, course: Course) -> None:
        was_passed = self.is_pivot_passed
        if self.final:
            assert course.saga.status == self.final
            assert not course.sends
            return
        if self.now < self.start_at:
            assert not course.sends, "it was to start later"
            assert not any(kind in BEGUN or kind == "saga.started" for kind, _ in course.facts)
        sends = iter(course.sends)
        for key in self.ledgers:
            self.sees_given_up(course, *key)
        for kind, data in course.facts:
            self.sees_fact(course, kind, data, was_passed)
            if kind in SENT:
                self.sees_sent(course, next(sends), SENT[kind], data["step"])
        assert next(sends, None) is None
        for send in course.sends:
            assert side_of(course.saga, send.step.name, send.op).status in OUT, (
                "it is sent and not waited for"
            )
        if course.saga.is_over:
            self.sees_end(course.saga)

    def sees_given_up(self, course: Course, name: str, op: str) -> None:
        """An attempt of which nothing was heard, and for which nobody waits any longer."""
        ledger, side = self.ledgers[name, op], side_of(course.saga, name, op)
        is_withdrawn = (name, op) in course.withdrawn
        if not ledger.has or (
            side.status in OUT and side.attempts == ledger.attempts and not is_withdrawn
        ):  # fmt: skip
            return
        if course.saga.status == "terminated":
            ledger.has = None
        elif ledger.has == "queue":
            self.sees_withdrawn(course, name, op)
        else:
            assert self.now >= ledger.until, "it was given up before its time"
            self.hears(name, op, Outcome("unknown"))

    def sees_withdrawn(self, course: Course, name: str, op: str) -> None:
        """A task that nobody has seen: pushed now, or kept back, by the same number; or given up."""
        ledger = self.ledgers[name, op]
        is_pushed = any((send.step.name, send.op, send.by) == (name, op, "push") for send in course.sends)
        is_ready = side_of(course.saga, name, op).status == "ready"
        if is_pushed or (is_ready and is_held(course.saga)):
            ledger.has = None
            ledger.attempts -= 1
        elif self.now >= ledger.until:
            self.hears(name, op, Outcome("failed" if op == "action" else "refused"))
        else:
            ledger.has = None
            assert op == "action"
            assert is_turning(course.saga)

    def sees_fact(self, course: Course, kind: str, data: dict[str, Any], was_passed: bool) -> None:
        if kind == "saga.compensating":
            assert data["reason"] == "operator" or not was_passed, "it turned back after the pivot"
            self.is_turned = True
        elif kind in BEGUN:
            for name in self.plan.steps[data["step"]].after:
                assert self.is_behind(course.saga, name), "what it depends on is not done"
        elif kind == "step.skipped" and not data["why"].startswith("an operator"):
            step = self.plan.steps[data["step"]]
            are_all_skipped = step.after and all(is_skipped(course.saga, name) for name in step.after)
            assert are_all_skipped or (step.when and step.when.render(SCOPE) is False)
        if kind == "step.waiting" and data["for_"] == "time":
            self.awake[data["step"]] = data["until"]
        if kind == "step.succeeded" and data["step"] in self.awake:
            assert self.now >= self.awake[data["step"]] or self.ledgers[data["step"], "action"].is_settled

    def is_behind(self, saga: Progress, name: str) -> bool:
        ledger = self.ledgers[name, "action"]
        if self.plan.steps[name].kind == "call":
            return ledger.is_done or ledger.is_settled or is_skipped(saga, name)
        return saga.steps[name].action.status in DONE

    def sees_sent(self, course: Course, send: Send, op: str, name: str) -> None:
        ledger = self.ledgers[name, op]
        assert (send.step.name, send.op, send.attempt) == (name, op, ledger.attempts + 1)
        assert not ledger.has, "it is under way already"
        assert not ledger.is_done
        assert not ledger.is_settled
        assert not ledger.is_spent, "it was tried often enough"
        assert self.now >= ledger.not_before, "it was to be asked later"
        assert self.is_turned == (op == "compensate")
        if op == "compensate":
            self.judge_undo(send)
        ledger.attempts, ledger.has = send.attempt, "called" if send.by == "push" else "queue"
        ledger.until = self.now + send.step.timeout  # for its answer, or for a worker to come
        if not ledger.place:
            self.dispatched += 1
            ledger.place = self.dispatched

    def judge_undo(self, send: Send) -> None:
        action = self.ledgers[send.step.name, "action"]
        assert not any(ledger.has for _, ledger in self.of("action")), "an action is still under way"
        assert action.may_have_happened or action.effect == "denied" or action.is_settled, "nothing was done"
        assert (send.outcome == "succeeded") == action.is_done or action.is_settled
        for step, ledger in self.of("action"):
            if ledger.may_have_happened and step.compensation and self.is_after(step, send.step):
                undo = self.ledgers[step.name, "compensate"]
                assert undo.is_done or undo.is_settled, f"{step.name} is to be compensated first"

    def is_after(self, step: StepPlan, other: StepPlan) -> bool:
        """In the order of compensations: was this step done later?"""
        if self.plan.order == "parallel":
            return False
        if self.plan.order == "sequential":
            return self.ledgers[step.name, "action"].place > self.ledgers[other.name, "action"].place
        return any(name == other.name or self.is_after(self.plan.steps[name], other) for name in step.after)

    # -- what he says in the end ---------------------------------------------------------------------

    def sees_end(self, saga: Progress) -> None:
        self.final = saga.status
        if saga.status == "succeeded":
            assert not self.is_turned
            assert all(self.is_behind(saga, name) for name in self.plan.steps)
        elif saga.status in ("compensated", "failed"):
            for step, ledger in self.of("action"):
                self.judge_step(saga, step, ledger)

    def judge_step(self, saga: Progress, step: StepPlan, action: Ledger) -> None:
        """Was it taken back if it may have happened, and not if it did not? Else the saga says that it is dirty."""
        undo = self.ledgers[step.name, "compensate"]
        assert not action.has
        assert not undo.has
        if not action.may_have_happened:
            assert action.effect == "denied" or action.is_settled or not undo.attempts
        elif step.compensation and not undo.is_settled:
            assert undo.is_done, f"{step.name} was not compensated"
        else:
            assert undo.is_done or undo.is_settled or saga.dirty


def side_of(saga: Progress, name: str, op: str) -> Any:
    return saga.steps[name].action if op == "action" else saga.steps[name].undo


def is_skipped(saga: Progress, name: str) -> bool:
    return saga.steps[name].action.status == "skipped"


def is_held(saga: Progress) -> bool:
    """Does it begin nothing for now: paused, left to a human, or broken while a pivot goes on?"""
    is_broken = any(step.action.status in ("failed", "unknown") for step in saga.steps.values())
    return saga.status in ("paused", "attention") or (saga.status == "running" and is_broken)


def is_turning(saga: Progress) -> bool:
    return saga.status in ("compensating", "compensated", "failed") or saga.before == "compensating"


# -- the game ----------------------------------------------------------------------------------------


def nothing(course: Course) -> None:
    """Nobody says anything."""


@dataclass
class Move:
    what: str
    choice: int
    kind: str
    is_elsewhere: bool  # decided by a process that calls nobody

    @property
    def outcome(self) -> Outcome:
        code = "fatal" if self.choice % 5 == 0 else "code"
        return Outcome(self.kind, {"n": self.choice}, code, "words", 4.0 if self.choice % 3 == 0 else None)


@dataclass
class Game:
    """A saga, its participants and workers, its operators, and time."""

    plan: Plan
    progress: Progress
    referee: Referee
    now: float = START
    leases: dict[tuple[str, str], float] = field(default_factory=dict)
    over: list[tuple[str, str, int]] = field(default_factory=list)  # attempts that somebody saw
    are_all_pushed: bool = False
    is_elsewhere: bool = False

    def decide(self, say: Callable[[Course], Any] = nothing) -> Course:
        """As every command does: load, say, proceed, store."""
        serves = None if self.is_elsewhere else self.is_served
        course = Course(self.plan, self.progress, SCOPE, self.now, serves, dict(self.leases))
        attempts = {
            key: each.attempts
            for key, each in self.referee.ledgers.items()
            if each.has not in (None, "queue")
        }
        say(course)
        course.proceed()
        self.referee.now = self.now
        self.referee.sees(course)
        for key, attempt in attempts.items():
            if self.referee.ledgers[key].attempts != attempt or not self.referee.ledgers[key].has:
                self.over.append((*key, attempt))
        for key in course.withdrawn:
            self.leases.pop(key, None)
        self.is_never_stuck(course)
        text = stored.to_text(self.progress)
        assert stored.from_text(text) == self.progress
        self.progress = stored.from_text(text)
        return course

    def is_served(self, service: str) -> bool:
        return service == "pushed" or self.are_all_pushed

    def is_never_stuck(self, course: Course) -> None:
        """What does it wait for?"""
        if self.progress.status == "attention":
            assert course.stuck
            assert wake_at(self.progress, self.now) is None
        elif self.progress.status in ("scheduled", "running", "compensating"):
            due = wake_at(self.progress, self.now)
            assert self.progress.is_calling or course.is_owner_needed or due is not None
            assert due is None or due > self.now or course.is_owner_needed, "it is looked at again and again"

    def under_way(self, *who: str) -> list[tuple[str, str]]:
        return [key for key, ledger in self.referee.ledgers.items() if ledger.has in who]

    # -- moves ---------------------------------------------------------------------------------------

    def play(self, move: Move) -> None:
        self.is_elsewhere = move.is_elsewhere
        if not self.progress.is_over or move.what in ("late", "time"):
            getattr(self, move.what)(move)
        self.is_elsewhere = False

    def answer(self, move: Move) -> None:
        if keys := self.under_way("called", "accepted", "worker"):
            self.hear(*keys[move.choice % len(keys)], move.outcome)

    def hear(self, name: str, op: str, outcome: Outcome) -> None:
        """A worker, and a participant that accepted, say at once what came of it."""
        ledger = self.referee.ledgers[name, op]
        if ledger.has != "called" and outcome.kind in ("accepted", "ongoing", "deferred"):
            return
        self.leases.pop((name, op), None)
        self.referee.now = self.now
        self.referee.hears(name, op, outcome)

        def say(course: Course) -> None:
            assert course.hear(name, op, ledger.attempts, outcome)

        self.over.append((name, op, ledger.attempts))
        self.decide(say)

    def late(self, move: Move) -> None:
        """The same again, or too late: it changes nothing."""
        ledgers = self.referee.ledgers
        found = [
            each for each in self.over if ledgers[each[:2]].has
        ] or self.over  # rather while another is under way
        if not found:
            return
        name, op, attempt = found[move.choice % len(found)]
        ledger = ledgers[name, op]
        if ledger.has and ledger.attempts == attempt:
            return  # it was accepted: that is no end
        before = stored.to_text(self.progress)

        def say(course: Course) -> None:
            assert not course.hear(name, op, attempt, move.outcome)
            assert stored.to_text(self.progress) == before
            assert [kind for kind, _ in course.facts] == ["step.late_result"]

        self.decide(say)

    def poll(self, move: Move) -> None:
        if keys := self.under_way("queue"):
            key = keys[move.choice % len(keys)]
            self.leases[key] = self.now + LEASE
            self.referee.ledgers[key].has, self.referee.ledgers[key].until = "worker", self.now + LEASE
            self.decide()

    def lose(self, move: Move) -> None:
        """The process that calls dies."""
        keys = self.under_way("called")
        for key in keys:
            self.referee.loses(*key)
            self.over.append((*key, self.referee.ledgers[key].attempts))

        def say(course: Course) -> None:
            for key in keys:
                course.lost(*key)

        self.decide(say)

    def time(self, move: Move) -> None:
        due = min((side.due for side in self.progress.sides() if side.due is not None), default=self.now)
        self.now = [self.now + 0.5, self.now + 3.0, self.now + 15.0, max(self.now, due)][move.choice % 4]
        self.decide()

    def pause(self, move: Move) -> None:
        if self.progress.status in ("scheduled", "running", "compensating", "attention"):
            self.referee.was_paused = True
            self.decide(Course.pause)

    def resume(self, move: Move) -> None:
        if self.progress.status == "paused":
            self.decide(Course.resume)

    def cancel(self, move: Move) -> None:
        def say(course: Course) -> None:
            if course.is_pivot_passed:
                return
            if course.saga.status == "paused":
                course.resume()
            if course.saga.status != "compensating":
                course.cancel("enough")

        self.decide(say)

    def signal(self, move: Move) -> None:
        self.decide(lambda course: course.signal("go", move.choice))

    def terminate(self, move: Move) -> None:
        if move.choice == 0:
            self.decide(lambda course: course.terminate("enough"))

    def operate(self, move: Move) -> None:
        verb = ("retry", "skip", "complete", "turn back")[move.choice % 4]

        def say(course: Course) -> None:
            if not (stuck := sorted(course.stuck.items())):
                return
            name, op = stuck[move.choice % len(stuck)]
            if verb == "turn back":
                course.turn_back("enough")
                return
            self.referee.is_told(name, op, verb)
            if verb == "retry":
                course.retry(name, op)
            else:
                course.settle(name, op, "skipped" if verb == "skip" else "succeeded")

        self.decide(say)

    def register(self, move: Move) -> None:
        """Instances of all services come, or go."""
        self.are_all_pushed = not self.are_all_pushed
        self.decide()

    # -- the end -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everybody does what is asked, and the saga comes to an end."""
        for _ in range(200):
            if self.progress.is_over:
                return
            self.help_on()
        raise AssertionError("it goes on for ever")

    def help_on(self) -> None:
        if self.progress.status == "paused":
            self.decide(Course.resume)
        elif self.progress.status == "attention":
            self.operate(Move("operate", 2, "", False))
        elif keys := self.under_way("called", "accepted", "worker"):
            self.hear(*keys[0], Outcome("succeeded"))
        elif self.under_way("queue"):
            self.poll(Move("poll", 0, "", False))
        else:
            due = wake_at(self.progress, self.now)
            self.now = max(self.now, due or self.now)
            self.decide()


MOVES = ["answer"] * 12 + ["poll"] * 3 + ["time"] * 5 + ["late"] * 4 + ["operate"] * 2 + [
    "lose", "lose", "lose", "pause", "resume", "resume", "cancel", "signal", "terminate", "register",
]  # fmt: skip
OUTCOMES = ["succeeded"] * 6 + ["failed", "refused", "misconfigured", "unknown", "unknown", "ongoing", "accepted",
            "deferred"]  # fmt: skip
moves = st.builds(
    Move,
    st.sampled_from(MOVES),
    st.integers(0, 11),
    st.sampled_from(OUTCOMES),
    st.sampled_from([False] * 9 + [True]),
)


def play(graph: Graph, turns: list[Move], deadline: float | None, delay: float) -> None:
    plan = compile_plan(graph.steps, order=graph.order)
    progress = Progress(
        "scheduled" if delay else "running",
        start_at=START + delay if delay else None,
        deadline=deadline and START + delay + deadline,
        steps={name: StepProgress() for name in plan.steps},
    )
    game = Game(plan, progress, Referee(plan, START + delay))
    game.decide()
    for move in turns:
        game.play(move)
    game.finish()
    assert game.progress.status in FINAL
    game.late(Move("late", 0, "succeeded", False))


def run(examples: int, **more: Any) -> None:
    @settings(QUIET, max_examples=examples, **more)
    @given(
        graphs(),
        st.lists(moves, max_size=40),
        st.sampled_from([None, None, None, 12.0]),
        st.sampled_from([0.0, 0.0, 0.0, 4.0]),
    )
    def property_holds(graph: Graph, turns: list[Move], deadline: float | None, delay: float) -> None:
        play(graph, turns, deadline, delay)

    property_holds()


def test_rules_do_what_sagas_promise() -> None:
    run(250)


@pytest.mark.long
def test_rules_do_what_sagas_promise_for_20_000_sagas() -> None:
    run(20_000)


# -- histories that go wrong -------------------------------------------------------------------------


def call(name: str, **said: Any) -> Step:
    return Step(**{"name": name, "service": "pushed", "action": "do", "compensation": "undo", **said})


def game_of(*found: Step, order: str = "reverse") -> Game:
    plan = compile_plan(found, order=order)
    game = Game(plan, Progress(steps={name: StepProgress() for name in plan.steps}), Referee(plan))
    game.decide()
    return game


def done(game: Game, *names: str) -> None:
    for name in names:
        game.hear(name, "action", Outcome("succeeded"))


@pytest.mark.parametrize("order", ["reverse", "sequential"])
def test_step_without_compensation_holds_up_no_other(order: str) -> None:
    game = game_of(call("a"), call("b", compensation=None), call("c"), order=order)
    done(game, "a", "b")
    game.hear("c", "action", Outcome("failed"))
    assert game.progress.status == "compensating"
    game.hear("a", "compensate", Outcome("succeeded"))
    assert (game.progress.status, game.progress.dirty) == ("compensated", True)


def test_task_that_was_withdrawn_at_once_is_not_queued() -> None:
    game_of(call("a", service="polled"), call("b", depends_on=[], when="input.nothing"))


def test_what_is_taken_back_goes_on_though_a_task_was_withdrawn_at_once() -> None:
    """All in one decision: a task is queued and withdrawn, a step has no compensation, and another one has."""
    game = game_of(
        call("a"), call("b", compensation=None), call("c", service="polled"),
        call("d", depends_on=["a", "b"], when="input.nothing"),
    )  # fmt: skip
    done(game, "a", "b")
    assert game.progress.steps["a"].undo.status == "calling"


def test_what_was_helped_in_a_pause_goes_on_afterwards() -> None:
    game = game_of(call("a", compensation_input="${input.nothing}"), call("b"))
    done(game, "a")
    game.hear("b", "action", Outcome("failed"))
    assert game.progress.status == "attention"
    game.decide(Course.pause)
    game.operate(Move("operate", 1, "", False))  # skip
    game.decide(Course.resume)
    assert game.progress.status == "failed"


def test_deadline_that_waits_for_a_pivot_wakes_nobody() -> None:
    game = game_of(call("a"), call("b", pivot=True))
    game.progress.deadline = game.now + 1
    done(game, "a")
    game.now += 2
    game.decide()
    assert wake_at(game.progress, game.now) is None  # who calls looks after the call
    game.hear("b", "action", Outcome("failed"))
    assert (game.progress.status, game.progress.reason) == ("compensating", "deadline")


def test_lease_that_ran_out_is_none_of_the_next_attempt() -> None:
    game = game_of(call("a", service="polled", retry_policy=AT_ONCE))
    game.poll(Move("poll", 0, "", False))
    game.now += LEASE
    game.decide()
    action = game.progress.steps["a"].action
    assert (game.progress.status, action.status, action.attempts, action.failures) == (
        "running",
        "queued",
        2,
        1,
    )


def test_pause_does_not_forget_what_a_saga_in_attention_was_at() -> None:
    game = game_of(call("a", compensation_retry_policy=RetryPolicy(max_attempts=1)), call("b"))
    done(game, "a")
    game.decide(lambda course: course.cancel("enough"))
    game.hear("b", "action", Outcome("failed"))
    game.hear("a", "compensate", Outcome("unknown"))
    assert (game.progress.status, game.progress.before) == ("attention", "compensating")
    game.decide(Course.pause)
    game.decide(Course.resume)
    assert (game.progress.status, game.progress.before) == ("attention", "compensating")


def test_patience_stands_still_in_a_pause() -> None:
    game = game_of(call("a", retry_policy=RetryPolicy(max_elapsed_seconds=6.0, jitter="none")))
    game.hear("a", "action", Outcome("refused"))
    game.decide(Course.pause)
    game.now += 100.0
    game.decide(Course.resume)
    game.now += 0.2
    game.decide()
    game.hear("a", "action", Outcome("refused"))
    assert game.progress.steps["a"].action.status == "backoff"


def test_pivot_that_is_under_way_is_in_doubt() -> None:
    game = game_of(call("a", pivot=True, compensation=None), call("b", depends_on=[]))
    game.hear("b", "action", Outcome("failed"))
    game.hear("a", "action", Outcome("succeeded"))
    assert game.progress.status == "attention"


def test_call_that_was_accepted_and_did_nothing_is_not_compensated() -> None:
    game = game_of(call("a"))
    game.hear("a", "action", Outcome("accepted"))
    game.hear("a", "action", Outcome("failed"))
    assert game.progress.status == "failed"


def scheduled(delay: float, deadline: float | None = None) -> Game:
    plan = compile_plan([call("a")])
    progress = Progress(
        "scheduled", start_at=START + delay, deadline=deadline and START + delay + deadline,
        steps={"a": StepProgress()},
    )  # fmt: skip
    game = Game(plan, progress, Referee(plan, START + delay))
    game.decide()
    return game


def test_a_deadline_counts_from_a_start_that_is_late() -> None:
    game = scheduled(10.0, deadline=5.0)
    game.now += 100.0
    game.decide()
    assert (game.progress.status, game.progress.deadline) == ("running", START + 105.0)
    game.now += 5.0
    game.decide()
    assert (game.progress.status, game.progress.reason) == ("compensating", "deadline")


def test_the_instant_of_a_start_stays_where_it_is_in_a_pause() -> None:
    game = scheduled(10.0, deadline=5.0)
    game.decide(Course.pause)
    assert wake_at(game.progress, game.now) is None
    game.now += 4.0
    game.decide(Course.resume)
    assert (game.progress.status, wake_at(game.progress, game.now)) == ("scheduled", START + 10.0)
    assert game.progress.deadline == START + 15.0


def test_a_pause_over_the_start_lets_it_start_afterwards() -> None:
    game = scheduled(10.0)
    game.decide(Course.pause)
    game.now += 20.0
    game.decide()
    assert game.progress.status == "paused"
    game.decide(Course.resume)
    assert (game.progress.status, game.under_way("called")) == ("running", [("a", "action")])


@pytest.mark.parametrize("verb", [Course.cancel, Course.terminate])
def test_who_was_not_started_leaves_nothing(verb: Any) -> None:
    game = scheduled(10.0)
    course = game.decide(lambda course: verb(course, "enough"))
    assert (game.progress.status, game.progress.dirty) == (
        {"cancel": "failed"}.get(verb.__name__, "terminated"),
        False,
    )
    assert (course.sends, wake_at(game.progress, game.now)) == ([], None)


def test_a_deadline_that_a_pivot_holds_up_is_no_reason_to_look_again_and_again() -> None:
    plan = compile_plan([call("a", pivot=True, timeout_seconds=60.0)])
    game = Game(plan, Progress(deadline=START + 5.0, steps={"a": StepProgress()}), Referee(plan))
    game.decide()
    game.hear("a", "action", Outcome("accepted"))
    game.now += 6.0
    game.decide()
    assert (game.progress.status, wake_at(game.progress, game.now)) == ("running", START + 60.0)
    game.hear("a", "action", Outcome("succeeded"))
    assert game.progress.status == "succeeded"


def in_vain(*_: Any) -> None:
    """All locks are taken."""


def locked(progress: Progress, now: float, say: Callable[[Course], Any] = nothing) -> Course:
    plan = compile_plan([call("a", pivot=True), call("b", locks=[{"key": "k"}], timeout_seconds=8.0)])
    course = Course(plan, progress, SCOPE, now, lambda service: True, {}, in_vain)
    say(course)
    course.proceed()
    return course


@pytest.fixture
def waiting() -> Progress:
    """A saga that waits for a lock, for up to 8 seconds, after its pivot."""
    progress = Progress(steps={"a": StepProgress(), "b": StepProgress()})
    locked(progress, START)
    locked(progress, START, lambda course: course.hear("a", "action", 1, Outcome("succeeded")))
    assert progress.steps["b"].action.status == "locking"
    return progress


def test_time_to_wait_for_locks_stands_still_in_a_pause(waiting: Progress) -> None:
    locked(waiting, START, Course.pause)
    locked(waiting, START + 100.0, Course.resume)
    locked(waiting, START + 102.0)
    assert (waiting.status, waiting.steps["b"].action.status) == ("running", "locking")


def test_who_waited_for_locks_in_vain_waits_again_when_it_is_retried(waiting: Progress) -> None:
    locked(waiting, START + 9.0)
    assert waiting.status == "attention"
    locked(waiting, START + 100.0, lambda course: course.retry("b", "action"))
    assert (waiting.status, waiting.steps["b"].action.status) == ("running", "locking")


# -- what operators say ------------------------------------------------------------------------------

ONCE = RetryPolicy(max_attempts=1)
TRY_AGAIN = Move("operate", 0, "", False)  # the first by name of what is stuck


def status_of(game: Game, name: str, op: str = "action") -> str:
    return str(game.progress.steps[name].side(op).status)


def after_pivot(*found: Step) -> Game:
    game = game_of(call("p", pivot=True, compensation=None), *found)
    done(game, "p")
    return game


def test_what_comes_after_a_step_that_an_operator_skipped_is_done() -> None:
    game = after_pivot(call("a"), call("b"))
    game.hear("a", "action", Outcome("failed"))
    game.decide(lambda course: course.settle("a", "action", "skipped"))
    assert (status_of(game, "a"), status_of(game, "b")) == ("skipped", "calling")
    done(game, "b")
    assert (game.progress.status, game.progress.reason, game.progress.error) == ("succeeded", None, None)


def test_each_stuck_compensation_is_tried_again_by_itself() -> None:
    both = {"depends_on": [], "compensation_retry_policy": ONCE}
    game = game_of(call("a", **both), call("b", **both), call("c"))
    done(game, "a", "b")
    game.hear("c", "action", Outcome("failed"))
    for name in ("a", "b"):
        game.hear(name, "compensate", Outcome("unknown"))
    assert game.progress.status == "attention"
    game.operate(TRY_AGAIN)
    assert (game.progress.status, status_of(game, "a", "compensate")) == ("compensating", "calling")
    game.hear("a", "compensate", Outcome("succeeded"))
    assert (game.progress.status, game.progress.before) == ("attention", "compensating")


def test_each_step_that_failed_after_the_pivot_is_tried_again_by_itself() -> None:
    game = after_pivot(call("a", depends_on=["p"]), call("b", depends_on=["p"]))
    game.hear("a", "action", Outcome("failed"))
    assert game.progress.status == "running"  # the other one is under way
    game.hear("b", "action", Outcome("failed"))
    assert game.progress.status == "attention"
    game.operate(TRY_AGAIN)
    assert (game.progress.status, status_of(game, "a")) == ("running", "calling")
    done(game, "a")
    assert game.progress.status == "attention"


def test_a_human_is_asked_at_once_though_another_step_is_tried_again_and_again() -> None:
    game = after_pivot(call("a", depends_on=["p"]), call("b", depends_on=["p"]))
    game.hear("b", "action", Outcome("refused"))
    game.hear("a", "action", Outcome("failed"))
    assert (game.progress.status, status_of(game, "b")) == ("attention", "backoff")


def test_a_compensation_gets_the_input_that_an_operator_gave() -> None:
    game = after_pivot(call("a", input={"n": 1}), call("b"))
    game.hear("a", "action", Outcome("failed"))

    def edit(course: Course) -> None:
        course.saga.steps["a"].edited["action"] = {"n": 99}
        game.referee.is_told("a", "action", "retry")
        course.retry("a", "action")

    game.decide(edit)
    done(game, "a")
    game.hear("b", "action", Outcome("failed"))
    course = game.decide(lambda course: course.turn_back("no"))
    assert [send.input["input"] for send in course.sends] == [{"n": 99}]


def test_a_saga_that_is_recalled_in_a_pause_goes_on_backwards() -> None:
    game = game_of(call("a"), call("b", service="polled"))
    done(game, "a")
    game.decide(Course.pause)
    game.decide(lambda course: course.be_recalled("no more"))
    assert (game.progress.status, game.progress.heading) == ("compensating", "compensating")
    assert (game.progress.paused_from, status_of(game, "a", "compensate")) == (None, "calling")


def test_who_cancels_a_saga_that_has_turned_back_changes_nothing() -> None:
    game = game_of(call("a", compensation_retry_policy=ONCE), call("b"))
    done(game, "a")
    game.hear("b", "action", Outcome("failed", code="declined"))
    game.hear("a", "compensate", Outcome("unknown"))
    game.decide(lambda course: course.cancel("enough"))
    assert (game.progress.status, game.progress.reason) == ("attention", "step_failed")


# -- doubt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [Outcome("unknown", code="broken"), Outcome("ongoing")])
def test_nothing_is_taken_back_before_the_attempt_is_over_wherever_it_is(heard: Outcome) -> None:
    game = game_of(call("a", timeout_seconds=10.0, retry_policy=ONCE))
    game.now += 1
    game.hear("a", "action", heard)
    if heard.kind == "ongoing":
        game.decide(lambda course: course.cancel("enough"))
    assert (game.progress.status, status_of(game, "a", "compensate")) == ("compensating", "backoff")
    assert wake_at(game.progress, game.now) == START + 10.0
    game.now = START + 10.0
    game.decide()
    assert status_of(game, "a", "compensate") == "calling"


def test_an_answer_that_says_nothing_is_the_end_of_an_attempt() -> None:
    game = game_of(call("a", timeout_seconds=10.0, retry_policy=ONCE))
    game.hear("a", "action", Outcome("unknown", code="http_500"))
    assert status_of(game, "a", "compensate") == "calling"


def asked(progress: Progress, say: Callable[[Course], Any] = nothing) -> Course:
    plan = compile_plan([call("a", pivot=True, verify="check", retry_policy=ONCE)])
    course = Course(plan, progress, SCOPE, START, lambda service: True)
    say(course)
    course.proceed()
    return course


def silent(attempt: int) -> Callable[[Course], Any]:
    return lambda course: course.hear("a", "action", attempt, Outcome("unknown", code="http_500"))


def test_who_was_paused_meanwhile_is_asked_what_became_of_it() -> None:
    progress = Progress(steps={"a": StepProgress()})
    asked(progress)
    asked(progress, Course.pause)
    asked(progress, silent(1))
    assert [send.op for send in asked(progress, Course.resume).sends] == ["verify"]


def test_who_is_tried_again_is_asked_as_often_again() -> None:
    progress = Progress(steps={"a": StepProgress(checks=CHECKS - 1)})
    asked(progress)
    asked(progress, silent(1))
    asked(progress, silent(2))
    assert progress.status == "attention"
    asked(progress, lambda course: course.retry("a", "action"))
    assert progress.steps["a"].checks == 0


# -- rules that are broken, to see that they are found out -------------------------------------------

true_failed, true_hear = Course._failed_attempt, Course.hear


def is_first_to_be_undone(course: Course, step: StepPlan, needed: list[StepPlan]) -> bool:
    """In the order in which it was done."""
    left = {each.name for each in needed if course.saga.steps[each.name].undo.status not in DONE}
    return not left.isdisjoint(step.after)


def needs_undo_if_it_succeeded(course: Course, step: StepPlan) -> bool:
    return step.kind == "call" and course.saga.steps[step.name].action.status == "succeeded"


def needs_undo_if_it_was_sent(course: Course, step: StepPlan) -> bool:
    return step.kind == "call" and course.saga.steps[step.name].action.attempts > 0


def backward_at_once(course: Course) -> None:
    """Whatever is still under way."""
    for name, step in course.saga.steps.items():
        course._stop(course.plan.steps[name], step)
    needed = [step for step in course.plan.steps.values() if course._needs_undo(step)]
    for each in needed:
        course._look_at(each, course.saga.steps[each.name].undo, "compensate")
        course._take_back(each, needed)
    course._end(needed)


def failure_is_not_counted(course: Course, step: StepPlan, side: Any, op: str, outcome: Outcome) -> None:
    true_failed(course, step, side, op, outcome)
    side.failures -= 1


def one_counter_for_both(course: Course, step: StepPlan, side: Any, op: str, outcome: Outcome) -> None:
    true_failed(course, step, side, op, outcome)
    undo = course.saga.steps[step.name].undo
    undo.attempts = max(undo.attempts, side.attempts)


def late_result_counts(course: Course, name: str, op: str, attempt: int, outcome: Outcome) -> bool:
    return true_hear(course, name, op, side_of(course.saga, name, op).attempts, outcome)


def crash_is_no_doubt(course: Course, name: str, op: str) -> None:
    side = side_of(course.saga, name, op)
    side.status, side.due = "ready", None


def never(*_: Any) -> bool:
    return False


def advance_at_once(course: Course, step: StepPlan) -> None:
    """Whatever it depends on."""
    side = course.saga.steps[step.name].action
    if side.status == "pending":
        course._begin(step, side)
    if side.status == "ready":
        course._dispatch(step, side, "action")


def backoff_is_forgotten(course: Course, step: StepPlan, side: Any, op: str, outcome: Outcome) -> None:
    true_failed(course, step, side, op, outcome)
    side.due = None


def delay_is_none(*_: Any) -> float:
    return 0.0


def start_at_once(course: Course) -> None:
    """Whatever was said of it."""
    course.saga.status = "running"


def stop_goes_on(course: Course, step: StepPlan, progress: StepProgress) -> None:
    """What waits to be tried again is tried again."""
    if progress.action.status == "backoff":
        course._look_at(step, progress.action, "action")
        course._advance(step)
    elif progress.action.status in ("pending", "ready"):
        progress.action.status = "skipped"


BROKEN: dict[str, tuple[str, Any]] = {
    "compensations go forward": ("_is_blocked", is_first_to_be_undone),
    "compensations go all at once": ("_is_blocked", never),
    "step in doubt is not compensated": ("_needs_undo", needs_undo_if_it_succeeded),
    "step that did nothing is compensated": ("_needs_undo", needs_undo_if_it_was_sent),
    "compensation does not wait for what is under way": ("_backward", backward_at_once),
    "attempt is not counted": ("_failed_attempt", failure_is_not_counted),
    "compensation counts on from the action": ("_failed_attempt", one_counter_for_both),
    "pivot is ignored": ("is_pivot_passed", property(never)),
    "late result counts": ("hear", late_result_counts),
    "crash is no doubt": ("lost", crash_is_no_doubt),
    "step does not wait for those before it": ("_advance", advance_at_once),
    "nobody looks again after a failure": ("_failed_attempt", backoff_is_forgotten),
    "Retry-After is ignored": ("_delay", delay_is_none),
    "action is tried again on the way back": ("_stop", stop_goes_on),
    "it starts before its time": ("_start", start_at_once),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Course, *BROKEN[name])
    with pytest.raises(AssertionError):
        run(2000, phases=[Phase.generate])
