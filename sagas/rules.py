"""How a saga goes on. Pure: a plan, the progress so far, what was heard and the time go in; changed progress, facts for
the log and what is to be sent come out. No I/O, no clock and no chance but what is handed in.

The promise is kept here: before the pivot, every step whose action may have had an effect is compensated, also one
whose outcome nobody knows (as dtm does, https://dtm.pub); after it, forward until done or a human decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from sagas.expressions import MappingError, Scope
from sagas.plans import Plan, StepPlan
from sagas.progress import Progress, Side, StepProgress
from sagas.types import is_seconds

DONE = ("succeeded", "skipped")  # sides after which what depends on them goes on
OUT = ("calling", "queued", "waiting")  # sides of which something may still be heard
GOING = ("ready", "locking", *OUT)  # an attempt, which ends soon; retries may take days
OVER = ("succeeded", "skipped", "failed", "unknown")
BROKEN = "broken"  # the connection: the attempt may go on all the same
GRACE = 5.0  # seconds after which a call of which nothing is heard is given up; its caller's own limit comes first
CONFIGURATION_ATTEMPTS = 5
CONFIGURATION_DELAY = 2.0
ONGOING_DELAY = 1.0
CHECKS = 5  # times that a participant is asked what became of an action
CHECK_AGAIN = 1.0  # seconds between them
LOCK_AGAIN = 1.0  # seconds until who waits for locks looks again; a grant says so sooner
MESSAGE = 1000  # characters of a participant's that are kept


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of an attempt. `kind`: succeeded; accepted and ongoing (it goes on elsewhere);
    deferred (not asked, for now); failed (the
    participant says so, no effect); refused (not carried out, ask again); misconfigured; unknown."""

    kind: str
    output: Any = None
    code: str | None = None
    message: str = ""
    retry_after: float | None = None  # seconds
    fetched: float | None = None  # when a worker fetched it, in Unix seconds


@dataclass(frozen=True, slots=True)
class Send:
    """An attempt that is to be made. `by`: push, where this process calls; pull, where a worker fetches it."""

    step: StepPlan
    op: str  # action, compensate
    attempt: int
    by: str
    input: Any
    outcome: str | None  # of the action, for a compensation: succeeded or unknown


@dataclass(frozen=True, slots=True)
class Begin:
    """A saga that is to be started, because a step is one."""

    step: StepPlan
    attempt: int
    input: Any


