"""Redis or Valkey over one connection a process: what is asked in one turn of the loop goes off together, and what
others publish for this process comes in between (RESP3).

Answers come in the order of the questions, so hundreds of callers need no more than the one connection; grouped and
parsed at C speed, a question costs a tenth of what it costs through a pool.
"""

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from django.conf import settings
from redis.asyncio import ConnectionPool

from core.database import rows
from core.errors import Unavailable

logger = logging.getLogger("syros.valkey")

CONNECT_SECONDS = 1.0
PATIENCE = 2.0  # seconds that an answer may take; then the server counts as gone
REST_SECONDS = 0.2  # between two attempts to connect
# What a server says that cannot take a write now. Of scripts, older servers say it in the middle of a sentence.
AWAY = ("READONLY", "LOADING", "MASTERDOWN", "OOM ", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "MISCONF", "NOAUTH",
        "WRONGPASS")  # fmt: skip
Address = tuple[str, int]
Word = str | bytes | int | float
_MORE = object()


class Script:
    """A Lua script; every connection loads it before it is used."""

    known: list["Script"] = []

    def __init__(self, text: str) -> None:
        self.text, self.sha = text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.known.append(self)


class Connection(asyncio.Protocol):
    """Questions out, answers in the same order, published messages in between."""

    def __init__(
        self, heard: Callable[[str], None], lost: "Callable[[Connection], None]", as_text: bool = True
    ) -> None:
        self._heard, self._lost = heard, lost
        self._loop, self._limit = asyncio.get_running_loop(), settings.QUEUE_LIMIT
        encoding = "utf-8" if as_text else None
        self._reader = hiredis.Reader(encoding=encoding, errors="replace", notEnoughData=_MORE)
        self._asked: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._out: list[bytes] = []
        self.transport: Any = None
        self.run_id = ""  # of the server: another one after every start and every failover
        self.is_cluster = False  # whether the server is a node of one
        self._ahead = 0.0  # milliseconds from the loop's clock to the server's, or a little less

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        for _, future in self._asked:
            if not future.done():
                future.set_exception(away())
        self._asked.clear()
        self._lost(self)

    def run(self, script: Script, key: str, *words: Word) -> "asyncio.Future[Any]":
        """Run a script on a key."""
        return self.ask("EVALSHA", script.sha, 1, key, *words)

    def ask(self, *words: Word) -> "asyncio.Future[Any]":
        """The answer, which may be a ReplyError. It is on its way when this returns.

        Raises: Unavailable.
        """
        if self.transport.is_closing() or len(self._asked) >= self._limit:
            raise away()
        future = self._loop.create_future()
        self._asked.append((self._loop.time(), future))
        self.tell(*words)
        return future

    def tell(self, *words: Word) -> None:
        """Say what is not answered in turn."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast(Any, words)))  # its stubs know one word

    def _flush(self) -> None:
        self.transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _MORE:
            if type(reply) is hiredis.PushNotification:
                if reply[0] == "message":
                    self._heard(reply[2])
                continue
            if not self._asked:  # nobody knows whose answers these are
                self.transport.abort()
                return
            _, future = self._asked.popleft()
            if not future.done():
                future.set_result(reply)

    def look(self) -> None:
        """Give a server up that does not answer; learn what time it has, which somebody may set."""
        if self._asked and self._loop.time() - self._asked[0][0] > PATIENCE:
            self.transport.abort()
            return
        with contextlib.suppress(Unavailable):
            self.ask("TIME").add_done_callback(self._learn)

    def _learn(self, answered: "asyncio.Future[Any]") -> None:
        if not answered.cancelled() and answered.exception() is None:
            self.learn(answered.result())

    def learn(self, time: Any) -> None:
        """What the server answers to TIME."""
        if not isinstance(time, hiredis.ReplyError):
            self._ahead = int(time[0]) * 1000 + int(time[1]) / 1000 - self._loop.time() * 1000

    @property
    def latest(self) -> int:
        """By the server's clock, in milliseconds: when whoever asks now has no answer by then, there will be none."""
        return int((self._loop.time() + PATIENCE) * 1000 + self._ahead)


