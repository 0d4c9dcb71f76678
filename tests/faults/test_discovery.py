"""Instances that are killed, frozen and thawed; workers that are killed while they check."""

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

from tests.participant import Participant
from tests.races.processes import ROOT, Syros, environment, migrate, new_namespace, until
from tests.servers import WORKER, database

TTL = 2.0
SOON = 2.0  # seconds after its TTL within which a dead instance is out


class Site:
    """Two processes that work, on a database of their own."""

    def __init__(self, url: str, var: Path) -> None:
        environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], var, SYROS_WORKS="1")
        migrate(environ)
        self.url, self.a, self.b = url, Syros(environ, "a"), Syros(environ, "b")
        self.namespace = new_namespace(url)

    def ask(self, process: Syros, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Syros-Namespace": self.namespace}
        url = f"http://127.0.0.1:{process.port}/api/v1/services/{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=30)

    def listed(self, process: Syros) -> list[str]:
        found = self.ask(process, "GET", "bank").raise_for_status().json()
        return [each["instance_id"] for each in found["instances"]]

    def kinds(self) -> list[str]:
        url = f"http://127.0.0.1:{self.b.port}/api/v1/events/$service:bank"
        found = httpx.get(url, headers={"Syros-Namespace": self.namespace}, timeout=30).json()
        return [event["event_type"] for event in found["events"]]


class Agent:
    """An instance's process, and what it printed."""

    def __init__(self, site: Site, name: str, out: Path) -> None:
        self.out = out / f"{name}.txt"
        url = f"http://127.0.0.1:{site.a.port}"
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


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(database(f"syros_discovery_{WORKER}"), tmp_path)
    try:
        for process in (found.a, found.b):
            process.spawn()
        for process in (found.a, found.b):
            process.wait_ready()
        yield found
    finally:
        for process in (found.a, found.b):
            process.end()


@pytest.fixture
def agents(site: Site, tmp_path: Path) -> Iterator[Callable[[str], Agent]]:
    started: list[Agent] = []

    def start(name: str) -> Agent:
        started.append(Agent(site, name, tmp_path))
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
