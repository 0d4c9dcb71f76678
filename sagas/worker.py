"""The part of a process that works for sagas: it calls participants, keeps time, and picks up what others left.

Nothing here decides: every outcome goes to the rules through a command, and whatever this forgets with its process is
found again from the rows.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Any

from django.conf import settings

from core.callers import SYSTEM, Call, Namespace
from core.database import rows
from core.errors import OutcomeUnknown, SyrosError, Unavailable
from core.operations import registry
from core.runtime import carry_out_for, every, finishing, runtime
from discovery.directory import directory
from sagas import participants
from sagas.participants import Attempt
from sagas.rules import Outcome

logger = logging.getLogger("syros.sagas")

Waiting = dict[str, dict["asyncio.Future[Any]", None]]
AT_ONCE = 200  # sagas a command
ROUNDS = 20  # of them before others have their turn
LAST_SECONDS = 5.0  # that a process which stops waits for calls under way
PAUSES = (0.05, 0.2, 0.5, 1, 2, 5, 5, 5)  # seconds between tries to tell what came of a call
# What time has made due. Of what belongs to a process that lives, that process takes care.
DUE = """select id from sagas_saga s where wake_at <= statement_timestamp() and (owner is null or owner = %s
    or not exists (select from core_process p where p.id = s.owner and p.expires_at > statement_timestamp()))
order by wake_at limit 200"""
ABANDONED = """select s.id from sagas_saga s
    left join core_process p on p.id = s.owner and p.expires_at > statement_timestamp()
    where s.owner is not null and p.id is null limit 200"""
MINE = "select id from sagas_saga where owner = %s"
# Of sagas that go on. A look does nothing for one that is paused or needs attention: it would be found again and again,
# and nobody else. Whoever has it go on has its tasks looked at.
WAITING_FOR = """select t.saga from sagas_task t join sagas_saga s on s.id = t.saga
    where t.queue = any(%s) and t.lease_token is null and s.status in ('running', 'compensating')
order by t.queued_at limit 200"""
LEASES_OVER = """select t.saga from sagas_task t join sagas_saga s on s.id = t.saga
    where t.lease_until <= statement_timestamp() and s.status in ('running', 'compensating')
