"""What DNS answers: bytes in, bytes out, without a socket."""

from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from discovery import dns
from discovery.dns import Target, Zone, label_of

ZONE = Zone.of("syros.test.", 3)
END = ".syros.test"


class Here:
    """Services by namespace and name, in labels."""

    def __init__(self, **services: list[Target]) -> None:
        self.services = {tuple(name.split("__")): found for name, found in services.items()}

    def targets(self, namespace: str, service: str) -> Sequence[Target]:
        return self.services.get((namespace, service), [])

    def has_services(self, namespace: str) -> bool:
        return any(namespace == each for each, _ in self.services)


HERE = Here(
    default__billing=[
        Target("billing-1", "10.0.0.7", 8001, 1, ["eu", "Blue Green"]),
        Target("billing-2", "10.0.0.8", 8002, 3, ["us"]),
        Target("billing-3", "fd00::3", 8003, 1, ["eu"]),
    ],
    shop__mail=[Target("mx", "mx.example.com", 25, 1)],
    shop__odd=[Target("a:b.c", "10.1.0.1", 9, 1), Target("Z", "10.1.0.2", 9, 1)],
    shop__lost=[Target("none", "no..name", 1, 1)],
)


def query(name: str, kind: str = "A", **header: Any) -> DNSRecord:
    return DNSRecord(DNSHeader(id=77, **header), q=DNSQuestion(name, getattr(QTYPE, kind)))


def ask(name: str, kind: str = "A", view: Any = HERE, **options: Any) -> DNSRecord:
    found = dns.answer(bytes(query(name, kind).pack()), view, ZONE, **options)
    assert found is not None
    return DNSRecord.parse(found)


def told(record: DNSRecord) -> set[str]:
    assert all(rr.ttl == 3 for rr in record.rr)
    return {f"{QTYPE[rr.rtype]} {rr.rdata}" for rr in record.rr}


def test_a_service_has_the_addresses_of_its_healthy_instances() -> None:
    for name in (f"billing.svc{END}", f"billing.default.svc{END}"):
        assert told(ask(name)) == {"A 10.0.0.7", "A 10.0.0.8"}
        assert told(ask(name, "AAAA")) == {"AAAA fd00::3"}
    found = ask(f"billing.svc{END}")
    assert (found.header.aa, found.header.ra, found.header.id, found.header.rd) == (1, 0, 77, 1)


def test_a_tag_is_a_label_before_the_service() -> None:
    assert told(ask(f"eu.billing.default.svc{END}")) == {"A 10.0.0.7"}
    assert told(ask(f"us.billing.default.svc{END}")) == {"A 10.0.0.8"}
    assert told(ask(f"{label_of('Blue Green')}.billing.default.svc{END}")) == {"A 10.0.0.7"}
    assert ask(f"asia.billing.default.svc{END}").header.rcode == RCODE.NXDOMAIN


@pytest.mark.parametrize(
    "name", ["_billing._tcp.svc", "_billing._tcp.default.svc", "billing.svc", "billing.default.svc"]
)
def test_srv_says_ports_weights_and_where_with_the_addresses(name: str) -> None:
    found = ask(name + END, "SRV", tcp=True)
    target = "billing-{}.billing.default.inst.syros.test."
    assert told(found) == {
        f"SRV 0 1 8001 {target.format(1)}",
        f"SRV 0 3 8002 {target.format(2)}",
        f"SRV 0 1 8003 {target.format(3)}",
    }
    assert {(str(rr.rname), str(rr.rdata)) for rr in found.ar} == {
        (target.format(1), "10.0.0.7"),
        (target.format(2), "10.0.0.8"),
        (target.format(3), "fd00::3"),
    }


def test_every_target_of_srv_can_be_looked_up() -> None:
    for service in ("billing.default", "odd.shop"):
        for rr in ask(f"{service}.svc{END}", "SRV", tcp=True).rr:
            target = str(rr.rdata.target)
            assert len(ask(target).rr) + len(ask(target, "AAAA").rr) == 1, target


def test_names_that_are_no_labels_have_a_digest_for_one() -> None:
    assert label_of("Billing_2") == "billing_2"
    for name in ("api.v2", "a:b", "x" * 64, "ends-", "ümlaut", ""):
        assert label_of(name).startswith("x-")
        assert len(label_of(name)) == 22
    assert label_of("api.v2") != label_of("API.v2")
    assert told(ask(f"{label_of('a:b.c')}.odd.shop.inst{END}")) == {"A 10.1.0.1"}
    assert told(ask(f"z.odd.shop.inst{END}")) == {"A 10.1.0.2"}


