"""Deadlocks are refused, with the cycle, through every door that waits."""

from typing import Any

from tests.doors import Door
from tests.test_lock_kinds import refused
from tests.test_locks import queue, until


def session(call: Door, owner: str) -> str:
    found: str = call("sessions.open", owner=owner, ttl_seconds=60)["session_id"]
    return found


def test_who_would_wait_for_itself_is_refused_with_the_cycle(waiting: Door, later: Any) -> None:
    alice, bob = session(waiting, "alice"), session(waiting, "bob")
    waiting("locks.acquire", key="a", owner="alice", session_id=alice)
    held = waiting("locks.acquire", key="b", owner="bob", session_id=bob)
    first = later(waiting, "locks.acquire", key="b", owner="alice", session_id=alice, wait_seconds=20)
    until(lambda: queue(waiting, "b") == ["alice"])
    problem = refused(waiting, "locks.acquire", key="a", owner="bob", session_id=bob, wait_seconds=20)
    assert (problem["status"], problem["code"]) == (409, "deadlock")
    assert [(c["session_id"], c["owner"], c["waits_for"]) for c in problem["cycle"]] == [
        (bob, "bob", "a"), (alice, "alice", "b"),
    ]  # fmt: skip
    assert all(name in problem["detail"] for name in ("alice", "bob", alice, bob))
    assert queue(waiting, "a") == []
    graph = waiting("locks.waits_for")
    assert [(e["waiter"], e["blocker"], e["key"], e["because"]) for e in graph["edges"]] == [
        (alice, bob, "b", "holds")
    ]
    assert {(n["id"], n["kind"], n["owner"]) for n in graph["nodes"]} == {
        (alice, "session", "alice"), (bob, "session", "bob"),
    }  # fmt: skip
    assert graph["cycles"] == []
    waiting("locks.release", key="b", lock_id=held["lock_id"])
    assert first.result(5)["owner"] == "alice"


def test_a_session_behind_itself_is_a_deadlock(waiting: Door) -> None:
    alice = session(waiting, "alice")
    waiting("locks.acquire", key="a", owner="alice", session_id=alice)
    problem = refused(waiting, "locks.acquire", key="a", owner="alice", session_id=alice, wait_seconds=20)
    assert (problem["code"], len(problem["cycle"])) == ("deadlock", 1)


def test_a_semaphore_with_room_to_come_is_none(waiting: Door, later: Any) -> None:
    """Another's permit may come back: nobody waits for itself."""
    alice, bob = session(waiting, "alice"), session(waiting, "bob")
    waiting("locks.acquire", key="a", owner="alice", session_id=alice, capacity=2)
    permit = waiting("locks.acquire", key="a", owner="bob", session_id=bob)
    more = later(waiting, "locks.acquire", key="a", owner="alice", session_id=alice, wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["alice"])
    waiting("locks.release", key="a", lock_id=permit["lock_id"])
    assert more.result(5)["owner"] == "alice"


def test_three_readers_and_a_writer_in_a_circle(waiting: Door, later: Any) -> None:
    """Through a queue: a reader behind a waiting writer waits for it too."""
    alice, bob = session(waiting, "alice"), session(waiting, "bob")
    waiting("locks.acquire", key="a", owner="alice", session_id=alice, mode="shared")
    waiting("locks.acquire", key="b", owner="bob", session_id=bob)
    later(refused, waiting, "locks.acquire", key="a", owner="bob", session_id=bob, wait_seconds=3)
    until(lambda: queue(waiting, "a") == ["bob"])
    problem = refused(
        waiting, "locks.acquire_many", items=[{"key": "b", "mode": "shared"}, {"key": "c"}], owner="alice",
        session_id=alice, wait_seconds=20,
    )  # fmt: skip
    assert problem["code"] == "deadlock"
    assert queue(waiting, "c") == []


def test_callers_without_a_session_are_never_taken_for_each_other(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="same", ttl_seconds=60)
    second = later(waiting, "locks.acquire", key="a", owner="same", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["same"])
    edge = waiting("locks.waits_for")["edges"][0]
    assert first["lock_id"] not in str(edge)
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    assert second.result(5)["owner"] == "same"
