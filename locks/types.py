"""What the lock operations take and answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from core.operations import not_reserved
from core.types import Name, Text, Wait, check_text

Key = Annotated[Name, not_reserved("locks")]
ElectionName = Annotated[Name, not_reserved("elections")]
Owner = Text
LockId = Annotated[str, AfterValidator(check_text), Field(min_length=1, max_length=64)]
_Seconds = Annotated[float, Field(ge=0.1, le=86400)]
_TTL = Field(validation_alias=AliasChoices("ttl_seconds", "ttl"))
Permits = Annotated[int, Field(ge=1, le=2**31 - 1)]
Capacity = Annotated[int | None, Field(ge=1, le=2**31 - 1)]
OptionalTtl = Annotated[_Seconds | None, _TTL]
WaitSeconds = Annotated[Wait, Field(validation_alias=AliasChoices("wait_seconds", "wait_timeout_seconds"))]
TTL = 30.0  # seconds, unless said
Mode = Literal["exclusive", "shared"]
Keys = Annotated[list[Key], Field(min_length=1, max_length=64)]


class Item(BaseModel):
    """One of several locks that are wanted at once."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    mode: Mode = "exclusive"
    permits: Permits = 1
    capacity: Capacity = None


@dataclass(slots=True)
class Grant:
    """A held lock. The `lock_id` is the holder's secret: it proves the hold, and only the holder is told."""

    lock_id: str
    key: str
    owner: str
    mode: Mode
    permits: int
    fencing_token: int
    acquired_at: datetime
    expires_at: datetime
    ttl_seconds: float
    waited_seconds: float


@dataclass(slots=True)
class Grants:
    """Locks that were taken at once, in the order of their keys."""

    grants: list[Grant]


@dataclass(slots=True)
class ForceReleased:
    """Whose holds an operator ended. The next token is larger than `last_token`."""

    key: str
    owners: list[str]
    last_token: int


@dataclass(slots=True)
class Released:
    key: str
    released: bool
    fencing_token: int


@dataclass(slots=True)
class Holder:
    owner: str
    mode: Mode
    permits: int
    session_id: str | None
    fencing_token: int
    acquired_at: datetime
    expires_at: datetime
    metadata: Any


@dataclass(slots=True)
class Waiter:
    ticket: int
    owner: str
    mode: Mode
    permits: int
    since: datetime
    deadline: datetime
    session_id: str | None
    age_seconds: float


@dataclass(slots=True)
class HeldLock:
    """A lock as who holds it has it."""

    key: str
    mode: Mode
    permits: int
    fencing_token: int
    acquired_at: datetime


@dataclass(slots=True)
class LockSummary:
    """A lock as everybody may see it: never the lock_id."""

    key: str
    is_locked: bool
    capacity: int
    last_token: int
    holders: list[Holder]
    queue_length: int
    lock_delay_until: datetime | None


@dataclass(slots=True)
class LockState(LockSummary):
    """A lock with its waiters, in order."""

    waiters: list[Waiter]


@dataclass(slots=True)
class Locks:
    items: list[LockSummary]
    next_cursor: str | None


@dataclass(slots=True)
class Currency:
    current: bool
    last_token: int


@dataclass(slots=True)
class PastHold:
    """A hold that a lock's history tells of; `ending` is absent while it lasts."""

    owner: str
    mode: str
    permits: int
    session_id: str | None
    fencing_token: int
    acquired_at: datetime
    waited_seconds: float
    ended_at: datetime | None
    held_seconds: float | None
    ending: str | None
    because: str | None


@dataclass(slots=True)
class LockHistory:
    key: str
    holds: list[PastHold]


@dataclass(slots=True)
class Spread:
    """How long, in seconds: half of them no longer than p50, and so on."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(slots=True)
class LockClass:
    """What the locks have in common whose keys begin alike."""

    prefix: str
    held: Spread | None
    waited: Spread | None
    expired: int
    force_released: int
    timed_out: int
    deadlocks: int


@dataclass(slots=True)
class LockStats:
    since: datetime
    classes: list[LockClass]
    partial: bool


@dataclass(slots=True)
class Contended:
    """A lock that somebody waits for."""

    key: str
    queue_length: int
    longest_wait_seconds: float
    holders: list[Holder]


@dataclass(slots=True)
class ContendedLocks:
    items: list[Contended]


@dataclass(slots=True)
class Violation:
    """A token that was refused because it was stale."""

    key: str
    fencing_token: int
    last_token: int
    operation: str
    principal: str
    position: int
    recorded_at: datetime


@dataclass(slots=True)
class Violations:
    items: list[Violation]
    next_cursor: str | None


@dataclass(slots=True)
class Node:
    """Who takes part in waiting: a session, or a caller without one."""

    id: str
    kind: Literal["session", "caller"]
    owner: str


@dataclass(slots=True)
class Edge:
    """`waiter` waits for `blocker`, which holds the lock or stands before it in the queue."""

    waiter: str
    blocker: str
    key: str
    because: Literal["holds", "is_ahead"]


@dataclass(slots=True)
class WaitsFor:
    nodes: list[Node]
    edges: list[Edge]
    cycles: list[list[str]]


@dataclass(slots=True)
class Candidate:
    candidate: str
    value: Any
    session_id: str | None
    since: datetime
    deadline: datetime


@dataclass(slots=True)
class Candidates:
    items: list[Candidate]
    next_cursor: str | None


@dataclass(slots=True)
class Leadership:
    """What an elected candidate is told. The `lock_id` is its secret: it proves that it leads."""

    election: str
    leader: str
    value: Any
    lock_id: str
    fencing_token: int
    session_id: str | None
    elected_at: datetime
    expires_at: datetime
    ttl_seconds: float
    waited_seconds: float


@dataclass(slots=True)
class Resigned:
    election: str
    resigned: bool
    fencing_token: int


@dataclass(slots=True)
class Transferred:
    election: str
    leader: str
    fencing_token: int


@dataclass(slots=True)
class Election:
    """Who leads and who stands, as everybody may see it."""

    election: str
    leader: str | None
    value: Any
    fencing_token: int
    session_id: str | None
    elected_at: datetime | None
    expires_at: datetime | None
    candidates: list[Candidate]
    candidate_count: int


@dataclass(slots=True)
class ElectionSummary:
    election: str
    leader: str | None
    value: Any
    fencing_token: int
    candidate_count: int


@dataclass(slots=True)
class Elections:
    items: list[ElectionSummary]
    next_cursor: str | None
