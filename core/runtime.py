"""What runs in a serving process: engine, tail and waiting callers, and the one way to carry an operation out."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections

from core.batch import Job, Order
from core.callers import SYSTEM, Call, authorize, namespaces, while_allowed
from core.database import pools, rows
from core.encoding import encode
from core.engine import Engine
from core.errors import Internal, NotInVolatileNamespace, OutcomeUnknown, SyrosError, Unavailable
from core.log import Entry
from core.operations import Operation, Outcome, Volatile, Waiting, registry
from core.tail import Tail
from core.waiting import Waiters, grant

logger = logging.getLogger("syros.runtime")


THREADS = 4  # for plain queries; each keeps a connection
Periodic = Callable[[], Awaitable[None]]
periodics: list[tuple[float, Periodic]] = []
finishing: list[Periodic] = []  # what a process that stops brings to its end while its engine still serves
closing: list[Callable[[], None]] = []  # what a process calls when it stops, once its waiters have withdrawn


def every(seconds: float) -> Callable[[Periodic], Periodic]:
    """Have a function called in every serving process, this long after its last call ended."""

    def register(function: Periodic) -> Periodic:
        periodics.append((seconds, function))
        return function

    return register


class Runtime:
    """Started once, in the loop that serves."""

    def __init__(self) -> None:
        self.waiters = Waiters()
        self.pending: set[asyncio.Future[Any]] = set()  # other waits, which end when the process stops
        self.loop: asyncio.AbstractEventLoop | None = None
        self.engine: Engine | None = None
        self.tail: Tail | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Lock()
        self.stopping = False

    @property
    def is_running(self) -> bool:
        return self.engine is not None

    async def start(self) -> None:
        """Start, once: whoever asks meanwhile waits until it has."""
        async with self._starting:
            if not self.is_running:
                await self._start()

    async def _start(self) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), False
        self.loop.set_default_executor(ThreadPoolExecutor(THREADS, "syros-query"))
        for each in pools:
            await each.open()
        self.tail = Tail(self.waiters)
        self.tail.start()
        self.engine = Engine(self._deliver, self.waiters.expect, limit=settings.QUEUE_LIMIT)
        self.engine.start()
        self.spawn(self._watch())
        for seconds, function in periodics:
            self.spawn(self._repeat(seconds, function))

    async def stop(self) -> None:
        """Refuse what comes, end the waits, finish what is queued."""
        self.release_waiters()
        await asyncio.sleep(0)  # the waiters' withdrawals are queued before the engine closes
        await asyncio.gather(*(t for t in self._tasks if t.get_name() == "withdraw"), return_exceptions=True)
        await asyncio.gather(*(finish() for finish in finishing))
        for close in closing:
            close()
        if self.engine:
            await asyncio.to_thread(self.engine.stop)
        for task in list(self._tasks):
            task.cancel()
        if self.tail:
            await self.tail.stop()
        for each in pools:
            await each.close()
        self.engine = None

    def release_waiters(self) -> None:
        """End every wait and every stream with 503: the process stops, and another one serves the retry."""
        self.stopping = True
        self.waiters.release_all(stopping())
        self.end_pending(stopping())
        if self.tail:
            self.tail.release()

    def end_pending(self, error: SyrosError) -> None:
        for future in list(self.pending):
            if not future.done():
                future.set_result(error)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str | None = None) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self) -> None:
        while self.engine and not self.stopping:
            self.engine.revive()
            await asyncio.sleep(0.2)

    async def _repeat(self, seconds: float, function: Periodic) -> None:
        while not self.stopping:
            await asyncio.sleep(seconds)
            try:
                await function()
            except (Unavailable, OutcomeUnknown):
                pass
            except Exception:
                logger.exception("%s broke", function.__name__)

    # -- from the engine -----------------------------------------------------------------------------

    def _deliver(self, jobs: list[Job], entries: list[Entry], orders: list[Order]) -> None:
        """In the engine's thread: one hop to the loop for a whole batch."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._delivered, jobs, entries, orders)

    def _delivered(self, jobs: list[Job], entries: list[Entry], orders: list[Order]) -> None:
        for function, args in orders:
            try:
                function(*args)
            except Exception:  # the others have their turn all the same
                logger.exception("%s broke", function.__name__)
        for job in jobs:
            future = job.future
            if future is None:
                continue
            if not future.done():
                future.set_result(None)
                continue
            try:
                self._gone(job)
            except Exception:  # the others of its batch are told all the same
                logger.exception("%s could not be given back", job.operation.name)
        if entries and self.tail:
            self.tail.committed(entries)

    def _gone(self, job: Job) -> None:
        """The caller went away while its command was under way; one that would have waited gives back, unless a
        retry with the same key will be answered what it was granted."""
        waits = job.operation.waits
        if job.error:
            self._failed(job)
        elif waits is None:
            return
        elif isinstance(job.value, Waiting):
            if self.waiters.forget(job):
                self._withdraw(job, job.value.facts)
        elif job.params.get("wait_seconds") and not job.answer_id:
            self._withdraw(job, waits.facts(job.value))

    def _failed(self, job: Job) -> None:
        """What may have been taken all the same is given back, unless a retry with the same key may come for it:
        the caller was told no lock_id, so nobody could."""
        self.waiters.forget(job)
        waits, value = job.operation.waits, job.value
        if waits and value is not None and not job.answer_id and isinstance(job.error, OutcomeUnknown):
            self._withdraw(job, value.facts if isinstance(value, Waiting) else waits.facts(value))

    def _withdraw(self, job: Job, facts: dict[str, Any], reason: str = "client_gone") -> "asyncio.Task[Any]":
        """Give a place up. A grant that came first is kept for who is still there, and for a retry with the key:
        in another process it may have been answered already."""
        assert job.operation.waits is not None
        operation = registry[job.operation.waits.withdraw]
        params = {**facts, "reason": reason, "keep": reason == "timed_out" or job.answer_id is not None}
        return self.spawn(self._insist(operation, job.call, params), name="withdraw")

    async def _insist(self, operation: Operation, call: Call, params: dict[str, Any]) -> Any:
        """Carry an internal command out, through outages shorter than a minute: one that may be repeated."""
        call = Call(call.caller, call.namespace, call.request_id)
        for pause in (0.1, 0.5, 1, 2, 5, 10, 20, 20):
            try:
                return (await self.carry_out(operation, call, params)).value
            except (Unavailable, OutcomeUnknown):
                if self.stopping:
                    raise
                await asyncio.sleep(pause)
        raise Unavailable

    # -- operations ----------------------------------------------------------------------------------

    async def run(self, operation: Operation, call: Call, params: dict[str, Any]) -> Outcome:
        """Carry an operation out for a caller: authorize, then decide in the engine or read.

        Parameters: `params` as `operation.parse` gives them.
        Raises: the operation's SyrosErrors, Forbidden, Unavailable, OutcomeUnknown.
        """
        authorize(call.caller, operation, params)
        if not params.get("wait_seconds"):
            return await self._run(operation, call, params)
        async with while_allowed(call, operation, params):
            return await self._run(operation, call, params)

    async def _run(self, operation: Operation, call: Call, params: dict[str, Any]) -> Outcome:
        if call.namespace.volatile and (form := volatile_form(operation, params)):
            return Outcome(await form(call, **params), operation.status)
        if operation.kind == "command":
            outcome = await self.carry_out(operation, call, params)
            if operation.until and params.get("wait_seconds"):
                outcome.value = await operation.until(call, outcome.value, params["wait_seconds"])
            return outcome
        if operation.is_async:
            return Outcome(await operation.function(call, **params), operation.status)
        return await asyncio.to_thread(look, operation, call, params)

    def stream(self, operation: Operation, call: Call, params: dict[str, Any]) -> AsyncIterator[Any]:
        """The items of an operation that streams.

        Raises: Forbidden, and what the stream itself raises.
        """
        authorize(call.caller, operation, params)
        if call.namespace.volatile and operation.volatile:
            raise NotInVolatileNamespace
        found: AsyncIterator[Any] = operation.function(call, **params)
        return found

    async def carry_out(self, operation: Operation, call: Call, params: dict[str, Any]) -> Outcome:
        if self.engine is None or self.loop is None:
            raise Unavailable("This process is not serving.")
        job = Job(operation, params, call, self.loop.create_future())
        if call.idempotency_key:
            identify(job)
        if operation.waits and (
            params.get("wait_seconds") or job.answer_id
        ):  # or it may join a wait by its key
            if self.tail:
                await self.tail.attend(call.namespace.number)
            job.granted = self.loop.create_future()
        self.engine.submit(job)
        try:
            await job.future
        except asyncio.CancelledError:
            if not job.future.cancelled():  # the answer came in the very moment the caller went
                self._gone(job)
            raise
        if job.error:
            self._failed(job)
            raise job.error
        if isinstance(job.value, Waiting):
            return Outcome(await self._wait(job), job.status, job.replayed)
        return Outcome(job.value, job.status, job.replayed)

    async def _wait(self, job: Job) -> Any:
        try:
            if self.stopping and not job.granted.done():
                raise stopping()
            return await grant(job)
        except TimeoutError:
            self.waiters.forget(job)
            return await self._time_out(job, job.value.facts)
        except (asyncio.CancelledError, Unavailable):
            # A retry with the same Idempotency-Key shares the place: only the last to go gives it up, and a
            # grant that came in the very moment is kept for it.
            if self.waiters.forget(job) or not (job.granted.cancelled() or job.answer_id):
                self._withdraw(job, job.value.facts)
            raise

    async def _time_out(self, job: Job, facts: dict[str, Any]) -> Any:
        assert job.operation.waits is not None
        try:
            value = await asyncio.shield(self._withdraw(job, facts, "timed_out"))
        except asyncio.CancelledError:
            # A grant that came in the last moment was kept for the caller, who went in that very moment.
            if not job.answer_id:
                self._withdraw(job, facts)
            raise
        return job.operation.waits.timed_out(facts, value)

    def run_from_thread(self, operation: Operation, call: Call, params: dict[str, Any]) -> Outcome:
        """The same for a thread that is not the loop's: Django's views, commands, tests."""
        authorize(call.caller, operation, params)
        if operation.kind == "query" and not operation.is_async and not operation.volatile:
            return look(operation, call, params)
        if self.loop is None:
            raise Unavailable("This process is not serving.")
        return asyncio.run_coroutine_threadsafe(self.run(operation, call, params), self.loop).result()


