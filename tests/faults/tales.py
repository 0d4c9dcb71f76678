"""What a saga that is over must look like: in the participant's ledger, in its history, and between the two. Pure; each
check raises Violation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.ledger import DECLINED, DONE, HANGING, Effect, Visit
from tests.races.histories import require

Told = Mapping[tuple[str, int], set[str]]  # what the participant said, by key and attempt
FINAL = ("succeeded", "compensated", "failed")
# What an event says that only the participant can have said; other codes are the server's own.
SAID = {"succeeded": DONE, "accepted": "accepted", "ongoing": "ongoing"}
CODES = {DECLINED, HANGING, "failing", "down", "too_many_requests", "gave_up"}
OUTCOMES = ("succeeded", "failed", "unknown", "accepted", "ongoing", "deferred", "stuck")


@dataclass(frozen=True, slots=True)
class Written:
    """A saga as its author wrote it: the steps with those that each depends on, in an order in which they may come."""

    name: str
    after: Mapping[str, Sequence[str]]
    doomed: str | None  # the step that the participant declines

    def ancestors(self, step: str) -> set[str]:
        found: set[str] = set()
        for each in self.after[step]:
            found |= {each, *self.ancestors(each)}
        return found


@dataclass(slots=True)
class Side:
    """An action or a compensation, as events tell it."""

    attempt: int = 0
    queued: int = 0  # the attempt that waits for somebody to carry it out
    dispatched: set[int] = field(default_factory=set)
    status: str = "pending"

    @property
    def is_over(self) -> bool:
        return self.status in ("succeeded", "failed", "unknown", "stuck")


class Tale:
    """A saga as its events tell it."""

    def __init__(self, saga_id: str) -> None:
        self.saga_id = saga_id
        self.version = 0
        self.status = ""
        self.sides: dict[tuple[str, str], Side] = {}
        self.outcomes: list[tuple[str, str, int, str, str | None]] = []  # step, op, attempt, verb, code
        self.late = 0

    @property
    def unheard(self) -> int:
        """Attempts of which nothing was heard in time: whoever made them was gone."""
        heard = {outcome[:3] for outcome in self.outcomes}
        return sum(
            (step, op, attempt) not in heard
            for (step, op), side in self.sides.items()
            for attempt in side.dispatched
        )

    def require(self, condition: object, text: str) -> None:
        require(condition, f"saga {self.saga_id}, version {self.version}: {text}")

    def take(self, event: Mapping[str, Any]) -> None:
        self.version += 1
        self.require(event["version"] == self.version, f"{event['version']} comes next")
        noun, verb = event["type"].split(".")
        if verb == "late_result":  # it changes nothing
            self.late += 1
            return
        self.require(self.status not in FINAL, f"{event['type']} after it was {self.status}")
        if noun == "saga":
            self.status = "running" if verb == "started" else verb
        else:
            self.take_step(verb, event["data"], "action" if noun == "step" else "compensate")

    def take_step(self, verb: str, data: Mapping[str, Any], op: str) -> None:
        step, attempt = data["step"], data.get("attempt", 0)
        side = self.sides.setdefault((step, op), Side())
        self.require(not side.is_over, f"{op} {step}: {verb} after it was {side.status}")
        if verb == "queued":
            side.queued = attempt
        elif verb == "dispatched":
            self.dispatch(side, step, op, attempt)
        else:
            self.require(verb in OUTCOMES, f"nobody expects {verb}")
            self.end(side, step, op, verb, data)

    def dispatch(self, side: Side, step: str, op: str, attempt: int) -> None:
        self.require(attempt > side.attempt, f"{op} {step}: attempt {attempt} after {side.attempt}")
        wanted = "running" if op == "action" else "compensating"
        self.require(self.status == wanted, f"{op} {step} is begun while it is {self.status}")
        side.attempt, side.status = attempt, "out"
        side.dispatched.add(attempt)

    def end(self, side: Side, step: str, op: str, verb: str, data: Mapping[str, Any]) -> None:
        attempt, code = data["attempt"], data.get("code")
        awaited = side.queued if code == "no_participant" else side.attempt
        self.require(attempt == awaited, f"{op} {step}: {verb} of attempt {attempt}, not {awaited}")
        is_final = verb in ("succeeded", "unknown", "stuck") or (verb == "failed" and "retry_at" not in data)
        side.status = verb if is_final else "out"
        self.outcomes.append((step, op, attempt, verb, code))


def check_saga(
    written: Written, state: Mapping[str, Any], events: Iterable[Mapping[str, Any]], effects: Sequence[Effect],
    visits: Sequence[Visit], told: Told,
) -> Tale:  # fmt: skip
    """Everything that is promised of a saga that is over. Raises: Violation."""
    saga_id, status = state["saga_id"], state["status"]
    about = f"saga {saga_id} ({written.name}) is {status}"
    require(status in FINAL, about)
    require(not state["dirty"], f"{about} and dirty")
    require(status != "succeeded" or written.doomed is None, f"{about}, and {written.doomed} was declined")
    said = f"{about}, and the ledger says {', '.join(map(str, effects)) or 'nothing'}"
    check_effects(written, status, effects, said)
    check_order(written, effects, said)
    tale = Tale(saga_id)
    for event in events:
        tale.take(event)
    require(tale.status == status, f"{about}, and its history ends with {tale.status}")
    check_state(state, tale)
    check_visits(visits, tale)
    check_outcomes(visits, told, tale)
    return tale


def check_effects(written: Written, status: str, effects: Sequence[Effect], said: str) -> None:
    """All of it was done and nothing taken back; or everything that was done was taken back."""
    for effect in effects:
        require(effects.count(effect) == 1, f"{said}: {effect} twice")
    done, undone = ({each.step for each in effects if each.op == op} for op in ("action", "compensate"))
    if status == "succeeded":
        require(done == set(written.after), f"{said}: not everything was done")
        require(not undone, f"{said}: something was taken back")
    else:
        require(done == undone, f"{said}: {sorted(done ^ undone)} was not taken back")
    require(status != "failed" or not effects, f"{said}: it failed, and something was done")


def check_order(written: Written, effects: Sequence[Effect], said: str) -> None:
    """Along the graph forward, against it backward, and nothing taken back before it was done."""
    place = {effect: number for number, effect in enumerate(effects)}
    for effect, number in place.items():
        if effect.op == "compensate":
            require(place[Effect(effect.step, "action")] < number, f"{said}: {effect} came first")
        for before in written.ancestors(effect.step):
            other = place.get(Effect(before, effect.op))
            if effect.op == "action":
                require(other is not None and other < number, f"{said}: {effect} came before {before}'s")
            else:
                require(other is None or number < other, f"{said}: {effect} came after {before}'s")


def check_state(state: Mapping[str, Any], tale: Tale) -> None:
    """The saga's row and its history agree about every step."""
    for step in state["steps"]:
        side = tale.sides.get((step["name"], "action"), Side())
        attempts = max(side.attempt, side.queued)
        tale.require(
            step["attempts"] == attempts, f"{step['name']}: {step['attempts']} attempts, {attempts} told"
        )
        if side.is_over:
            tale.require(
                step["status"] == side.status, f"{step['name']}: {step['status']}, told {side.status}"
            )


