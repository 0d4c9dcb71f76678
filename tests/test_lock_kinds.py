"""Shared and counted locks, several at once, and force release: what they promise, through every door."""

import time
from typing import Any

import pytest

from tests.doors import Door, Refused
from tests.test_locks import TTL, queue, until


def owners(call: Door, key: str) -> list[str]:
    return [holder["owner"] for holder in call("locks.get", key=key)["holders"]]


def refused(call: Door, operation: str, **params: Any) -> dict[str, Any]:
    with pytest.raises(Refused) as found:
        call(operation, **params)
    problem: dict[str, Any] = found.value.problem
    return problem


# -- shared ------------------------------------------------------------------------------------------


def test_readers_share_a_lock_and_exclude_a_writer(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="r1", mode="shared", ttl_seconds=60)
    second = call("locks.acquire", key="a", owner="r2", mode="shared", ttl_seconds=50)
    assert (first["mode"], first["permits"]) == ("shared", 1)
    assert second["fencing_token"] > first["fencing_token"]
    problem = refused(call, "locks.acquire", key="a", owner="w")
    assert problem["code"] == "lock_held"
    assert {holder["owner"] for holder in problem["holders"]} == {"r1", "r2"}
    assert 45 < problem["retry_after_seconds"] <= 50
    assert owners(call, "a") == ["r1", "r2"]
    assert call("locks.find", owner="r2")["items"][0]["key"] == "a"
    for grant in (first, second):
        assert call("locks.check", key="a", fencing_token=grant["fencing_token"])["current"] is True
        assert (
            call("locks.release", key="a", lock_id=grant["lock_id"])["fencing_token"]
            == grant["fencing_token"]
        )
    assert call("locks.acquire", key="a", owner="w")["mode"] == "exclusive"
    assert refused(call, "locks.acquire", key="a", owner="r3", mode="shared")["code"] == "lock_held"
    assert refused(call, "locks.release", key="a", lock_id=first["lock_id"])["reason"] == "released"


def test_a_waiting_writer_is_not_starved_by_readers(waiting: Door, later: Any) -> None:
    reader = waiting("locks.acquire", key="a", owner="r1", mode="shared")
    writer = later(waiting, "locks.acquire", key="a", owner="w", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["w"])
    assert refused(waiting, "locks.acquire", key="a", owner="r2", mode="shared")["code"] == "lock_held"
    behind = [
        later(waiting, "locks.acquire", key="a", owner=f"r{n}", mode="shared", wait_seconds=20)
        for n in (3, 4)
    ]
    until(lambda: len(queue(waiting, "a")) == 3)
    waiting("locks.release", key="a", lock_id=reader["lock_id"])
    written = writer.result(5)
    assert owners(waiting, "a") == ["w"]
    waiting("locks.release", key="a", lock_id=written["lock_id"])
    assert all(each.result(5)["mode"] == "shared" for each in behind)  # both at once
    assert sorted(owners(waiting, "a")) == ["r3", "r4"]


def test_one_of_several_holds_expires_by_itself(call: Door) -> None:
    short = call("locks.acquire", key="a", owner="r1", mode="shared", ttl_seconds=0.2)
    call("locks.acquire", key="a", owner="r2", mode="shared", ttl_seconds=60)
    time.sleep(0.25)
    assert owners(call, "a") == ["r2"]
    assert refused(call, "locks.renew", key="a", lock_id=short["lock_id"])["reason"] == "expired"
    problem = refused(call, "locks.acquire", key="a", owner="w")
    assert [holder["owner"] for holder in problem["holders"]] == ["r2"]
    assert refused(call, "locks.renew", key="a", lock_id=short["lock_id"])["reason"] == "expired"
    assert call("locks.check", key="a", fencing_token=short["fencing_token"])["current"] is False


# -- counted -----------------------------------------------------------------------------------------


def test_a_semaphore_gives_as_many_permits_as_it_has(call: Door) -> None:
    grants = [
        call("locks.acquire", key="a", owner=f"o{n}", capacity=5, permits=2, ttl_seconds=60) for n in range(2)
    ]
    assert refused(call, "locks.acquire", key="a", owner="o2", permits=2)["code"] == "lock_held"
    assert call("locks.acquire", key="a", owner="o3")["permits"] == 1  # the capacity is the lock's own
    state = call("locks.get", key="a")
    assert state["capacity"] == 5
    assert [holder["permits"] for holder in state["holders"]] == [2, 2, 1]
    call("locks.release", key="a", lock_id=grants[0]["lock_id"])
    assert call("locks.acquire", key="a", owner="o4", permits=2)["permits"] == 2


