"""The part of a process that checks instances: each is checked by one living worker, and by another when that dies.

Who checks what follows from who lives: the workers share the instances out by hash, each by itself, without a word.
Nothing here decides: what the tries brought goes to the rules, and only a change is written down.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from hashlib import blake2b
from random import random, uniform
from time import monotonic
from typing import Any

from django.conf import settings

from core.callers import SYSTEM, Call, namespaces
from core.database import Row, rows
from core.encoding import decode
from core.errors import SyrosError
from core.operations import registry
from core.runtime import every, finishing, runtime
from discovery import rules
from discovery.checks import Subject, fault

logger = logging.getLogger("syros.discovery")

LEASE = 3.0  # seconds that a worker counts as living after it said so
MARGIN = 0.5  # seconds before the end of its lease that it stops checking
AT_ONCE = 64  # tries under way in a process
BEAT = """with mine as (insert into discovery_checker (id, expires_at)
    values (%(me)s, clock_timestamp() + %(lease)s * interval '1 second')
    on conflict (id) do update set expires_at = excluded.expires_at returning id)
select id from mine union select id from discovery_checker where expires_at > clock_timestamp()"""
LEAVE = """delete from discovery_checker where id = %s or expires_at < clock_timestamp() - interval '1 minute'
    returning id"""
CHECKED = """select id, address, port, scheme, may_be_private, incarnation, checks::text from discovery_instance
    where checks is not null and status in ('healthy', 'failing', 'maintenance')"""

Key = tuple[str, int, int]  # the instance, its incarnation, which of its checks


@dataclass(slots=True)
class Watch:
    """One check, and how its last tries went."""

    key: Key
    subject: Subject
    check: dict[str, Any]
    tally: rules.Tally = field(default_factory=rules.Tally)
    task: "asyncio.Task[None] | None" = None


class Checker:
    """Of a process that works; in one that does not, nothing happens."""

    def __init__(self) -> None:
        self._watches: dict[Key, Watch] = {}
        self._mine: dict[str, bool] = {}
        self._workers: frozenset[str] = frozenset()
        self._beaten_at = self._since = 0.0
        self._slots = asyncio.Semaphore(AT_ONCE)

    @property
    def may_check(self) -> bool:
        """Its lease lasts, and those that had it before know."""
        now = monotonic()
        is_alone = len(self._workers) == 1
        return now - self._beaten_at < LEASE - MARGIN and (is_alone or now - self._since > LEASE)

    async def look_around(self) -> None:
        """Say that this process lives, see which others do, and check what falls to it.

        Raises: Unavailable.
        """
        assert runtime.engine
        me, started = runtime.engine.process_id, monotonic()
        workers = frozenset(each for (each,) in await rows(BEAT, {"me": me, "lease": LEASE}))
        if started - self._beaten_at > LEASE - MARGIN:
            self._since = started
        self._beaten_at = started
        if workers != self._workers:
            self._workers, self._mine = workers, {}
        self._take_up([row for row in await rows(CHECKED) if self._is_mine(me, row[0])])

    def _is_mine(self, me: str, instance: str) -> bool:
        if instance not in self._mine:
            self._mine[instance] = max(self._workers, key=lambda worker: rank(worker, instance)) == me
        return self._mine[instance]

    def _take_up(self, found: list[Row]) -> None:
        """Begin to check what is new, and stop with what is gone, or somebody else's now."""
        wanted = {watch.key: watch for row in found for watch in watches_of(row)}
        for key, watch in list(self._watches.items()):
            now = wanted.get(key)
            if now is None or now.subject != watch.subject or form_of(now) != form_of(watch):
                self._drop(watch)
            else:
                watch.check["state"] = now.check["state"]
        for key, watch in wanted.items():
            if key not in self._watches:
                self._watches[key] = watch
                watch.task = runtime.spawn(self._keep_trying(watch))

    def _drop(self, watch: Watch) -> None:
        del self._watches[watch.key]
        if watch.task:
            watch.task.cancel()

    async def _keep_trying(self, watch: Watch) -> None:
        """Not all at the same time: neither those that came together nor those with the same rhythm."""
        seconds = watch.check["interval_seconds"]
        await asyncio.sleep(random() * (min(seconds, 0.5) if watch.check["state"] == "pending" else seconds))
        while not runtime.stopping:
            if self.may_check:
                try:
                    await self._try(watch)
                except Exception:  # of ours: it says nothing about the instance
                    logger.exception("a check of %s broke", watch.key[0])
                await asyncio.sleep(seconds * uniform(0.9, 1.1))
            else:
                await asyncio.sleep(min(seconds, 0.2))

    async def _try(self, watch: Watch) -> None:
        async with self._slots:
            message = await fault(watch.subject)
        watch.tally = rules.tried(watch.tally, not message)
        state = rules.verdict(watch.check, watch.tally)
        if state != watch.check["state"] and self.may_check:
            await self._tell(watch, state, message)

    async def _tell(self, watch: Watch, state: str, message: str) -> None:
        """Have it written down; if that fails, the next try says it again."""
        address, incarnation, number = watch.key
        namespace, _, name = address.partition("/")
        params = {
            "name": name,
            "incarnation": incarnation,
            "number": number,
            "state": state,
            "message": message,
        }
        try:
            call = Call(SYSTEM, await namespaces.get(namespace))
            await runtime.carry_out(registry["services.judge"], call, params)
            watch.check["state"] = state
        except SyrosError as error:
            logger.debug("%s: %s", address, error)

    async def leave(self) -> None:
        """Leave what this process checks to the others, at once."""
        if self._beaten_at and runtime.engine:
            for watch in list(self._watches.values()):
                self._drop(watch)
            await rows(LEAVE, [runtime.engine.process_id])
            self._beaten_at = 0.0


def rank(worker: str, instance: str) -> bytes:
    return blake2b(f"{worker} {instance}".encode(), digest_size=8).digest()


def watches_of(row: Row) -> list[Watch]:
    address, host, port, scheme, may_be_private, incarnation, checks = row
    return [
        Watch(
            (address, incarnation, number),
            Subject(host, port, scheme, may_be_private, each["kind"], each["path"], each["timeout_seconds"]), each,
        )
        for number, each in enumerate(decode(checks))
    ]  # fmt: skip


def form_of(watch: Watch) -> tuple[Any, ...]:
    return tuple(watch.check[name] for name in ("interval_seconds", "failures", "successes"))


checker = Checker()


async def leave() -> None:
    try:
        await checker.leave()
    except SyrosError:
        pass  # then its lease runs out


finishing.append(leave)


@every(1)
async def look_around() -> None:
    if settings.WORKS and not runtime.stopping:
        await checker.look_around()
