"""What the configuration operations take and answer."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from core.following import Heartbeat
from core.operations import not_reserved
from core.types import MAX_NUMBER, Cursor, Name, Text

# A path that ends so means something about the key before it.
VERBS = frozenset({"history", "rollback", "reveal", "widen", "finish", "abort", "adopt"})


def check_verb(key: str) -> str:
    if "/" in key and (verb := key.rpartition("/")[2]) in VERBS:
        raise PydanticCustomError("reserved_name", "no key ends in /{verb}: a route does", {"verb": verb})
    return key


Key = Annotated[Name, not_reserved("config"), AfterValidator(check_verb)]
SchemaPrefix = Annotated[Name, not_reserved("config-schemas"), AfterValidator(check_verb)]
Revision = Annotated[int, Field(ge=0, le=MAX_NUMBER)]


def to_revision(place: str) -> int:
    if not re.fullmatch("[0-9]{1,16}", place):
        raise PydanticCustomError("cursor", "a next_cursor as it was given")
    return int(place)


RevisionCursor = Annotated[Cursor, AfterValidator(to_revision)]


@dataclass(slots=True)
class ConfigChange:
    """A change of a key: its new revision, and where in the log it stands."""

    key: str
    revision: int
    position: int
    changed_at: datetime


Percentage = Annotated[float, Field(ge=0.01, le=100)]
InstanceName = Annotated[Text, Field(description="an instance of a service, as it calls itself")]


class NewRollout(BaseModel):
    """Give a value to a share of the instances. `salt` decides to which; unless said, another share each time."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    percentage: Percentage
    salt: Text | None = None


@dataclass(slots=True)
class Rollout:
    """The value that some instances get, `percentage` of them (0.01 to 100). Of a secret the value is not told."""

    percentage: float
    salt: str
    value: Any
    secret: bool


@dataclass(slots=True)
class ConfigState:
    """What a key is set to. Of a secret the value is not told: see config.reveal. `is_next`: it is the value of the
    rollout that is under way. `source`: the store that the key follows."""

    key: str
    value: Any
    secret: bool
    revision: int
    is_next: bool
    rollout: Rollout | None
    source: str | None
    changed_at: datetime
    changed_by: str


@dataclass(slots=True)
class ConfigPage:
    """Keys that are set, in order, and a position to watch from: nothing after it is missed."""

    items: list[ConfigState]
    position: int
    next_cursor: str | None


@dataclass(slots=True)
class ConfigRevision:
    """What a key was set to, by whom and why. `change`: `put`, `deleted`, `rolled_back`, `rollout_started`,
    `rollout_widened`, `rollout_finished`, `rollout_aborted` or `adopted`."""

    key: str
    revision: int
    position: int
    change: str
    value: Any
    secret: bool
    rollout: Rollout | None
    to_revision: int | None
    reason: str | None
    changed_at: datetime
    changed_by: str


@dataclass(slots=True)
class ConfigHistory:
    """Revisions, the newest first."""

    items: list[ConfigRevision]
    next_cursor: str | None


@dataclass(slots=True)
class ConfigChanged:
    """One of these: the next change, or how far the log has been followed."""

    change: ConfigRevision | None = None
    heartbeat: Heartbeat | None = None


@dataclass(slots=True)
class SchemaChange:
    """A change of a schema. `violations`: keys that are set to what does not fit it, where it was forced."""

    prefix: str
    revision: int
    position: int
    violations: list[str]
    changed_at: datetime


@dataclass(slots=True)
class SchemaState:
    """The JSON Schema of the keys at and under a prefix."""

    prefix: str
    json_schema: Any
    revision: int
    changed_at: datetime
    changed_by: str


@dataclass(slots=True)
class Schemas:
    items: list[SchemaState]
    next_cursor: str | None


@dataclass(slots=True)
class SchemaRevision:
    """What a schema was, who made it so and why. `change`: `put` or `deleted`."""

    prefix: str
    revision: int
    position: int
    change: str
    json_schema: Any
    reason: str | None
    changed_at: datetime
    changed_by: str


@dataclass(slots=True)
class SchemaHistory:
    """Revisions of a schema, the newest first."""

    items: list[SchemaRevision]
    next_cursor: str | None


@dataclass(slots=True)
class Revealed:
    """What a secret is. A replay by Idempotency-Key answers without the value."""

    key: str
    value: Any
    revision: int
