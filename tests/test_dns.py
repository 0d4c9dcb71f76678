"""DNS over real sockets: what is registered is answered, whatever else comes to the port."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from dnslib import EDNS0, QTYPE, RCODE, DNSRecord

from discovery import dns_server
from discovery.directory import directory
from discovery.dns import label_of
from tests.doors import Door, Lane, Served, free_port
from tests.unit.test_dns import MALFORMED


@dataclass
class Resolver:
    port: int
    door: dns_server.Dns

    def __call__(self, name: str, kind: str = "A", *, tcp: bool = False) -> DNSRecord:
        asked = DNSRecord.question(name, kind)
        return DNSRecord.parse(asked.send("127.0.0.1", self.port, tcp=tcp, timeout=10))

    def told(self, name: str, kind: str = "A") -> set[str]:
        return {str(rr.rdata) for rr in self(name, kind).rr}

    def until(self, name: str, found: set[str]) -> None:
        wait(lambda: self.told(name) == found)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def resolver(served: Served, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """DNS as the serving process opens it, in its loop."""
    import asyncio

    monkeypatch.setattr(dns_server, "IDLE", 1.0)
    settings.DNS_DOMAIN = "test.syros"
    door = dns_server.listen("127.0.0.1", 0)
    port = door._tcp.getsockname()[1]

    async def begin() -> tuple[asyncio.Event, "asyncio.Task[None]"]:
        stopping = asyncio.Event()
        return stopping, asyncio.create_task(door.serve(stopping))

    async def end() -> None:
        stopping.set()
        await task

    stopping, task = served.do(begin())
    wait(lambda: directory.is_read)
    try:
        yield Resolver(port, door)
    finally:
        served.do(end())


def register(door: Door, instance_id: str, address: str = "10.0.0.7", **more: Any) -> None:
    more = {"service": "Billing", "port": 8001, "ttl_seconds": 60, **more}
    door("services.register", instance_id=instance_id, address=address, **more)


def test_what_is_registered_is_answered_and_what_leaves_is_not(
    resolver: Resolver, lane: Lane, namespace: str
) -> None:
    name = f"billing.{namespace}.svc.test.syros"
    assert resolver(name).header.rcode == RCODE.NXDOMAIN
    register(lane, "b-1", tags=["eu"])
    register(lane, "b-2", "10.0.0.8", weight=3, tags=["us"])
    resolver.until(name, {"10.0.0.7", "10.0.0.8"})
    assert resolver.told(f"eu.{name}") == {"10.0.0.7"}
    assert resolver.told(f"_billing._tcp.{namespace}.svc.test.syros", "SRV") == {
        f"0 1 8001 b-1.billing.{namespace}.inst.test.syros.",
        f"0 3 8001 b-2.billing.{namespace}.inst.test.syros.",
    }
    assert resolver.told(f"b-2.billing.{namespace}.inst.test.syros") == {"10.0.0.8"}
    lane("services.deregister", service="Billing", instance_id="b-1")
    resolver.until(name, {"10.0.0.8"})
    lane("services.deregister", service="Billing", instance_id="b-2")
    wait(lambda: resolver(name).header.rcode == RCODE.NXDOMAIN)


def test_an_instance_whose_time_is_over_is_answered_no_more(
    resolver: Resolver, lane: Lane, namespace: str
) -> None:
    register(lane, "b-1", ttl_seconds=1)
    resolver.until(f"billing.{namespace}.svc.test.syros", {"10.0.0.7"})
    wait(lambda: resolver(f"billing.{namespace}.svc.test.syros").header.rcode == RCODE.NXDOMAIN)


def test_names_that_differ_in_case_only_are_one_and_what_is_no_label_has_a_digest(
    resolver: Resolver, lane: Lane, namespace: str
) -> None:
    register(lane, "one")
    register(lane, "two", "10.0.0.8", service="billing")
    register(lane, "three", "10.0.0.9", service="api.v2")
    resolver.until(f"bILLing.{namespace}.svc.test.syros", {"10.0.0.7", "10.0.0.8"})
    resolver.until(f"{label_of('api.v2')}.{namespace}.svc.test.syros", {"10.0.0.9"})


def test_without_a_namespace_the_default_one_is_meant(resolver: Resolver, lane: Lane, namespace: str) -> None:
    there = {"_": {"namespace": "default"}, "service": f"s-{namespace}"}
    register(lane, "one", **there)
    resolver.until(f"s-{namespace}.svc.test.syros", {"10.0.0.7"})
    assert resolver.told(f"s-{namespace}.default.svc.test.syros") == {"10.0.0.7"}
    assert resolver(f"s-{namespace}.{namespace}.svc.test.syros").header.rcode == RCODE.NXDOMAIN


def test_what_does_not_fit_is_fetched_over_tcp(resolver: Resolver, lane: Lane, namespace: str) -> None:
    for n in range(10):
        register(lane, f"instance-{n}", f"10.0.0.{n}")
    name = f"billing.{namespace}.svc.test.syros"
    wait(lambda: len(resolver(name, tcp=True).rr) == 10)
    assert resolver(name, "SRV").header.tc == 1
    found = resolver(name, "SRV", tcp=True)
    assert (len(found.rr), len(found.ar), found.header.tc) == (10, 10, 0)


def framed(record: DNSRecord) -> bytes:
    raw = bytes(record.pack())
    return len(raw).to_bytes(2, "big") + raw


def read_answer(file: Any) -> DNSRecord:
    return DNSRecord.parse(file.read(int.from_bytes(file.read(2), "big")))


def test_queries_on_one_connection_are_answered_in_order(
    resolver: Resolver, lane: Lane, namespace: str
) -> None:
    register(lane, "one")
    name = f"billing.{namespace}.svc.test.syros"
    resolver.until(name, {"10.0.0.7"})
    asked = [DNSRecord.question(name, "A" if n % 2 else "TXT") for n in range(50)]
    with resolver.connect() as peer, peer.makefile("rb") as file:
        stream = b"".join(map(framed, asked))
        peer.sendall(stream[:101])  # in the middle of one
        time.sleep(0.05)
        peer.sendall(stream[101:])
        found = [read_answer(file) for _ in asked]
        assert [each.header.id for each in found] == [each.header.id for each in asked]
        assert [len(each.rr) for each in found] == [0, 1] * 25
        assert file.read(1) == b"", "who asks nothing more is let go"


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\5abcde", b"\xff\xff" + b"a" * 70, b"\0\x20abc"])
def test_who_stalls_or_talks_nonsense_over_tcp_is_let_go(resolver: Resolver, said: bytes) -> None:
    with resolver.connect() as peer:
        peer.sendall(said)
        try:
            assert peer.recv(100) == b""
        except ConnectionResetError:
            pass
    assert resolver("svc.test.syros", tcp=True).header.rcode == RCODE.NOERROR


def test_one_peer_has_only_so_many_connections(resolver: Resolver) -> None:
    def is_served(peer: socket.socket) -> bool:
        try:
            peer.sendall(framed(DNSRecord.question("svc.test.syros")))
            return bool(peer.recv(100))
        except OSError:
            return False

    peers = [resolver.connect() for _ in range(dns_server.CONNECTIONS_OF_ONE + 5)]
    served = [is_served(peer) for peer in peers]
    for peer in peers:
        peer.close()
    assert served.count(True) == dns_server.CONNECTIONS_OF_ONE
    wait(lambda: is_served_again(resolver))


def is_served_again(resolver: Resolver) -> bool:
    try:
        return bool(resolver("svc.test.syros", tcp=True).header.rcode == RCODE.NOERROR)
    except Exception:  # let go before the others' places were free
        return False


def test_what_is_malformed_or_an_answer_itself_stops_nothing(resolver: Resolver) -> None:
    reflected = bytes(DNSRecord.question("svc.test.syros").reply().pack())
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as peer:
        peer.settimeout(5)
        peer.connect(("127.0.0.1", resolver.port))
        for message in [b"", b"\0", reflected, b"x" * 9000]:
            peer.send(message)
        for message in MALFORMED.values():
            peer.send(message)
            answer = peer.recv(2000)
            while answer[:2] == b"xx":  # of the one before
                answer = peer.recv(2000)
            assert (answer[:2], len(answer), answer[3] & 15) == (message[:2], 12, RCODE.FORMERR)
    assert resolver("svc.test.syros").header.rcode == RCODE.NOERROR


def test_who_asks_too_much_is_answered_no_more_for_a_while(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_server, "OF_ONE", 20)
    question = bytes(DNSRecord.question("svc.test.syros").pack())
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as peer:
        peer.settimeout(0.5)
        peer.connect(("127.0.0.1", resolver.port))
        for _ in range(200):
            peer.send(question)
        answers = 0
        try:
            while peer.recv(2000):
                answers += 1
        except TimeoutError:
            pass
    assert 20 <= answers <= 60  # of one second, or of two or three that it took
    monkeypatch.undo()
    assert resolver("svc.test.syros").header.rcode == RCODE.NOERROR


def test_a_limit_is_a_peer_s_and_everybody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(dns_server, "monotonic", lambda: now)
    limits = dns_server.Limits()
    assert sum(limits.allow("10.0.0.1") for _ in range(9999)) == dns_server.OF_ONE
    assert sum(limits.allow(f"10.0.1.{n}") for n in range(9999)) == dns_server.PER_SECOND - dns_server.OF_ONE
    now = 6.0
    assert limits.allow("10.0.0.1")


def test_while_the_database_is_away_what_was_known_is_answered(
    resolver: Resolver, lane: Lane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.errors import Unavailable

    async def away(address: str) -> list[Any]:
        raise Unavailable

    register(lane, "one")
    register(lane, "two", "10.0.0.8", ttl_seconds=1.0)
    register(lane, "two", service="other")
    name = f"billing.{namespace}.svc.test.syros"
    resolver.until(name, {"10.0.0.7", "10.0.0.8"})
    monkeypatch.setattr(dns_server, "instances", away)
    time.sleep(dns_server.FRESH + 0.1)
    assert resolver.told(name) == {"10.0.0.7", "10.0.0.8"}
    assert resolver(f"other.{namespace}.svc.test.syros").header.rcode == RCODE.SERVFAIL
    resolver.until(name, {"10.0.0.7"})  # the other one's time is over


@pytest.mark.skipif(not shutil.which("dig"), reason="dig is not installed")
def test_dig_understands_it(resolver: Resolver, lane: Lane, namespace: str) -> None:
    def dig(*about: str) -> str:
        command = ["dig", "@127.0.0.1", "-p", str(resolver.port), "+short", *about]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout

    for n in range(12):
        register(lane, f"instance-{n}", f"fd00::{n}")
    name = f"billing.{namespace}.svc.test.syros"
    wait(lambda: len(resolver(name, "AAAA").rr) == 12)
    assert set(dig("AAAA", name).split()) == {"fd00::", *(f"fd00::{n}" for n in range(1, 12))}
    assert len(dig("SRV", name, "+bufsize=512").splitlines()) == 12, "truncated, and fetched over TCP"
    command = ["dig", "@127.0.0.1", "-p", str(resolver.port), "SRV", name, "+norecurse"]
    whole = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    assert "status: NOERROR" in whole
    assert "WARNING" not in whole.upper()


def test_edns_is_answered(resolver: Resolver) -> None:
    asked = DNSRecord.question("svc.test.syros")
    asked.add_ar(EDNS0(udp_len=4096))
    found = DNSRecord.parse(asked.send("127.0.0.1", resolver.port, timeout=10))
    assert [rr.rclass for rr in found.ar if rr.rtype == QTYPE.OPT] == [1232]


# -- the command ------------------------------------------------------------------------------------


def test_a_port_that_somebody_has_and_a_domain_that_is_none_are_named(settings: Any) -> None:
    with socket.socket() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings.DNS_HOST = "127.0.0.1"
        for _ in range(2):  # TCP is taken, then UDP is
            with pytest.raises(
                CommandError, match=rf"127\.0\.0\.1:{port} \(DNS_PORT\): Address already in use"
            ):
                call_command("serve", "worker", port=0, ws_port=0, dns_port=port)
            taken.close()
            udp.bind(("127.0.0.1", port)) if udp.getsockname()[1] != port else None
    settings.DNS_DOMAIN = "no domain"
    with pytest.raises(CommandError, match="DNS_DOMAIN is no domain"):
        call_command("serve", "worker", port=0, ws_port=0, dns_port=port)


def test_roles_that_do_not_know_where_services_are_open_no_port(settings: Any) -> None:
    from core.management.commands.serve import open_doors

    settings.DNS_HOST = "127.0.0.1"
    options = {"role": "web", "host": "127.0.0.1", "port": 1, "grpc_port": 0, "dns_port": free_port()}
    settings.WORKS = False
    assert open_doors([], options) == []
    settings.WORKS = True
    assert open_doors([], {**options, "role": "beside"}) == []
    (door,) = open_doors([], options)
    assert isinstance(door, dns_server.Dns)
    door._tcp.close()
    door._udp.close()
