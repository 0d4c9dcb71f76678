"""Beside a Consul: Syros tells it of itself, and takes over what is registered there, so that sagas can call it.

A door without a port (a core.serving.Door): it lives as long as the process serves, and says goodbye when it stops.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from random import random
from time import monotonic
from typing import Any

from django.conf import settings

from core.callers import SYSTEM, Call, namespaces
from core.database import rows
from core.errors import NotFound, OutcomeUnknown, SyrosError, Unavailable
from core.operations import registry
from core.runtime import runtime
from discovery.consul import MARK, Away, Client, Index, Pace, Refused, instances, segment, services

logger = logging.getLogger("syros.consul")

SERVICE = "syros"
CHECK_SECONDS = 30  # until Consul takes this process for dead
PASS_SECONDS = 10.0
FORGET = "10m"  # after which Consul drops a dead one
LOCK, LOCK_SECONDS, RENEW_SECONDS = "syros.consul", 15.0, 5.0  # who imports
TTL_SECONDS, BEAT_SECONDS = 60.0, 20.0  # of what is imported
WAIT_SECONDS, SHORT_WAIT_SECONDS = 60, 5  # of a blocking query; the short one where queries take turns
LATE_SECONDS = 10.0  # that an answer may come after the time it was to come at
AT_ONCE = 100  # blocking queries; an agent takes 200 connections of one address
PAUSES = (0.5, 1, 2, 5, 10, 20)  # seconds between tries; of each, half to all
CALLS_AT_ONCE = 32


async def pause(failures: int) -> None:
    await asyncio.sleep(PAUSES[min(failures, len(PAUSES)) - 1] * (0.5 + random() / 2))


class Consul:
    """Parameters: the port that Syros is told to have, 0 for not to tell of it; whether this process may import.

    Raises: ValueError, of a URL that is none.
    """

    def __init__(self, port: int, imports: bool) -> None:
        self._client = Client(
            settings.DISCOVERY_CONSUL_URL,
            settings.DISCOVERY_CONSUL_TOKEN,
            settings.DISCOVERY_CONSUL_DATACENTER,
        )
        self._port = port
        self._imports = imports and bool(settings.DISCOVERY_CONSUL_NAMESPACE)

    async def serve(self, stopping: asyncio.Event) -> None:
        tasks = []
        if self._port:
            tasks.append(asyncio.create_task(Mirror(self._client, self._port).keep(stopping)))
        if self._imports:
            tasks.append(asyncio.create_task(Leader(self._client).lead(stopping)))
        try:
            await asyncio.gather(stopping.wait(), *tasks)
        finally:
            for task in tasks:
                task.cancel()


# -- Syros in Consul --------------------------------------------------------------------------------


class Mirror:
    """Syros' own service in the agent: registered, said to be well, and taken out at the end."""

    def __init__(self, client: Client, port: int) -> None:
        self._client, self._port = client, port
        self.id = f"{SERVICE}-{socket.gethostname()}-{port}"
        self.check_id = f"{SERVICE}:{self.id}"
        self._is_there = False

    def about(self) -> dict[str, Any]:
        check = {
            "CheckID": self.check_id, "Name": "Syros serves", "TTL": f"{CHECK_SECONDS}s", "Status": "passing",
            "DeregisterCriticalServiceAfter": FORGET,
        }  # fmt: skip
        address = {"Address": settings.DISCOVERY_CONSUL_ADDRESS} if settings.DISCOVERY_CONSUL_ADDRESS else {}
        meta = {"version": settings.VERSION, "scheme": "http"}
        return {"ID": self.id, "Name": SERVICE, "Port": self._port, "Meta": meta, "Check": check, **address}

    async def keep(self, stopping: asyncio.Event) -> None:
        failures = 0
        while not stopping.is_set():
            try:
                await self._tell()
                if failures:
                    logger.info("Consul knows of Syros again")
                failures = 0
            except Exception as error:
                if not failures:
                    logger.warning(
                        "Consul cannot be told of Syros: %s", error, exc_info=not isinstance(error, Away)
                    )
                failures += 1
            await first(stopping.wait(), pause(failures) if failures else asyncio.sleep(PASS_SECONDS))
        await self._leave()

    async def _tell(self) -> None:
        """Raises: Away."""
        if self._is_there:
            try:
                await self._report()
                return
            except Refused as error:  # the agent has forgotten it, or began anew
                logger.info("Consul takes no report of Syros (%s): registering again", error)
                self._is_there = False
        query = {"replace-existing-checks": "true"}
        await self._client.ask("PUT", "agent/service/register", query, self.about())
        self._is_there = True
        await self._report()

    async def _report(self) -> None:
        status, output = "passing", "serves"
        try:
            await rows("select 1")
        except Unavailable:
            status, output = "critical", "The database is away."
        path = f"agent/check/update/{segment(self.check_id)}"
        await self._client.ask("PUT", path, body={"Status": status, "Output": output})

    async def _leave(self) -> None:
        if not self._is_there:
            return
        try:
            await self._client.ask("PUT", f"agent/service/deregister/{segment(self.id)}", seconds=3)
        except Away as error:
            logger.warning("Consul was not told that Syros stops: %s", error)


