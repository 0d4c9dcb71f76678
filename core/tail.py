"""Following the log: one reader a process, fanned out in memory to whoever waits or follows.

What this process commits itself is handed over by its engine; what others commit is read by position. Positions
are dense and in commit order, so the next position is always known and a gap cannot be: a wake-up may be lost
or doubled and nothing is missed, and the poll every second is only a backstop.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg
import redis.asyncio as redis
from django.conf import settings

from core import log
from core.callers import namespaces, verdicts
from core.database import FOLLOWERS, Pool, conninfo, follow_pool, rows, tail_pool
from core.errors import Gone, SyrosError, Unavailable
from core.log import Entry
from core.models import log_id
from core.waiting import Waiters

logger = logging.getLogger("syros.tail")

POLL_SECONDS = 1.0
ALONE_SECONDS = 0.1
TOGETHER_SECONDS = 0.005  # between two wake-ups; each costs both sides as much as a lock
PAGE = 1000
# Recent entries kept in memory for followers, a namespace, while somebody follows: so many, and so large together.
RING, RING_BYTES = 4096, 16 << 20
CHANNEL = "syros_log"
ACCESS = "$access"  # the stream of changes to credentials and rights
HEADS = """select n.number, greatest(n.floor, coalesce((select max(e.id) from core_event e
    where e.id > n.number::bigint << 40 and e.id < (n.number::bigint + 1) << 40), 0) & ((1::bigint << 40) - 1)),
    n.floor
from core_namespace n where n.number = any(%s)"""


class PositionPruned(Gone):
    """The log below this position has been pruned."""


class Grown(asyncio.Event):
    """Set whenever a log has grown, and once it `went_back`: then whoever listens has heard what is no more."""

    went_back = False


class Following:
    """One namespace's log, as far as this process has followed it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.head = -1  # the last position handed on; -1: not looked yet
        self.announced = 0  # the last position somebody told of
        self.ring: deque[Entry] = deque()
        self.ring_bytes = 0
        self.listeners: set[Grown] = set()
        self.catching_up = False

    def keep(self, entries: Sequence[Entry]) -> None:
        """Keep the newest entries for those who follow."""
        self.ring.extend(entries)
        self.ring_bytes += sum(entry.size for entry in entries)
        while len(self.ring) > RING or self.ring_bytes > RING_BYTES:
            self.ring_bytes -= self.ring.popleft().size

    def forget(self) -> None:
        self.ring.clear()
        self.ring_bytes = 0


