"""How values become bytes and bytes values again; what of a put is wrong. Nothing here asks anybody."""

import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orjson import Fragment

from cache.backends import ENOUGH, Found, Item
from cache.errors import ValueTooLarge
from cache.types import Cached, CachedMany, CacheItem, CacheSettings, CacheStats, Missing
from core.errors import Invalid

JSON, BINARY, NEGATIVE = "j", "b", "n"  # the first letter of a kind; the second says whether it is compressed
PLAIN, COMPRESSED = "-", "z"
COMPRESS_FROM = 1024  # bytes
NEGATIVE_TTL = 30.0  # seconds that the absence of a value is believed, unless said
COUNTED = (
    "hits", "stale", "negative", "misses", "leases", "stored", "refused", "deleted", "invalidated", "errors",
    "bytes_read", "bytes_written",
)  # fmt: skip


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def instant(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1000, UTC)


def item_of(settings: CacheSettings, given: Any, place: str = "") -> Item:
    """What is to be stored of a put. Parameters: `place` is where it stands, for what is said of bad fields.

    Raises: Invalid, naming every bad field; ValueTooLarge.
    """
    data, problems = bytes_of(given)
    ttl = given.ttl_seconds or default_ttl(settings, given.negative)
    problems += [*ttl_problems(settings, ttl, given.stale_seconds), *lease_problems(given)]
    if problems:
        raise Invalid([{**each, "pointer": place + each["pointer"]} for each in problems])
    if len(data) > settings.max_value_bytes:
        raise ValueTooLarge(
            f"The value has {len(data)} bytes; this namespace allows {settings.max_value_bytes}.",
            limit=settings.max_value_bytes,
        )
    kind = kind_of(given)
    packed, how = compressed(data)
    return Item(
        packed, kind[0] + how + kind[1:], etag_of(kind, data), milliseconds(ttl), round(given.stale_seconds * 1000),
        given.tags, given.lease or given.as_of, given.if_etag, given.only_if_absent,
    )  # fmt: skip


def bytes_of(given: Any) -> tuple[bytes, list[dict[str, str]]]:
    """A put's value, and what is wrong with it."""
    named = [name for name in ("value", "value_base64") if getattr(given, name) is not None]
    if given.negative:
        return b"", [problem(name, "not_negative", "a negative entry has no value") for name in named]
    if not named:
        return b"", [problem("value", "missing", "Field required")]
    if len(named) > 1:
        return b"", [problem("value_base64", "one_of", "`value` or `value_base64`, not both")]
    if given.value is not None:
        wrong = given.content_type is not None
        about = "of binary values only: `value` is JSON"
        return given.value.encode(), [problem("content_type", "not_json", about)] if wrong else []
    try:
        return b64decode(given.value_base64, validate=True), []
    except ValueError:
        return b"", [problem("value_base64", "base64", "Base64 with padding")]


def problem(name: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": f"/{name}", "code": code, "detail": detail}


def default_ttl(settings: CacheSettings, negative: bool) -> float:
    ttl = settings.default_ttl_seconds
    return min(ttl, NEGATIVE_TTL) if negative else ttl


def ttl_problems(settings: CacheSettings, ttl: float, stale: float) -> Iterator[dict[str, str]]:
    most = settings.max_ttl_seconds
    if ttl > most:
        yield problem("ttl_seconds", "less_than_equal", f"at most {most:g} in this namespace")
    elif ttl + stale > most:
        yield problem("stale_seconds", "less_than_equal", f"with the ttl at most {most:g} in this namespace")


def check_ttl(settings: CacheSettings, ttl: float, stale: float = 0.0) -> None:
    """Raises: Invalid."""
    if problems := list(ttl_problems(settings, ttl, stale)):
        raise Invalid(problems)


def lease_problems(given: Any) -> Iterator[dict[str, str]]:
    if given.lease and given.as_of and given.lease.rpartition(".")[0] != given.as_of:
        yield problem("as_of", "mismatch", "the lease says when the load began")


def kind_of(given: Any) -> str:
    """JSON, binary or negative, and the content type."""
    if given.negative:
        return NEGATIVE
    return JSON if given.value is not None else BINARY + (given.content_type or "application/octet-stream")


def etag_of(kind: str, data: bytes) -> str:
    """The same for the same value. Of JSON it is the hash of its text: a script, which counts, makes it too."""
    about = data if kind == JSON else kind.encode() + b"\0" + data
    return hashlib.sha1(about, usedforsecurity=False).hexdigest()[:20]


def compressed(data: bytes) -> tuple[bytes, str]:
    if len(data) < COMPRESS_FROM:
        return data, PLAIN
    packed = zlib.compress(data, 1)
    return (packed, COMPRESSED) if len(packed) < 0.9 * len(data) else (data, PLAIN)


def cached(key: str, found: Found) -> Cached:
    """What is answered of something that was found."""
    return told(key, found, data_of(found))


def data_of(found: Found) -> bytes:
    return zlib.decompress(found.data) if found.kind[1] == COMPRESSED else found.data


def told(key: str, found: Found, data: bytes) -> Cached:
    kind, content_type = found.kind[0], found.kind[2:]
    return Cached(
        key, Fragment(data) if kind == JSON else None, b64encode(data).decode() if kind == BINARY else None,
        "application/json" if kind == JSON else content_type, found.tags, found.etag, instant(found.created),
        instant(found.fresh), instant(found.ends), found.state == "stale", kind == NEGATIVE, found.as_of, found.lease,
    )  # fmt: skip


def cached_many(keys: Sequence[str], found: Sequence[Found]) -> CachedMany:
    """What is answered of many. The backend left out what was too much as it is kept; unpacked it can be a hundred
    times as much. From the first that is too much then, all are left out: how large they are is known only unpacked.
    """
    answer, size = CachedMany([], [], []), 0
    for key, each in zip(keys, found, strict=True):
        if each.state == "miss":
            answer.missing.append(Missing(key, each.as_of))
        elif each.state == "left" or size > ENOUGH:
            answer.left_out.append(key)
        else:
            data = data_of(each)
            size += size_of(each, data)
            if size > ENOUGH and answer.items:
                answer.left_out.append(key)
            else:
                answer.items.append(told(key, each, data))
    return answer


def size_of(found: Found, data: bytes) -> int:
    """Bytes that a value takes in an answer."""
    return (len(data) + 2) // 3 * 4 if found.kind[0] == BINARY else len(data)


def about(key: str, found: Found) -> CacheItem:
    """What is said of something that was found, without its value."""
    kind = found.kind[0]
    return CacheItem(
        key, found.tags, found.etag, found.size, "application/json" if kind == JSON else found.kind[2:],
        instant(found.created), instant(found.fresh), instant(found.ends), found.state == "stale", kind == NEGATIVE,
    )  # fmt: skip


def stats_of(counts: Mapping[str, int], used: int | None) -> CacheStats:
    known = {name: counts.get(name, 0) for name in COUNTED}
    served = known["hits"] + known["stale"]
    asked = served + known["misses"]
    return CacheStats(**known, bytes_used=used, hit_ratio=round(served / asked, 4) if asked else 0.0)