async def first(*awaitables: Awaitable[Any]) -> None:
    """Wait for one of them, and drop the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


# -- Consul in Syros --------------------------------------------------------------------------------


async def carry_out(operation: str, **params: Any) -> Any:
    """As an administrator: whoever set the URL is one, so that private addresses of Consul's may be called.

    Raises: what the operation does, and NotFound without the namespace.
    """
    call = Call(SYSTEM, await namespaces.get(settings.DISCOVERY_CONSUL_NAMESPACE))
    return (await runtime.run(registry[operation], call, params)).value


async def ask(operation: str, **params: Any) -> Any:
    return await carry_out(operation, **registry[operation].parse(params))


class Leader:
    """Sees to it that one process imports: the one that holds a lock."""

    def __init__(self, client: Client) -> None:
        self._client, self._is_warned = client, False

    async def lead(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                async with held_lock() as lost:
                    importing = asyncio.ensure_future(Import(self._client).run())
                    await first(stopping.wait(), lost.wait(), importing)
                    await over(importing)
            except NotFound as error:
                if not self._is_warned:
                    logger.warning("nothing is imported from Consul: %s", error)
                self._is_warned = True
            except SyrosError:
                pass  # another process imports, or the database is away
            except Exception:
                logger.exception("importing from Consul broke")
            await first(stopping.wait(), asyncio.sleep(RENEW_SECONDS * (0.5 + random() / 2)))


async def over(task: "asyncio.Future[None]") -> None:
    """Wait for the end of a task that was cancelled, or ended by itself.

    Raises: what it raised.
    """
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise


@asynccontextmanager
async def held_lock() -> AsyncIterator[asyncio.Event]:
    """The lock of who imports; the event is set when it is lost.

    Raises: LockHeld (a SyrosError), Unavailable, NotFound without the namespace.
    """
    owner = f"{socket.gethostname()} {runtime.engine.process_id if runtime.engine else ''}".strip()
    grant = await ask("locks.acquire", key=LOCK, owner=owner, ttl_seconds=LOCK_SECONDS)
    lost = asyncio.Event()
    keeping = asyncio.create_task(keep_lock(grant.lock_id, lost))
    try:
        yield lost
    finally:
        keeping.cancel()
        if not lost.is_set():
            await ask("locks.release", key=LOCK, lock_id=grant.lock_id)


async def keep_lock(lock_id: str, lost: asyncio.Event) -> None:
    """Times to live stand still while the database is away: then nobody else has it either."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            await ask("locks.renew", key=LOCK, lock_id=lock_id)
        except (Unavailable, OutcomeUnknown):
            pass
        except SyrosError:
            lost.set()
            return
        except Exception:
            logger.exception("the lock of the import")
            lost.set()
            return