class Tail:
    """Follows the logs of the namespaces that this process works in."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._logs: dict[int, Following] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: dict[int, int] = {}
        self._outbox_filled = asyncio.Event()
        self._redis: Any = None
        self._channel = ""
        self._releasing = False
        self._reading = asyncio.Semaphore(FOLLOWERS)
        self.polled_at = 0.0

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._redis = redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=1, socket_timeout=1, health_check_interval=5
        )
        loops = (self._poll, self._hear_valkey, self._hear_postgres, self._publish)
        self._tasks = [asyncio.create_task(self._forever(each)) for each in loops]

    async def stop(self) -> None:
        left = set(self._tasks)
        while left:  # a cancellation that meets a time-out in the client library may be lost: say it again
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=0.5)
        if self._redis is not None:
            with contextlib.suppress(Exception):
                await self._redis.aclose()

    async def _forever(self, loop: Any) -> None:
        """Keep one of the loops going through every outage of what it talks to."""
        while True:
            try:
                await loop()
            except (SyrosError, OSError, psycopg.Error, redis.RedisError) as error:
                logger.debug("%s: %s", loop.__name__, error)
            except Exception:
                logger.exception("%s broke", loop.__name__)
            await asyncio.sleep(0.5)

    # -- hearing of new entries ----------------------------------------------------------------------

    def follow(self, number: int) -> Following:
        found = self._logs.get(number)
        if found is None:
            found = self._logs[number] = Following(number)
        return found

    async def attend(self, number: int) -> None:
        """Know how far a log reaches before a command goes off that may wait for one of its events: whatever
        ends the wait comes after that, and is read.

        Raises: Unavailable.
        """
        if self.follow(number).head < 0:
            _, head = await self.bounds(number)
            self._begin(self.follow(number), head)

    def _begin(self, following: Following, head: int) -> None:
        """Hand on what comes after this position; who listens already looks for itself at what is there."""
        if following.head < 0:
            following.head = head
            for listener in following.listeners:
                listener.set()

    def committed(self, entries: Sequence[Entry]) -> None:
        """Entries that this process's engine committed: handed on at once when they are the next ones."""
        by_log: dict[int, list[Entry]] = {}
        for entry in entries:
            by_log.setdefault(entry.namespace, []).append(entry)
        for number, batch in by_log.items():
            following = self.follow(number)
            self._outbox[number] = batch[-1].position
            if any(entry.stream == ACCESS for entry in batch):
                self.changed_access()
            # Another process may have written in between; then the log is read instead.
            if following.head in (batch[0].position - 1, -1) and not following.catching_up:
                self._hand_on(following, batch)
            else:
                self._waiters.notice(batch)
                self.announce(number, batch[-1].position)
        self._outbox_filled.set()

    def announce(self, number: int, position: int) -> None:
        """Somebody says that the log reaches this position."""
        following = self._logs.get(number)
        if following is None or position <= following.head:
            return
        following.announced = max(following.announced, position)
        if not following.catching_up:
            following.catching_up = True
            task = asyncio.create_task(self._catch_up(following))
            task.add_done_callback(forgotten)

    async def _catch_up(self, following: Following) -> None:
        try:
            while following.head < following.announced:
                if following.head < 0:
                    following.head = max(0, following.announced - 1)
                if not self._interest(following):
                    # Nobody here waits or follows: knowing how far the log reaches is enough.
                    following.forget()
                    following.head = following.announced
                    break
                entries = await self._read(tail_pool, following.number, following.head)
                if not entries:
                    break
                self._hand_on(following, entries)
        finally:
            following.catching_up = False

    def _interest(self, following: Following) -> bool:
        return bool(following.listeners) or any(n == following.number for n, _ in self._waiters.streams)

    def _hand_on(self, following: Following, entries: Sequence[Entry]) -> None:
        following.head = entries[-1].position
        following.announced = max(following.announced, following.head)
        self._waiters.notice(entries)
        if following.listeners:
            following.keep(entries)
            for listener in following.listeners:
                listener.set()
        else:
            following.forget()

    @staticmethod
    async def _read(pool: Pool, number: int, after: int) -> list[Entry]:
        rows = await pool.rows(log.AFTER, [log_id(number, after), log_id(number + 1, 0) - 1, PAGE])
        return [log.entry(number, row) for row in rows]

    # -- for those who follow ------------------------------------------------------------------------

    def release(self) -> None:
        """Let nobody listen any longer: the process stops, and its readers go on elsewhere."""
        self._releasing = True
        for following in self._logs.values():
            for listener in following.listeners:
                listener.set()

    def _check_serving(self) -> None:
        if self._releasing:
            raise Unavailable("This process is stopping.")

    async def after(self, number: int, position: int) -> list[Entry]:
        """The next entries after a position, from memory when they are there: a page of them.

        Raises: Unavailable.
        """
        self._check_serving()
        following = self.follow(number)
        if 0 <= following.head <= position:
            return []  # not asked of the database: what comes is handed on
        ring = following.ring
        if ring and ring[0].position <= position + 1 and ring[-1].position == following.head:
            start = position + 1 - ring[0].position
            return [ring[i] for i in range(start, min(len(ring), start + PAGE))]
        async with self._reading:  # in turn: a thousand who come back together all get there
            return await self._read(follow_pool, number, position)

    @contextlib.contextmanager
    def listening(self, number: int) -> Any:
        """A Grown of the namespace's log."""
        following, event = self.follow(number), Grown()
        following.listeners.add(event)
        try:
            yield event
        finally:
            following.listeners.discard(event)
            if not following.listeners:
                following.forget()

    async def bounds(self, number: int) -> tuple[int, int]:
        """The floor (pruned up to there) and the last position of a namespace's log, as the database says.

        Raises: Unavailable.
        """
        self._check_serving()
        ((_, head, floor),) = await rows(HEADS, [[number]])
        return floor, head

    # -- wake-ups ------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """The backstop: once a second, ask how far the logs reach."""
        while True:
            known = {number: following.head for number, following in self._logs.items()}
            if known:
                for number, head, _ in await tail_pool.rows(HEADS, [list(known)]):
                    if head < known[number]:
                        self._go_back(self._logs[number], head)
                    self._begin(self._logs[number], head)
                    self.announce(number, head)
            self.polled_at = asyncio.get_running_loop().time()
            await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _go_back(following: Following, head: int) -> None:
        """The last events are lost, to a failover or a restore: others will have their positions."""
        logger.warning(
            "the log of namespace %d went back from %d to %d", following.number, following.head, head
        )
        following.head = following.announced = head
        following.forget()
        for listener in following.listeners:
            listener.went_back = True
            listener.set()

    async def _hear_valkey(self) -> None:
        name = await self._channel_name()
        async with self._redis.pubsub() as channel:
            await channel.subscribe(name)
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=0.9)
                if message:
                    self._heard(message["data"].decode())

    async def _hear_postgres(self) -> None:
        """NOTIFY comes only from processes that cannot reach Valkey."""
        async with await psycopg.AsyncConnection.connect(conninfo(), autocommit=True) as connection:
            await connection.execute(f"listen {CHANNEL}")
            async for notice in connection.notifies():
                self._heard(notice.payload)

    async def _channel_name(self) -> str:
        if not self._channel:
            ((identity,),) = await tail_pool.rows("select identity from core_cluster")
            self._channel = f"{CHANNEL}:{identity}"
        return self._channel

    def _heard(self, message: str) -> None:
        if message == "access":
            forget_access()
            return
        for part in message.split(","):
            number, _, position = part.partition(":")
            self.announce(int(number), int(position))

    async def _publish(self) -> None:
        """Tell the other processes; while one message is under way the next one collects."""
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            news, self._outbox = self._outbox, {}
            heard_by = await self.tell(",".join(f"{number}:{position}" for number, position in news.items()))
            # Alone, there is nobody to hurry for: telling each batch would take 6 % of the process.
            await asyncio.sleep(ALONE_SECONDS if heard_by <= 1 else TOGETHER_SECONDS)

    async def ping(self) -> dict[str, Any]:
        """Whether Valkey answers, and which it is.

        Raises: OSError.
        """
        try:
            about = await self._redis.info("server")
        except redis.RedisError as error:
            raise OSError(str(error)) from error
        return {"server": about.get("valkey_version") or about.get("redis_version")}

    async def tell(self, message: str) -> int:
        """Send a message to every process; how many heard it, this one included."""
        try:
            return int(await self._redis.publish(await self._channel_name(), message))
        except (redis.RedisError, OSError):
            # In a statement of its own: inside the engine's transaction it would cost it most of its speed.
            await tail_pool.rows("select pg_notify(%s, %s)", [CHANNEL, message])
            return 2

    def changed_access(self) -> None:
        """Rights, credentials or namespaces changed: every process forgets what it remembers of them."""
        forget_access()
        task = asyncio.create_task(self.tell("access"))
        task.add_done_callback(forgotten)


def forgotten(task: "asyncio.Task[Any]") -> None:
    """What became of it is nobody's business: it is tried again, or the process stops."""
    if not task.cancelled():
        task.exception()


def forget_access() -> None:
    verdicts.clear()
    namespaces.clear()
