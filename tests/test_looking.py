"""What operators ask about locks: how long they take, who waits most, what was refused. Through every door."""

from typing import Any

import pytest

from locks.services import looking
from tests.doors import Door, Lane
from tests.test_locks import queue, until


def held_once(call: Door, key: str) -> None:
    call("locks.release", key=key, lock_id=call("locks.acquire", key=key, owner="o")["lock_id"])


def test_statistics_are_by_the_first_part_of_a_key(call: Door) -> None:
    for key in ("jobs/a", "jobs/b", "jobs:c", "other"):
        held_once(call, key)
    call("locks.acquire", key="jobs/a", owner="o")
    call("locks.force_release", key="jobs/a", reason="test")
    found = call("locks.stats")
    classes = {each["prefix"]: each for each in found["classes"]}
    assert set(classes) == {"jobs/", "jobs:", "other"}
    assert (classes["jobs/"]["held"]["count"], classes["jobs/"]["waited"]["count"]) == (3, 3)
    assert (classes["jobs/"]["force_released"], classes["jobs:"]["force_released"]) == (1, 0)
    held = classes["jobs/"]["held"]
    assert 0 <= held["p50"] <= held["p90"] <= held["p99"] <= held["max"] < 60
    assert [each["prefix"] for each in call("locks.stats", prefix="jobs/")["classes"]] == ["jobs/a", "jobs/b"]


def test_statistics_of_a_young_log_are_whole(call: Door) -> None:
    held_once(call, "a")
    found = call("locks.stats", since="2020-01-01T00:00:00Z")
    assert (found["partial"], found["since"]) == (False, "2020-01-01T00:00:00Z")


def test_statistics_of_a_long_log_say_since_when(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        held_once(lane, "a")
    monkeypatch.setattr(looking, "SCANNED", 4)
    found = lane("locks.stats")
    assert found["partial"]
    assert found["classes"][0]["held"]["count"] == 2


def test_the_longest_queue_comes_first(waiting: Door, later: Any) -> None:
    held = {key: waiting("locks.acquire", key=key, owner="o") for key in ("a", "b", "c")}
    waits = [later(waiting, "locks.acquire", key=key, owner=f"w{n}", wait_seconds=20, ttl_seconds=0.1)
             for n, key in enumerate("abb")]  # fmt: skip
    until(lambda: (len(queue(waiting, "a")), len(queue(waiting, "b"))) == (1, 2))
    found = waiting("locks.contended")["items"]
    assert [(each["key"], each["queue_length"]) for each in found] == [("b", 2), ("a", 1)]
    assert [holder["owner"] for holder in found[0]["holders"]] == ["o"]
    assert [each["key"] for each in waiting("locks.contended", prefix="a")["items"]] == ["a"]
    for key in "ab":
        waiting("locks.release", key=key, lock_id=held[key]["lock_id"])
    for each in waits:
        each.result(10)


def test_history_says_whose_holds_there_were_and_why_each_ended(call: Door) -> None:
    assert call("locks.history", key="a")["holds"] == []
    held_once(call, "a")
    call("locks.acquire", key="a", owner="p")
    call("locks.force_release", key="a", reason="stuck")
    call("locks.acquire", key="a", owner="q")
    holds = call("locks.history", key="a")["holds"]
    assert [(hold["owner"], hold["ending"], hold["because"]) for hold in holds] == [
        ("q", None, None), ("p", "force_released", "stuck"), ("o", "released", None),
    ]  # fmt: skip
    assert holds[0]["ended_at"] is None
    assert holds[1]["held_seconds"] >= 0
    assert [hold["owner"] for hold in call("locks.history", key="a", limit=1)["holds"]] == ["q"]
