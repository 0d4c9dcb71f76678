"""Functions whose results Django's cache keeps."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar, cast
from uuid import UUID

from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.db import models

F = TypeVar("F", bound=Callable[..., Any])


def cached(
    timeout: Any = DEFAULT_TIMEOUT,
    *,
    key: str | Callable[..., str] | None = None,
    tags: Iterable[str] | Callable[..., Iterable[str]] = (),
    stale: float = 0.0,
    lease: float | None = None,
    cache: str = "default",
) -> Callable[[F], F]:
    """Cache what a function returns, for each set of arguments; one call makes it for all who ask meanwhile.

        @cached(300, tags=lambda pk: [f"product:{pk}", "catalogue"], stale=60)
        def product(pk): ...

    Parameters: `timeout` in seconds; `key`, with the names of the function's parameters in braces, or a function of the
    arguments (unless said: its name and its arguments, which are then numbers, texts, dates, UUIDs, models, or
    lists, tuples and dicts of such); `tags`, or a function of the arguments; `stale`, the seconds for which it may be
    served after that, while one loads it again; `lease`, the seconds that a call may take; `cache`, which of CACHES.
    The function may be `async`. It gets `invalidate(*arguments)`, which deletes one result.
    Raises: TypeError, where a key cannot be made of an argument.
    """

    def decorate(function: F) -> F:
        results = Results(function, key, tags, {"timeout": timeout, "stale": stale, "lease": lease}, cache)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return results.get(args, kwargs)

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            return await results.aget(args, kwargs)

        found: Any = acall if inspect.iscoroutinefunction(function) else call
        found.invalidate = results.invalidate
        return cast(F, found)

    return decorate


@dataclass(frozen=True)
class Results:
    """What is cached of one function, and how."""

    function: Callable[..., Any]
    key: str | Callable[..., str] | None
    tags: Iterable[str] | Callable[..., Iterable[str]]
    how: dict[str, Any]
    alias: str

    @property
    def cache(self) -> Any:
        return caches[self.alias]

    def get(self, args: Any, kwargs: Any) -> Any:
        return self.cache.get_or_set(*self._what(args, kwargs), **self._how(args, kwargs))

    async def aget(self, args: Any, kwargs: Any) -> Any:
        return await self.cache.aget_or_set(*self._what(args, kwargs), **self._how(args, kwargs))

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        """Delete what is cached for these arguments; of an async function, to be awaited."""
        key = self._key(args, kwargs)
        is_async = inspect.iscoroutinefunction(self.function)
        return self.cache.adelete(key) if is_async else self.cache.delete(key)

    def _what(self, args: Any, kwargs: Any) -> tuple[str, Callable[[], Any]]:
        return self._key(args, kwargs), functools.partial(self.function, *args, **kwargs)

    def _how(self, args: Any, kwargs: Any) -> dict[str, Any]:
        tags = self.tags(*args, **kwargs) if callable(self.tags) else self.tags
        return {**self.how, "tags": tags}

    def _key(self, args: Any, kwargs: Any) -> str:
        arguments = self._arguments(args, kwargs)
        if callable(self.key):
            return self.key(*args, **kwargs)
        if self.key is not None:
            return self.key.format(**arguments)
        text = json.dumps(plain(arguments), sort_keys=True)
        name = f"{self.function.__module__}.{self.function.__qualname__}".replace("<locals>", "-")
        return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _arguments(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """By the names of the parameters, however they were passed, with those that were left out."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.function)


def plain(value: Any) -> Any:
    """An argument as JSON: the same for the same, another for another.

    Raises: TypeError.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, models.Model):
        return [value._meta.label, plain(value.pk)]
    if isinstance(value, date | datetime | timedelta | Decimal | UUID):
        return [type(value).__name__, str(value)]
    if isinstance(value, list | tuple):
        return ["list", *map(plain, value)]
    if isinstance(value, dict):
        return ["dict", *sorted(([plain(name), plain(each)] for name, each in value.items()), key=str)]
    raise TypeError(f"No key can be made of a {type(value).__name__}: give `key` to @cached")
