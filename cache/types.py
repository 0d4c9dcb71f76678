"""What the cache operations take and answer."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from core.operations import not_reserved
from core.types import MAX_NUMBER, Cursor, Json, Name, Position, check_text

DAY = 86_400.0
LONGEST = 365 * DAY  # seconds that anything lives
SHORTEST = 0.001
LARGEST = 8 << 20  # bytes of a value that a namespace may allow
MANY = 500

Key = Annotated[Name, not_reserved("cache")]


def check_tag(tag: str) -> str:
    check_text(tag)
    if len(tag.encode()) > 128:
        raise PydanticCustomError("too_long", "up to 128 bytes")
    return tag


Tag = Annotated[str, AfterValidator(check_tag), Field(min_length=1, max_length=128)]
Tags = Annotated[list[Tag], Field(max_length=32)]
_TTL = Field(validation_alias=AliasChoices("ttl_seconds", "ttl"))
Ttl = Annotated[float | None, Field(ge=SHORTEST, le=LONGEST), _TTL]
Stale = Annotated[float, Field(ge=0, le=LONGEST)]
Lease = Annotated[float, Field(ge=0.1, le=60)]
# As Syros gave it: nothing else has a meaning.
AS_OF = r"^[0-9]{1,16}\.[0-9]{1,16}\.[0-9A-Za-z]+(\.[0-9A-Za-z]+)?$"
AsOf = Annotated[str, Field(min_length=1, max_length=120, pattern=AS_OF)]
Etag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")]
ContentType = Annotated[str, Field(min_length=3, max_length=127, pattern=r"^[A-Za-z0-9!#$&^_.+-]+/[ -~]+$")]
Base64 = Annotated[str, Field(max_length=(LARGEST + 2) // 3 * 4)]


def check_place(cursor: str) -> str:
    """A place in Redis, whose cursors have 64 bits, or a colon and a key."""
    place = re.fullmatch(r"([0-9]{1,20}):[0-9]{1,9}|:.+", cursor)
    if not place or int(place[1] or 0) >= 2**64:
        raise PydanticCustomError("cursor", "a next_cursor as it was given")
    return cursor


Place = Annotated[Cursor, AfterValidator(check_place)]
Mode = Literal["hard", "soft"]
OnError = Literal["miss", "error"]
Step = Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class NewValue(BaseModel):
    """A value to be put, one of many."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    value: Json = None
    value_base64: Base64 | None = None
    content_type: ContentType | None = None
    ttl_seconds: Ttl = None
    stale_seconds: Stale = 0.0
    tags: Tags = []
    negative: bool = False
    if_etag: Etag | None = None
    only_if_absent: bool = False
    lease: AsOf | None = None
    as_of: AsOf | None = None


@dataclass(slots=True)
class Stored:
    """What became of a put. `stored` is false where Redis is away and the namespace says that this is a miss."""

    key: str
    stored: bool
    expires_at: datetime | None
    etag: str


@dataclass(slots=True)
class StoredOne:
    """What became of one of many. `code` names the refusal, where it was refused."""

    key: str
    stored: bool
    expires_at: datetime | None
    etag: str
    code: str | None


@dataclass(slots=True)
class StoredMany:
    items: list[StoredOne]


@dataclass(slots=True)
class Cached:
    """A cached value, fresh until `expires_at`. Binary ones are in `value_base64` with their `content_type`.

    `stale`: it may be served, but should be loaded again; `lease` is for the one caller that was chosen to do so, and
    `as_of`, when the load begins. `negative`: it is known that there is no value.
    """

    key: str
    value: Any
    value_base64: str | None
    content_type: str
    tags: list[str]
    etag: str
    created_at: datetime
    expires_at: datetime
    stale_until: datetime
    stale: bool
    negative: bool
    as_of: str | None
    lease: str | None


@dataclass(slots=True)
class Missing:
    """What is not in the cache. `as_of` is for putting what is loaded for it now; null where Redis is away."""

    key: str
    as_of: str | None


@dataclass(slots=True)
class CachedMany:
    """Those that are there, in the order asked for; those that are not; and those that were left out: they are there,
    but would have made the answer too large."""

    items: list[Cached]
    missing: list[Missing]
    left_out: list[str]


@dataclass(slots=True)
class Deleted:
    key: str
    deleted: bool


@dataclass(slots=True)
class Invalidated:
    """`position`: of the event `cache.invalidated` in the log."""

    tags: list[str]
    mode: Mode
    position: Position


@dataclass(slots=True)
class Touched:
    key: str
    expires_at: datetime
    etag: str


@dataclass(slots=True)
class Counted:
    key: str
    value: int
    expires_at: datetime
    etag: str


@dataclass(slots=True)
class CacheItem:
    """What is known of a cached value, without the value. `size`: bytes that are kept, compressed and with what is
    said of them."""

    key: str
    tags: list[str]
    etag: str
    size: int
    content_type: str
    created_at: datetime
    expires_at: datetime
    stale_until: datetime
    stale: bool
    negative: bool


@dataclass(slots=True)
class CacheItems:
    """`partial`: the search ended before the page was full, after it had looked at as much as it may: go on with
    `next_cursor`. There is no order."""

    items: list[CacheItem]
    partial: bool
    next_cursor: str | None


@dataclass(slots=True)
class CacheStats:
    """What was counted in a namespace, by all processes together, a second ago.

    `refused`: loads that were older than an invalidation, a put or a delete; `leases`: callers that were told to load;
    `errors`: what was answered although Redis was away. `bytes_used` is null without a quota.
    """

    hits: int
    stale: int
    negative: int
    misses: int
    leases: int
    stored: int
    refused: int
    deleted: int
    invalidated: int
    errors: int
    bytes_read: int
    bytes_written: int
    bytes_used: int | None
    hit_ratio: float


@dataclass(slots=True)
class CacheSettings:
    """What a namespace has set for its cache. `quota_bytes`: roughly, of all values together; null: no limit."""

    default_ttl_seconds: float
    max_ttl_seconds: float
    max_value_bytes: int
    quota_bytes: int | None
    on_error: OnError
