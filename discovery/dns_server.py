"""The door for DNS: UDP and TCP on one port, in the loop that serves; what it answers is discovery.dns's."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from django.conf import settings

from core import serving
from core.callers import SYSTEM, Call, namespaces
from core.errors import NotFound, Unavailable
from core.operations import registry
from core.runtime import runtime
from discovery import dns, rules
from discovery.directory import directory
from discovery.dns import Query, Target, Zone, label_of
from discovery.types import InstanceState

logger = logging.getLogger("syros.dns")

FRESH = 0.5  # seconds that a service's instances are remembered, as the directory does
KEPT = 60.0  # seconds that they are told at most while the database is away
PATIENCE = 3.0  # seconds for the database to answer; who asks DNS asks again after about five
PER_SECOND = 2000  # answers over UDP: this is work that other callers of the process wait for
OF_ONE = 500  # of them to one address; whoever it really is can be hit by no more of what he did not ask for
WAITING = 500  # queries that wait for the database; more are not answered
CONNECTIONS = 200
CONNECTIONS_OF_ONE = 20
IDLE = 10.0  # seconds that a connection may ask nothing, or leave answers unread


class Memory:
    """The healthy instances of those services that were asked for, by the labels of their names (a discovery.dns.View).

    Names that make the same label, such as those that differ only in case, are one name in DNS.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}
        self._namespaces: set[str] = set()
        self._named_at = 0.0
        self._targets: dict[tuple[str, str], tuple[float, list[Target]]] = {}
        self._loads: dict[tuple[str, str], asyncio.Task[bool]] = {}

    def targets(self, namespace: str, service: str) -> Sequence[Target]:
        return self._targets.get((namespace, service), (0.0, []))[1]

    def has_services(self, namespace: str) -> bool:
        self._name()
        return namespace in self._namespaces

    def needs(self, place: tuple[str, str]) -> bool:
        """Must this be loaded before it is asked for?"""
        self._name()
        if place not in self._names:
            self._targets.pop(place, None)
            return False
        return self._targets.get(place, (0.0, []))[0] < monotonic()

    def _name(self) -> None:
        if self._named_at > monotonic():
            return
        names: dict[tuple[str, str], list[str]] = {}
        for address in directory.services:
            namespace, _, service = address.partition("/")
            names.setdefault((label_of(namespace), label_of(service)), []).append(address)
        self._names, self._namespaces = names, {namespace for namespace, _ in names}
        self._named_at = monotonic() + FRESH

    async def load(self, place: tuple[str, str]) -> None:
        """Once for all who ask meanwhile. Where the database does not answer, those are kept whose time is not over.

        Raises: Unavailable, if there is none.
        """
        task = self._loads.get(place)
        if task is None:
            task = self._loads[place] = asyncio.create_task(self._load(place))
            task.add_done_callback(lambda _: self._loads.pop(place))
        await asyncio.wait((task,), timeout=PATIENCE)
        if not task.done() or not task.result():
            self._targets[place] = (monotonic() + FRESH, self._left(place))

    async def _load(self, place: tuple[str, str]) -> bool:
        """Did it come in time?"""
        too_late = monotonic() + PATIENCE
        try:
            found = [target for address in self._names[place] for target in await instances(address)]
        except Unavailable:
            return False
        if monotonic() > too_late:
            return False
        self._targets[place] = (monotonic() + FRESH, found)
        return True

    def _left(self, place: tuple[str, str]) -> list[Target]:
        found = [target for target in self.targets(*place) if target.until > monotonic()]
        if not found:
            raise Unavailable
        return found


async def instances(address: str) -> list[Target]:
    namespace, _, service = address.partition("/")
    operation = registry["services.get"]
    try:
        call = Call(SYSTEM, await namespaces.get(namespace))
        found = (await runtime.run(operation, call, operation.parse({"service": service}))).value
    except NotFound:
        return []
    return [
        Target(each.instance_id, each.address, each.port, each.weight, each.tags, ends_at(each))
        for each in found.instances
    ]


def ends_at(instance: InstanceState) -> float:
    """When an instance that was just found is known no longer to be well, by the monotonic clock."""
    if instance.protected:
        return monotonic() + KEPT
    left = (instance.expires_at - datetime.now(UTC)).total_seconds()  # by another clock than the database's
    return monotonic() + min(left, instance.ttl_seconds, KEPT) + rules.GRACE.total_seconds()


class Limits:
    """How much a peer, and all of them, are answered over UDP."""

    def __init__(self) -> None:
        self._second, self._answers = 0, Counter[str]()
        self._all = 0

    def allow(self, peer: str) -> bool:
        if (second := int(monotonic())) != self._second:
            self._second, self._all = second, 0
            self._answers.clear()
        if self._all >= PER_SECOND or self._answers[peer] >= OF_ONE:
            return False
        self._all += 1
        self._answers[peer] += 1
        return True