def test_an_instance_with_a_host_name_is_told_by_it() -> None:
    assert told(ask(f"_mail._tcp.shop.svc{END}", "SRV")) == {"SRV 0 1 25 mx.example.com."}
    assert ask(f"_mail._tcp.shop.svc{END}", "SRV").ar == []
    for kind in ("A", "AAAA", "CNAME", "ANY", "SRV", "TXT"):  # an alias stands alone
        assert told(ask(f"mail.shop.svc{END}", kind)) == {"CNAME mx.example.com."}
        assert told(ask(f"mx.mail.shop.inst{END}", kind)) == {"CNAME mx.example.com."}
    mixed = Here(default__db=[Target("a", "10.0.0.1", 1, 1), Target("b", "db.example.com", 1, 1)])
    assert told(ask(f"db.svc{END}", view=mixed)) == {"A 10.0.0.1"}
    assert told(ask(f"db.svc{END}", "AAAA", mixed)) == set(), "no alias beside an address"


def test_several_host_names_are_one_alias_by_chance() -> None:
    two = Here(default__db=[Target("a", "one.example.com", 1, 1), Target("b", "two.example.com", 1, 1)])
    seen = [told(ask(f"db.svc{END}", view=two)) for _ in range(100)]
    assert {len(each) for each in seen} == {1}
    assert set.union(*seen) == {"CNAME one.example.com.", "CNAME two.example.com."}


def test_what_is_no_address_and_no_name_is_not_told() -> None:
    assert ask(f"lost.shop.svc{END}").header.rcode == RCODE.NXDOMAIN
    for host in ("10.0.0", "a" * 64 + ".com", "fe80::1::2", ".", ""):
        assert not Target("a", host, 1, 1).can_be_told, host


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("billing.svc.", "TXT"), ("billing.svc.", "CNAME"), ("_billing._tcp.svc.", "A"), ("", "A"), ("", "NS"),
        ("svc.", "A"), ("inst.", "NS"), ("default.svc.", "NS"), ("_tcp.svc.", "A"), ("_tcp.default.svc.", "A"),
        ("shop.inst.", "A"), ("mail.shop.inst.", "A"), ("billing-3.billing.default.inst.", "A"),
        ("billing-1.billing.default.inst.", "SRV"),
    ],
)  # fmt: skip
def test_a_name_that_exists_has_no_data_of_other_types(name: str, kind: str) -> None:
    found = ask(f"{name}{END[1:]}", kind)
    assert (found.header.rcode, found.rr) == (RCODE.NOERROR, [])
    check_soa(found)