order by t.lease_until limit 200"""


class Worker:
    """Of a process that calls participants; in one that does not, `is_here` is false and nothing happens."""

    def __init__(self) -> None:
        self.calls = 0  # under way
        self._live: Counter[str] = Counter()  # calls and timers under way, by saga
        # Sagas of this process of which nothing was under way when it last looked.
        self._quiet: set[str] = set()
        # Who waits for tasks, by queue, and for the end of a saga; each in order.
        self._pollers: Waiting = {}
        self._rests: Waiting = {}

    @property
    def is_here(self) -> bool:
        """Not before it knows which services there are: it would take them for missing."""
        return bool(settings.WORKS) and directory.is_read and not runtime.stopping

    def serves_in(self, namespace: str) -> Callable[[str], bool]:
        """Has a service instances that can be called?"""
        return lambda service: directory.has(f"{namespace}/{service}")

    # -- after a commit ------------------------------------------------------------------------------

    def attempt(self, attempt: Attempt) -> None:
        self._live[attempt.saga] += 1
        self.calls += 1
        runtime.spawn(self._attempt(attempt))

    async def _attempt(self, attempt: Attempt) -> None:
        try:
            outcome = await self._outcome(attempt)
            await self._tell(attempt, outcome)
        finally:
            self.calls -= 1
            self._over(attempt.saga)

    async def _outcome(self, attempt: Attempt) -> Outcome:
        try:
            return await participants.call(attempt)
        except Exception as error:
            logger.exception("a call of %s broke", attempt.service)
            return Outcome("unknown", code="internal", message=type(error).__name__)

    async def _tell(self, attempt: Attempt, outcome: Outcome) -> None:
        """Have it written down what came of a call, through short outages. If that fails, the call is made again."""
        call = Call(SYSTEM, attempt.namespace, correlation_id=attempt.correlation_id,
                    traceparent=attempt.traceparent)  # fmt: skip
        params = {"saga_id": attempt.saga_id, "step": attempt.step, "op": attempt.op, "attempt": attempt.number,
                  "outcome": outcome}  # fmt: skip
        for pause in PAUSES:
            try:
                await runtime.carry_out(registry["sagas.hear"], call, params)
                return
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(pause)
            except SyrosError as error:
                logger.warning("saga %s: %s", attempt.saga, error)
                return

    def wake_later(self, namespace: Namespace, saga_id: str, seconds: float) -> None:
        saga = f"{namespace.name}/{saga_id}"
        self._live[saga] += 1
        runtime.spawn(self._wake_later(saga, seconds))

    async def _wake_later(self, saga: str, seconds: float) -> None:
        try:
            await asyncio.sleep(max(0.0, seconds))
            await carry_out_for(registry["sagas.wake"], "ids", [(saga,)])
        except SyrosError:
            pass  # it is found by its time
        finally:
            self._over(saga)

    def _over(self, saga: str) -> None:
        self._live[saga] -= 1
        if self._live[saga] <= 0:
            del self._live[saga]

    # -- those who poll ------------------------------------------------------------------------------

    def queued(self, queue: str) -> None:
        """A task came into a queue, of this process's making: the first who waits looks for it."""
        for future in self._pollers.get(queue, ()):
            if not future.done():
                future.set_result(None)
                return

    def news_of(self, queue: str) -> "AbstractContextManager[asyncio.Future[Any]]":
        """What is set when a task comes. Who leaves without having looked leaves it to who looks anyway."""
        return among(self._pollers, queue)

    # -- those who wait for an end -------------------------------------------------------------------

    def rests(self, saga: str, state: Callable[[], Any]) -> None:
        """This process has ended a saga, or left it to a human. Tell who waits for that how it stands."""
        for future in self._rests.get(saga, ()):
            if not future.done():
                future.set_result(state())

    def rest_of(self, saga: str) -> "AbstractContextManager[asyncio.Future[Any]]":
        """What is set when this process has ended the saga: how it stands."""
        return among(self._rests, saga)

    # -- what nobody asks for ------------------------------------------------------------------------

    async def look_after(self) -> None:
        """What is due, and what dead processes left. A look that breaks does not keep the others from theirs."""
        assert runtime.engine
        for statement, params in ((DUE, [runtime.engine.process_id]), (ABANDONED, []), (LEASES_OVER, [])):
            try:
                await self._wake(statement, params)
            except (Unavailable, OutcomeUnknown):
                raise  # of a database that is away the others hear no more
            except Exception:
                logger.exception("a look after sagas broke")

    async def _wake(self, statement: str, params: list[Any]) -> None:
        for _ in range(ROUNDS):
            found = await rows(statement, params)
            if await carry_out_for(registry["sagas.wake"], "ids", found) < AT_ONCE:
                return

    async def audit(self) -> None:
        """Sagas of this process for which it does nothing, two times running: a call was lost, such as after a
        commit of which nobody knew whether it was one."""
        assert runtime.engine
        idle = {saga for (saga,) in await rows(MINE, [runtime.engine.process_id]) if saga not in self._live}
        lost = [(saga,) for saga in sorted(idle & self._quiet) if saga not in self._live]
        self._quiet = idle
        for start in range(0, len(lost), AT_ONCE):
            await carry_out_for(registry["sagas.revive"], "ids", lost[start : start + AT_ONCE])

    async def look_around(self) -> None:
        """Which services there are; tasks that waited for one to come are pushed to it."""
        await directory.refresh()
        if queues := directory.services:
            await carry_out_for(registry["sagas.wake"], "ids", await rows(WAITING_FOR, [queues]))


@contextmanager
def among(all_who_wait: Waiting, name: str) -> Iterator["asyncio.Future[Any]"]:
    """A future among those who wait for the same, as long as it waits."""
    future = asyncio.get_running_loop().create_future()
    all_who_wait.setdefault(name, {})[future] = None
    try:
        yield future
    finally:
        del all_who_wait[name][future]
        if not all_who_wait[name]:
            del all_who_wait[name]


worker = Worker()


async def hear_of_calls() -> None:
    """A process that stops begins no call, and hears for a while of those under way: what comes of the others nobody
    knows, and whoever takes the sagas over makes them again."""
    until = monotonic() + LAST_SECONDS
    while worker.calls and monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


finishing.append(hear_of_calls)


@every(0.4)
async def look_after_sagas() -> None:
    if worker.is_here:
        await worker.look_after()


@every(2)
async def audit_sagas() -> None:
    if worker.is_here:
        await worker.audit()


@every(0.5)
async def look_around() -> None:
    if settings.WORKS and not runtime.stopping:
        await worker.look_around()