def stopping() -> Unavailable:
    return Unavailable("This process is stopping.")


def volatile_form(operation: Operation, params: dict[str, Any]) -> Volatile | None:
    """What carries an operation out where locks are volatile, if it is not what does everywhere.

    Raises: NotInVolatileNamespace, of a write with a fence: tokens out of Redis prove nothing to what is durable.
    """
    if params.get("fence"):
        raise NotInVolatileNamespace("No `fence` where locks are volatile.")
    if operation.volatile:
        params.pop("fence", None)
    return operation.volatile


def look(operation: Operation, call: Call, params: dict[str, Any]) -> Outcome:
    """Carry a plain query out: through Django's ORM, which has its own words for a database that is away.

    Raises: Unavailable, and what the operation raises.
    """
    close_old_connections()  # a thread beside Django's own has nobody else to tell it of a lost one
    try:
        return Outcome(operation.function(call, **params), operation.status)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable from error


def identify(job: Job) -> None:
    """Where the answer to this key is kept, and what the key was used for: scoped to caller and operation."""
    call = job.call
    scope = f"{call.caller.principal}\n{job.operation.name}\n{call.idempotency_key}"
    job.answer_id = f"{call.namespace.name}/{hashlib.sha256(scope.encode()).hexdigest()}"
    # Keyed: parameters may be secrets so short that a bare hash of them could be guessed.
    key = settings.SECRET_KEY.encode()[:64]
    job.fingerprint = hashlib.blake2b(encode(job.params), key=key, digest_size=32).hexdigest()