@pytest.mark.parametrize(
    "name",
    [
        "nothing.", "nobody.svc.", "nobody.default.svc.", "billing.nowhere.svc.", "nowhere.svc.", "nowhere.inst.",
        "billing._tcp.svc.", "_nobody._tcp.svc.", "a.eu.billing.default.svc.", "nobody.billing.default.inst.",
        "billing.default.", "_udp.svc.", "_billing._udp.svc.", "_tcp.nowhere.svc.", "\\001.svc.",
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_told_as_such(name: str) -> None:
    for kind in ("A", "SRV", "ANY"):
        found = ask(f"{name}{END[1:]}", kind)
        assert (found.header.rcode, found.rr, found.header.aa) == (RCODE.NXDOMAIN, [], 1)
        check_soa(found)


def check_soa(found: DNSRecord) -> None:
    (soa,) = found.auth
    assert (QTYPE[soa.rtype], str(soa.rname), soa.ttl, soa.rdata.times[4]) == ("SOA", "syros.test.", 3, 3)


def test_the_domain_has_a_start_of_authority() -> None:
    (soa,) = ask("syros.test", "SOA").rr
    assert str(soa.rdata).startswith("ns.syros.test. hostmaster.syros.test. ")


def test_any_is_answered_by_one_kind_of_records() -> None:
    assert told(ask(f"billing.svc{END}", "ANY")) == {"A 10.0.0.7", "A 10.0.0.8"}
    assert len(ask(f"_billing._tcp.svc{END}", "ANY", tcp=True).rr) == 3
    assert told(ask(f"billing-3.billing.default.inst{END}", "ANY")) == {"AAAA fd00::3"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("example.com", "A"), ("test", "A"), (".", "NS"), (f"svc{END}", "AXFR"), (f"svc{END}", "IXFR")],
)
def test_what_is_not_ours_is_refused(name: str, kind: str) -> None:
    found = ask(name, kind)
    assert (found.header.rcode, found.header.aa, found.rr, found.auth) == (RCODE.REFUSED, 0, [], [])


def test_other_classes_are_refused_and_other_operations_not_known() -> None:
    chaos = DNSRecord(DNSHeader(id=1), q=DNSQuestion(f"billing.svc{END}", QTYPE.A, 3))
    assert DNSRecord.parse(dns.answer(bytes(chaos.pack()), HERE, ZONE)).header.rcode == RCODE.REFUSED
    update = query(f"billing.svc{END}", opcode=5)
    assert DNSRecord.parse(dns.answer(bytes(update.pack()), HERE, ZONE)).header.rcode == RCODE.NOTIMP


def test_case_is_nothing_and_is_given_back() -> None:
    found = ask(f"bIlLiNg.SvC{END.upper()}")
    assert len(found.rr) == 2
    assert found.q.qname.label == (b"bIlLiNg", b"SvC", b"SYROS", b"TEST")
    assert {rr.rname.label for rr in found.rr} == {found.q.qname.label}


def test_those_with_more_weight_come_first_more_often() -> None:
    first = Counter(str(ask(f"billing.svc{END}").rr[0].rdata) for _ in range(2000))
    assert 1350 < first["10.0.0.8"] < 1650  # 1500 of weights 3 and 1; five deviations


def test_weight_0_is_for_when_there_is_nobody_else() -> None:
    resting = Target("b", "10.0.0.2", 1, 0)
    here = Here(default__db=[resting, Target("a", "10.0.0.1", 1, 2)], default__all=[resting])
    assert told(ask(f"db.svc{END}", view=here)) == {"A 10.0.0.1"}
    assert told(ask(f"all.svc{END}", view=here)) == {"A 10.0.0.2"}
    priorities = {str(rr.rdata).split(" ")[0]: rr.rdata.weight for rr in ask(f"db.svc{END}", "SRV", here).rr}
    assert priorities == {"0": 2, "1": 0}


MANY = Here(default__big=[Target(f"instance-{n}", f"10.0.{n // 250}.{n % 250}", 80, 1) for n in range(600)])


@pytest.mark.parametrize(("size", "limit"), [(None, 512), (0, 512), (700, 700), (1232, 1232), (65_535, 1232)])
def test_an_answer_is_as_large_as_the_client_takes(size: int | None, limit: int) -> None:
    for kind, fits in (("A", limit >= 700), ("SRV", False)):
        asked = query(f"big.svc{END}", kind)
        if size is not None:
            asked.add_ar(EDNS0(udp_len=size))
        raw = dns.answer(bytes(asked.pack()), MANY, ZONE)
        assert raw is not None
        assert len(raw) <= limit
        found = DNSRecord.parse(raw)
        assert (found.header.tc, len(found.rr)) == ((0, 32) if fits else (1, 0))
        assert [rr.rclass for rr in found.ar if rr.rtype == QTYPE.OPT] == ([] if size is None else [1232])


def test_additional_records_go_before_answers_do() -> None:
    few = Here(default__few=[Target(f"instance-{n}", f"10.0.0.{n}", 80, 1) for n in range(7)])
    found = ask(f"few.svc{END}", "SRV", few)
    assert (len(found.rr), found.ar, found.header.tc) == (7, [], 0)


def test_over_tcp_all_of_it_is_told_and_different_ones_each_time() -> None:
    found = ask(f"big.svc{END}", "SRV", MANY, tcp=True)
    assert (len(found.rr), len(found.ar), found.header.tc) == (32, 32, 0)
    seen = {str(rr.rdata) for _ in range(100) for rr in ask(f"big.svc{END}", view=MANY, tcp=True).rr}
    assert len(seen) > 500


def test_a_later_edns_is_refused_with_the_version_known() -> None:
    asked = query(f"billing.svc{END}")
    asked.add_ar(EDNS0(udp_len=4096, version=1))
    found = DNSRecord.parse(dns.answer(bytes(asked.pack()), HERE, ZONE))
    (opt,) = found.ar
    assert (found.header.rcode, opt.ttl >> 24, opt.ttl >> 16 & 255, found.rr) == (0, 1, 0, [])


# -- hostile ----------------------------------------------------------------------------------------

GOOD = bytes(query(f"billing.svc{END}").pack())
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def header(*counts: int) -> bytes:
    return dns.HEADER.pack(77, 0x0100, *counts)


MALFORMED = {
    "no question": header(0, 0, 0, 0),
    "two questions": header(2, 0, 0, 0) + GOOD[12:] * 2,
    "an answer in it": header(1, 1, 0, 0) + GOOD[12:],
    "a question cut": GOOD[:-1],
    "a name without end": GOOD[:20],
    "a pointer to itself": header(1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
    "pointers in a circle": header(1, 0, 0, 0) + b"\x01a\xc0\x0c\0\1\0\1",
    "a long label": header(1, 0, 0, 0) + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
    "a long name": header(1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
    "two of EDNS": header(1, 0, 0, 2) + GOOD[12:] + OPT * 2,
    "EDNS with a name": header(1, 0, 0, 1) + GOOD[12:] + b"\1a" + OPT,
    "EDNS that is cut": header(1, 0, 0, 1) + GOOD[12:] + OPT[:-2],
    "options that are not there": header(1, 0, 0, 1) + GOOD[12:] + OPT[:-1] + b"\x09",
    "too many records": header(1, 0, 0, 900) + GOOD[12:],
    "too large": GOOD + b"\0" * 1300,
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_told_so_in_twelve_bytes(kind: str) -> None:
    found = dns.answer(MALFORMED[kind], HERE, ZONE)
    assert found == dns.HEADER.pack(77, 0x8100 | RCODE.FORMERR, 0, 0, 0, 0)


@pytest.mark.parametrize("message", [b"", b"x", GOOD[:11], GOOD[:2] + b"\x81\x80" + GOOD[4:]])
def test_what_is_no_query_is_not_answered(message: bytes) -> None:
    assert dns.answer(message, HERE, ZONE) is None


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: GOOD + tail), st.booleans())
def test_bytes_of_any_kind_are_answered_or_not(message: bytes, tcp: bool) -> None:
    check_answer(message, dns.answer(message, HERE, ZONE, tcp=tcp))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) + 10), st.integers(0, 255)), max_size=6))
