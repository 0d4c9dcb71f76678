"""What a definition means: the graph of its steps, checked and compiled once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.encoding import decode, encode
from core.errors import Invalid
from sagas.expressions import MappingError
from sagas.mapping import Template, compile_condition, compile_template
from sagas.types import LONGEST, TIMEOUT, RetryPolicy, Step, is_seconds

Problem = dict[str, str]


@dataclass(frozen=True, slots=True)
class Policy:
    """When something is tried again. Delays in seconds; `patience`, since the first failure."""

    attempts: int | None
    strategy: str
    initial: float
    longest: float
    factor: float
    jitter: str
    patience: float | None
    final: frozenset[str]  # codes of failures after which it is not

    def delay(self, failures: int, chance: float) -> float:
        """How long to wait after so many failures. Parameter: `chance`, in [0, 1)."""
        raw = {
            "fixed": lambda: self.initial,
            "linear": lambda: self.initial * failures,
            "exponential": lambda: self.initial * self.factor ** min(failures - 1, 64),
        }[self.strategy]()
        capped = min(raw, self.longest)
        return {"none": capped, "equal": capped / 2 * (1 + chance), "full": capped * chance}[self.jitter]

    def is_spent(self, failures: int, elapsed: float, code: str | None = None) -> bool:
        """Is this enough? Parameters: how often it failed, and how long ago that was first, in seconds."""
        return (
            (self.attempts is not None and failures >= self.attempts)
            or (self.patience is not None and elapsed >= self.patience)
            or code in self.final
        )


@dataclass(frozen=True, slots=True)
class LockPlan:
    """A lock that is taken before the action, and when it is given back."""

    key: Template
    mode: Any
    permits: int
    capacity: int | None
    release: str


@dataclass(frozen=True, slots=True)
class EventPlan:
    """An event that goes into the log with the step's success."""

    stream: Template
    type: str
    data: Template


