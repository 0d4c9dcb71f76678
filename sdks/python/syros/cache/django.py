"""Django's cache in Syros: what Django's own backends do, and tags, stale values, loads that one does for all.

CACHES = {"default": {
    "BACKEND": "syros.cache.django.SyrosCache",
    "LOCATION": "http://syros:8080",
    "OPTIONS": {"api_key": "…", "namespace": "shop"},
}}
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
import json
import logging
import os
import re
import time
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx
from django.conf import settings
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from syros import __version__
from syros.cache.functions import cached
from syros.cache.values import Forged, packed, unpacked
from syros.client import Refused, Unavailable, in_path

__all__ = ["SyrosCache", "cached"]

logger = logging.getLogger("syros.cache")
NAME = re.compile(r"[A-Za-z0-9._:@/+=-]{1,255}")
TAKEN = {"stats", "invalidate", "get-many", "put-many"}  # what routes are called
MANY = 500
MANY_BYTES = 8 << 20
SHORTEST = 0.001  # seconds
LEASE = 10.0  # seconds that a load may take before somebody else does it
PAUSES = (0.05, 0.2, 0.5)  # seconds between the attempts at an invalidation
OPTIONS = {"api_key", "namespace", "timeout", "on_error", "longest", "lease", "connections", "using"}


@dataclass
class Ask:
    """One request. `waits`: seconds that the server may wait with the answer."""

    method: str
    path: str
    body: Any = None
    query: Any = None
    waits: float = 0.0


@dataclass
class Pause:
    seconds: float


# An operation, whoever carries it out: it yields what is to be done and is sent what came of it.
Steps = Generator[Any, Any, Any]

UNMADE = object()
_clients: dict[tuple[Any, ...], httpx.Client] = {}
_async_clients: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], httpx.AsyncClient]] = (
    weakref.WeakKeyDictionary()
)


class SyrosCache(BaseCache):
    """A cache of Django. LOCATION is Syros' base URL.

    OPTIONS: `api_key`; `namespace`, else the key's own; `timeout`, seconds for one answer (2); `on_error`, what happens
    when Syros is away: `miss` (there is nothing, and nothing is kept) or `raise`; `longest`, the seconds that stand for
    "for ever" (604800, as a namespace of Syros has it; up to its `max_ttl_seconds`); `lease`, the seconds that a load
    may take before somebody else does it (10); `connections`, how many are kept (20); `using`, the database with whose
    transactions invalidations go ("default"; None: at once).
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = params.get("OPTIONS", {})
        if unknown := options.keys() - OPTIONS - {"MAX_ENTRIES", "CULL_FREQUENCY"}:
            raise ImproperlyConfigured(f"SyrosCache has no option {', '.join(sorted(unknown))}")
        self._url = server.rstrip("/") + "/api/v1/"
        self._api_key, self._namespace = options.get("api_key"), options.get("namespace")
        self._seconds = float(options.get("timeout", 2.0))
        self._raises = options.get("on_error", "miss") == "raise"
        self._longest, self._lease = (
            float(options.get("longest", 604_800)),
            float(options.get("lease", LEASE)),
        )
        self._connections, self._using = int(options.get("connections", 20)), options.get("using", "default")
        # All that this cache keeps has it, so that `clear` is one invalidation.
        self._all = f"django:{self.key_prefix or 'default'}"
        self._tags: tuple[str, ...] = ()

    def tagged(self, *tags: str) -> SyrosCache:
        """The same cache, whose values have these tags as well."""
        found = copy.copy(self)
        found._tags = (*self._tags, *tags)
        return found

    # -- keys and bodies -----------------------------------------------------------------------------

    def _key(self, key: Any, version: int | None) -> str:
        name: str = self.make_and_validate_key(key, version=version)
        segments = name.split("/")
        if NAME.fullmatch(name) and name not in TAKEN and not {"", ".", ".."} & set(segments):
            return name
        return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()

    @staticmethod
    def _path(key: str) -> str:
        return "cache/" + in_path("key", key)

    def _ttl(self, timeout: Any) -> float:
        """Seconds; 0 or less: it is over already."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return self._longest if timeout is None else min(float(timeout), self._longest)

    def _body(self, key: str, value: Any, ttl: float, tags: Iterable[str], stale: float) -> dict[str, Any]:
        stale = max(0.0, min(stale, self._longest - ttl))
        every = dict.fromkeys((self._all, *self._tags, *tags))
        return {
            **packed(value, key, settings.SECRET_KEY), "ttl_seconds": max(ttl, SHORTEST), "stale_seconds": stale,
            "tags": list(every),
        }  # fmt: skip

    def _value(self, item: dict[str, Any], default: Any = None) -> Any:
        try:
            return unpacked(item, item["key"], secrets())
        except Forged:
            logger.warning("%s is not signed by this project: a miss", item["key"])
        except Exception:
            logger.warning("%s cannot be unpickled: a miss", item["key"], exc_info=True)
        return default

    # -- what is done --------------------------------------------------------------------------------

    def _get(self, key: str, default: Any) -> Steps:
        item = yield Ask("GET", self._path(key))
        return default if item is None else self._value(item, default)

    def _set(
        self, key: str, value: Any, timeout: Any, tags: Iterable[str], stale: float, more: Mapping[str, Any]
    ) -> Steps:
        ttl = self._ttl(timeout)
        if ttl <= 0:
            if not more:
                yield Ask("DELETE", self._path(key))
            return True
        try:
            answer = yield Ask("PUT", self._path(key), {**self._body(key, value, ttl, tags, stale), **more})
        except Refused as refused:
            if refused.status == 413 and not more:  # what was there is not what was meant to be there
                yield Ask("DELETE", self._path(key))
            raise
        return answer["stored"]

    def _add(self, key: str, value: Any, timeout: Any, tags: Iterable[str], stale: float) -> Steps:
        if self._ttl(timeout) <= 0:  # there would be nothing to put; what is there stays
            return not (yield from self._has(key))
        try:
            return (yield from self._set(key, value, timeout, tags, stale, {"only_if_absent": True}))
        except Refused as refused:
            if refused.code != "already_cached":
                raise
            return False

    def _delete(self, key: str) -> Steps:
        return (yield Ask("DELETE", self._path(key)))["deleted"]

    def _touch(self, key: str, timeout: Any) -> Steps:
        ttl = self._ttl(timeout)
        if ttl <= 0:
            return (yield from self._delete(key))
        answer = yield Ask("POST", f"{self._path(key)}/touch", {"ttl_seconds": max(ttl, SHORTEST)})
        return answer is not None

    def _has(self, key: str) -> Steps:
        return (yield Ask("GET", self._path(key))) is not None

    def _incr(self, key: str, delta: int) -> Steps:
        """Two requests: Django refuses to count what is not there, Syros would begin."""
        if (yield from self._has(key)):
            try:
                return (yield Ask("POST", f"{self._path(key)}/incr", {"by": delta}))["value"]
            except Refused as refused:
                if refused.code != "not_a_number":
                    raise
                raise ValueError(f"{key!r} is no integer up to 2^53 - 1") from None
        raise ValueError(f"Key {key!r} not found")

    def _get_many(self, keys: Mapping[str, Any]) -> Steps:
        names, found, missing = list(keys), {}, object()
        while names:
            answer = yield Ask("POST", "cache/get-many", {"keys": names[:MANY]})
            for item in answer["items"]:
                if (value := self._value(item, missing)) is not missing:
                    found[keys[item["key"]]] = value
            names = answer["left_out"] + names[MANY:]
        return {key: found[key] for key in keys.values() if key in found}

    def _set_many(
        self, values: Mapping[str, tuple[Any, Any]], timeout: Any, tags: Iterable[str], stale: float
    ) -> Steps:
        ttl = self._ttl(timeout)
        failed: list[Any] = []
        if ttl <= 0:
            yield from self._delete_many(list(values))
            return failed
        bodies = [
            {"key": name, **self._body(name, value, ttl, tags, stale)} for name, (_, value) in values.items()
        ]
        for part in parts(bodies):
            items = yield from self._put_many(part)
            failed += [values[item["key"]][0] for item in items if not item["stored"]]
            # What was there is not what was meant to be there.
            yield from self._delete_many([item["key"] for item in items if item["code"] == "value_too_large"])
        return failed

    def _put_many(self, part: Sequence[dict[str, Any]]) -> Steps:
        """What became of each; of one that is too large for a request of its own, the same as in one with others."""
        try:
            return (yield Ask("POST", "cache/put-many", {"items": part}))["items"]
        except Refused as refused:
            if refused.status != 413:
                raise
            return [{"key": body["key"], "stored": False, "code": "value_too_large"} for body in part]

    def _delete_many(self, keys: Iterable[str]) -> Steps:
        for key in keys:
            yield Ask("DELETE", self._path(key))

    def _invalidate(self, tags: Sequence[str], soft: bool) -> Steps:
        for start in range(0, len(tags), 100):
            body = {"tags": list(tags[start : start + 100]), "mode": "soft" if soft else "hard"}
            for pause in (*PAUSES, None):
                try:
                    yield Ask("POST", "cache/invalidate", body)
                    break
                except (Unavailable, Refused) as error:
                    if pause is None or (isinstance(error, Refused) and not error.retryable):
                        raise
                    yield Pause(pause)

    def _look(self, key: str, lease: float) -> Steps:
        """The value, or UNMADE; how it is to be put then. Of all who miss it one loads it, the others wait for that."""
        asked, problem = {"lease_seconds": lease}, {}
        for wait in (0.0, lease):
            try:
                query = {**asked, "wait_seconds": wait} if wait else asked
                item = yield Ask("GET", self._path(key), query=query, waits=wait)
            except Refused as refused:
                if refused.code != "cache_miss":
                    raise
                problem = refused.problem
                if problem.get("lease") or not problem.get("as_of"):
                    break
                continue
            if item.get("lease"):  # stale, and this is the one who loads it again
                return UNMADE, {"lease": item["lease"]}
            value = self._value(item, UNMADE)
            return value, {"if_etag": item["etag"]} if value is UNMADE else {}
        known = {name: problem[name] for name in ("lease", "as_of") if problem.get(name)}
        return UNMADE, known or {"only_if_absent": True}

    def _keep(
        self, key: str, value: Any, timeout: Any, tags: Iterable[str], stale: float, load: Mapping[str, Any]
    ) -> Steps:
        """What was loaded is kept only if nothing that it depends on changed meanwhile."""
        try:
            yield from self._set(key, value, timeout, tags, stale, load)
        except Refused as refused:
            if refused.code not in {"stale_load", "already_cached", "etag_mismatch"}:
                raise

    # -- in a thread, and in a loop ------------------------------------------------------------------

    def _run(self, steps: Steps, otherwise: Any = None) -> Any:
        """Carry an operation out; `otherwise` is what it comes to when Syros is away."""
        try:
            step = next(steps)
            while True:
                try:
                    found: Any = self._do(step)
                except (Refused, Unavailable) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as done:
            return done.value
        except (Refused, Unavailable) as error:
            self._complain(error)
            return otherwise

    def _do(self, step: Any) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        try:
            return answer_of(self._client().request(**self._request(step)), step)
        except httpx.RequestError as error:
            raise Unavailable(f"{self._url} does not answer: {error or type(error).__name__}") from error

    async def _arun(self, steps: Steps, otherwise: Any = None) -> Any:
        try:
            step = next(steps)
            while True:
                try:
                    found: Any = await self._ado(step)
                except (Refused, Unavailable) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as done:
            return done.value
        except (Refused, Unavailable) as error:
            self._complain(error)
            return otherwise

    async def _ado(self, step: Any) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        try:
            return answer_of(await self._async_client().request(**self._request(step)), step)
        except httpx.RequestError as error:
            raise Unavailable(f"{self._url} does not answer: {error or type(error).__name__}") from error

    def _complain(self, error: Refused | Unavailable) -> None:
        """Raises: the error, where the project wants to hear of it."""
        if self._raises:
            raise error
        logger.warning("As if nothing were cached: %s", error)

    def _request(self, ask: Ask) -> dict[str, Any]:
        found: dict[str, Any] = {
            "method": ask.method, "url": ask.path, "timeout": httpx.Timeout(self._seconds + ask.waits),
        }  # fmt: skip
        if ask.query:
            found["params"] = ask.query
        if ask.body is not None:
            found |= {"content": json.dumps(ask.body), "headers": {"Content-Type": "application/json"}}
        return found

    def _about(self) -> tuple[Any, ...]:
        return self._url, self._api_key, self._namespace, self._connections, os.getpid()

    def _settings(self) -> dict[str, Any]:
        headers = {"User-Agent": f"syros-python/{__version__} django", "Accept": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        if self._namespace:
            headers["Syros-Namespace"] = self._namespace
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=30,
        )
        return {
            "base_url": self._url,
            "headers": headers,
            "limits": limits,
            "verify": self._url.startswith("https:"),
        }

    def _client(self) -> httpx.Client:
        """Django makes a cache for each thread; the connections are the process's."""
        about = self._about()
        return _clients.get(about) or _clients.setdefault(about, httpx.Client(**self._settings()))

    def _async_client(self) -> httpx.AsyncClient:
        known = _async_clients.setdefault(asyncio.get_running_loop(), {})
        about = self._about()
        return known.get(about) or known.setdefault(about, httpx.AsyncClient(**self._settings()))

    # -- Django's interface --------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return self._run(self._get(self._key(key, version), default), default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        return await self._arun(self._get(self._key(key, version), default), default)

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> None:  # fmt: skip
        """Keep a value for `timeout` seconds, and serve it as stale for `stale` more, until a tag is invalidated."""
        self._run(self._set(self._key(key, version), value, timeout, tags, stale, {}))

    async def aset(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> None:  # fmt: skip
        await self._arun(self._set(self._key(key, version), value, timeout, tags, stale, {}))

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> bool:  # fmt: skip
        return bool(self._run(self._add(self._key(key, version), value, timeout, tags, stale), False))

    async def aadd(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> bool:  # fmt: skip
        return bool(await self._arun(self._add(self._key(key, version), value, timeout, tags, stale), False))

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return bool(self._run(self._touch(self._key(key, version), timeout), False))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return bool(await self._arun(self._touch(self._key(key, version), timeout), False))

    def delete(self, key: Any, version: int | None = None) -> bool:
        return bool(self._run(self._delete(self._key(key, version)), False))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return bool(await self._arun(self._delete(self._key(key, version)), False))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return bool(self._run(self._has(self._key(key, version)), False))

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return bool(await self._arun(self._has(self._key(key, version)), False))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Raises: ValueError, for what is not there, or no integer; also when Syros is away."""
        return counted(key, self._run(self._incr(self._key(key, version), delta)))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return counted(key, await self._arun(self._incr(self._key(key, version), delta)))

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self.aincr(key, -delta, version)

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._key(key, version): key for key in keys}
        return cast(dict[Any, Any], self._run(self._get_many(names), {}))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._key(key, version): key for key in keys}
        return cast(dict[Any, Any], await self._arun(self._get_many(names), {}))

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> list[Any]:  # fmt: skip
        """The keys that were not stored."""
        values = {self._key(key, version): (key, value) for key, value in data.items()}
        return cast(list[Any], self._run(self._set_many(values, timeout, tags, stale), list(data)))

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Iterable[str] = (), stale: float = 0.0,
    ) -> list[Any]:  # fmt: skip
        values = {self._key(key, version): (key, value) for key, value in data.items()}
        return cast(list[Any], await self._arun(self._set_many(values, timeout, tags, stale), list(data)))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._run(self._delete_many([self._key(key, version) for key in keys]))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._arun(self._delete_many([self._key(key, version) for key in keys]))

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Any = (), stale: float = 0.0, lease: float | None = None,
    ) -> Any:  # fmt: skip
        """The value; if there is none, `default`, which is called if it can be, by one of all who miss it.

        Parameters: `tags`, or a function that tells them from the value; `lease`, the seconds that it may take.
        """
        name = self._key(key, version)
        found, load = self._run(self._look(name, lease or self._lease), (UNMADE, None))
        if found is not UNMADE:
            return found
        value = default() if callable(default) else default
        if load is not None:
            its = tags(value) if callable(tags) else tags
            self._run(self._keep(name, value, timeout, its, stale, load))
        return value

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None,
        *, tags: Any = (), stale: float = 0.0, lease: float | None = None,
    ) -> Any:  # fmt: skip
        """`default` may be a coroutine function."""
        name = self._key(key, version)
        found, load = await self._arun(self._look(name, lease or self._lease), (UNMADE, None))
        if found is not UNMADE:
            return found
        value = default() if callable(default) else default
        if inspect.isawaitable(value):
            value = await value
        if load is not None:
            its = tags(value) if callable(tags) else tags
            await self._arun(self._keep(name, value, timeout, its, stale, load))
        return value

    def clear(self) -> None:
        """Declare all invalid that this cache keeps: what has another KEY_PREFIX stays."""
        self._run(self._invalidate([self._all], False))

    async def aclear(self) -> None:
        await self._arun(self._invalidate([self._all], False))

    # -- tags ----------------------------------------------------------------------------------------

    def invalidate_tags(self, *tags: str, soft: bool = False) -> None:
        """Declare everything with one of these tags invalid; `soft`: it may be served while it is loaded again.

        Inside `transaction.atomic()` it is done when that is committed, and not if it is rolled back.
        """

        def invalidate() -> None:
            self._run(self._invalidate(list(tags), soft))

        if self._using and transaction.get_connection(self._using).in_atomic_block:
            transaction.on_commit(invalidate, using=self._using)
        else:
            invalidate()

    async def ainvalidate_tags(self, *tags: str, soft: bool = False) -> None:
        """At once: there are no asynchronous transactions."""
        await self._arun(self._invalidate(list(tags), soft))


def secrets() -> list[str]:
    """What values are, or were, signed with."""
    return [settings.SECRET_KEY, *cast("list[str]", settings.SECRET_KEY_FALLBACKS)]


def counted(key: Any, number: int | None) -> int:
    if number is None:
        raise ValueError(f"Key {key!r} not found")
    return number


def parts(bodies: Sequence[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """As many as one request may hold."""
    part: list[dict[str, Any]] = []
    size = 0
    for body in bodies:
        length = len(json.dumps(body))
        if part and (len(part) == MANY or size + length > MANY_BYTES):
            yield part
            part, size = [], 0
        part.append(body)
        size += length
    if part:
        yield part


def answer_of(response: httpx.Response, ask: Ask) -> Any:
    """What was answered; None for a miss, unless a lease was asked for.

    Raises: Refused, Unavailable.
    """
    try:
        value = response.json()
    except ValueError:
        value = None
    if response.is_success and value is not None:
        return value
    if not isinstance(value, dict) or "code" not in value:
        raise Unavailable(f"{response.url} does not answer as Syros does: {response.status_code}")
    if value["code"] == "cache_miss" and not ask.query:
        return None
    raise Refused(value)