class Dns:
    """Serves on sockets that are bound already (a core.serving.Door)."""

    def __init__(self, udp: socket.socket, tcp: socket.socket, zone: Zone) -> None:
        self._udp, self._tcp, self.zone = udp, tcp, zone
        self.memory = Memory()
        self._waiting: set[asyncio.Task[None]] = set()

    async def serve(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Datagrams(self), sock=self._udp)
        connections = Connections(self.answer)
        server = await asyncio.start_server(connections.serve, sock=self._tcp, limit=4096)
        try:
            await stopping.wait()
        finally:
            transport.close()
            server.close()
            connections.close()
            for task in self._waiting:
                task.cancel()

    # -- answers -------------------------------------------------------------------------------------

    def answer_now(self, message: bytes) -> "bytes | Query | None":
        """The answer, or the query if its instances must be loaded first."""
        if not dns.is_query(message):
            return None
        try:
            query = dns.read(message)
        except dns.Malformed:
            return dns.malformed(message)
        if self.place_of(query):
            return query
        return self.reply(query, tcp=False)

    def place_of(self, query: Query) -> tuple[str, str] | None:
        """What must be loaded before it is answered."""
        labels = dns.below(query.name, self.zone)
        place = dns.meant(labels) if labels else None
        return place if place and self.memory.needs(place) else None

    def reply(self, query: Query, *, tcp: bool) -> bytes:
        if not directory.is_read:
            return dns.failure(query)  # nobody is there yet, or is told of
        return dns.reply(query, self.memory, self.zone, tcp=tcp)

    async def answer_later(self, query: Query, *, tcp: bool) -> bytes:
        try:
            if place := self.place_of(query):
                await self.memory.load(place)
        except Unavailable:
            return dns.failure(query)
        return self.reply(query, tcp=tcp)

    async def answer(self, message: bytes) -> bytes | None:
        """Over TCP."""
        if not dns.is_query(message):
            return None
        try:
            return await self.answer_later(dns.read(message), tcp=True)
        except dns.Malformed:
            return dns.malformed(message)

    def spawn(self, query: Query, send: Callable[[bytes], None]) -> None:
        if len(self._waiting) < WAITING:
            task = asyncio.create_task(self._send_later(query, send))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _send_later(self, query: Query, send: Callable[[bytes], None]) -> None:
        try:
            send(await self.answer_later(query, tcp=False))
        except Exception:
            logger.exception("a query broke")


class Datagrams(asyncio.DatagramProtocol):
    """UDP: a query, an answer."""

    def __init__(self, door: Dns) -> None:
        self._door, self._limits = door, Limits()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        # A port below 1024 is a server's: what it seems to ask, somebody else has asked in its name.
        if addr[1] < 1024 and addr[1] != 53:
            return
        try:
            if self._limits.allow(addr[0]):
                self._receive(data, addr)
        except Exception:  # of one query, not of the port
            logger.exception("a query broke")

    def _receive(self, data: bytes, addr: Any) -> None:
        found = self._door.answer_now(data)
        if isinstance(found, Query):
            self._door.spawn(found, lambda answer: self._send(answer, addr))
        elif found is not None:
            self._send(found, addr)

    def _send(self, answer: bytes, addr: Any) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(answer, addr)

    def error_received(self, exc: Exception) -> None:
        """A peer that is not there: nothing to do."""


class Connections:
    """TCP: queries with their length before them, answered in order."""

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        self._answer = answer
        self._of = Counter[str]()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = (writer.get_extra_info("peername") or ("",))[0]
        if len(self._writers) >= CONNECTIONS or self._of[peer] >= CONNECTIONS_OF_ONE:
            writer.transport.abort()
            return
        self._writers.add(writer)
        self._of[peer] += 1
        try:
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
        except Exception:
            logger.exception("a query broke")
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            self._writers.discard(writer)
            self._of[peer] -= 1
            if not self._of[peer]:
                del self._of[peer]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE):
                size = int.from_bytes(await reader.readexactly(2))
                if not dns.HEADER.size <= size <= dns.QUERY_BYTES:
                    return
                answer = await self._answer(await reader.readexactly(size))
                if answer is None:
                    return
                writer.write(len(answer).to_bytes(2) + answer)
                await writer.drain()

    def close(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


def listen(host: str, port: int) -> Dns:
    """Raises: OSError, when either port is taken; ValueError, of a domain or TTL that is none."""
    zone = Zone.of(settings.DNS_DOMAIN, settings.DNS_TTL)
    tcp = serving.listen(host, port)
    udp = socket.socket(tcp.family, socket.SOCK_DGRAM)
    try:
        udp.bind((host, tcp.getsockname()[1]))
    except OSError:
        tcp.close()
        udp.close()
        raise
    udp.setblocking(False)
    return Dns(udp, tcp, zone)
