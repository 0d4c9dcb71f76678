"""Instances that are killed, frozen and thawed, or fall out of the network; workers that are killed while they check;
processes that lose their database."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dnslib import RCODE, DNSRecord
from psycopg.conninfo import make_conninfo

from tests.doors import free_port
from tests.faults.link import Link, place_of
from tests.participant import Participant
from tests.races.processes import ROOT, Syros, environment, migrate, new_namespace, until
from tests.servers import WORKER, database

TTL = 2.0
SOON = 2.0  # seconds after its TTL within which a dead instance is out


class Site:
    """Two processes that work, on a database of their own. To `a`, which also tells DNS, it comes by the link."""

    def __init__(self, url: str, link: Link, var: Path) -> None:
        environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], var, SYROS_WORKS="1")
        migrate(environ)
        self.dns_port = free_port()
        far = make_conninfo(url, host="127.0.0.1", port=link.port)
        own = {"DATABASE_URL": far, "DNS_PORT": str(self.dns_port)}
        self.a, self.b = Syros({**environ, **own}, "a"), Syros(environ, "b")
        self.both = self.a, self.b
        self.url, self.link, self.namespace = url, link, ""

    def prepare(self) -> None:
        """Both are there, and a namespace of the test's own."""
        for process in self.both:
            if process.process is None or process.process.poll() is not None:
                process.spawn()
        for process in self.both:
            process.wait_ready()
        self.namespace = new_namespace(self.url)

    def ask(self, process: Syros, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Syros-Namespace": self.namespace}
        url = f"http://127.0.0.1:{process.port}/api/v1/services/{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=30)

    def listed(self, process: Syros) -> list[str]:
        found = self.ask(process, "GET", "bank").raise_for_status().json()
        return [each["instance_id"] for each in found["instances"]]

    def may_list(self, process: Syros) -> list[str]:
        """Nobody, where it cannot tell."""
        found = self.ask(process, "GET", "bank")
        assert found.status_code in (200, 503)
        return [each["instance_id"] for each in found.json().get("instances", [])]

    def told(self) -> set[str]:
        """Addresses by DNS; none where it cannot tell."""
        asked = DNSRecord.question(f"bank.{self.namespace}.svc.syros")
        found = DNSRecord.parse(asked.send("127.0.0.1", self.dns_port, timeout=10))
        assert found.header.rcode in (RCODE.NOERROR, RCODE.NXDOMAIN, RCODE.SERVFAIL)
        return {str(rr.rdata) for rr in found.rr}

    def kinds(self) -> list[str]:
        url = f"http://127.0.0.1:{self.b.port}/api/v1/events/$service:bank"
        found = httpx.get(url, headers={"Syros-Namespace": self.namespace}, timeout=30).json()
        return [event["event_type"] for event in found["events"]]


class Agent:
    """An instance's process, and what it printed."""

    def __init__(self, site: Site, name: str, port: int, out: Path) -> None:
        self.out = out / f"{name}.txt"
        url = f"http://127.0.0.1:{port}"
        with self.out.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.heartbeats", url, site.namespace, name, str(TTL)],
                cwd=ROOT, stdout=file,
            )  # fmt: skip
        until(lambda: "ok" in self.lines)

    @property
    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def signal(self, number: signal.Signals) -> float:
        """Until when it can be listed at most."""
        os.kill(self.process.pid, number)
        return time.monotonic() + TTL + SOON

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Link(place_of(os.environ["SYROS_TEST_DATABASE_URL"])) as link:
        found = Site(database(f"syros_discovery_{WORKER}"), link, tmp_path_factory.mktemp("site"))
        yield found
        for process in found.both:
            process.end()


@pytest.fixture
def site(processes: Site) -> Site:
    processes.prepare()
    return processes


