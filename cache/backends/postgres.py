"""Values in PostgreSQL, for installations without Redis: unlogged tables, and one statement a step.

The connections are its own: who caches much does not hold up who reads the log.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import Any

from psycopg.types.numeric import Int8

from cache.backends import ENOUGH, Found, Item, other_place
from cache.backends import statements as sql
from cache.backends.refusals import refusal
from cache.errors import CacheFull, CacheMiss, NotANumber
from cache.models import NAME
from core.callers import Namespace
from core.database import Pool, Row, pools
from core.errors import SyrosError, Unavailable
from core.types import MAX_NUMBER

CONNECTIONS = 4
ATTEMPTS = 20  # at what somebody else changed in the same moment
AT_ONCE = 8  # puts of a many that go together
LOOKS, LOOK_AT = 50, 1000  # rows that one search looks at: so often so many
CLEANED = 1000  # rows that ran out, cleared away by one statement
ROUNDS = 10  # statements of one cleaning

_fresh = map(f"{token_hex(8)}x{{}}".format, count())  # no generation is ever called like another


class PostgresCache:
    """The backend over connections of its own. Parameters: `quota(namespace)`, in bytes."""

    def __init__(self, quota: Callable[[str], int | None]) -> None:
        self._quota = quota
        self._used: dict[str, tuple[int, float]] = {}  # bytes, roughly, and since when; by namespace
        # All is found by key: a plan from when a table was small is no better then, and bad later.
        self.pool = Pool(CONNECTIONS, "-c enable_seqscan=off -c jit=off")
        pools.append(self.pool)

    # -- statements ------------------------------------------------------------------------------------

    async def _ask(self, namespace: Namespace, statement: str, attempts: int = 2, **params: Any) -> list[Row]:
        """The rows of a statement, which has none where no generation has begun: then one is.

        Raises: Unavailable.
        """
        for _ in range(3):
            if found := await self._rows(namespace, statement, attempts, **params):
                return found
            await self._begin(namespace, sql.BEGIN)
        raise Unavailable

    async def _rows(
        self, namespace: Namespace, statement: str, attempts: int = 2, **params: Any
    ) -> list[Row]:
        sent = {name: Int8(value) if type(value) is int else value for name, value in params.items()}
        return await self.pool.rows(statement, {"space": Int8(namespace.number), **sent}, attempts)

    async def _begin(self, namespace: Namespace, statement: str) -> None:
        address = f"{namespace.name}/{NAME}"
        await self._rows(namespace, statement, cache=address, generation=next(_fresh))

    # -- values ----------------------------------------------------------------------------------------

    async def get(self, namespace: Namespace, key: str, token: str = "", lease_ms: int = 0) -> Found:
        if not token:
            ((generation, at, now, *about, _),) = await self._ask(namespace, sql.GET, key=key)
            return found_of(generation, at, now, about)
        ((generation, at, now, *about, left, lease),) = await self._ask(
            namespace, sql.LEASE, key=key, token=token, lease_ms=lease_ms
        )
        found = found_of(generation, at, now, about)
        if found.state != "hit" and lease:
            found.as_of, found.lease = lease.rpartition(".")[0], lease
        elif found.state != "hit":
            found.lease_ms = left if left > 0 else lease_ms
        return found

    async def peek(self, namespace: Namespace, key: str) -> str:
        ((_, state, lease_ms),) = await self._ask(namespace, sql.PEEK, key=key)
        if state != "miss":
            return "ready"
        return "loading" if lease_ms > 0 else "free"

    async def get_many(self, namespace: Namespace, keys: Sequence[str]) -> list[Found]:
        found = await self._ask(namespace, sql.MANY, keys=list(keys), enough=ENOUGH)
        return [found_of(generation, at, now, about) for generation, at, now, *about in found]

    async def put(self, namespace: Namespace, key: str, item: Item) -> int:
        await self._check_room(namespace, key, len(item.data))
        loaded, statement = load_of(item.as_of), sql.LOADED if item.as_of else sql.DIRECT
        params = {
            "key": key, "etag": item.etag, "kind": item.kind, "data": item.data, "tags": list(item.tags),
            "ttl": item.ttl_ms, "stale": item.stale_ms, "absent": item.only_if_absent, "if_etag": item.if_etag or "",
            **loaded,
        }  # fmt: skip
        for _ in range(ATTEMPTS):
            ((_, reason, fact, fresh),) = await self._ask(namespace, statement, **params)
            if fresh is not None:
                self._note(namespace, len(key) + len(item.data) + sql.OVERHEAD)
                return int(fresh)
            if reason == "changed" and fact.startswith("~") and shown(fact) == params["if_etag"]:
                params["if_etag"] = fact
            elif reason in {"present", "changed"}:
                raise refusal(reason, [shown(fact)])
            elif reason:
                raise refusal(
                    "refused", [reason, fact or item.tags[0]] if reason == "invalidated" else [reason]
                )
        raise Unavailable

    async def put_many(
        self, namespace: Namespace, items: Sequence[tuple[str, Item]]
    ) -> list[int | SyrosError]:
        answers: list[int | SyrosError] = []
        for start in range(0, len(items), AT_ONCE):
            puts = (self.put(namespace, *each) for each in items[start : start + AT_ONCE])
            for each in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(each, Unavailable) or not isinstance(each, int | SyrosError):
                    raise each
                answers.append(each)
        return answers

    async def delete(self, namespace: Namespace, key: str) -> bool:
        ((_, deleted),) = await self._ask(namespace, sql.DELETE, key=key)
        self._used.pop(namespace.name, None)
        return bool(deleted)

    async def touch(self, namespace: Namespace, key: str, ttl_ms: int, stale_ms: int) -> tuple[int, str]:
        ((generation, at, now, fresh, etag),) = await self._ask(
            namespace, sql.TOUCH, key=key, ttl=ttl_ms, stale=stale_ms
        )
        if fresh is None:
            raise CacheMiss(key=key, as_of=place_in_time(generation, at, now))
        return fresh, shown(etag)

    async def incr(
        self, namespace: Namespace, key: str, by: int, initial: int, ttl_ms: int, tags: Sequence[str]
    ) -> tuple[int, int, str]:
        await self._check_room(namespace, key, 0)
        params = {"key": key, "by": by, "first": initial + by, "ttl": ttl_ms, "largest": MAX_NUMBER}
        for _ in range(2):
            found = await self._rows(namespace, sql.INCR, 1, tags=list(tags), **params)
            if found:
                ((etag, fresh),) = found
                return int(etag[1:]), fresh, shown(etag)
            await self._ask(namespace, sql.APPLIED)  # a generation begins, if it was for want of one
        raise NotANumber(key=key)

    # -- the quota -------------------------------------------------------------------------------------

    async def _check_room(self, namespace: Namespace, key: str, size: int) -> None:
        """What all values take is added up anew when it seems too much, though not in each moment.

        Raises: CacheFull.
        """
        quota = self._quota(namespace.name)
        if quota is None:
            return
        room = quota - len(key) - size - sql.OVERHEAD
        used, since = self._used.get(namespace.name, (0, 0.0))
        if used <= room and since > monotonic() - 1:
            return
        ((used,),) = await self._rows(namespace, sql.USED, key=key)
        self._used[namespace.name] = used, monotonic()
        if used > room:
            raise CacheFull

    def _note(self, namespace: Namespace, size: int) -> None:
        if known := self._used.get(namespace.name):
            self._used[namespace.name] = known[0] + size, known[1]

    # -- looking ---------------------------------------------------------------------------------------

    async def scan(
        self, namespace: Namespace, prefix: str, tag: str | None, place: str | None, limit: int
    ) -> tuple[list[tuple[str, Found]], str | None, bool]:
        """Items whose keys begin so and that have this tag, by key; where to go on; whether it looked at as many rows
        as it may before it had a page."""
        if place and not place.startswith(":"):
            raise other_place()
        after, found = (place or ":")[1:], []
        for _ in range(LOOKS):
            page = await self._rows(namespace, sql.PAGE, prefix=prefix, after=after, limit=LOOK_AT)
            for generation, *about, size, key in page:
                item, after = found_of(generation, 0, 0, [*about, b""]), key
                if item.state != "miss" and (tag is None or tag in item.tags):
                    item.size = size
                    found.append((key, item))
                if len(found) == limit:
                    return found, f":{key}", False
            if len(page) < LOOK_AT:
                return found, None, False
        return found, f":{after}", True

    async def add_counts(self, namespace: Namespace, counts: Mapping[str, int]) -> None:
        await self._rows(namespace, sql.ADD, 1, names=list(counts), numbers=[*map(Int8, counts.values())])

    async def counts(self, namespace: Namespace) -> tuple[dict[str, int], int]:
        counts: dict[str, int] = dict(await self._rows(namespace, sql.COUNTS))
        if self._quota(namespace.name) is None:
            return counts, 0
        ((used,),) = await self._rows(namespace, sql.USED, key="")
        return counts, used

    # -- invalidation ----------------------------------------------------------------------------------

    async def invalidate(self, namespace: Namespace, tags: Sequence[str], mode: str, version: int) -> None:
        await self._ask(namespace, sql.INVALIDATE, tags=list(tags), softly=mode == "soft", version=version)

    async def applied(self, namespace: Namespace) -> int:
        ((_, version),) = await self._ask(namespace, sql.APPLIED)
        return int(version)

    async def begin_anew(self, namespace: Namespace) -> None:
        await self._begin(namespace, sql.BEGIN_ANEW)

    @property
    def used(self) -> Sequence[str]:
        return ()  # a namespace without invalidations has no tags, and its rows are cleared away by `clean`

    async def sweep(self, namespace: Namespace, oldest_ms: int, most: int, limit: int) -> int:
        """The floor is raised first: what is forgotten below it decides nothing any more."""
        await self._rows(namespace, sql.RAISE_FLOOR, most=most, limit=limit)
        return len(await self._rows(namespace, sql.FORGET, oldest_ms=oldest_ms, limit=limit))

    async def clean(self) -> None:
        """Clear away what ran out; several processes do it beside each other, each other rows."""
        for _ in range(ROUNDS):
            if len(await self.pool.rows(sql.CLEAN, {"limit": Int8(CLEANED)})) < CLEANED:
                return

    def look(self) -> None:
        """Nothing: each statement sees for itself."""

    def close(self) -> None:
        """Nothing: whoever opened the pools closes them."""


def load_of(as_of: str | None) -> dict[str, Any]:
    """When a load began, for the statement."""
    if not as_of:
        return {"at": MAX_NUMBER, "lease": "-"}
    at, begun, generation, *token = as_of.split(".")
    return {"at": int(at), "begun": int(begun), "generation": generation, "lease": as_of if token else "-"}


def place_in_time(generation: str, at: int, now: int) -> str:
    return f"{at}.{now}.{generation}"


def found_of(generation: str, at: int, now: int, about: Sequence[Any]) -> Found:
    state, created, fresh, ends, etag, kind, tags, data = about
    if state == "miss":
        return Found("miss", place_in_time(generation, at, now))
    if state == "left":
        return Found("left")
    as_of = place_in_time(generation, at, now) if state == "stale" else None
    return Found(state, as_of, None, 0, created, fresh, ends, shown(etag), kind, tags, bytes(data))


def shown(etag: str) -> str:
    """The etag of a number that was counted is the hash of its text; the statement noted the text."""
    if not etag.startswith("~"):
        return etag
    return hashlib.sha1(etag[1:].encode(), usedforsecurity=False).hexdigest()[:20]