def test_all_permits_at_once_are_an_exclusive_hold(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="all", capacity=3, permits=3)
    assert refused(call, "locks.acquire", key="a", owner="one")["code"] == "lock_held"
    assert call("locks.get", key="a")["holders"][0]["permits"] == 3
    call("locks.release", key="a", lock_id=grant["lock_id"])
    assert call("locks.acquire", key="a", owner="one")["permits"] == 1


def test_a_capacity_stays_while_the_lock_is_in_use(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="o", capacity=2)
    problem = refused(call, "locks.acquire", key="a", owner="p", capacity=3)
    assert (problem["status"], problem["code"], problem["capacity"]) == (409, "capacity_mismatch", 2)
    assert refused(call, "locks.acquire", key="a", owner="p", permits=3)["code"] == "capacity_mismatch"
    assert call("locks.acquire", key="a", owner="p", capacity=2)["permits"] == 1
    assert refused(call, "locks.acquire", key="b", owner="p", permits=2)["code"] == "capacity_mismatch"
    call("locks.force_release", key="a", reason="test")
    assert refused(call, "locks.release", key="a", lock_id=grant["lock_id"])["reason"] == "force_released"
    assert call("locks.acquire", key="a", owner="p", capacity=7, permits=7)["permits"] == 7


def test_who_wants_more_permits_is_not_overtaken(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="first", capacity=3, permits=2)
    much = later(waiting, "locks.acquire", key="a", owner="much", permits=3, wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["much"])
    assert refused(waiting, "locks.acquire", key="a", owner="little")["code"] == "lock_held"
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    assert much.result(5)["permits"] == 3


def test_a_permit_that_runs_out_goes_to_the_next(waiting: Door) -> None:
    waiting("locks.acquire", key="a", owner="short", capacity=2, ttl_seconds=TTL)
    waiting("locks.acquire", key="a", owner="long", ttl_seconds=60)
    grant = waiting("locks.acquire", key="a", owner="next", wait_seconds=20)
    assert grant["owner"] == "next"
    assert grant["waited_seconds"] < TTL + 1


# -- several at once ---------------------------------------------------------------------------------


def test_several_locks_are_taken_at_once(call: Door) -> None:
    taken = call("locks.acquire_many", keys=["b", "a", "c/d"], owner="o", ttl_seconds=60, metadata={"x": 1})
    assert taken.status == 201
    assert [grant["key"] for grant in taken["grants"]] == ["a", "b", "c/d"]
    assert len({grant["lock_id"] for grant in taken["grants"]}) == 3
    for grant in taken["grants"]:
        assert owners(call, grant["key"]) == ["o"]
        assert call("locks.release", key=grant["key"], lock_id=grant["lock_id"])["released"] is True


def test_several_locks_are_taken_all_or_not_at_all(call: Door) -> None:
    call("locks.acquire", key="b", owner="other", ttl_seconds=60)
    problem = refused(call, "locks.acquire_many", keys=["a", "b", "c"], owner="o")
    assert (problem["status"], problem["code"], problem["key"]) == (409, "lock_held", "b")
    assert [call("locks.get", key=key)["is_locked"] for key in ("a", "c")] == [False, False]


def test_items_say_mode_permits_and_capacity(call: Door) -> None:
    call("locks.acquire", key="r", owner="other", mode="shared")
    items = [{"key": "r", "mode": "shared"}, {"key": "s", "capacity": 4, "permits": 3}, {"key": "x"}]
    grants = call("locks.acquire_many", items=items, owner="o")["grants"]
    assert [(g["key"], g["mode"], g["permits"]) for g in grants] == [
        ("r", "shared", 1), ("s", "exclusive", 3), ("x", "exclusive", 1),
    ]  # fmt: skip
    assert call("locks.get", key="s")["capacity"] == 4


