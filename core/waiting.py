"""Callers that wait: who waits for which ticket in this process, and how a wait ends."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from core.batch import Job
from core.encoding import decode
from core.errors import SyrosError
from core.log import Entry
from core.operations import Waiting

Place = tuple[int, str, int]  # namespace, stream, ticket


class Waiters:
    """The waiting callers of this process. `expect` is called in the engine's thread before the commit, so
    that no grant can come between; the rest runs in the serving loop."""

    def __init__(self) -> None:
        self._changing = threading.RLock()
        self._jobs: dict[Place, list[Job]] = {}
        self._streams: dict[tuple[int, str], int] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def streams(self) -> list[tuple[int, str]]:
        return list(self._streams)

    def expect(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.granted is None:
                continue
            with self._changing:
                self._start_over(job)
                if isinstance(job.value, Waiting) and job.error is None:
                    self._put_in(job)

    def _start_over(self, job: Job) -> None:
        """A batch may run again, and give another ticket. The one before was never committed, so it became
        somebody else's, and what was heard of it meant them."""
        self.forget(job)
        if job.granted.done():
            job.granted = job.granted.get_loop().create_future()

    def _put_in(self, job: Job) -> None:
        job.place = (job.call.namespace.number, job.value.stream, job.value.ticket)
        self._jobs.setdefault(job.place, []).append(job)
        stream = job.place[:2]
        self._streams[stream] = self._streams.get(stream, 0) + 1

    def forget(self, job: Job) -> bool:
        """Take a job out; True if nobody else in this process waits in its place."""
        if job.place is None:
            return False
        with self._changing:
            return self._take_out(job)

    def _take_out(self, job: Job) -> bool:
        place, job.place = job.place, None
        if place is None or job not in self._jobs.get(place, ()):
            return False
        self._jobs[place].remove(job)
        if not (others := self._jobs[place]):
            del self._jobs[place]
        stream = place[:2]
        self._streams[stream] -= 1
        if not self._streams[stream]:
            del self._streams[stream]
        return not others

    def notice(self, entries: Iterable[Entry]) -> None:
        """End the waits that these events end."""
        if not self._streams:
            return
        for entry in entries:
            if (entry.namespace, entry.stream) in self._streams:
                self._notice(entry)

    def _notice(self, entry: Entry) -> None:
        data: dict[str, Any] = decode(entry.data)
        place = (entry.namespace, entry.stream, data.get("ticket", 0))
        with self._changing:
            for job in list(self._jobs.get(place, ())):
                answer = self._answer(job, entry.type, data)
                if answer is not None:
                    self.forget(job)
                    if not job.granted.done():
                        job.granted.set_result(answer)

    @staticmethod
    def _answer(job: Job, kind: str, data: dict[str, Any]) -> Any:
        waits = job.operation.waits
        assert waits is not None
        try:
            return waits.granted(job.value.facts, kind, data)
        except SyrosError as error:
            return error

    def release_all(self, error: SyrosError) -> None:
        """End every wait with this error: the process stops."""
        for jobs in list(self._jobs.values()):
            for job in list(jobs):
                self.forget(job)
                if not job.granted.done():
                    job.granted.set_result(error)


async def grant(job: Job) -> Any:
    """The answer a waiting job was given, in time.

    Raises: TimeoutError; a SyrosError that ended the wait.
    """
    async with asyncio.timeout(job.value.seconds):
        answer = await job.granted
    if isinstance(answer, SyrosError):
        raise answer
    return answer
