"""Processes that carry sagas out and go: in order, or without a word."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.participant import Participant
from tests.races.processes import Syros, environment, migrate, new_namespace
from tests.servers import WORKER, database

MANY = 100


class Pair:
    """Two processes on a database of their own, and a participant that takes its time."""

    def __init__(self, url: str, var: Path, participant: Participant) -> None:
        environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], var, SYROS_WORKS="1")
        migrate(environ)
        self.a, self.b = Syros(environ, "a"), Syros(environ, "b")
        self.namespace, self.participant = new_namespace(url), participant

    def ask(self, process: Syros, method: str, path: str, body: Any = None) -> Any:
        headers = {"Syros-Namespace": self.namespace}
        url = f"http://127.0.0.1:{process.port}/api/v1/{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=60).raise_for_status().json()

    def register(self) -> None:
        place = {"address": "127.0.0.1", "port": self.participant.port, "ttl_seconds": 300}
        self.ask(self.a, "PUT", "services/shop/instances/one", place)
        time.sleep(1)

    def start(self, process: Syros, steps: int = 2) -> str:
        one = {"service": "shop", "action": "do", "timeout_seconds": 20}
        body = {"name": "order", "steps": [{**one, "name": f"s{number}"} for number in range(steps)]}
        return str(self.ask(process, "POST", "sagas", body)["saga_id"])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Participant() as participant:
        found = Pair(database(f"syros_saga_workers_{WORKER}"), tmp_path, participant)
        try:
            for process in (found.a, found.b):
                process.spawn()
            for process in (found.a, found.b):
                process.wait_ready()
            found.register()
            yield found
        finally:
            for process in (found.a, found.b):
                process.end()


def test_a_process_that_stops_hears_of_its_calls(pair: Pair) -> None:
    """Nobody is asked twice, and the other one goes on."""
    pair.participant.script["do"] = lambda asked: (200, slowly(), {})
    saga_id = pair.start(pair.a)
    time.sleep(0.3)
    assert pair.a.stop() == 0
    found = pair.ask(pair.b, "GET", f"sagas/{saga_id}?wait_seconds=20")
    assert found["status"] == "succeeded"
    assert [step["attempts"] for step in found["steps"]] == [1, 1]
    assert pair.a.complaints() == []


def slowly() -> int:
    time.sleep(1)
    return 1


def test_sagas_of_a_killed_process_go_on_within_twelve_seconds(pair: Pair) -> None:
    is_slow = True
    pair.participant.script["do"] = lambda asked: 30.0 if is_slow else (200, None, {})
    started = [pair.start(pair.a) for _ in range(MANY)]
    while len(pair.participant.asked) < MANY:
        time.sleep(0.05)
    is_slow = False
    pair.a.kill()
    begun = time.monotonic()
    while pair.ask(pair.b, "GET", "sagas?status=running&limit=1")["items"]:
        assert time.monotonic() - begun < 12
        time.sleep(0.1)
    assert not pair.ask(pair.b, "GET", "sagas?status=compensating&limit=1")["items"]
    keys = {asked.headers["idempotency-key"] for asked in pair.participant.asked}
    assert keys == {f"{saga_id}.s{number}.a" for saga_id in started for number in range(2)}
