"""What the lock operations take and answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from core.operations import not_reserved
from core.types import Name, Text, Wait

Key = Annotated[Name, not_reserved("locks")]
Owner = Text
LockId = Annotated[str, Field(min_length=1, max_length=64)]
_Seconds = Annotated[float, Field(ge=0.1, le=86400)]
_TTL = Field(validation_alias=AliasChoices("ttl_seconds", "ttl"))
Ttl = Annotated[_Seconds, _TTL]
OptionalTtl = Annotated[_Seconds | None, _TTL]
WaitSeconds = Annotated[Wait, Field(validation_alias=AliasChoices("wait_seconds", "wait_timeout_seconds"))]
Mode = Literal["exclusive"]
Reason = Literal["expired", "released", "force_released", "never_held"]


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


@dataclass(slots=True)
class LockSummary:
    """A lock as everybody may see it: never the lock_id."""

    key: str
    is_locked: bool
    capacity: int
    last_token: int
    holders: list[Holder]
    queue_length: int


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
