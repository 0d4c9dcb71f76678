"""Who waits for streams to grow: one follower of the log a namespace, however many wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator

from core.errors import Unavailable
from core.following import tail
from core.runtime import runtime

Listeners = dict[str, set[asyncio.Event]]


class Watchers:
    """The waiting callers of this process, by namespace and stream."""

    def __init__(self) -> None:
        self._listeners: dict[int, Listeners] = {}
        self._followers: dict[int, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def of(self, number: int, streams: Iterable[str]) -> AsyncIterator[asyncio.Event]:
        """An asyncio.Event that is set whenever one of these streams may have grown, from now on.

        Raises: Unavailable.
        """
        changed, names = asyncio.Event(), list(streams)
        listeners = self._listeners.setdefault(number, {})
        for name in names:
            listeners.setdefault(name, set()).add(changed)
        try:
            await self._follow(number)
            yield changed
        finally:
            self._leave(number, names, changed)

    async def _follow(self, number: int) -> None:
        """See to it that somebody follows, from where the log ends now or before."""
        if number not in self._followers:
            _, position = await tail().bounds(number)
            if number not in self._followers:
                self._followers[number] = runtime.spawn(self._hand_on(number, position))

    def _leave(self, number: int, names: list[str], changed: asyncio.Event) -> None:
        listeners = self._listeners.get(number, {})
        for name in names:
            if others := listeners.get(name):
                others.discard(changed)
                if not others:
                    del listeners[name]
        if not listeners:
            self._listeners.pop(number, None)
            if follower := self._followers.pop(number, None):
                follower.cancel()

    async def _hand_on(self, number: int, position: int) -> None:
        reader = tail()
        with contextlib.suppress(Unavailable), self._ending(number), reader.listening(number) as grown:
            while not grown.went_back:
                grown.clear()
                while entries := await reader.after(number, position):
                    position = entries[-1].position
                    self._wake(number, {entry.stream for entry in entries})
                await grown.wait()

    @contextlib.contextmanager
    def _ending(self, number: int) -> Iterator[None]:
        """However it ends, those who wait look for themselves, and follow anew."""
        try:
            yield
        finally:
            if self._followers.get(number) is asyncio.current_task():
                del self._followers[number]
                self._wake(number, set(self._listeners.get(number, ())))

    def _wake(self, number: int, streams: set[str]) -> None:
        listeners = self._listeners.get(number, {})
        for name in streams & listeners.keys():
            for changed in listeners[name]:
                changed.set()


watchers = Watchers()
