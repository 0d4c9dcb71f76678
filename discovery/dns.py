"""What DNS answers of the services: a query's bytes in, an answer's bytes out, nothing else.

Queries are read here and not by dnslib: they come from anybody, and a name of pointers to pointers costs it a thousand
calls of itself. dnslib writes the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from random import random
from re import compile
from struct import Struct
from typing import Protocol

from dnslib import (
    AAAA,
    CLASS,
    CNAME,
    QTYPE,
    RCODE,
    RR,
    SOA,
    SRV,
    A,
    DNSHeader,
    DNSLabel,
    DNSQuestion,
    DNSRecord,
)
from dnslib import EDNS0 as Edns

UDP_BYTES = 1232  # of an answer at most: what passes everywhere in one packet
PLAIN_BYTES = 512  # of an answer to who says nothing of EDNS
TCP_BYTES = 65_535
QUERY_BYTES = 1232  # of a query at most
DOMAIN_LENGTH = 50  # with three labels before it, it is still a name
MOST = 32  # instances in an answer; of more, these are drawn by weight
DEFAULT = "default"  # the namespace that a name may leave out
LABEL = compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9_])?")
HEADER, FIXED, RECORD = Struct("!HHHHHH"), Struct("!HH"), Struct("!HHIH")
NOTIMP, REFUSED, BADVERS = 4, 5, 16
TRANSFERS = {QTYPE.AXFR, QTYPE.IXFR}


@dataclass(frozen=True, slots=True)
class Zone:
    """What is answered for: `domain` and all below it, by labels in lower case; for how many seconds it is good."""

    domain: tuple[str, ...]
    ttl: int

    @classmethod
    def of(cls, domain: str, ttl: int) -> "Zone":
        """Raises: ValueError, saying what is wrong with them."""
        labels = tuple(domain.lower().strip(".").split("."))
        if len(domain) > DOMAIN_LENGTH or not all(LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"DNS_DOMAIN is no domain of at most {DOMAIN_LENGTH} characters: {domain!r}.")
        if not 0 <= ttl <= 86_400:
            raise ValueError(f"DNS_TTL is not between 0 and 86400: {ttl}.")
        return cls(labels, ttl)


@dataclass(frozen=True, slots=True)
class Target:
    """A healthy instance, and where it is. `until`: when it is one no longer, by the monotonic clock, unless more is
    heard of it."""

    instance: str
    host: str
    port: int
    weight: int
    tags: Sequence[str] = ()
    until: float = inf

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def name(self) -> DNSLabel | None:
        """Its address as a name, if it can be one."""
        labels = self.host.rstrip(".").split(".")
        can_be = all(0 < len(each) <= 63 for each in labels) and not labels[-1].isdigit()
        return DNSLabel([each.encode() for each in labels]) if can_be and ":" not in self.host else None

    @property
    def can_be_told(self) -> bool:
        return self.ip is not None or self.name is not None


class View(Protocol):
    """The healthy instances, by the labels of their namespaces and services."""

    def targets(self, namespace: str, service: str) -> Sequence[Target]:
        """Those of a service, none of one that is not there."""

    def has_services(self, namespace: str) -> bool:
        """Has any service of this namespace healthy instances?"""


def label_of(name: str) -> str:
    """The label of a namespace, service, instance or tag: its name in lower case or, where that is none (a dot, a
    colon, more than 63 characters), `x-` and the first 20 hex digits of its SHA-256."""
    folded = name.lower()
    return folded if LABEL.fullmatch(folded) else f"x-{sha256(name.encode()).hexdigest()[:20]}"


# -- reading ----------------------------------------------------------------------------------------


class Malformed(Exception):
    """No query that DNS knows."""


@dataclass(slots=True)
class Query:
    number: int
    flags: int
    labels: list[bytes]  # as they were written: the answer repeats them so
    kind: int
    klass: int
    size: int | None = None  # of the answer, as EDNS says; None without
    version: int = 0  # of EDNS

    @property
    def opcode(self) -> int:
        return self.flags >> 11 & 15

    @property
    def name(self) -> list[str]:
        return [label.decode("latin-1").lower() for label in self.labels]


def is_query(message: bytes) -> bool:
    """May it be answered at all? Not an answer: else two servers would answer each other for ever."""
    return len(message) >= HEADER.size and not message[2] & 0x80


def read(message: bytes) -> Query:
    """Raises: Malformed."""
    if len(message) > QUERY_BYTES:
        raise Malformed
    number, flags, questions, answers, authorities, more = HEADER.unpack_from(message)
    if questions != 1 or answers or authorities or more > 4:
        raise Malformed
    labels, at = read_name(message, HEADER.size)
    if len(message) < at + FIXED.size:
        raise Malformed
    query = Query(number, flags, labels, *FIXED.unpack_from(message, at))
    at += FIXED.size
    for _ in range(more):
        at = read_more(message, at, query)
    return query


def read_name(message: bytes, at: int) -> tuple[list[bytes], int]:
    """A name that is written out, and where it ends."""
    labels: list[bytes] = []
    start = at
    while at < len(message) and (length := message[at]):
        at += 1 + length
        if length > 63 or at - start > 254:
            raise Malformed
        labels.append(bytes(message[at - length : at]))
    if at >= len(message):
        raise Malformed
    return labels, at + 1


def read_more(message: bytes, at: int, query: Query) -> int:
    """A record after the question: of EDNS, or of something (a signature) that is not looked at."""
    labels, at = read_name(message, at)
    if len(message) < at + RECORD.size:
        raise Malformed
    kind, size, ttl, length = RECORD.unpack_from(message, at)
    if kind == QTYPE.OPT:
        if query.size is not None or labels:
            raise Malformed
        query.size, query.version = size, ttl >> 16 & 0xFF
    end: int = at + RECORD.size + length
    if len(message) < end:
        raise Malformed
    return end


# -- which instances a name means ---------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What a name that exists stands for: whose addresses it has, and whose SRV records."""

    addresses: Sequence[Target] = ()
    services: Sequence[Target] = ()
    namespace: str = DEFAULT
    service: str = ""


