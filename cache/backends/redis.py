"""Values in Redis or Valkey. Each script in cache/lua is one atomic step, by the server's own clock.

There is one bucket a namespace, whose names are in one slot of a cluster: values, their leases and the clocks of tags
stand together, so that a script sees all of what decides whether a value may be served.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

from hiredis import ReplyError

from cache.backends import ENOUGH, Found, Item, other_place
from cache.backends.refusals import refusal
from cache.errors import CacheFull, CacheMiss, NotANumber
from cache.models import NAME
from core.callers import Namespace
from core.cluster import ELSEWHERE, Cluster
from core.database import rows
from core.errors import SyrosError, Unavailable
from core.runtime import runtime
from core.types import MAX_NUMBER
from core.valkey import Connection, Script, Valkey, Word, away

LUA = Path(__file__).parent.parent / "lua"
RUN = 12  # letters of the server's run that a generation begins with
KEPT_SECONDS = 30 * 86_400  # that statistics are kept after the last use
LOOKS, LOOK_AT = 50, 1000  # names that one search looks at: so often so many
AT_ONCE = 50  # keys that one script reads: nobody else is served meanwhile
VERSION = "select version from cache_cache where id = %s"


def script(name: str) -> Script:
    return Script("\n".join((LUA / f"{part}.lua").read_text() for part in ("space", name)))


GET, PEEK, MANY, PUT, DELETE, TOUCH, INCR = map(
    script, ("get", "peek", "many", "put", "delete", "touch", "incr")
)
HEADS, INVALIDATE, APPLIED, SETTLE, SWEEP = map(script, ("heads", "invalidate", "applied", "settle", "sweep"))

_fresh = map(f"{token_hex(8)}x{{}}".format, count())  # no generation is ever called like another


class RedisCache:
    """The backend over one pipelined connection a process. Parameters: `quota(namespace)`, in bytes."""

    def __init__(self, quota: Callable[[str], int | None]) -> None:
        self._quota = quota
        self.valkey = Valkey(None, lambda message: None, self._lost, as_text=False)
        self.cluster = Cluster(self.valkey, self._lost)
        self._is_cluster = False
        self._spaces: dict[str, str] = {}  # what names begin with, by namespace
        self._settling: dict[str, asyncio.Task[None]] = {}

    def _lost(self) -> None:
        self._spaces.clear()

    # -- scripts ---------------------------------------------------------------------------------------

    async def _ask(self, namespace: Namespace, what: Script, *words: Word) -> Any:
        """What a script answers. If the clocks are gone or another run's, they are settled first.

        Raises: Unavailable.
        """
        for _ in range(3):
            answer = await self._ask_once(namespace, what, *words)
            if answer[0] != b"unsettled":
                return answer
            await self._settle(namespace)
        raise away()

    async def _ask_once(self, namespace: Namespace, what: Script, *words: Word) -> Any:
        connection = await self._connection(namespace)
        space, run = self._space(namespace), connection.run_id[:RUN]
        found: Any = await connection.run(what, space, run, *words)
        if type(found) is not ReplyError:
            return found
        if str(found).startswith(ELSEWHERE):
            # Only the map is trusted: while a slot moves it is nowhere, and where it then is, a generation begins.
            await self.cluster.look_up()
            raise away()
        return await self.valkey.again(connection, found, what, space, run, *words)

    async def _connection(self, namespace: Namespace) -> Connection:
        """To the server that has the namespace.

        Raises: Unavailable.
        """
        if not self._is_cluster:
            connection = self.valkey.connection or await self.valkey.ready()
            if not connection.is_cluster:
                return connection
            self._is_cluster = True
        return await self.cluster.at(self._space(namespace))

    def _space(self, namespace: Namespace) -> str:
        name = namespace.name
        return self._spaces.get(name) or self._spaces.setdefault(
            name, f"syros:cache:{{{self.valkey.identity}/{name}/0}}:"
        )

    async def _settle(self, namespace: Namespace) -> None:
        """Begin a generation: once, for all who need it in this moment."""
        task = self._settling.get(namespace.name)
        if task is None:
            task = self._settling[namespace.name] = runtime.spawn(self._begin(namespace))
            task.add_done_callback(lambda done: self._settled(namespace.name, done))
        await asyncio.shield(task)

    def _settled(self, name: str, task: "asyncio.Task[None]") -> None:
        self._settling.pop(name)
        if not task.cancelled():
            task.exception()  # whoever still waits for it has it

    async def _begin(self, namespace: Namespace, is_forced: bool = False) -> None:
        """How far the log reaches is read before the generation begins: all that is logged later is applied to it, and
        what was logged before is older than everything in it."""
        found = await rows(VERSION, [f"{namespace.name}/{NAME}"])
        await self._ask_once(
            namespace, SETTLE, next(_fresh), found[0][0] if found else 0, 1 if is_forced else ""
        )

    # -- values ----------------------------------------------------------------------------------------

    async def get(self, namespace: Namespace, key: str, token: str = "", lease_ms: int = 0) -> Found:
        return found_of(await self._ask(namespace, GET, key, token, lease_ms))

    async def peek(self, namespace: Namespace, key: str) -> str:
        (state,) = await self._ask(namespace, PEEK, key)
        return str(state.decode())

    async def get_many(self, namespace: Namespace, keys: Sequence[str]) -> list[Found]:
        parts = [keys[n : n + AT_ONCE] for n in range(0, len(keys), AT_ONCE)]
        enough = ENOUGH // len(parts)
        answers = await asyncio.gather(*(self._ask(namespace, MANY, enough, *part) for part in parts))
        return [
            found_of(each) if each else Found("miss", as_of.decode())
            for as_of, part in answers
            for each in part
        ]

    async def put(self, namespace: Namespace, key: str, item: Item) -> int:
        latest = (await self._connection(namespace)).latest
        kind, *facts = await self._ask(
            namespace, PUT, key, latest, self._limit(namespace), item.as_of or "", item.if_etag or "",
            1 if item.only_if_absent else "", item.ttl_ms, item.stale_ms, item.etag, item.kind, item.data, *item.tags,
        )  # fmt: skip
        if kind == b"stored":
            return int(facts[0])
        if kind == b"late":
            raise away()
        raise refusal(kind.decode(), [fact.decode() for fact in facts])

    async def put_many(
        self, namespace: Namespace, items: Sequence[tuple[str, Item]]
    ) -> list[int | SyrosError]:
        # Where nothing was asked yet, one goes ahead: it brings the script and settles the clocks. Of those that would
        # have to be sent again for that, a later one could be done before an earlier one of the same key.
        ahead = 0 if namespace.name in self._spaces else 1
        found: list[int | BaseException] = []
        for part in (items[:ahead], items[ahead:]):
            puts = (self.put(namespace, *each) for each in part)
            found += await asyncio.gather(*puts, return_exceptions=True)
        for each in found:
            if isinstance(each, Unavailable) or not isinstance(each, int | SyrosError):
                raise each
        return [each for each in found if isinstance(each, int | SyrosError)]

    async def delete(self, namespace: Namespace, key: str) -> bool:
        _, count = await self._ask(namespace, DELETE, key, self._limit(namespace))
        return bool(count)

    async def touch(self, namespace: Namespace, key: str, ttl_ms: int, stale_ms: int) -> tuple[int, str]:
        kind, *facts = await self._ask(namespace, TOUCH, key, self._limit(namespace), ttl_ms, stale_ms)
        if kind == b"full":
            raise CacheFull
        if kind == b"miss":
            raise CacheMiss(key=key, as_of=facts[0].decode())
        return facts[0], facts[1].decode()

    async def incr(
        self, namespace: Namespace, key: str, by: int, initial: int, ttl_ms: int, tags: Sequence[str]
    ) -> tuple[int, int, str]:
        kind, *facts = await self._ask(
            namespace, INCR, key, self._limit(namespace), by, initial, ttl_ms, MAX_NUMBER, *tags
        )
        if kind != b"stored":
            raise CacheFull if kind == b"full" else NotANumber(key=key)
        number, fresh, etag = facts
        return int(number), fresh, etag.decode()

    def _limit(self, namespace: Namespace) -> Word:
        quota = self._quota(namespace.name)
        return "" if quota is None else quota

    # -- looking ---------------------------------------------------------------------------------------

    async def scan(
        self, namespace: Namespace, prefix: str, tag: str | None, place: str | None, limit: int
    ) -> tuple[list[tuple[str, Found]], str | None, bool]:
        """Items whose keys begin so and that have this tag; where to go on; whether it looked at as many names as it
        may before it had a page. Names come in no order; the server may have others as well."""
        cursor, _, skip = (place or "0:0").partition(":")
        if not cursor:
            raise other_place()
        found: list[tuple[str, Found]] = []
        for _look in range(LOOKS):
            following, keys = await self._names(namespace, prefix, cursor)
            items = await self._heads(namespace, sorted(keys)[int(skip or 0) :])
            for number, (key, item) in enumerate(items, int(skip or 0) + 1):
                if item.state == "miss" or (tag is not None and tag not in item.tags):
                    continue
                found.append((key, item))
                if len(found) == limit:
                    return found, f"{cursor}:{number}", False
            if following == "0":
                return found, None, False
            cursor, skip = following, "0"
        return found, f"{cursor}:0", True

    async def _names(self, namespace: Namespace, prefix: str, cursor: str) -> tuple[str, list[str]]:
        connection = await self._connection(namespace)
        begin = f"{self._space(namespace)}item:"
        reply = await connection.ask("SCAN", cursor, "MATCH", literal(begin + prefix) + "*", "COUNT", LOOK_AT)
        if isinstance(reply, ReplyError) and "invalid cursor" in str(reply):
            raise other_place()
        following, names = self.valkey.checked(connection, reply)
        return following.decode(), [name.decode()[len(begin) :] for name in names]

    async def _heads(self, namespace: Namespace, keys: Sequence[str]) -> list[tuple[str, Found]]:
        if not keys:
            return []
        _, found = await self._ask(namespace, HEADS, *keys)
        return [
            (key, found_of(each) if each else Found("miss")) for key, each in zip(keys, found, strict=True)
        ]

    async def add_counts(self, namespace: Namespace, counts: Mapping[str, int]) -> None:
        """Add to what is counted of a namespace."""
        connection = await self._connection(namespace)
        name = f"{self._space(namespace)}stats"
        asked = [connection.ask("HINCRBY", name, field, count) for field, count in counts.items()]
        asked.append(connection.ask("EXPIRE", name, KEPT_SECONDS))
        for reply in await asyncio.gather(*asked):
            self.valkey.checked(connection, reply)

    async def counts(self, namespace: Namespace) -> tuple[dict[str, int], int]:
        """What is counted of a namespace; how many bytes its values take, where it has a quota."""
        connection = await self._connection(namespace)
        space = self._space(namespace)
        asked = connection.ask("HGETALL", f"{space}stats"), connection.ask("HGET", f"{space}use", "all")
        counts, use = [self.valkey.checked(connection, reply) for reply in await asyncio.gather(*asked)]
        return {name.decode(): int(count) for name, count in counts.items()}, int(use or 0)

    # -- invalidation ----------------------------------------------------------------------------------

    async def invalidate(self, namespace: Namespace, tags: Sequence[str], mode: str, version: int) -> None:
        await self._ask(namespace, INVALIDATE, version, mode, *tags)

    async def applied(self, namespace: Namespace) -> int:
        (version,) = await self._ask(namespace, APPLIED)
        return int(version)

    async def begin_anew(self, namespace: Namespace) -> None:
        await self._begin(namespace, is_forced=True)

    async def sweep(self, namespace: Namespace, oldest_ms: int, most: int, limit: int) -> int:
        """Forget tags that matter no more; how many these were."""
        (count,) = await self._ask_once(namespace, SWEEP, oldest_ms, most, limit)
        return int(count)

    async def clean(self) -> None:
        """Nothing: Redis forgets by itself."""

    @property
    def used(self) -> list[str]:
        """The namespaces that this connection has served."""
        return list(self._spaces)

    def look(self) -> None:
        for each in (self.valkey, *self.cluster.connections()):
            each.look()

    def close(self) -> None:
        for each in (self.valkey, *self.cluster.connections()):
            each.close()


def literal(text: str) -> str:
    """A pattern that matches just this."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in text)


def found_of(answer: list[Any]) -> Found:
    state = answer[0].decode()
    if state == "miss":
        _, as_of, lease, left = answer
        return Found("miss", as_of.decode(), lease.decode() or None, left)
    if state == "left":
        return Found("left")
    _, created, fresh, ends, etag, kind, tags, data, *more = answer
    found = Found(
        state,
        None,
        None,
        0,
        created,
        fresh,
        ends,
        etag.decode(),
        kind.decode(),
        [t.decode() for t in tags],
        data,
    )
    if type(data) is int:
        found.data, found.size = b"", data
    if more:
        found.as_of, found.lease, found.lease_ms = more[0].decode(), more[1].decode() or None, more[2]
    return found