def check_visits(visits: Sequence[Visit], tale: Tale) -> None:
    """One key for all attempts, no attempt twice, and none that the history does not tell of."""
    seen: set[tuple[str, str, int]] = set()
    keys: dict[tuple[str, str], str] = {}
    for visit in visits:
        side = (visit.step, visit.op)
        tale.require(
            keys.setdefault(side, visit.key) == visit.key, f"{side} has keys {keys[side]}, {visit.key}"
        )
        tale.require(
            (*side, visit.attempt) not in seen, f"{side} was called twice as attempt {visit.attempt}"
        )
        seen.add((*side, visit.attempt))
        is_known = side in tale.sides and visit.attempt in tale.sides[side].dispatched
        tale.require(
            is_known, f"{side} was called as attempt {visit.attempt}, of which its history says nothing"
        )
    tale.require(len(set(keys.values())) == len(keys), "two sides have one key")


def check_outcomes(visits: Sequence[Visit], told: Told, tale: Tale) -> None:
    """What the history says of an attempt is what the participant said of that attempt."""
    keys = {(visit.step, visit.op): visit.key for visit in visits}
    for step, op, attempt, verb, code in tale.outcomes:
        expected = SAID.get(verb) or (code if code in CODES else None)
        said = told.get((keys.get((step, op), ""), attempt), set())
        agrees = expected is None or expected in said
        tale.require(
            agrees, f"{op} {step}: attempt {attempt} {verb} ({code}), but it was told {sorted(said)}"
        )