def below(name: Sequence[str], zone: Zone) -> list[str] | None:
    """The labels in front of the domain; None of a name outside of it."""
    depth = len(name) - len(zone.domain)
    return list(name[:depth]) if depth >= 0 and tuple(name[depth:]) == zone.domain else None


def meant(labels: Sequence[str]) -> tuple[str, str] | None:
    """Namespace and service of a name below the domain, if it has any."""
    match list(labels):
        case [service, "svc"]:
            return DEFAULT, service
        case ["_tcp", _, "svc"]:
            return None
        case [service, "_tcp", "svc"]:
            return DEFAULT, service.removeprefix("_")
        case [service, "_tcp", namespace, "svc"]:
            return namespace, service.removeprefix("_")
        case [service, namespace, "svc" | "inst"] | [_, service, namespace, "svc" | "inst"]:
            return namespace, service
    return None


def find(labels: Sequence[str], view: View) -> Found | None:
    """What a name below the domain stands for; None if there is no such name.

    A name that others are below exists, though there may be nothing to tell of it.
    """
    if place := meant(labels):
        targets = [each for each in view.targets(*place) if each.can_be_told]
        if found := of_service(labels, targets):
            return Found(*found, *place)
    match list(labels):
        case [] | ["svc" | "inst"] | ["_tcp", "svc"]:
            return Found()
        case [namespace, "svc" | "inst"] | ["_tcp", namespace, "svc"] if view.has_services(namespace):
            return Found()
    return None


def of_service(
    labels: Sequence[str], targets: Sequence[Target]
) -> tuple[Sequence[Target], Sequence[Target]] | None:
    """Of the healthy instances of the service that a name means: whose addresses it has, whose SRV records."""
    match list(labels):
        case _ if not targets:
            return None
        case [instance, _, _, "inst"]:
            one = [each for each in targets if label_of(each.instance) == instance]
            return (one, ()) if one else None
        case [_, _, "inst"]:
            return (), ()
        case [service, "_tcp", *_]:
            return ((), targets) if service.startswith("_") else None
        case [tag, _, _, "svc"]:
            tagged = [each for each in targets if tag in map(label_of, each.tags)]
            return (tagged, tagged) if tagged else None
    return targets, targets


# -- answering ---------------------------------------------------------------------------------------


def answer(message: bytes, view: View, zone: Zone, *, tcp: bool = False) -> bytes | None:
    """The answer to a query; None where there is to be none.

    Parameters: `tcp`, whether it may have 65,535 bytes, and not what the client says, 512 to 1232.
    """
    if not is_query(message):
        return None
    try:
        return reply(read(message), view, zone, tcp=tcp)
    except Malformed:
        return malformed(message)


def malformed(message: bytes) -> bytes:
    """Without the question: nobody knows where it ends."""
    number, flags, *_ = HEADER.unpack_from(message)
    return HEADER.pack(number, 0x8000 | flags & 0x7900 | RCODE.FORMERR, 0, 0, 0, 0)


def reply(query: Query, view: View, zone: Zone, *, tcp: bool = False) -> bytes:
    if (code := refusal(query, zone)) is not None:
        return failure(query, code)
    labels = below(query.name, zone)
    found = None if labels is None else find(labels, view)
    record = blank(query, RCODE.NXDOMAIN if found is None else RCODE.NOERROR)
    if found:
        tell(record, query, found, zone)
    if query.kind == QTYPE.SOA and labels == []:
        record.add_answer(soa(zone))
    if not record.rr:
        record.add_auth(soa(zone))
    return fitted(record, query, tcp)