@dataclass(frozen=True, slots=True)
class StepPlan:
    name: str
    kind: str
    service: str | None
    action: str | None
    compensation: str | None
    verify: str | None
    timeout: float
    schedule_to_start: float
    pivot: bool
    after: tuple[str, ...]  # the steps it depends on
    when: Template | None
    input: Template | None
    compensation_input: Template | None
    seconds: Template | None
    signal: str
    policy: Policy
    undo_policy: Policy
    child: tuple[str, int | None] | None  # the definition of the saga that this step is, and its version
    locks: tuple[LockPlan, ...]
    events: tuple[EventPlan, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    steps: Mapping[str, StepPlan]
    before: Mapping[str, tuple[str, ...]]  # the steps that depend on each
    output: Template | None
    order: str  # of compensation


FORWARD = RetryPolicy(max_attempts=5, max_delay_seconds=30.0)
BACKWARD = RetryPolicy(max_delay_seconds=300.0, max_elapsed_seconds=86400.0)


def policy(said: RetryPolicy | None, default: RetryPolicy) -> Policy:
    """What was said, and the default for what was not."""
    said = said or default
    attempts = said.max_attempts
    patience = said.max_elapsed_seconds
    if attempts is None and patience is None:
        attempts, patience = default.max_attempts, default.max_elapsed_seconds
    longest = default.max_delay_seconds if said.max_delay_seconds is None else said.max_delay_seconds
    assert longest is not None
    return Policy(
        attempts, said.backoff_strategy, said.initial_delay_seconds, longest, said.factor, said.jitter,
        patience, frozenset(said.non_retryable),
    )  # fmt: skip


def compile_plan(
    steps: Sequence[Step], output: str | None = None, order: str = "reverse", *, is_stored: bool = False
) -> Plan:
    """Parameters: `output`, a template as JSON text, of what the saga answers; `is_stored`, it was let in once: what is
    refused by now only must not hold up the sagas that it has.

    Raises: Invalid, naming every fault.
    """
    problems: list[Problem] = []
    parents = dict(zip((step.name for step in steps), parents_of(steps), strict=True))
    problems += graph_problems(steps, parents)
    compiled = [compile_step(place, step, parents[step.name], problems) for place, step in enumerate(steps)]
    found = template(output, "/output", problems)
    if not problems and not is_stored:
        problems += senseless(steps, compiled)
        problems += reference_problems(steps, parents, compiled, found)
    if problems:
        raise Invalid(problems)
    before: dict[str, list[str]] = {step.name: [] for step in steps}
    for step in compiled:
        for name in step.after:
            before[name].append(step.name)
    return Plan(
        {step.name: step for step in compiled},
        {name: tuple(each) for name, each in before.items()},
        found,
        order,
    )


def parents_of(steps: Sequence[Step]) -> Iterator[tuple[str, ...]]:
    """What each depends on: without `depends_on`, the step before it."""
    previous: tuple[str, ...] = ()
    for step in steps:
        yield previous if step.depends_on is None else tuple(step.depends_on)
        previous = (step.name,)


def compile_step(place: int, step: Step, after: tuple[str, ...], problems: list[Problem]) -> StepPlan:
    at = f"/steps/{place}"
    problems += kind_problems(at, step)
    return StepPlan(
        step.name, step.kind, step.service, step.action, step.compensation, step.verify, step.timeout_seconds,
        step.schedule_to_start_seconds or step.timeout_seconds, step.pivot, after,
        condition(step.when, f"{at}/when", problems),
        template(step.input, f"{at}/input", problems),
        template(step.compensation_input, f"{at}/compensation_input", problems),
        template(step.seconds, f"{at}/seconds", problems),
        step.signal or step.name,
        policy(step.retry_policy, FORWARD), policy(step.compensation_retry_policy, BACKWARD),
        None if step.definition is None else (step.definition, step.definition_version),
        compile_locks(at, step, problems), compile_events(at, step, problems),
    )  # fmt: skip


def compile_locks(at: str, step: Step, problems: list[Problem]) -> tuple[LockPlan, ...]:
    keys = [
        template(encode(lock.key).decode(), f"{at}/locks/{place}/key", problems)
        for place, lock in enumerate(step.locks)
    ]
    return tuple(
        LockPlan(key, lock.mode, lock.permits, lock.capacity, lock.release)
        for key, lock in zip(keys, step.locks, strict=True)
        if key
    )


def compile_events(at: str, step: Step, problems: list[Problem]) -> tuple[EventPlan, ...]:
    found = []
    for place, event in enumerate(step.events):
        stream = template(encode(event.stream).decode(), f"{at}/events/{place}/stream", problems)
        data = template(event.data, f"{at}/events/{place}/data", problems)
        if stream and data:
            found.append(EventPlan(stream, event.event_type, data))
    return tuple(found)


def template(text: str | None, pointer: str, problems: list[Problem]) -> Template | None:
    if text is None:
        return None
    try:
        return compile_template(decode(text))
    except MappingError as error:
        problems.append(problem(pointer + error.pointer, "bad_mapping", error.detail))
        return None


def condition(text: str | None, pointer: str, problems: list[Problem]) -> Template | None:
    try:
        return None if text is None else compile_condition(text)
    except MappingError as error:
        problems.append(problem(pointer, "bad_condition", error.detail))
        return None


def problem(pointer: str, code: str, detail: str) -> Problem:
    return {"pointer": pointer, "code": code, "detail": detail}


# -- what can be wrong -------------------------------------------------------------------------------

ONLY = {"service": "call", "action": "call", "compensation": "call", "verify": "call", "seconds": "sleep",
        "signal": "signal", "definition": "saga", "definition_version": "saga"}  # fmt: skip
NEEDED = {"call": ("service", "action"), "sleep": ("seconds",), "signal": (), "saga": ("definition",)}


def kind_problems(at: str, step: Step) -> Iterator[Problem]:
    """Fields that a step of this kind must have, or has nothing to do with."""
    for name in NEEDED[step.kind]:
        if getattr(step, name) is None:
            yield problem(f"{at}/{name}", "missing", f"a step that is a {step.kind} needs it")
    for name, kind in ONLY.items():
        if getattr(step, name) is not None and step.kind != kind:
            yield problem(f"{at}/{name}", "not_for_kind", f"only for a {kind}")


OF_SAGA = ("id", "name")
UNASKED = ("sleep", "signal")  # steps for which nobody is called
UNUSED = ("input", "compensation_input", "compensation_retry_policy")  # by those


def senseless(steps: Sequence[Step], compiled: Sequence[StepPlan]) -> Iterator[Problem]:
    """What would never do, or mean nothing, though it can be read."""
    for place, (step, plan) in enumerate(zip(steps, compiled, strict=True)):
        at = f"/steps/{place}"
        for doubt in plan.when.doubts if plan.when else ():
            yield problem(f"{at}/when", "bad_condition", doubt)
        yield from unused(at, step)
        if step.seconds is not None and not is_duration(decode(step.seconds)):
            yield problem(f"{at}/seconds", "bad_seconds", f"a template, or a number from 0 to {LONGEST}")
        yield from misnamed(at, step)


def unused(at: str, step: Step) -> Iterator[Problem]:
    # Locks are waited for, and those that cannot be had are tried again.
    names = UNUSED if step.locks else (*UNUSED, "retry_policy")
    for name in names if step.kind in UNASKED else ():
        if getattr(step, name) is not None:
            yield problem(f"{at}/{name}", "not_for_kind", f"not for a {step.kind}")
    if step.kind == "sleep" and step.timeout_seconds != TIMEOUT and not step.locks:
        yield problem(f"{at}/timeout_seconds", "not_for_kind", "not for a sleep")
    if step.kind == "call" and step.compensation_input is not None and step.compensation is None:
        yield problem(f"{at}/compensation_input", "no_compensation", "the step has no compensation")


def is_duration(said: Any) -> bool:
    return "${" in said if isinstance(said, str) else is_seconds(said)


def misnamed(at: str, step: Step) -> Iterator[Problem]:
    """Locks and streams of the system's, and locks that can never be had."""
    for place, lock in enumerate(step.locks):
        if is_reserved(lock.key):
            yield problem(f"{at}/locks/{place}/key", "reserved", "names that begin with $ are the system's")
        if lock.capacity is not None and lock.permits > lock.capacity:
            yield problem(f"{at}/locks/{place}/permits", "too_many", "more permits than the capacity")
    for place, event in enumerate(step.events):
        if is_reserved(event.stream):
            yield problem(
                f"{at}/events/{place}/stream", "reserved", "names that begin with $ are the system's"
            )


def is_reserved(text: str) -> bool:
    return text.startswith("$") and not text.startswith("${")


def graph_problems(steps: Sequence[Step], parents: Mapping[str, tuple[str, ...]]) -> Iterator[Problem]:
    """Names given twice, unknown parents, circles."""
    seen: dict[str, int] = {}
    for place, step in enumerate(steps):
        if seen.setdefault(step.name, place) != place:
            detail = f"{step.name} is the name of step {seen[step.name]} already"
            yield problem(f"/steps/{place}/name", "duplicate", detail)
    for place, step in enumerate(steps):
        for number, name in enumerate(step.depends_on or ()):
            if name not in seen:
                yield problem(
                    f"/steps/{place}/depends_on/{number}", "unknown_step", f"there is no step {name}"
                )
    if len(seen) == len(steps) and (circle := circle_of(parents)):
        place = seen[circle[0]]
        yield problem(f"/steps/{place}/depends_on", "cycle", " depends on ".join(circle))


def circle_of(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Some steps that depend on one another in a circle, the first of them again at the end; none, if none do."""
    left = {name: {each for each in after if each in parents} for name, after in parents.items()}
    while free := [name for name, after in left.items() if not after]:
        for name in free:
            del left[name]
        for after in left.values():
            after.difference_update(free)
    if not left:
        return []
    path = [next(iter(left))]
    while path[-1] not in path[:-1]:
        path.append(min(left[path[-1]]))
    return path[path.index(path[-1]) :]


def reference_problems(
    steps: Sequence[Step],
    parents: Mapping[str, tuple[str, ...]],
    compiled: Sequence[StepPlan],
    output: Template | None,
) -> Iterator[Problem]:
    """Paths that lead to a step that there is not, or that is not over when the path is followed."""
    known = ancestors(parents)
    for place, step in enumerate(compiled):
        for name in ("when", "input", "seconds"):
            yield from unreachable(getattr(step, name), known[step.name], f"/steps/{place}/{name}")
        for number, lock in enumerate(step.locks):
            yield from unreachable(lock.key, known[step.name], f"/steps/{place}/locks/{number}/key")
        for number, event in enumerate(step.events):
            for name in ("stream", "data"):
                known_then = {*known[step.name], step.name}
                pointer = f"/steps/{place}/events/{number}/{name}"
                yield from unreachable(getattr(event, name), known_then, pointer)
        yield from unreachable(step.compensation_input, parents.keys(), f"/steps/{place}/compensation_input")
    yield from unreachable(output, parents.keys(), "/output")


def unreachable(found: Template | None, names: Iterable[str], pointer: str) -> Iterator[Problem]:
    reachable = set(names)
    for path in sorted(found.paths if found else ()):
        if path[0] == "saga" and len(path) > 1 and path[1] not in OF_SAGA:
            yield problem(pointer, "unknown_path", f"of the saga there are {' and '.join(OF_SAGA)}")
        if path[0] == "steps" and len(path) > 1 and path[1] not in reachable:
            yield problem(pointer, "unknown_step", f"{path[1]} is no step that is over by then")


def ancestors(parents: Mapping[str, tuple[str, ...]]) -> dict[str, set[str]]:
    """All steps that come before each."""
    found: dict[str, set[str]] = {}
    todo = list(parents)
    while todo:
        name = todo.pop(0)
        if all(each in found for each in parents[name]):
            found[name] = set(parents[name]).union(*(found[each] for each in parents[name]))
        else:
            todo.append(name)
    return found


def plan_of(body: Mapping[str, Any]) -> Plan:
    """A stored definition's."""
    output = None if body["output"] is None else encode(body["output"]).decode()
    steps = [Step.model_validate(step) for step in body["steps"]]
    return compile_plan(steps, output, body["order"], is_stored=True)