def test_who_waits_for_several_holds_nothing_and_is_served_when_all_are_free(
    waiting: Door, later: Any
) -> None:
    held = {key: waiting("locks.acquire", key=key, owner="other")["lock_id"] for key in ("a", "b")}
    both = later(waiting, "locks.acquire_many", keys=["a", "b", "c"], owner="both", wait_seconds=20)
    until(lambda: queue(waiting, "c") == ["both"])
    waiting("locks.release", key="a", lock_id=held["a"])
    assert owners(waiting, "a") == []
    # Strict order: what comes later does not overtake it in any of its queues.
    assert refused(waiting, "locks.acquire", key="a", owner="late")["code"] == "lock_held"
    single = later(waiting, "locks.acquire", key="c", owner="single", wait_seconds=20)
    until(lambda: queue(waiting, "c") == ["both", "single"])
    waiting("locks.release", key="b", lock_id=held["b"])
    grants = both.result(5)["grants"]
    assert [grant["key"] for grant in grants] == ["a", "b", "c"]
    assert all(grant["waited_seconds"] > 0 for grant in grants)
    waiting("locks.release", key="c", lock_id=grants[2]["lock_id"])
    assert single.result(5)["owner"] == "single"
    events = waiting("events.read", stream_id="$lock:a", event_type="lock.acquired")["events"]
    assert events[-1]["data"]["fencing_token"] == grants[0]["fencing_token"]
    assert all(grant["lock_id"] not in str(events) for grant in grants)


def test_two_who_want_the_same_several_locks_do_not_deadlock(waiting: Door, later: Any) -> None:
    def take_and_give_back(keys: list[str]) -> None:
        for _ in range(5):
            for grant in waiting("locks.acquire_many", keys=keys, owner="o", wait_seconds=30)["grants"]:
                waiting("locks.release", key=grant["key"], lock_id=grant["lock_id"])

    workers = [later(take_and_give_back, keys) for keys in (["a", "b"], ["b", "a"], ["b", "c"], ["c", "a"])]
    for worker in workers:
        worker.result(30)


def test_a_wait_for_several_ends_in_time_and_leaves_every_queue(waiting: Door) -> None:
    waiting("locks.acquire", key="b", owner="other", ttl_seconds=60)
    problem = refused(waiting, "locks.acquire_many", keys=["a", "b"], owner="o", wait_seconds=0.4)
    assert problem["code"] == "lock_wait_timeout"
    assert [queue(waiting, key) for key in ("a", "b")] == [[], []]
    assert waiting("locks.acquire", key="a", owner="p")["owner"] == "p"


def test_a_retry_of_several_gets_the_first_answer(waiting: Door) -> None:
    first = waiting("locks.acquire_many", keys=["a", "b"], owner="o", _={"key": "once"})
    again = waiting("locks.acquire_many", keys=["a", "b"], owner="o", _={"key": "once"})
    assert again.value == first.value


# -- force release -----------------------------------------------------------------------------------


def test_an_operator_takes_a_lock_away(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="o", ttl_seconds=60)
    taken = call("locks.force_release", key="a", reason="it hangs")
    assert taken["owners"] == ["o"]
    assert taken["last_token"] > grant["fencing_token"]
    for operation in ("locks.renew", "locks.release"):
        assert refused(call, operation, key="a", lock_id=grant["lock_id"])["reason"] == "force_released"
    (event,) = call("events.read", stream_id="$lock:a", event_type="lock.force_released")["events"]
    assert event["data"]["because"] == "it hangs"
    assert call("locks.acquire", key="a", owner="p")["fencing_token"] > taken["last_token"]
    assert refused(call, "locks.force_release", key="b", reason="x")["code"] == "lock_not_held"


def test_all_holders_lose_a_shared_lock_and_are_told(call: Door) -> None:
    grants = [call("locks.acquire", key="a", owner=f"r{n}", mode="shared") for n in range(40)]
    assert len(call("locks.force_release", key="a", reason="now")["owners"]) == 40
    assert {refused(call, "locks.renew", key="a", lock_id=g["lock_id"])["reason"] for g in grants} == {
        "force_released"
    }


def test_a_lock_delay_keeps_the_lock_from_everybody_and_is_told(waiting: Door) -> None:
    waiting("locks.acquire", key="a", owner="o")
    waiting("locks.force_release", key="a", reason="drain", lock_delay_seconds=0.8)
    problem = refused(waiting, "locks.acquire", key="a", owner="p")
    assert (problem["code"], problem["holders"]) == ("lock_held", [])
    assert problem["lock_delay_until"]
    assert 0 < problem["retry_after_seconds"] <= 0.8
    assert waiting("locks.get", key="a")["lock_delay_until"] == problem["lock_delay_until"]
    grant = waiting("locks.acquire", key="a", owner="p", wait_seconds=20)
    assert grant["acquired_at"] >= problem["lock_delay_until"]
    assert grant["waited_seconds"] < 0.8 + 1