def refusal(query: Query, zone: Zone) -> int | None:
    if query.opcode:
        return NOTIMP
    if query.version:
        return BADVERS
    of_zone = below(query.name, zone) is not None and query.klass in (CLASS.IN, 255)
    return None if of_zone and query.kind not in TRANSFERS else REFUSED


def failure(query: Query, code: int = RCODE.SERVFAIL) -> bytes:
    record = blank(query, code & 15)
    record.header.aa = 0
    return packed(record, query, code >> 4)


def blank(query: Query, code: int) -> DNSRecord:
    header = DNSHeader(
        id=query.number, qr=1, aa=1, ra=0, rd=query.flags >> 8 & 1, opcode=query.opcode, rcode=code
    )
    return DNSRecord(header, q=DNSQuestion(DNSLabel(query.labels), query.kind, query.klass))


def tell(record: DNSRecord, query: Query, found: Found, zone: Zone) -> None:
    """Of everything, one kind of records is enough (RFC 8482): addresses if there are any."""
    name, anything = DNSLabel(query.labels), query.kind == QTYPE.ANY
    drawn = draw([each for each in found.addresses if each.ip])
    if found.addresses and not drawn:  # an alias stands alone: it answers whatever is asked (RFC 1034, 3.6.2)
        alias = draw(found.addresses)[0].name
        record.add_answer(RR(name, QTYPE.CNAME, ttl=zone.ttl, rdata=CNAME(alias)))
        return
    if query.kind == QTYPE.SRV or (anything and not found.addresses):
        tell_services(record, name, found, zone)
        return
    for kind in (QTYPE.A, QTYPE.AAAA):
        if query.kind == kind or (anything and not record.rr):
            record.add_answer(*(each for each in addresses(name, drawn, zone) if each.rtype == kind))


def tell_services(record: DNSRecord, name: DNSLabel, found: Found, zone: Zone) -> None:
    for each in draw(found.services, also_last=True):
        target = each.name or instance_name(each, found, zone)
        # Who is to have no calls while others are there comes after them.
        rdata = SRV(0 if each.weight else 1, each.weight, each.port, target)
        record.add_answer(RR(name, QTYPE.SRV, ttl=zone.ttl, rdata=rdata))
        record.add_ar(*addresses(target, [each], zone))


def instance_name(target: Target, found: Found, zone: Zone) -> DNSLabel:
    labels = (label_of(target.instance), found.service, found.namespace, "inst", *zone.domain)
    return DNSLabel([label.encode() for label in labels])


def addresses(name: DNSLabel, targets: Sequence[Target], zone: Zone) -> list[RR]:
    """A and AAAA records of those that have an IP address; each address once."""
    found = dict.fromkeys(ip for each in targets if (ip := each.ip))
    return [
        RR(name, QTYPE.A, ttl=zone.ttl, rdata=A(tuple(ip.packed)))
        if ip.version == 4
        else RR(name, QTYPE.AAAA, ttl=zone.ttl, rdata=AAAA(tuple(ip.packed)))
        for ip in found
    ]


def draw(targets: Sequence[Target], *, also_last: bool = False) -> list[Target]:
    """At most MOST, by chance and weight: those with more come more often first. Those of weight 0 come last, or not
    at all where there are others."""
    weighty = [each for each in targets if each.weight]
    drawn = sorted(weighty, key=lambda each: random() ** (1 / each.weight), reverse=True)
    if also_last or not drawn:
        drawn += sorted((each for each in targets if not each.weight), key=lambda _: random())
    return drawn[:MOST]


def soa(zone: Zone) -> RR:
    """Whose zone it is, and for how long it is good that something is not there."""
    domain = DNSLabel([label.encode() for label in zone.domain])
    times = (1, 3600, 600, 86_400, zone.ttl)
    return RR(domain, QTYPE.SOA, ttl=zone.ttl, rdata=SOA(domain.add("ns"), domain.add("hostmaster"), times))


def fitted(record: DNSRecord, query: Query, tcp: bool) -> bytes:
    """In the bytes that the client takes: without the additional records, else empty and marked as truncated."""
    limit = TCP_BYTES if tcp else max(PLAIN_BYTES, min(query.size or 0, UDP_BYTES))
    if len(message := packed(record, query)) <= limit:
        return message
    record.ar = []
    if len(message := packed(record, query)) <= limit:
        return message
    record.rr, record.auth, record.header.tc = [], [], 1
    return packed(record, query)


def packed(record: DNSRecord, query: Query, more_code: int = 0) -> bytes:
    kept = list(record.ar)
    if query.size is not None:
        record.add_ar(Edns(udp_len=UDP_BYTES, ext_rcode=more_code))
    record.set_header_qa()
    found = bytes(record.pack())
    record.ar = kept
    return found
