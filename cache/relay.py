"""What every process knows of the caches of all namespaces, and the relay of invalidations.

An invalidation is an event in the log before it is anywhere else. Who asked for it applies it at once; what nobody
applied, because Redis was away or a process died in between, every serving process looks for and applies. Where a
backend begins anew, all there was is a miss, and nothing has to be applied.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from django.conf import settings

from cache.backends import Backend
from cache.backends.postgres import PostgresCache
from cache.backends.redis import RedisCache
from cache.models import NAME, Cache
from cache.types import CacheSettings, Mode
from core.batch import Transaction
from core.callers import Namespace, namespaces
from core.database import rows
from core.encoding import decode
from core.errors import Unavailable
from core.log import Entry
from core.operations import command
from core.runtime import closing, every, runtime

INVALIDATED = "cache.invalidated"
KNOWN = """select id, version, default_ttl_seconds, max_ttl_seconds, max_value_bytes, quota_bytes, on_error
from cache_cache"""
NEXT = """select version, type, data::text from core_event
where namespace_id = %s and stream = '$cache' and version > %s order by version limit 500"""
DEFAULTS = CacheSettings(300.0, 604_800.0, 1 << 20, None, "miss")
AT_ONCE = 1000  # tags that one script looks at
SLACK_MS = 600_000  # a setting that was changed meanwhile; the longest load
TAGS = (
    100_000  # that are remembered, a namespace, and as many writes; what is older than the oldest is a miss
)


@dataclass(slots=True)
class Recorded:
    """Where an invalidation is in the log: the version in `$cache`, and the position."""

    version: int
    position: int


# -- what is set -------------------------------------------------------------------------------------


class Caches:
    """The settings of namespaces, and how far their logs reached when this process looked last."""

    def __init__(self) -> None:
        self._settings: dict[str, CacheSettings] = {}
        self.versions: dict[str, int] = {}
        self._is_read = False

    async def settings(self, namespace: Namespace) -> CacheSettings:
        """Raises: Unavailable, as long as they could not be read at all."""
        if not self._is_read:
            await self.refresh()
        return self._settings.get(namespace.name, DEFAULTS)

    def quota(self, name: str) -> int | None:
        settings = self._settings.get(name)
        return settings.quota_bytes if settings else None

    async def refresh(self) -> None:
        found, versions = {}, {}
        for address, version, *about in await rows(KNOWN):
            name = address.partition("/")[0]
            found[name], versions[name] = CacheSettings(*about), version
        self._settings, self.versions, self._is_read = found, versions, True

    def note(self, name: str, settings: CacheSettings) -> None:
        """What this process has just set."""
        self._settings[name] = settings


caches = Caches()
BACKENDS: dict[str, Callable[[Callable[[str], int | None]], Backend]] = {
    "redis": RedisCache,
    "postgres": PostgresCache,
}
backend: Backend = BACKENDS[settings.CACHE_BACKEND](caches.quota)
closing.append(backend.close)


# -- invalidations in the log ------------------------------------------------------------------------


def cache_of(tx: Transaction) -> Cache:
    return tx.get(Cache, NAME) or tx.add(Cache, NAME)


def record(tx: Transaction, tags: list[str], mode: Mode = "hard") -> Entry:
    """Log an invalidation with whatever else the transaction does. It is applied as soon as that is committed: by this
    process, or by the next one that looks."""
    entry = write(tx, tags, mode)
    tx.afterwards(apply_soon, tx.call.namespace, entry)
    return entry


def write(tx: Transaction, tags: list[str], mode: Mode) -> Entry:
    return tx.emit(cache_of(tx), INVALIDATED, {"tags": tags, "mode": mode})


@command(name="cache.record", touches=lambda params: ((Cache, NAME),))
def log_invalidation(tx: Transaction, *, tags: list[str], mode: Mode) -> object:
    """Log an invalidation for one who applies it."""
    entry = write(tx, tags, mode)
    return lambda: Recorded(entry.version, entry.position)


def apply_soon(namespace: Namespace, entry: Entry) -> None:
    async def try_to() -> None:
        with suppress(Unavailable):  # the relay will
            await apply(namespace, entry.version, entry.data)

    runtime.spawn(try_to())


async def apply(namespace: Namespace, version: int, data: str) -> None:
    """Raises: Unavailable."""
    about = decode(data)
    await backend.invalidate(namespace, about["tags"], about["mode"], version)


# -- the relay ---------------------------------------------------------------------------------------

_applied: dict[str, int] = {}  # up to which version, by namespace


@every(0.5)
async def relay() -> None:
    """Apply what was in the log when this process looked last, and nobody has applied by now."""
    before = caches.versions
    await caches.refresh()
    behind = [name for name, version in before.items() if version > _applied.get(name, -1)]
    await asyncio.gather(*(catch_up(name, before[name]) for name in behind))


async def catch_up(name: str, version: int) -> None:
    namespace = await namespaces.get(name)
    try:
        done = await backend.applied(namespace)
        while done < version:
            done = await apply_next(namespace, done)
    except Unavailable:
        return
    _applied[name] = done


async def apply_next(namespace: Namespace, done: int) -> int:
    """Apply the next of what is logged; how far it is applied then. What the log has forgotten could be anything."""
    found = await rows(NEXT, [namespace.number, done])
    if not found or found[0][0] != done + 1:
        await backend.begin_anew(namespace)
        return await backend.applied(namespace)
    for version, kind, data in found:
        if kind == INVALIDATED:
            await apply(namespace, version, data)
        else:
            await backend.invalidate(namespace, [], "hard", version)
    return await backend.applied(namespace)


@every(0.5)
async def look_at_server() -> None:
    """Apart from the relay, which may be the one that is not answered."""
    backend.look()


@every(5)
async def sweep() -> None:
    """Clear away what ran out, and forget tags that were invalidated before all that is left was loaded, and writes
    that no load can meet any more."""
    await backend.clean()
    for name in {*backend.used, *caches.versions}:
        namespace = await namespaces.get(name)
        most = (await caches.settings(namespace)).max_ttl_seconds
        oldest_ms, gone = round(most * 1000) + SLACK_MS, AT_ONCE
        while gone >= AT_ONCE:
            gone = await backend.sweep(namespace, oldest_ms, TAGS, AT_ONCE)