def test_a_query_with_wrong_bytes_is_answered_or_not(changes: list[tuple[int, int]]) -> None:
    message = bytearray(GOOD + OPT)
    message[11] = 1
    for at, byte in changes:
        message[at % len(message)] = byte
    check_answer(bytes(message), dns.answer(bytes(message), HERE, ZONE))


def check_answer(message: bytes, found: bytes | None) -> None:
    if found is None:
        assert len(message) < 12 or message[2] & 0x80
        return
    assert found[:2] == message[:2]
    assert found[2] & 0x80
    assert len(found) <= max(1232, 12)
    assert len(found) >= 12


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=5))
def test_a_name_of_any_bytes_comes_back_as_it_was(labels: list[bytes]) -> None:
    raw = b"".join(bytes([len(each)]) + each for each in labels) + b"\5syros\4test\0"
    message = header(1, 0, 0, 0) + raw + b"\0\1\0\1"
    found = dns.answer(message, HERE, ZONE)
    assert found is not None
    assert found[12 : 12 + len(raw)] == raw or found[3] & 15 == RCODE.FORMERR


@pytest.mark.parametrize(
    ("domain", "ttl"),
    [("", 1), ("a..b", 1), ("-a", 1), ("a" * 51, 1), ("ok", -1), ("ok", 86_401), ("a b", 1)],
)
def test_a_domain_or_time_that_is_none_is_refused(domain: str, ttl: int) -> None:
    with pytest.raises(ValueError, match=r"^DNS_(DOMAIN|TTL) is n"):
        Zone.of(domain, ttl)


def test_addresses_are_told_as_they_are() -> None:
    for text in ("0.0.0.0", "255.255.255.255", "::", "::ffff:1.2.3.4", "2001:db8::1"):
        here = Here(default__one=[Target("a", text, 1, 1)])
        (rr,) = ask(f"one.svc{END}", "ANY", here).rr
        assert ip_address(bytes(rr.rdata.data)) == ip_address(text)
        assert DNSLabel(rr.rname) == f"one.svc{END}"
