"""What the saga operations take and answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from core.types import PAIRS, Json, Text, check_text
from discovery.types import ServiceName
from locks.types import Capacity, Mode, Permits

StepName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
SagaName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
SagaId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
Path = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._~/-]+$")]
LONGEST = 10 * 366 * 86400  # seconds that a step may sleep, and until a saga starts
Seconds = Annotated[float, Field(ge=0, le=LONGEST)]
Timeout = Annotated[float, Field(ge=0.1, le=86400)]
Condition = Annotated[str, Field(min_length=1, max_length=2048)]
Kind = Literal["call", "sleep", "signal", "saga"]
Release = Literal["step", "compensation", "saga"]
Status = Literal[
    "scheduled", "running", "paused", "compensating", "attention",
    "succeeded", "compensated", "failed", "terminated",
]  # fmt: skip
MAX_STEPS = 500
TIMEOUT = 30.0  # seconds, unless said


def check_pair(text: str) -> str:
    if ":" not in text:
        raise PydanticCustomError("pair", "key:value")
    return text


def is_seconds(value: Any) -> bool:
    """Is it a number of seconds that a step may sleep?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RetryPolicy(Strict):
    """How often and how long apart something is tried again."""

    max_attempts: Annotated[int, Field(ge=1, le=1000)] | None = None
    backoff_strategy: Literal["fixed", "linear", "exponential"] = "exponential"
    initial_delay_seconds: Annotated[float, Field(ge=0, le=86400)] = 0.2
    max_delay_seconds: Annotated[float, Field(ge=0, le=86400)] | None = None
    factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    jitter: Literal["none", "equal", "full"] = "full"
    max_elapsed_seconds: Seconds | None = None
    non_retryable: Annotated[list[Text], Field(max_length=64)] = []

    @model_validator(mode="before")
    @classmethod
    def count_attempts(cls, values: Any) -> Any:
        """`max_retries` is one less: the first attempt is none."""
        if (
            isinstance(values, dict)
            and type(retries := values.get("max_retries")) is int
            and 0 <= retries < 1000  # else it stays, and is what the refusal names
            and "max_attempts" not in values
        ):
            values = {**values, "max_attempts": retries + 1}
            del values["max_retries"]
        return values


class StepLock(Strict):
    """A lock that a step takes before its action. `key` is a template."""

    key: Text
    mode: Mode = "exclusive"
    permits: Permits = 1
    capacity: Capacity = None
    release: Release = "saga"


class StepEvent(Strict):
    """An event that is appended in the transaction in which a step succeeds. `stream` and `data` are templates."""

    stream: Text
    event_type: Annotated[Text, Field(validation_alias=AliasChoices("event_type", "type"))]
    data: Json


class Step(Strict):
    """One step of a saga, as its author writes it. Inputs and `seconds` are templates: see sagas.mapping."""

    name: StepName
    kind: Kind = "call"
    service: ServiceName | None = None
    action: Path | None = None
    compensation: Path | None = None
    timeout_seconds: Timeout = TIMEOUT
    input: Json | None = None
    compensation_input: Json | None = None
    depends_on: Annotated[list[StepName], Field(max_length=MAX_STEPS)] | None = None
    when: Condition | None = None
    retry_policy: RetryPolicy | None = None
    compensation_retry_policy: RetryPolicy | None = None
    pivot: bool = False
    schedule_to_start_seconds: Timeout | None = None
    verify: Path | None = None
    seconds: Json | None = None
    signal: StepName | None = None
    definition: SagaName | None = None
    definition_version: Annotated[int, Field(ge=1)] | None = None
    locks: Annotated[list[StepLock], Field(max_length=16)] = []
    events: Annotated[list[StepEvent], Field(max_length=16)] = []


Steps = Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]
Order = Literal["reverse", "sequential", "parallel"]
ErrorCode = Annotated[str, AfterValidator(check_text), Field(min_length=1, max_length=100)]
ChosenTags = Annotated[
    list[Annotated[Text, AfterValidator(check_pair)]],
    Field(max_length=8, description="each `key:value`; in a query string `tag.key=value` too"),
    PAIRS,
]
Tags = Annotated[dict[StepName, Text], Field(max_length=32)]
StartName = Annotated[SagaName, Field(validation_alias=AliasChoices("name", "saga_name"))]


@dataclass(slots=True)
class CompensationState:
    status: str
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    error: Any


@dataclass(slots=True)
class StepState:
    """A step as it is now. `due_at` is when it is looked at again."""

    name: str
    kind: Kind
    service: str | None
    action: str | None
    status: str
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None
    output: Any
    error: Any
    compensation: CompensationState | None