class Valkey:
    """The connection, made when it is first needed and again when it is lost.

    Parameters: `channel` to hear, with `heard(message)`; `lost()`, when a connection that was there is gone; `as_text`:
    answers are strings. Otherwise they are bytes, and there is no channel. `address`: host and port, in the place of
    those of REDIS_URL.
    """

    def __init__(
        self,
        channel: str | None,
        heard: Callable[[str], None],
        lost: Callable[[], None],
        *,
        as_text: bool = True,
        address: Address | None = None,
    ) -> None:
        self._channel, self._heard, self._lost, self._as_text = channel, heard, lost, as_text
        self._address = address
        self.connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._rests_until = 0.0
        self.identity = ""  # of this installation: others may share the server

    async def ready(self) -> Connection:
        """The connection. Whatever is asked of it before the next `await` has gone off.

        Raises: Unavailable.
        """
        if self.connection is not None:
            return self.connection
        async with self._connecting:
            if self.connection is None:
                self.connection = await self._connect()
            return self.connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            raise away()
        if not self.identity:
            ((identity,),) = await rows("select identity from core_cluster")
            self.identity = identity.hex[:12]
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await open_connection(self._heard, self._gone, self._as_text, self._address)
                await self._greet(connection)
        except (OSError, TimeoutError, Unavailable, hiredis.HiredisError) as error:
            self._rests_until = loop.time() + REST_SECONDS
            logger.warning("Redis is away: %s", error or type(error).__name__)
            raise away() from error
        return connection

    async def _greet(self, connection: Connection) -> None:
        try:
            asked = [connection.ask(*words) for words in greeting()]
            asked += [connection.ask("SCRIPT", "LOAD", script.text) for script in Script.known]
            asked.append(connection.ask("INFO", "server"))
            if self._channel is not None:
                # Granted, it is told as a message; refused, as an answer, which must not be taken for somebody's.
                connection.tell("SUBSCRIBE", self._channel)
            asked.append(connection.ask("TIME"))
            replies = await asyncio.gather(*asked)
            for reply in replies:
                check(reply)
        except BaseException:
            connection.transport.abort()
            raise
        *_, about, time = replies
        connection.learn(time)
        about = about if self._as_text else about.decode()
        facts = dict(line.split(":", 1) for line in about.splitlines() if ":" in line)
        connection.run_id = facts.get("run_id", "")
        connection.is_cluster = "cluster" in {facts.get("redis_mode"), facts.get("server_mode")}

    def _gone(self, connection: Connection) -> None:
        if self.connection is connection:
            logger.warning("the connection to Redis is lost")
            self.connection = None
            self._lost()

    def look(self) -> None:
        if self.connection is not None:
            self.connection.look()

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            connection.transport.abort()

    async def again(
        self, connection: Connection, error: hiredis.ReplyError, script: Script, key: str, *words: Word
    ) -> Any:
        """The answer of a script that was not carried out: somebody said SCRIPT FLUSH.

        Raises: Unavailable; the error, where it is another.
        """
        if not str(error).startswith("NOSCRIPT"):
            raise self._refusal(connection, error)
        reply = await connection.ask("EVAL", script.text, 1, key, *words)
        if isinstance(reply, hiredis.ReplyError):
            raise self._refusal(connection, reply)
        return reply

    def checked(self, connection: Connection, reply: Any) -> Any:
        """An answer that is none of a script.

        Raises: Unavailable; the error that it is.
        """
        if isinstance(reply, hiredis.ReplyError):
            raise self._refusal(connection, reply)
        return reply

    @staticmethod
    def _refusal(connection: Connection, reply: Exception) -> Exception:
        if not any(word in str(reply) for word in AWAY):
            return reply
        logger.warning("Redis refuses: %s", reply)
        if "READONLY" in str(reply):
            connection.transport.abort()  # it was demoted: look for the new one
        return away()


def away() -> Unavailable:
    return Unavailable("Redis is away. Try again.")


def check(reply: Any) -> None:
    """Raises: hiredis.ReplyError."""
    if isinstance(reply, hiredis.ReplyError):
        raise reply


def place() -> dict[str, Any]:
    """What REDIS_URL says."""
    pool = ConnectionPool.from_url(settings.REDIS_URL)
    return {**pool.connection_kwargs, "tls": settings.REDIS_URL.startswith("rediss:")}


def greeting() -> list[tuple[Word, ...]]:
    where = place()
    password, user = where.get("password"), where.get("username") or "default"
    hello: tuple[Word, ...] = ("HELLO", 3, *(("AUTH", user, password) if password else ()))
    return [hello, *([("SELECT", where["db"])] if where.get("db") else [])]


async def open_connection(
    heard: Callable[[str], None],
    lost: Callable[[Connection], None],
    as_text: bool = True,
    address: Address | None = None,
) -> Connection:
    """Raises: OSError."""
    loop, where = asyncio.get_running_loop(), place()

    def make() -> Connection:
        return Connection(heard, lost, as_text)

    path = where.get("path")
    if path and address is None:
        return (await loop.create_unix_connection(make, path))[1]
    host, port = address or (where.get("host", "localhost"), where.get("port", 6379))
    return (await loop.create_connection(make, host, port, ssl=tls(where) if where["tls"] else None))[1]


def tls(where: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=where.get("ssl_ca_certs"), capath=where.get("ssl_ca_path"))
    if where.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := where.get("ssl_certfile"):
        context.load_cert_chain(certificate, where.get("ssl_keyfile"))
    return context
