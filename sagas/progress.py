"""How far a saga is, and how that is stored: JSON of what is not as it was in the beginning."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from core.encoding import decode, encode

FINAL = ("succeeded", "compensated", "failed", "terminated")
LIVE = ("scheduled", "running", "paused", "compensating", "attention")
RESTING = (*FINAL, "attention")  # nothing goes on, unless a human says so


@dataclass(slots=True)
class Side:
    """A step's action, or its compensation: how often it was tried and what came of it. Instants in Unix seconds."""

    status: str = "pending"
    attempts: int = 0  # sent
    failures: int = 0  # that count
    failed_since: float | None = None
    due: float | None = None  # when to look again
    started: float | None = None
    finished: float | None = None
    error: dict[str, Any] | None = None
    until: float | None = None  # how long it waits for its locks


@dataclass(slots=True)
class StepProgress:
    action: Side = field(default_factory=Side)
    undo: Side = field(default_factory=Side)
    maybe: bool = False  # an attempt may have had an effect, whatever a later one said
    doubt_until: float = 0.0  # when the attempts of which nothing was heard are over, wherever they are
    is_waived: bool = False  # an operator said to go on without it: what comes after it is done
    place: int = 0  # in the order of first dispatch, from 1
    output: Any = None
    locks: dict[str, list[Any]] = field(default_factory=dict)  # that it holds: token, when it is given back
    child: str | None = None  # the id of the saga that it is
    is_recalled: bool = False  # that saga was told to take back what it did
    is_verifying: bool = False  # the participant is asked whether the action had its effect
    checks: int = 0  # how often it was asked so in vain
    edited: dict[str, Any] = field(default_factory=dict)  # inputs that an operator gave, by op

    def sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        return ("action", self.action), ("compensate", self.undo)

    def side(self, op: str) -> Side:
        """Whose attempt it is; to verify is the action's business."""
        return self.undo if op == "compensate" else self.action


@dataclass(slots=True)
class Progress:
    """How far a saga is."""

    status: str = "running"
    reason: str | None = None
    before: str | None = None  # what it was before it needed attention
    paused_from: str | None = None  # and before it was paused
    paused_at: float | None = None
    depth: int = 0  # how many sagas it is in, each a step of the next
    start_at: float | None = None  # when it begins, if not at once
    deadline: float | None = None
    dispatched: int = 0
    error: dict[str, Any] | None = None
    dirty: bool = False
    has_session: bool = False  # that its locks are held with
    output: Any = None
    signals: dict[str, list[Any]] = field(default_factory=dict)  # by name, for steps to come, in order
    steps: dict[str, StepProgress] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.status in FINAL

    @property
    def heading(self) -> str | None:
        """Where it is going, or will be after a pause."""
        return self.paused_from if self.status == "paused" else self.status

    @property
    def is_calling(self) -> bool:
        return any(side.status == "calling" for side in self.sides())

    def sides(self) -> Iterator[Side]:
        for step in self.steps.values():
            yield step.action
            yield step.undo


# -- as it is stored ---------------------------------------------------------------------------------


def beginning(kind: type[Any], *besides: str) -> dict[str, Any]:
    """How the fields of a dataclass are in the beginning, but those that are stored apart."""
    return {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(kind)
        if each.name not in besides
    }


SIDE = beginning(Side)
STEP = beginning(StepProgress, "action", "undo")
WHOLE = beginning(Progress, "steps")


def to_text(progress: Progress) -> str:
    found = differences(progress, WHOLE)
    found["steps"] = {name: step_to_json(step) for name, step in progress.steps.items()}
    return encode(found).decode()


def step_to_json(step: StepProgress) -> dict[str, Any]:
    found = differences(step, STEP)
    for name in ("action", "undo"):
        if side := differences(getattr(step, name), SIDE):
            found[name] = side
    return found


def differences(thing: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, default in defaults.items() if (value := getattr(thing, name)) != default}


def from_text(text: str) -> Progress:
    found = decode(text)
    found["steps"] = {name: step_from_json(step) for name, step in found["steps"].items()}
    return Progress(**found)


def step_from_json(found: dict[str, Any]) -> StepProgress:
    for name in ("action", "undo"):
        if name in found:
            found[name] = Side(**found[name])
    return StepProgress(**found)
