"""What the event operations take and answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from core.following import Heartbeat
from core.log import RecordedEvent
from core.operations import not_reserved
from core.types import AnyName, EventId, Json, Name, Object, Position, Text

StreamName = Annotated[Name, not_reserved("events")]
ReadName = Annotated[AnyName, not_reserved("events")]
Expected = Position | Literal["any", "no_stream", "exists"]
EventType = Text


class NewEvent(BaseModel):
    """An event to append."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    event_type: Annotated[EventType, Field(validation_alias=AliasChoices("event_type", "type"))]
    data: Json
    metadata: Object = "{}"
    event_id: EventId | None = None


class StreamAppend(BaseModel):
    """Events for one of several streams."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    stream_id: StreamName
    events: Annotated[list[NewEvent], Field(min_length=1, max_length=1000)]
    expected_version: Expected = "any"


@dataclass(slots=True)
class Appended:
    event_id: str
    stream_id: str
    event_type: str
    version: int
    position: int
    recorded_at: datetime


@dataclass(slots=True)
class AppendedBatch:
    stream_id: str
    first_version: int
    last_version: int
    first_position: int
    last_position: int
    event_ids: list[str]


@dataclass(slots=True)
class AppendedMany:
    appends: list[AppendedBatch]


@dataclass(slots=True)
class StreamPage:
    stream_id: str
    events: list[RecordedEvent]
    version: int
    has_more: bool


@dataclass(slots=True)
class LogPage:
    events: list[RecordedEvent]
    next_position: int
    head: int
    has_more: bool


@dataclass(slots=True)
class Followed:
    """One of these: the next event, or how far the log has been followed."""

    event: RecordedEvent | None = None
    heartbeat: Heartbeat | None = None


@dataclass(slots=True)
class StreamInfo:
    stream_id: str
    version: int
    created_at: datetime | None
    changed_at: datetime | None