@dataclass(slots=True)
class SagaSummary:
    saga_id: str
    name: str
    status: Status
    reason: str | None
    current_step: str | None
    error: Any
    tags: Any
    created_at: datetime
    finished_at: datetime | None


@dataclass(slots=True)
class SagaState:
    """A saga with its steps. `dirty`: some effect may remain that nobody took back. `start_at`: when it starts, or
    was to, if that was not at once."""

    saga_id: str
    name: str
    status: Status
    reason: str | None
    current_step: str | None
    input: Any
    output: Any
    error: Any
    metadata: Any
    tags: Any
    dirty: bool
    steps: list[StepState]
    created_at: datetime
    start_at: datetime | None
    deadline_at: datetime | None
    finished_at: datetime | None


@dataclass(slots=True)
class Sagas:
    items: list[SagaSummary]
    next_cursor: str | None


FailedSide = Literal["action", "compensation"]


@dataclass(slots=True)
class FailureGroup:
    """Sagas of one name that failed at the same side of the same step, with the same code. No step: it was about the
    whole, like a deadline. `attention`: how many of them wait for a human. `newest`: the id of the last."""

    name: str
    step: str | None
    side: FailedSide | None
    code: str | None
    count: int
    attention: int
    newest: str
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(slots=True)
class Failures:
    items: list[FailureGroup]
    is_partial: bool


@dataclass(slots=True)
class HistoryEvent:
    version: int
    position: int
    type: str
    data: Any
    actor: str
    recorded_at: datetime


@dataclass(slots=True)
class History:
    saga_id: str
    events: list[HistoryEvent]
    version: int
    has_more: bool


WaitReason = Literal[
    "retry", "ongoing", "deferred", "worker", "locks", "time", "signal", "saga", "answer",
]  # fmt: skip


@dataclass(slots=True)
class TimelineState:
    """What the saga was from then to then, until it was over; `finished_at` is null of what it is now."""

    status: Status
    started_at: datetime
    finished_at: datetime | None


@dataclass(slots=True)
class TimelineAttempt:
    """One attempt. `by`: push, a call; pull, a worker who fetched it. `outcome`: succeeded, failed, refused,
    misconfigured, unknown, ongoing; lost (whoever called is gone), abandoned (the saga was ended); of a
    question about an action: applied, not_applied, unknown; null while it is under way."""

    attempt: int
    by: Literal["push", "pull"]
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    code: str | None
    message: str | None


@dataclass(slots=True)
class TimelineWait:
    """Time in which nothing could be done but wait. `reason`: retry (the pause before the next attempt), ongoing (the
    participant is at it and wants to be asked again), deferred (its service answers nobody), worker (nobody has fetched
    it), locks, time (a sleep), signal, saga (the step is one), answer (it was accepted and is answered later). `about`:
    the signal, or the keys of the locks. `until`: when it ends at the latest, as was said when it began."""

    reason: WaitReason
    about: str | None
    attempt: int | None
    started_at: datetime
    finished_at: datetime | None
    until: datetime | None


@dataclass(slots=True)
class TimelineLane:
    """One side of a step: its action, its compensation, or what its participant was asked about the action (verify).
    `outcome` of it all: succeeded, failed, unknown, stuck, skipped; applied, not_applied; null while it is not over."""

    step: str
    side: Literal["action", "compensation", "verify"]
    outcome: str | None
    code: str | None
    message: str | None
    finished_at: datetime | None
    attempts: list[TimelineAttempt]
    waits: list[TimelineWait]


@dataclass(slots=True)
class Timeline:
    """What a saga did and when, as of `as_of`. `is_cut`: it is told from the last events only, from
    `from_version` on."""

    saga_id: str
    name: str
    status: Status
    created_at: datetime
    finished_at: datetime | None
    as_of: datetime
    states: list[TimelineState]
    lanes: list[TimelineLane]
    from_version: int
    is_cut: bool


@dataclass(slots=True)
class Task:
    """Work for a worker of a service that polls. `lease_token` proves that it is the worker's; the key is the same
    at every attempt."""

    task_id: str
    lease_token: str
    saga_id: str
    saga_name: str
    step: str
    op: Literal["action", "compensate", "verify"]
    action: str
    attempt: int
    idempotency_key: str
    input: Any
    context: Any
    lease_expires_at: datetime


@dataclass(slots=True)
class Tasks:
    tasks: list[Task]


@dataclass(slots=True)
class TaskDone:
    """`status` of the step after that; `late` if it was over already, which changed nothing."""

    task_id: str
    saga_id: str
    step: str
    status: str