@pytest.fixture
def agents(site: Site, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(name: str, port: int = 0) -> Agent:
        started.append(Agent(site, name, port or site.a.port, tmp_path))
        return started[-1]

    yield start
    for agent in started:
        agent.end()


def is_out(site: Site, process: Syros, name: str, until_then: float) -> None:
    while name in site.listed(process):
        asked_at = time.monotonic()
        assert asked_at < until_then, f"{name} is listed {asked_at - until_then:.1f} s too long"
        time.sleep(0.02)


def test_a_killed_instance_is_out_in_time_and_one_that_lives_stays(site: Site, agents: Any) -> None:
    one, _ = agents("one"), agents("two")
    assert site.listed(site.b) == ["one", "two"]
    limit = one.signal(signal.SIGKILL)
    is_out(site, site.b, "one", limit)
    assert site.listed(site.a) == ["two"]
    time.sleep(TTL)
    assert site.listed(site.b) == ["two"]
    assert site.kinds().count("service.instance_expired") == 1


def test_a_frozen_instance_that_thaws_revives_nothing(site: Site, agents: Any) -> None:
    zombie = agents("one")
    is_out(site, site.b, "one", zombie.signal(signal.SIGSTOP))
    zombie.signal(signal.SIGCONT)
    zombie.process.wait(20)
    assert zombie.lines[-1] == "instance_not_found expired"
    assert site.listed(site.b) == []


def test_a_zombie_does_not_speak_for_the_one_in_its_place(site: Site, agents: Any) -> None:
    zombie = agents("one")
    zombie.signal(signal.SIGSTOP)
    place = {"address": "127.0.0.2", "port": 81, "ttl_seconds": 3}
    assert site.ask(site.b, "PUT", "bank/instances/one", place).json()["incarnation"] == 2
    zombie.signal(signal.SIGCONT)
    zombie.process.wait(20)
    assert zombie.lines[-1].startswith("instance_superseded")
    found = site.ask(site.b, "GET", "bank").json()["instances"]
    assert [each["address"] for each in found] == ["127.0.0.2"]
    until(lambda: site.listed(site.b) == [])  # nor has it kept it alive
    assert site.ask(site.b, "POST", "bank/instances/one/heartbeat").json()["reason"] == "expired"


def test_an_instance_that_fell_out_of_the_network_is_out_in_time(site: Site, agents: Any) -> None:
    with Link(site.a.port) as way:
        lost, _ = agents("one", way.port), agents("two")
        with way.cut():
            limit = time.monotonic() + TTL + SOON
            is_out(site, site.a, "one", limit)
            is_out(site, site.b, "one", limit)
        lost.process.wait(20)  # what waited on the way arrives
        assert lost.lines[-1] == "instance_not_found expired"
        assert site.listed(site.a) == site.listed(site.b) == ["two"]


def test_a_process_that_lost_its_database_keeps_nobody_and_lists_nobody(site: Site, agents: Any) -> None:
    lost, _ = agents("one"), agents("two", site.b.port)
    until(lambda: site.told() == {"127.0.0.1"})
    with site.link.cut():
        limit = time.monotonic() + TTL + SOON
        is_out(site, site.b, "one", limit)
        assert site.listed(site.b) == ["two"]
        while time.monotonic() < limit:
            assert site.told() <= {"127.0.0.1"}
            time.sleep(0.1)
        assert site.told() == set()
        assert site.may_list(site.a) == []
    lost.process.wait(30)
    assert lost.lines[-1] == "instance_not_found expired"
    until(lambda: site.may_list(site.a) == ["two"])
    until(lambda: site.told() == {"127.0.0.1"})
    assert site.listed(site.b) == ["two"]
    assert site.kinds().count("service.instance_expired") == 1


def test_the_checks_of_a_killed_worker_go_on_in_another(site: Site) -> None:
    with Participant() as participant:
        check = {"kind": "http", "interval_seconds": 0.5, "failures": 1, "successes": 1}
        place = {"address": "127.0.0.1", "port": participant.port, "ttl_seconds": 600}
        for number in range(8):  # some fall to either
            body = {**place, "checks": [{**check, "path": str(number)}]}
            site.ask(site.a, "PUT", f"bank/instances/{number}", body).raise_for_status()
        until(lambda: len(site.listed(site.b)) == 8)
        participant.asked.clear()
        time.sleep(5)
        rates = [participant.paths().count(str(number)) for number in range(8)]
        assert all(1 <= rate <= 12 for rate in rates), rates  # by one worker each: two would ask 20 times
        site.a.kill()
        broken = time.monotonic()
        for number in range(8):
            participant.script[str(number)] = lambda asked: (500, None, {})
        # Half of them are kept, because all fail at once; none is what it was.
        until(lambda: {each["status"] for each in site.ask(site.b, "GET", "bank?healthy=false").json()["instances"]}
              == {"failing"})  # fmt: skip
        assert time.monotonic() - broken < 12
        assert len(site.listed(site.b)) == 4