runtime = Runtime()


async def carry_out_found(operation: Operation, parameter: str, statement: str) -> int:
    """Carry an internal command out for all addresses that a statement finds; how many there are."""
    return await carry_out_for(operation, parameter, await rows(statement))


async def carry_out_for(operation: Operation, parameter: str, addresses: Sequence[tuple[Any, ...]]) -> int:
    """The same for addresses that were found already, a namespace at a time; how many did not break."""
    found: dict[str, list[str]] = {}
    for (address,) in addresses:
        namespace, _, name = address.partition("/")
        found.setdefault(namespace, []).append(name)
    broken = 0
    for namespace, names in found.items():
        call = Call(SYSTEM, await namespaces.get(namespace))
        broken += await carry_out_apart(operation, call, parameter, sorted(set(names)))
    return len(addresses) - broken


async def carry_out_apart(operation: Operation, call: Call, parameter: str, names: list[str]) -> int:
    """One command for all of them. If it breaks, halve until what breaks it is alone: it must not keep the others
    from their turn. How many broke."""
    try:
        await runtime.carry_out(operation, call, {parameter: names})
    except Internal:
        if len(names) == 1:
            logger.error("%s breaks at %s/%s", operation.name, call.namespace.name, names[0])
            return 1
        half = len(names) // 2
        parts = (names[:half], names[half:])
        return sum([await carry_out_apart(operation, call, parameter, part) for part in parts])
    return 0
