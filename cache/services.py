"""The cache operations."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import random
from secrets import token_hex
from time import monotonic
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, Field

from cache.backends import Found, Item
from cache.counting import add_up_one, count
from cache.errors import CacheMiss, StaleLoad, ValueTooLarge
from cache.models import NAME, Cache
from cache.relay import DEFAULTS, backend, cache_of, caches
from cache.types import (
    LARGEST,
    LONGEST,
    MANY,
    SHORTEST,
    AsOf,
    Base64,
    Cached,
    CachedMany,
    CacheItems,
    CacheSettings,
    CacheStats,
    ContentType,
    Counted,
    Deleted,
    Etag,
    Invalidated,
    Key,
    Lease,
    Mode,
    NewValue,
    OnError,
    Place,
    Stale,
    Step,
    Stored,
    StoredMany,
    StoredOne,
    Tag,
    Tags,
    Touched,
    Ttl,
)  # fmt: skip
from cache.values import (
    NEGATIVE,
    about,
    cached,
    cached_many,
    check_ttl,
    default_ttl,
    instant,
    item_of,
    milliseconds,
    problem,
    stats_of,
)  # fmt: skip
from core.batch import Transaction
from core.callers import Call
from core.errors import Invalid, SyrosError, Unavailable
from core.operations import command, query, registry
from core.runtime import runtime, stopping
from core.types import MAX_NUMBER, Json, Limit, Prefix, Wait, encode_cursor

PAUSES = (0.01, 0.25)  # seconds between two looks of one who waits for another's load: the first, the longest
ASIDE = 64 << 10  # bytes that are packed or unpacked aside
Made = TypeVar("Made")
MAX_MANY = 16 << 20  # bytes of a body that holds many


@query(
    "PUT cache/{key}",
    returns=Stored,
    aliases=["POST cache/{key}", "POST cache"],
    hot=True,
    changes=True,
    max_bytes=12 << 20,
)
async def put(
    call: Call,
    *,
    key: Key,
    value: Json = None,
    value_base64: Base64 | None = None,
    content_type: ContentType | None = None,
    ttl_seconds: Ttl = None,
    stale_seconds: Stale = 0.0,
    tags: Tags = [],  # noqa: B006
    negative: bool = False,
    if_etag: Etag | None = None,
    only_if_absent: bool = False,
    lease: AsOf | None = None,
    as_of: AsOf | None = None,
) -> Stored:
    """Put a value: JSON in `value`, or bytes in `value_base64` with their `content_type`.

    It is fresh for `ttl_seconds` (unless said, what the namespace has set: 300), may be served as stale for
    `stale_seconds` more, and is gone for good when one of its `tags` (up to 32, of up to 128 bytes) is invalidated.
    `negative`: there is no value, and that is known (30 s, unless said).

    What was loaded from elsewhere comes with the `as_of` or `lease` of the miss it answers. Then it is refused if a tag
    of it was invalidated, or the key put or deleted, after that. `if_etag` replaces that value only; `only_if_absent`
    puts only where there is none.

    Errors: `stale_load`, `etag_mismatch`, `already_cached`, `cache_full` (409), `value_too_large` (413).
    """
    settings = await caches.settings(call.namespace)
    given = SimpleNamespace(
        value=value, value_base64=value_base64, content_type=content_type, ttl_seconds=ttl_seconds,
        stale_seconds=stale_seconds, tags=tags, negative=negative, if_etag=if_etag, only_if_absent=only_if_absent,
        lease=lease, as_of=as_of,
    )  # fmt: skip
    item = await aside(len(value or value_base64 or ""), item_of, settings, given)
    try:
        fresh = await backend.put(call.namespace, key, item)
    except Unavailable as error:
        check_lenient(call, settings, error)
        return Stored(key, False, None, item.etag)
    except StaleLoad:
        count(call.namespace, "refused")
        raise
    count_stored(call, [item])
    return Stored(key, True, instant(fresh), item.etag)


async def aside(size: int, make: Callable[..., Made], *given: Any) -> Made:
    """What is made of so many bytes: of many in a thread, so that nobody else has to wait."""
    return await asyncio.to_thread(make, *given) if size > ASIDE else make(*given)


def check_lenient(call: Call, settings: CacheSettings, error: Unavailable) -> None:
    """Raises: the error, where the namespace wants to hear of it."""
    count(call.namespace, "errors")
    if settings.on_error == "error":
        raise error


def count_stored(call: Call, items: Sequence[Item]) -> None:
    count(call.namespace, "stored", len(items))
    count(call.namespace, "bytes_written", sum(len(item.data) for item in items))


def count_found(call: Call, found: Found) -> None:
    name = "misses" if found.state == "miss" else "stale" if found.state == "stale" else "hits"
    count(call.namespace, name)
    if found.data:
        count(call.namespace, "bytes_read", len(found.data))
    elif found.kind[:1] == NEGATIVE:
        count(call.namespace, "negative")
    if found.lease:
        count(call.namespace, "leases")


@query("POST cache/put-many", returns=StoredMany, hot=True, changes=True, max_bytes=MAX_MANY)
async def put_many(
    call: Call, *, items: Annotated[list[NewValue], Field(min_length=1, max_length=MANY)]
) -> StoredMany:
    """Put up to 500 values, each for itself: what one is refused for, its `code` says.

    Errors: as of cache.put, in `code`.
    """
    settings = await caches.settings(call.namespace)
    size = sum(len(each.value or each.value_base64 or "") for each in items)
    made = await aside(size, items_of, settings, items)
    good = [(each.key, item) for each, item in zip(items, made, strict=True) if isinstance(item, Item)]
    try:
        answers = iter(await backend.put_many(call.namespace, good))
    except Unavailable as error:
        check_lenient(call, settings, error)
        answers = iter([error] * len(good))
    found = [
        stored_one(each.key, item, next(answers) if isinstance(item, Item) else item)
        for each, item in zip(items, made, strict=True)
    ]
    pairs = zip(made, found, strict=True)
    count_stored(call, [item for item, one in pairs if isinstance(item, Item) and one.stored])
    count(call.namespace, "refused", sum(one.code == StaleLoad.code for one in found))
    return StoredMany(found)


def items_of(settings: CacheSettings, items: Sequence[NewValue]) -> list[Item | SyrosError]:
    """Raises: Invalid, naming every bad field of all of them."""
    made: list[Item | SyrosError] = []
    problems: list[dict[str, str]] = []
    for number, each in enumerate(items):
        try:
            made.append(item_of(settings, each, f"/items/{number}"))
        except Invalid as error:
            problems += error.extra["errors"]
        except ValueTooLarge as error:
            made.append(error)
    if problems:
        raise Invalid(problems)
    return made


def stored_one(key: str, item: Item | SyrosError, answer: int | SyrosError) -> StoredOne:
    etag = item.etag if isinstance(item, Item) else ""
    if isinstance(answer, SyrosError):
        return StoredOne(key, False, None, etag, answer.code)
    return StoredOne(key, True, instant(answer), etag, None)


@query("GET cache/{key}", returns=Cached, hot=True, etag="etag")
async def get(
    call: Call, *, key: Key, lease_seconds: Lease | None = None, wait_seconds: Wait = 0.0
) -> Cached:
    """A cached value. With `lease_seconds` (0.1 to 60), of all who miss it one is given a `lease`, to load it; the
    others are told to come again, or wait up to `wait_seconds` for it.

    Errors: `cache_miss` (404) with `as_of`, to be handed to put with what is loaded now, and `lease` or
    `retry_after_seconds`.
    """
    try:
        found = await search(call, key, lease_seconds, wait_seconds)
    except Unavailable as error:
        check_lenient(call, await caches.settings(call.namespace), error)
        found = Found("miss")
    count_found(call, found)
    if found.state == "miss":
        later = found.lease_ms / 1000 if found.lease_ms > 0 else None
        raise CacheMiss(key=key, as_of=found.as_of, lease=found.lease, retry_after_seconds=later)
    return await aside(len(found.data), cached, key, found)


async def search(call: Call, key: str, lease_seconds: float | None, wait_seconds: float) -> Found:
    token, lease_ms = (token_hex(8), milliseconds(lease_seconds)) if lease_seconds else ("", 0)
    deadline = monotonic() + wait_seconds if wait_seconds else 0.0
    pause = PAUSES[0]
    while True:
        found = await backend.get(call.namespace, key, token, lease_ms)
        if found.state != "miss" or found.lease or not wait_seconds:
            return found
        if (left := deadline - monotonic()) <= 0:
            return found
        if found.lease_ms > 0:  # somebody loads it, and will soon be done
            pause = PAUSES[0]
        await loaded(call, key, left, pause)
        pause = min(2 * pause, PAUSES[1])


_looking: dict[
    tuple[str, str], "asyncio.Task[None]"
] = {}  # for values that others load: one look for all who wait


async def loaded(call: Call, key: str, seconds: float, pause: float) -> None:
    """Wait until a value is there or nobody loads it any more, but no longer than this. Parameters: `pause`, before the
    first look: who has seen that nobody loads it need not look again at once.

    Raises: Unavailable.
    """
    place = (call.namespace.name, key)
    task = _looking.get(place)
    if task is None:
        task = _looking[place] = runtime.spawn(look(call, key, pause))
        task.add_done_callback(lambda done: looked(place, done))
    await asyncio.wait((task,), timeout=seconds)
    if task.done():
        task.result()


def looked(place: tuple[str, str], task: "asyncio.Task[None]") -> None:
    _looking.pop(place)
    if not task.cancelled():
        task.exception()  # whoever still waits for it has it


async def look(call: Call, key: str, pause: float) -> None:
    while True:
        await asyncio.sleep(pause * (0.75 + random() / 2))
        if runtime.stopping:
            raise stopping()
        if await backend.peek(call.namespace, key) != "loading":
            return
        pause = min(2 * pause, PAUSES[1])


@query("DELETE cache/{key}", returns=Deleted, hot=True, changes=True)
async def delete(call: Call, *, key: Key) -> Deleted:
    """Delete a value. What somebody loads for the key in this moment is refused. `deleted`: whether there was one."""
    deleted = await backend.delete(call.namespace, key)
    count(call.namespace, "deleted", deleted)
    return Deleted(key, deleted)


@query("POST cache/get-many", returns=CachedMany, hot=True)
async def get_many(
    call: Call, *, keys: Annotated[list[Key], Field(min_length=1, max_length=MANY)]
) -> CachedMany:
    """Up to 500 values at once: `items` that are there, in the order of `keys`, and the keys that are `missing`. Those
    that are `left_out` are there, but the answer is large enough without them: ask for them again."""
    wanted = list(dict.fromkeys(keys))
    try:
        found = await backend.get_many(call.namespace, wanted)
    except Unavailable as error:
        check_lenient(call, await caches.settings(call.namespace), error)
        found = [Found("miss")] * len(wanted)
    answer = await aside(sum(len(each.data) for each in found), cached_many, wanted, found)
    left = set(answer.left_out)
    for key, each in zip(wanted, found, strict=True):
        if key not in left:
            count_found(call, each)
    return answer


@query("POST cache/{key}/touch", returns=Touched, hot=True, changes=True)
async def touch(call: Call, *, key: Key, ttl_seconds: Ttl = None, stale_seconds: Stale = 0.0) -> Touched:
    """Say that a value is good still: from now on it is fresh for `ttl_seconds` (unless said, what the namespace has
    set) and may be served as stale for `stale_seconds` more. What was invalidated does not come back; what was
    invalidated softly stays stale.

    Errors: `cache_miss` (404).
    """
    settings = await caches.settings(call.namespace)
    ttl = ttl_seconds or default_ttl(settings, negative=False)
    check_ttl(settings, ttl, stale_seconds)
    ms = milliseconds(ttl), round(stale_seconds * 1000)
    fresh, etag = await backend.touch(call.namespace, key, *ms)
    return Touched(key, instant(fresh), etag)


@query("POST cache/{key}/incr", returns=Counted, hot=True, changes=True)
async def incr(
    call: Call,
    *,
    key: Key,
    by: Step = 1,
    initial: Step = 0,
    ttl_seconds: Ttl = None,
    tags: Tags = [],  # noqa: B006
) -> Counted:
    """Add to a number. If there is none it begins with `initial`, and `ttl_seconds` and `tags` are its own; a number
    that is there keeps those it has.

    Errors: `not_a_number` (409), also when it would leave ±(2^53 - 1).
    """
    settings = await caches.settings(call.namespace)
    ttl = ttl_seconds or default_ttl(settings, negative=False)
    check_ttl(settings, ttl)
    number, fresh, etag = await backend.incr(call.namespace, key, by, initial, milliseconds(ttl), tags)
    return Counted(key, number, instant(fresh), etag)


@query("POST cache/invalidate", returns=Invalidated, hot=True, changes=True)
async def invalidate(
    call: Call, *, tags: Annotated[list[Tag], Field(min_length=1, max_length=100)], mode: Mode = "hard"
) -> Invalidated:
    """Declare everything with one of these tags invalid (up to 100), however many values that are.

    After the answer no value whose load began before is served (`hard`), or only as stale (`soft`). The event
    `cache.invalidated` is in the stream `$cache` in any case, also where the answer is 503: then it is applied as soon
    as possible, and trying again is safe.
    """
    without_key = Call(
        call.caller, call.namespace, call.request_id, None, call.correlation_id, call.traceparent
    )
    recorded = (
        await runtime.carry_out(registry["cache.record"], without_key, {"tags": tags, "mode": mode})
    ).value
    await backend.invalidate(call.namespace, tags, mode, recorded.version)
    count(call.namespace, "invalidated")
    return Invalidated(tags, mode, recorded.position)


# -- looking -----------------------------------------------------------------------------------------


@query("GET cache", returns=CacheItems)
async def find(
    call: Call,
    *,
    prefix: Prefix = "",
    tag: Annotated[Tag | None, Field(validation_alias=AliasChoices("tag", "tags"))] = None,
    limit: Limit = 50,
    cursor: Place | None = None,
) -> CacheItems:
    """Cached values by the beginning of their keys, or by a tag: what is known of them, not the values. A search looks
    at up to 50,000 names of the server, and says `partial` if that was not enough for a page."""
    found, place, partial = await backend.scan(call.namespace, prefix, tag, cursor, limit)
    return CacheItems(
        [about(key, each) for key, each in found], partial, encode_cursor(place) if place else None
    )


@query("GET cache/stats", returns=CacheStats)
async def stats(call: Call) -> CacheStats:
    """What was counted in this namespace: hits, misses, refused loads, bytes. Counts end with Redis."""
    with suppress(Unavailable):
        await add_up_one(call.namespace)
    counts, used = await backend.counts(call.namespace)
    return stats_of(counts, used if caches.quota(call.namespace.name) is not None else None)


# -- settings ----------------------------------------------------------------------------------------


@command(
    "PUT caches",
    name="caches.put",
    returns=CacheSettings,
    admin=True,
    touches=lambda params: ((Cache, NAME),),
)
def put_settings(
    tx: Transaction,
    *,
    default_ttl_seconds: Annotated[float, Field(ge=SHORTEST, le=LONGEST)] = DEFAULTS.default_ttl_seconds,
    max_ttl_seconds: Annotated[float, Field(ge=SHORTEST, le=LONGEST)] = DEFAULTS.max_ttl_seconds,
    max_value_bytes: Annotated[int, Field(ge=1, le=LARGEST)] = DEFAULTS.max_value_bytes,
    quota_bytes: Annotated[int | None, Field(ge=0, le=MAX_NUMBER)] = None,
    on_error: OnError = "miss",
) -> CacheSettings:
    """Set what the namespace's cache does: how long values live unless said and at most, how large they may be, and
    roughly how much all of them may take (null: no limit).

    `on_error`: where Redis is away, `miss` answers as if nothing were there and puts say `stored: false`; `error`
    answers 503. What is not said is as it is without settings. Other processes know within a second.
    """
    if default_ttl_seconds > max_ttl_seconds:
        raise Invalid([problem("default_ttl_seconds", "less_than_equal", "at most max_ttl_seconds")])
    cache, settings = (
        cache_of(tx),
        CacheSettings(default_ttl_seconds, max_ttl_seconds, max_value_bytes, quota_bytes, on_error),
    )
    for name in CacheSettings.__slots__:
        setattr(cache, name, getattr(settings, name))
    tx.emit(cache, "cache.configured", {name: getattr(settings, name) for name in CacheSettings.__slots__})
    tx.afterwards(caches.note, tx.call.namespace.name, settings)
    return settings


@query("GET caches", name="caches.get", returns=CacheSettings, admin=True)
async def get_settings(call: Call) -> CacheSettings:
    """What is set of the namespace's cache."""
    await caches.refresh()
    return await caches.settings(call.namespace)
