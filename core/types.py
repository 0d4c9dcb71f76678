"""Scalars that several operations share, with their limits."""

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime
from math import isfinite
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from core.encoding import encode

MAX_NUMBER = 2**53 - 1  # what every client's numbers can hold

_NAME = re.compile(r"[A-Za-z0-9._:@/+=-]{1,255}")
_SYSTEM_NAME = re.compile(r"\$[A-Za-z0-9._:@/+=$-]{1,299}")
_UUID = re.compile(
    r"(urn:uuid:)?\{?[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}\}?", re.IGNORECASE
)  # what uuid.UUID takes, less the odd characters that int() takes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PydanticCustomError("bad_name", "1 to 255 characters of A-Z a-z 0-9 . _ : @ / + = -")
    # Segments only where there are any: the common name has none.
    if "/" in name or name in {".", ".."}:
        for segment in name.split("/"):
            if segment in {"", ".", ".."}:
                raise PydanticCustomError("bad_segment", "no empty, . or .. segments")
    return name


def check_any_name(name: str) -> str:
    if name.startswith("$"):
        if not _SYSTEM_NAME.fullmatch(name):
            raise PydanticCustomError("bad_name", "a system name has up to 300 characters")
        return name
    return check_name(name)


def check_text(text: str) -> str:
    if _CONTROL.search(text):
        raise PydanticCustomError("control_characters", "no control characters")
    return text


def _holds(value: Any, what: Callable[[Any], bool]) -> bool:
    """Is there such a string or number anywhere in this JSON?"""
    if isinstance(value, dict):
        return any(_holds(each, what) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return any(_holds(each, what) for each in value)
    return what(value)


def _is_nul(value: Any) -> bool:
    return isinstance(value, str) and "\x00" in value


def holds_nul(value: Any) -> bool:
    """Does this JSON hold what no PostgreSQL text may?"""
    return _holds(value, _is_nul)


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def to_json_text(value: Any) -> str:
    """JSON as it will be stored. NUL is legal in JSON and in no PostgreSQL text, so it is refused here; so are
    infinities, which JSON cannot say and orjson would write as null."""
    try:
        text = encode(value).decode()
    except (TypeError, ValueError) as error:
        raise PydanticCustomError("not_json", "{why}", {"why": str(error)[:200]}) from None
    if "\\u0000" in text and holds_nul(value):
        raise PydanticCustomError("nul_character", "no NUL characters")
    if "null" in text and _holds(value, _is_no_number):
        raise PydanticCustomError("not_json", "no infinities and no NaN")
    return text


def check_object(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("object_type", "a JSON object")
    return value


def to_instant(value: Any) -> Any:
    """RFC 3339 with an offset; a time without one says nothing."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise PydanticCustomError("instant", "an RFC 3339 instant") from None
    if isinstance(value, datetime) and value.tzinfo is None:
        raise PydanticCustomError("instant_without_offset", "an instant with Z or an offset")
    return value


def check_uuid(value: str) -> str:
    if not _UUID.fullmatch(value):
        raise PydanticCustomError("uuid", "a UUID")
    return str(UUID(value))


def encode_cursor(place: str) -> str:
    return urlsafe_b64encode(place.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return check_text(b64decode(padded, altchars=b"-_", validate=True).decode())
    except ValueError:
        raise PydanticCustomError("cursor", "a next_cursor as it was given") from None


Name = Annotated[str, AfterValidator(check_name), Field(min_length=1, max_length=255)]
AnyName = Annotated[str, AfterValidator(check_any_name), Field(min_length=1, max_length=300)]
Prefix = Annotated[str, AfterValidator(check_text), Field(max_length=300)]
Text = Annotated[str, AfterValidator(check_text), Field(min_length=1, max_length=255)]
Json = Annotated[Any, AfterValidator(to_json_text)]
Object = Annotated[
    Any,
    AfterValidator(to_json_text),
    BeforeValidator(check_object),
    # For people; inside, it is text all the way.
    Field(json_schema_extra=lambda schema: schema.update(type="object", default={})),
]
PAIRS = "pairs"  # marks a list of `key:value`, that a query string may give as `name.key=value`
Instant = Annotated[datetime, BeforeValidator(to_instant)]
EventId = Annotated[str, AfterValidator(check_uuid), Field(max_length=45)]
Position = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Token = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Cursor = Annotated[str, AfterValidator(decode_cursor), Field(max_length=800)]
Limit = Annotated[int, Field(ge=1, le=200)]
Wait = Annotated[float, Field(ge=0, le=300)]