NOTHING_HEARD = Outcome("unknown", code="timeout", message="Nothing was heard of the call.")
Fact = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A lock that a step wants before its action."""

    key: str
    mode: Any
    permits: int
    capacity: int | None


Obtain = Callable[[str, list[Wanted], float], "dict[str, int] | Outcome | None"]


class Course:
    """One saga while it is decided about.

    Parameters: `scope`, what templates see (input, saga, metadata); `now`, Unix seconds; `serves`, whether a service
    has instances that this process can call, None where this process calls nobody; `leases`, until when workers have
    the tasks they fetched, by step and op; `obtain(step, wanted, seconds)`, which takes locks: the tokens by key, None
    while they are waited for, the outcome where they cannot be had.
    """

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        scope: Scope,
        now: float,
        serves: Callable[[str], bool] | None = None,
        leases: Mapping[tuple[str, str], float] = {},
        obtain: Obtain | None = None,
    ) -> None:
        self.plan, self.saga, self.scope, self.now = plan, progress, scope, now
        self.serves, self.leases, self.obtain = serves, dict(leases), obtain
        self.facts: list[Fact] = []
        self.sends: list[Send] = []
        self.withdrawn: list[tuple[str, str]] = []  # tasks that nobody is to fetch any longer: step and op
        self.begins: list[Begin] = []  # sagas that steps are
        self.recalls: list[str] = []  # ids of such sagas, that are to take back what they did
        self.ended: list[str] = []  # ids of such sagas, that are to end where they are
        self.released: list[str] = []  # keys of locks that are given back
        self.appends: list[tuple[str, str, Any]] = []  # events of others' streams: stream, type, data
        self.is_owner_needed = False
        self._said = 0  # facts so far, those too that were taken back

    def say(self, kind: str, **data: Any) -> None:
        self.facts.append((kind, data))
        self._said += 1

    # -- going on ------------------------------------------------------------------------------------

    def proceed(self) -> None:
        """Do everything that can be done now: round after round, until one has nothing to say."""
        said = -1
        while said < self._said:
            said = self._said
            if self.saga.status == "scheduled":
                self._start()
            if self.saga.status == "running":
                self._forward()
            elif self.saga.status == "compensating":
                self._backward()

    def _start(self) -> None:
        """Once its time has come. The deadline counts from the start, however late that is."""
        assert self.saga.start_at is not None
        if self.saga.start_at > self.now:
            return
        if self.saga.deadline is not None:
            self.saga.deadline += self.now - self.saga.start_at
        self.saga.status = "running"
        self.say("saga.started", name=self.scope["saga"]["name"])

    def _forward(self) -> None:
        if self.saga.deadline is not None and self.saga.deadline <= self.now and self._is_overdue():
            return
        for name, step in self.saga.steps.items():
            self._look_at(self.plan.steps[name], step.action, "action")
        if broken := self._broken_step():
            self._turn_when_it_is_known(broken)
            return
        for each in self.plan.steps.values():
            self._advance(each)
        if all(step.action.status in DONE for step in self.saga.steps.values()):
            self._succeed()

    def _broken_step(self) -> str | None:
        found = (
            name for name, step in self.saga.steps.items() if step.action.status in ("failed", "unknown")
        )
        return next(found, None)

    def _turn_when_it_is_known(self, broken: str) -> None:
        """Whether there is a way back: while a pivot is under way nothing but that goes on. Where there is none,
        a human is asked once what else is being tried is over too."""
        if under_way := self._pivots_under_way() or self._asked_after_pivot():
            for step in under_way:
                self._advance(step)
            return
        self._turn("step_failed", {"step": broken, **(self._action(broken).error or {})})

    def _pivots_under_way(self) -> list[StepPlan]:
        return [step for step in self.plan.steps.values() if step.pivot and self._is_under_way(step)]

    def _asked_after_pivot(self) -> list[StepPlan]:
        steps = self.plan.steps.values() if self.is_pivot_passed else ()
        return [step for step in steps if step.kind == "call" and self._is_asked(step.name)]

    def _is_asked(self, name: str) -> bool:
        """Is an attempt under way, or about to be? A task that nobody has fetched may wait for long."""
        status = self._action(name).status
        return (name, "action") in self.leases if status == "queued" else status in GOING

    def _is_under_way(self, step: StepPlan) -> bool:
        """May the action still come to have its effect?"""
        progress = self.saga.steps[step.name]
        status = progress.action.status
        if status == "queued":
            return (step.name, "action") in self.leases or progress.maybe
        return status in OUT or (progress.maybe and status in ("ready", "backoff", "locking"))

    def _is_overdue(self) -> bool:
        """Turn back, where there is a way back; after the pivot a deadline means nothing but that it is late."""
        if self._pivots_under_way():
            return False
        self.saga.deadline = None
        if self.is_pivot_passed:
            self.say("saga.overdue")
            return False
        self._turn("deadline", {"code": "deadline", "message": "The saga took longer than it may."})
        return True

    def _advance(self, step: StepPlan) -> None:
        """Begin a step whose time has come."""
        side = self._action(step.name)
        if side.status == "pending" and all(self._action(name).status in DONE for name in step.after):
            self._begin(step, side)
        if side.status == "ready":
            self._dispatch(step, side, "action")

    def _action(self, name: str) -> Side:
        return self.saga.steps[name].action

    def _begin(self, step: StepPlan, side: Side) -> None:
        if step.after and all(self._is_passed_over(name) for name in step.after):
            self._skip(step, side, "all steps before it were skipped")
            return
        try:
            if step.when is None or step.when.render(self._scope()):
                side.status = "ready"
            else:
                self._skip(step, side, "its condition is false")
        except MappingError as error:
            self._broken(step, side, "action", error)

    def _is_passed_over(self, name: str) -> bool:
        progress = self.saga.steps[name]
        return progress.action.status == "skipped" and not progress.is_waived

    def _skip(self, step: StepPlan, side: Side, why: str) -> None:
        side.status, side.finished = "skipped", self.now
        self.say("step.skipped", step=step.name, why=why)

    def _scope(self) -> Scope:
        steps = {
            name: {"output": step.output, "status": step.action.status} for name, step in self.saga.steps.items()
            if step.action.status in OVER
        }  # fmt: skip
        return {**self.scope, "steps": steps}

    # -- sending -------------------------------------------------------------------------------------

    def _dispatch(self, step: StepPlan, side: Side, op: str) -> None:
        try:
            if op == "action" and step.locks and not self._has_locks(step, side):
                return
            if step.kind == "call":
                self._call(step, side, op)
            elif step.kind == "sleep":
                self._sleep(step, side)
            elif step.kind == "signal":
                self._await_signal(step, side)
            else:
                self._go_to_child(step, side, op)
        except MappingError as error:
            self._broken(step, side, op, error)

    def _broken(self, step: StepPlan, side: Side, op: str, error: MappingError) -> None:
        detail = f"{error.detail} ({error.pointer})" if error.pointer else error.detail
        end = "failed" if op == "action" else "stuck"
        self._fail(step, side, op, end, {"code": "mapping_failed", "message": detail})

    def _call(self, step: StepPlan, side: Side, op: str) -> None:
        given = self._input(step, op)
        if self.serves is None:
            self.is_owner_needed = True
            return
        assert step.service
        by = "push" if self.serves(step.service) else "pull"
        if op == "action" and self.saga.steps[step.name].is_verifying:
            self._verify(step, side, given, by)
            return
        side.attempts += 1
        side.status = "calling" if by == "push" else "queued"
        side.due = self.now + (step.timeout + GRACE if by == "push" else step.schedule_to_start)
        self._note_start(step, side)
        self.say(verb(op, "dispatched" if by == "push" else "queued"), step=step.name, attempt=side.attempts)
        self.sends.append(Send(step, op, side.attempts, by, given, self._outcome_of(step, op)))

    def _verify(self, step: StepPlan, side: Side, given: Any, by: str) -> None:
        """Ask what became of an action. Nobody comes for a question: where none can be called, none knows."""
        if by == "pull":
            self._fail(step, side, "action", "unknown", side.error or {})
            return
        side.attempts += 1
        side.status, side.due = "calling", self.now + step.timeout + GRACE
        self.say("step.verifying", step=step.name, attempt=side.attempts)
        self.sends.append(Send(step, "verify", side.attempts, by, given, None))

    def _note_start(self, step: StepPlan, side: Side) -> None:
        side.started = self.now if side.started is None else side.started
        progress = self.saga.steps[step.name]
        if not progress.place:
            self.saga.dispatched += 1
            progress.place = self.saga.dispatched

    @property
    def tokens(self) -> dict[str, dict[str, int]]:
        """The fencing tokens that each step holds, by key."""
        return {name: {key: token for key, (token, _) in step.locks.items()}
                for name, step in self.saga.steps.items() if step.locks}  # fmt: skip

    def _input(self, step: StepPlan, op: str) -> Any:
        progress = self.saga.steps[step.name]
        if op in progress.edited:
            return progress.edited[op]
        scope = self._scope()
        if op != "action" and step.compensation_input:
            return step.compensation_input.render(scope)
        asked = step.input.render(scope) if step.input else self.scope["input"]
        if op == "action":
            return asked
        asked = progress.edited.get("action", asked)
        return {"input": asked, "output": progress.output, "outcome": self._outcome_of(step, op)}

    def _outcome_of(self, step: StepPlan, op: str) -> str | None:
        if op == "action":
            return None
        return "succeeded" if self._action(step.name).status == "succeeded" else "unknown"

    def _sleep(self, step: StepPlan, side: Side) -> None:
        assert step.seconds
        seconds = step.seconds.render(self._scope())
        if not is_seconds(seconds):
            raise MappingError(f"{seconds!r:.80} is no number of seconds", "/seconds")
        side.status, side.due = "waiting", self.now + seconds
        self._note_start(step, side)
        self.say("step.waiting", step=step.name, for_="time", until=side.due)

    def _await_signal(self, step: StepPlan, side: Side) -> None:
        self._note_start(step, side)
        if kept := self.saga.signals.get(step.signal or ""):
            self._succeeded(step, side, "action", kept.pop(0))
            return
        side.status, side.due = "waiting", self.now + step.timeout
        self.say("step.waiting", step=step.name, for_="signal", signal=step.signal, until=side.due)

    def _go_to_child(self, step: StepPlan, side: Side, op: str) -> None:
        """A step that is a saga of its own. Who takes it back has that saga compensate."""
        side.attempts += 1
        side.status = "waiting"
        self._note_start(step, side)
        self.say(verb(op, "waiting"), step=step.name, for_="saga")
        if op == "action":
            self.begins.append(Begin(step, side.attempts, self._input(step, op)))
        else:
            self._recall_child(self.saga.steps[step.name], again=True)

    # -- locks ---------------------------------------------------------------------------------------

    def _has_locks(self, step: StepPlan, side: Side) -> bool:
        """Has the step its locks? If not, it waits for them, for as long as for a participant."""
        progress = self.saga.steps[step.name]
        scope = self._scope()
        locks = {str(lock.key.render(scope)): lock for lock in step.locks}
        release = {key: lock.release for key, lock in locks.items()}
        if progress.locks.keys() >= release.keys():
            return True
        if side.until is not None and side.until <= self.now:
            error = {
                "code": "lock_wait_timeout",
                "message": f"{', '.join(release)} did not come free in time.",
            }
            self._fail(step, side, "action", "failed", error)
            return False
        wanted = [Wanted(key, lock.mode, lock.permits, lock.capacity) for key, lock in locks.items()]
        assert self.obtain, "who decides about steps with locks must be able to take some"
        self.saga.has_session = True
        found = self.obtain(step.name, wanted, step.schedule_to_start)
        if isinstance(found, Outcome):
            self._failed_attempt(step, side, "action", found)
        elif found is None:
            self._wait_for_locks(step, side, list(release))
        else:
            progress.locks = {key: [token, release[key]] for key, token in found.items()}
            side.until = None
            self.say("step.locked", step=step.name, fencing_tokens=found)
        return isinstance(found, dict)

    def _wait_for_locks(self, step: StepPlan, side: Side, keys: list[str]) -> None:
        if side.until is None:
            side.until = self.now + step.schedule_to_start
            self.say("step.waiting", step=step.name, for_="locks", locks=keys, until=side.until)
        side.status, side.due = "locking", min(self.now + LOCK_AGAIN, side.until)

    def _give_back(self, step: StepPlan, when: str) -> None:
        """The locks that were declared to go then."""
        progress = self.saga.steps[step.name]
        gone = [key for key, (_, release) in progress.locks.items() if release == when]
        self.released += gone
        for key in gone:
            del progress.locks[key]

    # -- time ----------------------------------------------------------------------------------------

    def _look_at(self, step: StepPlan, side: Side, op: str) -> None:
        """What time alone has done."""
        if side.status == "queued":
            self._look_at_task(step, side, op)
        elif side.due is not None and side.due <= self.now:
            self._due(step, side, op)

    def _due(self, step: StepPlan, side: Side, op: str) -> None:
        if side.status in ("backoff", "locking"):
            side.status, side.due = "ready", None
        elif side.status == "calling":
            self._heard(
                step, side, op, Outcome("unknown", code="timeout", message="Nothing was heard of the call.")
            )
        elif side.status == "waiting" and step.kind == "sleep":
            self._succeeded(step, side, op, None)
        elif side.status == "waiting" and step.kind == "signal":
            error = {"code": "signal_timeout", "message": f"No signal {step.signal} came in time."}
            self._fail(step, side, op, "failed", error)
        elif side.status == "waiting":
            message = "It was accepted, and never completed in time."
            self._heard(step, side, op, Outcome("unknown", code="timeout", message=message))

    def _look_at_task(self, step: StepPlan, side: Side, op: str) -> None:
        """A task that waits for a worker, or that a worker has. One for which there are instances by now is pushed."""
        lease = self.leases.get((step.name, op))
        if lease is not None:
            side.due = lease
            if lease <= self.now:
                self._withdraw(step, op)
                message = "The worker's lease ran out before it said what came of it."
                self._heard(step, side, op, Outcome("unknown", code="lease_lost", message=message))
        elif self.serves and step.service and self.serves(step.service):
            self._withdraw(step, op)
            side.status, side.due = "ready", None
            side.attempts -= 1  # nobody has seen it
        elif side.due is not None and side.due <= self.now:
            self._withdraw(step, op)
            message = f"Nobody provides {step.service}: no instance is registered and no worker came."
            self._unprovided(step, side, op, {"code": "no_participant", "message": message})

    def _unprovided(self, step: StepPlan, side: Side, op: str, error: dict[str, Any]) -> None:
        if op == "action":
            self._fail(step, side, op, "failed", error)
        else:
            self._heard(step, side, op, Outcome("refused", code=error["code"], message=error["message"]))

    def _withdraw(self, step: StepPlan, op: str) -> None:
        """A task that is queued; one that was to be in this very decision never was."""
        sent = [send for send in self.sends if (send.step.name, send.op) == (step.name, op)]
        for send in sent:
            self.sends.remove(send)
            self.facts.remove((verb(op, "queued"), {"step": step.name, "attempt": send.attempt}))
            self._side(step.name, op).attempts -= 1
        if not sent:
            self.withdrawn.append((step.name, op))
        self.leases.pop((step.name, op), None)

    # -- hearing -------------------------------------------------------------------------------------

    def hear(self, name: str, op: str, attempt: int, outcome: Outcome) -> bool:
        """What came of an attempt; whether anybody waited for that."""
        step, progress = self.plan.steps[name], self.saga.steps[name]
        side = progress.side(op)
        is_awaited = side.attempts == attempt and side.status in OUT and step.kind in ("call", "saga")
        if self.saga.is_over or not is_awaited:
            self.say("step.late_result", step=name, op=op, attempt=attempt, outcome=outcome.kind)
            return False
        if progress.is_verifying and op != "compensate":
            self._verified(step, side, outcome)
        else:
            said = len(self.facts)
            self._heard(step, side, op, outcome)
            if outcome.fetched is not None and len(self.facts) > said:
                self.facts[said][1]["fetched_at"] = outcome.fetched
        return True

    def _verified(self, step: StepPlan, side: Side, outcome: Outcome) -> None:
        """What the participant knows of an action of which nobody else does."""
        progress = self.saga.steps[step.name]
        said = outcome.output if outcome.kind == "succeeded" and isinstance(outcome.output, dict) else {}
        found = said.get("outcome")
        if found == "applied":
            progress.is_verifying = False
            self._succeeded(step, side, "action", said.get("output"))
        elif found == "not_applied":
            progress.is_verifying = progress.maybe = False
            self._fail(step, side, "action", "failed", side.error or {})
        elif progress.checks + 1 < CHECKS and self.saga.heading == "running":
            progress.checks += 1
            side.status, side.due = "backoff", self.now + CHECK_AGAIN
        else:
            self._fail(step, side, "action", "unknown", side.error or {})

    def hear_child(self, name: str, child: Progress) -> None:
        """How the saga ended that a step is: what came of the step or, if that is over, of taking it back."""
        step = self.saga.steps[name]
        if step.action.status in OVER:
            self.saga.dirty |= child.dirty
            self.hear(name, "compensate", step.undo.attempts, taken_back(child))
        else:
            self.hear(name, "action", step.action.attempts, outcome_of(child))

    def keep(self, name: str, op: str, seconds: float) -> float:
        """Who accepted a call wants more time for it: until when it has, never less than before."""
        side = self._side(name, op)
        side.due = max(side.due or 0.0, self.now + seconds)
        return side.due

    def lost(self, name: str, op: str) -> None:
        """Whoever made this call is gone: nobody knows what came of it. It is made again, with the same key."""
        side = self._side(name, op)
        if op == "action":
            self._doubt(self.saga.steps[name], may_go_on=True)
        side.status, side.due = "ready", None

    def _doubt(self, progress: StepProgress, may_go_on: bool) -> None:
        """An attempt may have had an effect; or it may go on, until its own time is over."""
        progress.maybe = True
        if may_go_on and progress.action.status == "calling" and progress.action.due is not None:
            progress.doubt_until = max(progress.doubt_until, progress.action.due - GRACE)

    def _side(self, name: str, op: str) -> Side:
        return self.saga.steps[name].side(op)

    def _heard(self, step: StepPlan, side: Side, op: str, outcome: Outcome) -> None:
        if op == "action" and outcome.kind in ("ongoing", "unknown"):
            self._doubt(self.saga.steps[step.name], outcome.kind == "ongoing" or outcome.code == BROKEN)
        if outcome.kind == "succeeded":
            self._succeeded(step, side, op, outcome.output)
        elif outcome.kind == "accepted":
            side.status, side.due = "waiting", self.now + step.timeout
            self.say(verb(op, "accepted"), step=step.name, attempt=side.attempts, until=side.due)
        elif outcome.kind in ("ongoing", "deferred"):
            side.status, side.due = "backoff", self.now + (outcome.retry_after or ONGOING_DELAY)
            self.say(verb(op, outcome.kind), step=step.name, attempt=side.attempts, until=side.due)
        else:
            self._failed_attempt(step, side, op, outcome)

    def _succeeded(self, step: StepPlan, side: Side, op: str, output: Any) -> None:
        side.status, side.due, side.finished, side.error = "succeeded", None, self.now, None
        if op == "action":
            self.saga.steps[step.name].output = output
        self.say(verb(op, "succeeded"), step=step.name, attempt=side.attempts, output=output)
        if op == "action":
            self._append_events(step)
        self._give_back(step, "step" if op == "action" else "compensation")

    def _append_events(self, step: StepPlan) -> None:
        """What goes into other streams with the success. The step is done: a template that finds nothing changes
        that no more, and is told."""
        scope = self._scope()
        try:
            for event in step.events:
                found = str(event.stream.render(scope)), event.type, event.data.render(scope)
                self.appends.append(found)
        except MappingError as error:
            self.say("step.events_failed", step=step.name, code="mapping_failed", message=error.detail)

    def _failed_attempt(self, step: StepPlan, side: Side, op: str, outcome: Outcome) -> None:
        """Try again, or be done with it."""
        side.failures += 1
        side.failed_since = self.now if side.failed_since is None else side.failed_since
        error = {"code": outcome.code or outcome.kind, "message": outcome.message[:MESSAGE]}
        if self._is_worth_asking(step, op, outcome) and self._is_final(step, side, op, outcome):
            self.saga.steps[step.name].is_verifying = True
            side.status, side.due, side.error = "ready", None, error
            return
        if self._is_final(step, side, op, outcome):
            self._fail(step, side, op, self._end_of(step, op, outcome), error)
            return
        side.status, side.error = "backoff", error
        side.due = self.now + self._delay(step, side, op, outcome)
        self.say(verb(op, "failed"), step=step.name, attempt=side.attempts, outcome=outcome.kind, retry_at=side.due,
                 **error)  # fmt: skip

    def _is_worth_asking(self, step: StepPlan, op: str, outcome: Outcome) -> bool:
        is_in_doubt = op == "action" and self.saga.steps[step.name].maybe
        is_forward = self.saga.heading == "running"
        return bool(step.verify) and is_in_doubt and outcome.kind != "failed" and is_forward

    def _is_final(self, step: StepPlan, side: Side, op: str, outcome: Outcome) -> bool:
        if self.saga.status == "compensating" and op == "action":
            return True
        if (outcome.kind == "failed" and op == "action") or step.kind == "saga":
            return True
        if outcome.kind == "misconfigured" and side.failures >= CONFIGURATION_ATTEMPTS:
            return True
        policy = step.policy if op == "action" else step.undo_policy
        return policy.is_spent(side.failures, self.now - (side.failed_since or self.now), outcome.code)

    def _end_of(self, step: StepPlan, op: str, outcome: Outcome) -> str:
        if op != "action":
            return "stuck"
        return "unknown" if outcome.kind == "unknown" else "failed"

    def _delay(self, step: StepPlan, side: Side, op: str, outcome: Outcome) -> float:
        policy = step.policy if op == "action" else step.undo_policy
        chance = crc32(f"{self.scope['saga']['id']}.{step.name}.{side.attempts}".encode()) / 2**32
        least = CONFIGURATION_DELAY if outcome.kind == "misconfigured" else 0.0
        return max(policy.delay(side.failures, chance), outcome.retry_after or 0.0, least)

    def _fail(self, step: StepPlan, side: Side, op: str, status: str, error: dict[str, Any]) -> None:
        side.status, side.due, side.finished, side.error = status, None, self.now, error
        if op == "action":
            self._give_back(step, "step")
        self.say(verb(op, status), step=step.name, attempt=side.attempts, retry_at=None, **error)

    # -- turning back --------------------------------------------------------------------------------

    @property
    def is_pivot_passed(self) -> bool:
        """Is there no way back? Also while nobody knows whether the pivot was passed."""
        passed = (
            step.pivot
            and (self._action(name).status in ("succeeded", "unknown") or self.saga.steps[name].maybe)
            for name, step in self.plan.steps.items()
        )
        return any(passed) or bool(self._pivots_under_way())

    def _turn(self, reason: str, error: dict[str, Any]) -> None:
        """Go back, or, where that is not possible any more, ask for a human."""
        self.saga.reason, self.saga.error = reason, error
        if self.is_pivot_passed:
            self._need_attention(reason)
            return
        self.saga.status = "compensating"
        self.say("saga.compensating", reason=reason, error=error)

    def _need_attention(self, reason: str) -> None:
        self.saga.before, self.saga.status = self.saga.status, "attention"
        self.say("saga.attention", reason=reason, error=self.saga.error)

    def cancel(self, reason: str) -> None:
        if self.saga.status == "attention" and self.saga.before == "compensating":
            return  # it has turned back already
        self._turn("cancelled", {"code": "cancelled", "message": reason})

    def be_recalled(self, reason: str) -> None:
        """The saga that this one is a step of turned back: so does this one, though it may be over, or paused."""
        if self.saga.status == "paused":
            self.resume()
        error = {"code": "recalled", "message": reason}
        if self.saga.status in ("compensating", "compensated", "failed", "terminated"):
            return
        if self.saga.status == "attention" and self.saga.before == "compensating":
            return
        self.saga.reason, self.saga.error, self.saga.status, self.saga.before = (
            "recalled",
            error,
            "compensating",
            None,
        )
        self.say("saga.compensating", reason="recalled", error=error)

    def turn_back(self, reason: str) -> None:
        """An operator says so: the pivot, if it was passed, is taken back with the rest."""
        self.saga.reason, self.saga.status, self.saga.before = "operator", "compensating", None
        self.say("saga.compensating", reason="operator", error={"code": "operator", "message": reason})

    def _backward(self) -> None:
        for name, step in self.saga.steps.items():
            self._stop(self.plan.steps[name], step)
        if any(step.action.status in OUT for step in self.saga.steps.values()):
            return  # nothing is taken back while it may still happen
        needed = [step for step in self.plan.steps.values() if self._needs_undo(step)]
        for each in needed:
            self._look_at(each, self.saga.steps[each.name].undo, "compensate")
        for each in needed:
            self._take_back(each, needed)
        self._end(needed)

    def _stop(self, step: StepPlan, progress: StepProgress) -> None:
        """Let what is under way come to its end, and begin nothing more."""
        side = progress.action
        if side.status in OUT:
            self._look_at_end(step, progress)
        if side.status in ("pending", "ready", "backoff", "locking"):
            if side.until is not None:
                self.released += self._lock_keys(step)
            side.status = "unknown" if progress.maybe else "failed" if side.attempts else "skipped"
            side.due, side.finished = None, self.now
        if side.status in OVER:
            self._give_back(step, "step")

    def _lock_keys(self, step: StepPlan) -> list[str]:
        """Of locks that it waits for, and so knows already."""
        scope = self._scope()
        return [str(lock.key.render(scope)) for lock in step.locks]

    def _look_at_end(self, step: StepPlan, progress: StepProgress) -> None:
        side = progress.action
        if step.kind in ("sleep", "signal"):
            side.status, side.due, side.finished = "skipped", None, self.now
        elif step.kind == "saga":
            self._recall_child(progress)
        elif side.status == "queued" and (step.name, "action") not in self.leases:
            self._withdraw(step, "action")
            side.status, side.due, side.finished = "skipped", None, self.now
        else:
            self._look_at(step, side, "action")

    def _recall_child(self, progress: StepProgress, *, again: bool = False) -> None:
        if progress.child and (again or not progress.is_recalled):
            progress.is_recalled = True
            self.recalls.append(progress.child)

    def _needs_undo(self, step: StepPlan) -> bool:
        progress = self.saga.steps[step.name]
        has_effect = progress.maybe or progress.action.status in ("succeeded", "unknown")
        return step.kind in ("call", "saga") and has_effect

    def _take_back(self, step: StepPlan, needed: list[StepPlan]) -> None:
        progress = self.saga.steps[step.name]
        side = progress.undo
        if side.status == "pending" and not self._is_blocked(step, needed):
            side.status = "ready"
            if step.kind == "call" and step.compensation is None:
                self.saga.dirty = True
                side.status, side.finished = "skipped", self.now
                self.say("compensation.skipped", step=step.name, why="it has none")
            elif self._action(step.name).status == "unknown" and progress.doubt_until > self.now:
                side.status, side.due = "backoff", progress.doubt_until  # it may still happen
        if side.status == "ready":
            self._dispatch(step, side, "compensate")

    def _is_blocked(self, step: StepPlan, needed: list[StepPlan]) -> bool:
        """Must something else be taken back first?"""
        left = {each.name for each in needed if self.saga.steps[each.name].undo.status not in DONE} - {
            step.name
        }
        if self.plan.order == "parallel":
            return False
        if self.plan.order == "sequential":
            place = self.saga.steps[step.name].place
            return any(self.saga.steps[name].place > place for name in left)
        return not left.isdisjoint(self._descendants(step.name))

    def _descendants(self, name: str) -> set[str]:
        found: set[str] = set()
        todo = list(self.plan.before[name])
        while todo:
            each = todo.pop()
            if each not in found:
                found.add(each)
                todo += self.plan.before[each]
        return found

    # -- ends ----------------------------------------------------------------------------------------

    def _succeed(self) -> None:
        self.saga.reason = self.saga.error = None  # of what an operator helped meanwhile
        try:
            self.saga.output = self.plan.output.render(self._scope()) if self.plan.output else None
        except MappingError as error:  # everything was done: that is no reason to take it back
            self.saga.error = {"code": "mapping_failed", "message": f"output: {error.detail}"}
        self._finish("succeeded", output=self.saga.output)

    def _end(self, needed: list[StepPlan]) -> None:
        sides = [self.saga.steps[step.name].undo for step in needed]
        if all(side.status in DONE for side in sides):
            was_taken_back = any(side.status == "succeeded" for side in sides)
            self._finish("compensated" if was_taken_back else "failed")
        elif all(self._is_at_an_end(step, needed) for step in needed):
            self._need_attention("compensation_failed")

    def _is_at_an_end(self, step: StepPlan, needed: list[StepPlan]) -> bool:
        """Taken back, or stuck, or waiting for one that is."""
        status = self.saga.steps[step.name].undo.status
        return status in (*DONE, "stuck") or (status == "pending" and self._is_blocked(step, needed))

    def _finish(self, status: str, **more: Any) -> None:
        self.saga.status = status
        self.say(
            f"saga.{status}", reason=self.saga.reason, error=self.saga.error, dirty=self.saga.dirty, **more
        )

    def terminate(self, reason: str) -> None:
        """End it where it is. What was done stays done."""
        steps = self.plan.steps.values()
        left = [step for step in steps if self._is_left(step)]
        self.saga.dirty |= bool(left)
        self.saga.reason, self.saga.error = "operator", {"code": "terminated", "message": reason}
        for name, step in self.saga.steps.items():
            for op, side in step.sides():
                if side.status == "queued":
                    self._withdraw(self.plan.steps[name], op)
            if child := self._child_under_way(name):
                self.ended.append(child)
        self._finish("terminated", steps=[step.name for step in left] or None)

    def _is_left(self, step: StepPlan) -> bool:
        """May an effect remain that nobody takes back?"""
        is_under_way = step.kind in ("call", "saga") and self._is_under_way(step)
        is_undone = self.saga.steps[step.name].undo.status == "succeeded"
        return is_under_way or (self._needs_undo(step) and not is_undone)

    def _child_under_way(self, name: str) -> str | None:
        step = self.saga.steps[name]
        is_under_way = any(side.status == "waiting" for _, side in step.sides())
        return step.child if is_under_way else None

    # -- what operators and others say ---------------------------------------------------------------

    def pause(self) -> None:
        """Nothing is given out meanwhile either: what nobody has fetched is queued again afterwards."""
        for name, step in self.saga.steps.items():
            for op, side in step.sides():
                if side.status == "queued" and (name, op) not in self.leases:
                    self._withdraw(self.plan.steps[name], op)
                    side.status, side.due, side.attempts = "ready", None, side.attempts - 1
        self.saga.paused_from, self.saga.status, self.saga.paused_at = self.saga.status, "paused", self.now

    def resume(self) -> None:
        """Go on, as if no time had passed; but the instant at which a saga is to start stays where it is."""
        assert self.saga.paused_from is not None
        is_started = self.saga.paused_from != "scheduled"
        gone = self.now - (self.saga.paused_at or self.now) if is_started else 0.0
        for side in self.saga.sides():
            if side.due is not None and side.status != "calling":
                side.due += gone
            side.until = None if side.until is None else side.until + gone
            side.failed_since = None if side.failed_since is None else side.failed_since + gone
        if self.saga.deadline is not None:
            self.saga.deadline += gone
        self.saga.status, self.saga.paused_from, self.saga.paused_at = self.saga.paused_from, None, None
        if not self.stuck:  # what was stuck may have been helped meanwhile
            self._go_on()

    def signal(self, name: str, payload: Any, reason: str | None = None) -> None:
        """A signal goes to the steps that wait for it, or is kept for the first that will."""
        self.say("saga.signalled", signal=name, payload=payload, reason=reason)
        waiting = [
            step
            for step in self.plan.steps.values()
            if step.kind == "signal" and step.signal == name and self._action(step.name).status == "waiting"
        ]
        for step in waiting:
            self._succeeded(step, self._action(step.name), "action", payload)
        if not waiting:
            self.saga.signals.setdefault(name, []).append(payload)

    @property
    def kept_signals(self) -> int:
        return sum(map(len, self.saga.signals.values()))

    @property
    def stuck(self) -> dict[str, str]:
        """The steps that only a human can help, each with the op that is stuck."""
        forward = self.saga.status == "attention" and self.saga.before == "running"
        found = {}
        for name, step in self.saga.steps.items():
            if step.undo.status == "stuck":
                found[name] = "compensate"
            elif forward and step.action.status in ("failed", "unknown"):
                found[name] = "action"
        return found

    @property
    def failure(self) -> tuple[str | None, str | None]:
        """Which side of a step failed, as `step.op`, and with which code: of what is stuck the first, else why the saga
        turned back."""
        if self.saga.status == "attention":
            for name, op in self.stuck.items():
                return f"{name}.{op}", (self._side(name, op).error or {}).get("code")
        error = self.saga.error or {}
        return (f"{error['step']}.action" if "step" in error else None), error.get("code")

    def retry(self, name: str, op: str) -> None:
        """Try again what has failed, as if for the first time: the attempts go on counting, the key stays."""
        progress, side = self.saga.steps[name], self._side(name, op)
        progress.is_verifying, progress.checks = False, 0
        if self.plan.steps[name].kind == "saga" and side.status == "unknown":
            self.saga.dirty = True  # it begins another saga, and what the first left nobody takes back
        side.until = None
        side.status, side.failures, side.failed_since, side.due, side.finished = "ready", 0, None, None, None
        self.say(verb(op, "retried"), step=name)
        self._go_on()

    def settle(self, name: str, op: str, status: str, output: Any = None) -> None:
        """A human says what came of it: `succeeded`, by other means, or `skipped`."""
        side = self._side(name, op)
        if status == "succeeded":
            self._succeeded(self.plan.steps[name], side, op, output)
        else:
            side.status, side.due, side.finished = "skipped", None, self.now
            self.saga.steps[name].is_waived |= op == "action"
            self.saga.dirty |= op == "compensate" or self.saga.steps[name].maybe
            self.say(verb(op, "skipped"), step=name, why="an operator said so")
        self._go_on()

    def _go_on(self) -> None:
        """With what can go on; of what is stuck yet it says so again."""
        if self.saga.status == "attention":
            self.saga.status, self.saga.before = self.saga.before or "running", None


def outcome_of(child: Progress) -> Outcome:
    """What the end of a saga is to the one that it is a step of: one that took itself back had no effect."""
    if child.status == "succeeded":
        return Outcome("succeeded", child.output)
    is_clean = child.status in ("compensated", "failed") and not child.dirty
    code = (child.error or {}).get("code", child.status)
    message = f"The saga of this step is {child.status}."
    return Outcome("failed" if is_clean else "unknown", code=code, message=message)


def taken_back(child: Progress) -> Outcome:
    """What the end of a saga is to the one that wants it taken back: who ended it where it was left that undone."""
    if child.status == "terminated" and child.dirty:
        return Outcome("failed", code="terminated", message="The saga of this step was terminated.")
    return Outcome("succeeded")


def verb(op: str, what: str) -> str:
    """`step.dispatched`, `compensation.dispatched`."""
    return f"{'step' if op == 'action' else 'compensation'}.{what}"


def wake_at(progress: Progress, now: float) -> float | None:
    """When a saga must be looked at though nothing was heard of it. A deadline that is past was looked at."""
    if progress.is_over or progress.status in ("paused", "attention"):
        return None
    if progress.status == "scheduled":
        return progress.start_at
    # Whoever calls looks after its calls; if it dies, that is noticed.
    dues = [side.due for side in progress.sides() if side.due is not None and side.status != "calling"]
    if progress.status == "running" and progress.deadline is not None and progress.deadline > now:
        dues.append(progress.deadline)
    return min(dues, default=None)