class Import:
    """What is in Consul's catalogue, as instances in Syros: followed, kept alive, and taken out when Consul says so."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._here: dict[
            str, dict[str, dict[str, Any] | None]
        ] = {}  # by service and id; None: of an earlier process
        self._away_since: dict[str, float] = {}
        self._queries = asyncio.Semaphore(AT_ONCE)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)

    async def run(self) -> None:
        await self._remember()
        beating = asyncio.create_task(self._beat())
        try:
            await self._follow("catalog/services", {}, dict, self._see_services, "")
        finally:
            beating.cancel()
            for watch in self._watches.values():
                watch.cancel()

    async def _remember(self) -> None:
        """What was imported before this process did: it may be gone from Consul meanwhile.

        Raises: Unavailable.
        """
        cursor: str | None = None
        while True:
            page = await ask("services.find", limit=200, **({"cursor": cursor} if cursor else {}))
            for each in page.items:
                found = (await ask("services.get", service=each.service, healthy=False)).instances
                ids = [one.instance_id for one in found if one.instance_id.startswith(MARK)]
                if ids:
                    self._here[each.service] = dict.fromkeys(ids)
            cursor = page.next_cursor
            if not cursor:
                return

    # -- following -----------------------------------------------------------------------------------

    async def _follow(
        self,
        path: str,
        query: dict[str, str],
        kind: type[Any],
        see: Callable[[Any], Awaitable[None]],
        service: str,
    ) -> None:
        """Ask again and again, each time from where the last answer was, and show what comes."""
        index, pace, failures = Index(), Pace(2.0, 5), 0
        while True:
            await pace.wait()
            try:
                async with self._queries if service else AsyncExitStack():
                    answer = await self._query(path, query, index.value)
                await see(answer.json(kind))
                index.follow(answer.index)
                if failures:
                    logger.info("Consul is back: %s", path)
                failures = 0
                self._away_since.pop(service, None)
            except (Away, Unavailable, OutcomeUnknown) as error:
                if not failures:
                    logger.warning("Consul's %s: %s", path, error)
                failures, index = failures + 1, Index()
                self._away_since.setdefault(service, monotonic())
                await pause(failures)

    async def _query(self, path: str, query: dict[str, str], index: int) -> Any:
        wait = SHORT_WAIT_SECONDS if len(self._watches) > AT_ONCE else WAIT_SECONDS
        wait = max(1, min(wait, int(settings.DISCOVERY_CONSUL_KEEP_SECONDS / 2)))
        blocking = {"index": str(index), "wait": f"{wait}s"} if index else {}
        # Consul adds up to a sixteenth of the time.
        answer = await self._client.ask(
            "GET", path, {**query, **blocking}, seconds=wait * 17 / 16 + LATE_SECONDS
        )
        if answer.headers.get(b"x-consul-knownleader") == b"false":
            raise Away("There is no leader, so nobody knows whether this is so.")
        return answer

    async def _see_services(self, found: dict[str, Any]) -> None:
        names = services(found, settings.DISCOVERY_CONSUL_PREFIX, settings.DISCOVERY_CONSUL_TAG, SERVICE)
        for service in {*self._watches, *self._here} - names:
            if watch := self._watches.pop(service, None):
                watch.cancel()
            self._away_since.pop(service, None)
            await self._reconcile(service, {})
        for service in names - self._watches.keys():
            self._watches[service] = asyncio.create_task(self._watch(service))

    async def _watch(self, service: str) -> None:
        async def see(found: list[Any]) -> None:
            await self._reconcile(service, instances(service, found, TTL_SECONDS))

        tag = settings.DISCOVERY_CONSUL_TAG
        query = {"passing": "true", **({"tag": tag} if tag else {})}
        try:
            await self._follow(f"health/service/{segment(service)}", query, list, see, service)
        except Exception:
            logger.exception("following %s broke", service)
            self._watches.pop(service, None)  # the next look at the catalogue begins it again

    # -- writing down --------------------------------------------------------------------------------

    async def _reconcile(self, service: str, wanted: dict[str, dict[str, Any]]) -> None:
        """Register what is new or other, take out what is gone.

        Raises: Unavailable, OutcomeUnknown; what was not done is done when it is seen again.
        """
        here = self._here.setdefault(service, {})
        for instance_id, params in wanted.items():
            if here.get(instance_id) != params:
                here[instance_id] = None  # who ends this in the middle takes it out as well
                here[instance_id] = params if await self._register(params) else None
        for instance_id in here.keys() - wanted.keys():
            known = here.pop(instance_id)  # before, so that no heartbeat brings it back
            try:
                await self._deregister(service, instance_id)
            except (Unavailable, OutcomeUnknown):
                here[instance_id] = known
                raise
        if not here:
            self._here.pop(service, None)

    async def _register(self, params: dict[str, Any]) -> bool:
        try:
            await carry_out("services.register", **params)
            return True
        except (Unavailable, OutcomeUnknown):
            raise
        except SyrosError as error:
            logger.warning("%s of Consul is not imported: %s", params["instance_id"], error)
            return False

    async def _deregister(self, service: str, instance_id: str) -> None:
        try:
            await ask(
                "services.deregister", service=service, instance_id=instance_id, reason="gone from Consul"
            )
        except NotFound:
            pass

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await asyncio.gather(*(self._keep(*each) for each in self._all()))
            except (Unavailable, OutcomeUnknown):
                pass  # times to live stand still meanwhile
            except Exception:
                logger.exception("keeping what is imported broke")

    def _all(self) -> Iterable[tuple[str, str]]:
        return [(service, instance_id) for service, here in self._here.items() for instance_id in here]

    async def _keep(self, service: str, instance_id: str) -> None:
        """A heartbeat, unless Consul has not been heard of for too long."""
        away = min(self._away_since.get(service, monotonic()), self._away_since.get("", monotonic()))
        if monotonic() - away > settings.DISCOVERY_CONSUL_KEEP_SECONDS:
            return
        async with self._calls:
            try:
                await ask("services.heartbeat", service=service, instance_id=instance_id)
            except NotFound:
                params = self._here.get(service, {}).get(instance_id)
                if params:
                    await self._register(params)
