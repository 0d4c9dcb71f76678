"""What a saga did and when, told from its facts: its states, and a lane for each side of a step. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagas.facts import Fact
from sagas.progress import FINAL
from sagas.types import TimelineAttempt, TimelineLane, TimelineState, TimelineWait

SILENT = ("late_result", "events_failed", "retried")  # nothing begins or ends with it
ENDS = ("succeeded", "failed", "unknown", "stuck", "skipped")
FOUND = {"succeeded": "applied", "failed": "not_applied"}  # by asking what became of an action
SIDES: dict[str, Any] = {"step": "action", "compensation": "compensation", "action": "action",
                         "compensate": "compensation", "verify": "verify"}  # fmt: skip
Fetched = Mapping[tuple[str, str], datetime]


@dataclass(slots=True)
class Told:
    """What facts tell. `lanes`: of every step its action, and after that what its participant was asked about it; then
    the compensations that there were, in their order."""

    states: list[TimelineState] = field(default_factory=list)
    lanes: list[TimelineLane] = field(default_factory=list)


def told(steps: Iterable[str], status: str, facts: Iterable[Fact], fetched: Fetched) -> Told:
    """Parameters: `steps`, the names of all, in order; `status` of the saga now; `facts`, in order; `fetched`, since
    when workers have the tasks that they have now, by step and op."""
    lanes, states = {(step, "action"): lane_of(step, "action") for step in steps}, States()
    for fact in facts:
        if fact.kind == "saga":
            states.hear(fact)
            if fact.what == "compensating" or fact.what in FINAL:
                drop(lanes.values(), fact)
        else:
            hear_of_step(lanes, fact)
    for (step, op), since in fetched.items():
        if lane := lanes.get((step, SIDES[op])):
            take(lane, since)
    states.is_now(status)
    return Told(states.found, list(in_order(lanes)))


def in_order(lanes: Mapping[tuple[str, str], TimelineLane]) -> Iterator[TimelineLane]:
    for (step, side), lane in lanes.items():
        if side == "action":
            yield lane
            if asked := lanes.get((step, "verify")):
                yield asked
    yield from (lane for lane in lanes.values() if lane.side == "compensation")


def lane_of(step: str, side: str) -> TimelineLane:
    return TimelineLane(step, SIDES[side], None, None, None, None, [], [])


# -- the steps ---------------------------------------------------------------------------------------


def hear_of_step(lanes: dict[tuple[str, str], TimelineLane], fact: Fact) -> None:
    """What a fact tells of a step. To ask about an action is a lane of its own, and ends as the action does."""
    if fact.what in SILENT or (fact.kind == "step" and (fact.step, "action") not in lanes):
        return
    lane = lanes.setdefault((fact.step, SIDES[fact.kind]), lane_of(fact.step, fact.kind))
    asked = lanes.get((fact.step, "verify")) if fact.kind == "step" else None
    if asked:
        end_attempt(asked, fact.at, FOUND.get(fact.what, "unknown"))
        asked.outcome = FOUND.get(fact.what, fact.what) if fact.what in ENDS else None
        asked.finished_at = fact.at if fact.what in ENDS else None
    if fact.what == "verifying":
        end(lane, fact)
        asked = lanes.setdefault((fact.step, "verify"), lane_of(fact.step, "verify"))
        begin_attempt(asked, fact)
    else:
        hear(lane, fact)


def hear(lane: TimelineLane, fact: Fact) -> None:
    if fact.what == "accepted":  # the attempt goes on
        begin_wait(lane, fact, "answer")
        return
    end(lane, fact)
    if fact.what == "dispatched":
        begin_attempt(lane, fact)
    elif fact.what == "queued":
        begin_wait(lane, fact, "worker")
    elif fact.what == "waiting":
        begin_wait(lane, fact, fact.waits_for)
    elif fact.what in ("ongoing", "deferred"):
        begin_wait(lane, fact, fact.what)
    elif fact.retry_at:
        begin_wait(lane, fact, "retry")
    if fact.what in ENDS and not fact.retry_at:
        lane.outcome, lane.finished_at = fact.what, fact.at
        lane.code, lane.message = fact.code or None, fact.message or None
    else:
        lane.outcome = lane.finished_at = lane.code = lane.message = None


def begin_attempt(lane: TimelineLane, fact: Fact) -> None:
    lane.attempts.append(TimelineAttempt(fact.attempt or 0, "push", fact.at, None, None, None, None))


def begin_wait(lane: TimelineLane, fact: Fact, reason: Any) -> None:
    until = fact.until or fact.retry_at
    lane.waits.append(TimelineWait(reason, fact.about or None, fact.attempt, fact.at, None, until))


def end(lane: TimelineLane, fact: Fact) -> None:
    """What was under way has come to its end, or goes on as something else."""
    waited = end_wait(lane, fact.at)
    if fact.what in (*ENDS, "ongoing", "deferred"):
        note_worker(lane, fact, waited)
    if fact.what == "deferred" and lane.attempts and lane.attempts[-1].finished_at is None:
        lane.attempts.pop()  # nobody was called
    outcome = {"stuck": "failed", "dispatched": "lost", "queued": "lost", "verifying": "unknown"}
    end_attempt(lane, fact.at, fact.outcome or outcome.get(fact.what, fact.what), fact.code, fact.message)


def note_worker(lane: TimelineLane, fact: Fact, waited: TimelineWait | None) -> None:
    """Who fetched a task had it from then on. Where the log does not say since when, since it was there to be had."""
    was_queued = waited is not None and waited.reason == "worker" and fact.code != "no_participant"
    if fact.fetched_at:
        take(lane, fact.fetched_at, fact.attempt)
    elif waited and was_queued and fact.what != "skipped":
        lane.waits.remove(waited)
        take(lane, waited.started_at, fact.attempt)


def take(lane: TimelineLane, since: datetime, attempt: int | None = None) -> None:
    """A worker fetches what waits for one; it may have been when the saga had not turned back yet."""
    last = next((wait for wait in reversed(lane.waits) if wait.reason == "worker"), None)
    if last and (last.finished_at is None or last.finished_at > since):
        last.finished_at = since
    number = attempt or (last.attempt if last else None) or 0
    lane.attempts.append(TimelineAttempt(number, "pull", since, None, None, None, None))


def end_attempt(lane: TimelineLane, at: datetime, outcome: str, code: str = "", message: str = "") -> None:
    if lane.attempts and (last := lane.attempts[-1]).finished_at is None:
        last.finished_at, last.outcome = at, outcome
        last.code, last.message = code or None, message or None


def end_wait(lane: TimelineLane, at: datetime) -> TimelineWait | None:
    if not lane.waits or (last := lane.waits[-1]).finished_at is not None:
        return None
    last.finished_at = at
    return last


def drop(lanes: Iterable[TimelineLane], fact: Fact) -> None:
    """A saga that turns back or ends waits for nothing of its actions any more but for what a participant is at;
    one that is over, for nothing at all."""
    for lane in lanes:
        waits = lane.waits[-1].reason if lane.waits else ""
        if fact.what in FINAL or (lane.side == "action" and waits not in ("answer", "saga")):
            end_wait(lane, fact.at)
        if fact.what in FINAL:
            end_attempt(lane, fact.at, "abandoned")


# -- the saga ----------------------------------------------------------------------------------------


class States:
    """The states of the saga itself, one after another."""

    def __init__(self) -> None:
        self.found: list[TimelineState] = []
        self._before: Any = "running"  # what it was before it stood still

    def hear(self, fact: Fact) -> None:
        begun = self._begun(fact.what)
        last = self.found[-1] if self.found and self.found[-1].finished_at is None else None
        if not (begun or fact.what in FINAL) or (last and last.status == begun):
            return
        if last:
            last.finished_at = fact.at
            self._before = self._before if last.status in ("paused", "attention") else last.status
        if begun:
            self.found.append(TimelineState(begun, fact.at, None))

    def _begun(self, what: str) -> Any:
        if what in ("resumed", "retried") or what.startswith("step_"):
            return self._before
        if what == "started":
            return "running"
        return what if what in ("scheduled", "paused", "compensating", "attention") else ""

    def is_now(self, status: Any) -> None:
        """What is last is what the saga is, whatever could be told from the log."""
        if self.found and self.found[-1].finished_at is None:
            self.found[-1].status = status
