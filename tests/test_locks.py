"""What locks promise, through every door."""

import time
from typing import Any

import pytest

from tests.doors import Door, Refused

TTL = 0.3  # seconds; short enough to wait for, long enough for a busy machine


def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for a condition to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def queue(call: Door, key: str) -> list[str]:
    return [waiter["owner"] for waiter in call("locks.get", key=key)["waiters"]]


def test_a_free_lock_is_granted(call: Door) -> None:
    grant = call("locks.acquire", key="jobs/nightly", owner="alice", ttl_seconds=30, metadata={"why": "ü"})
    assert grant.status == 201
    assert set(grant.value) == {
        "lock_id", "key", "owner", "mode", "permits", "fencing_token", "acquired_at", "expires_at",
        "ttl_seconds", "waited_seconds",
    }  # fmt: skip
    assert (grant["key"], grant["owner"], grant["mode"], grant["permits"]) == (
        "jobs/nightly", "alice", "exclusive", 1,
    )  # fmt: skip
    state = call("locks.get", key="jobs/nightly").value
    assert state["is_locked"] is True
    assert state["last_token"] == grant["fencing_token"]
    (holder,) = state["holders"]
    assert holder["owner"] == "alice"
    assert holder["metadata"] == {"why": "ü"}
    assert holder["expires_at"] == grant["expires_at"]
    assert "lock_id" not in str(state)


def test_a_held_lock_is_refused_and_says_who_holds_it(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", ttl_seconds=60)
    with pytest.raises(Refused) as refused:
        call("locks.acquire", key="a", owner="bob")
    problem = refused.value.problem
    assert (refused.value.status, refused.value.code) == (409, "lock_held")
    assert [holder["owner"] for holder in problem["holders"]] == ["alice"]
    assert problem["queue_length"] == 0
    assert 55 < problem["retry_after_seconds"] <= 60
    assert call("locks.get", key="a")["last_token"] == first["fencing_token"]


def test_the_same_owner_is_refused_too(call: Door) -> None:
    call("locks.acquire", key="a", owner="alice")
    with pytest.raises(Refused, match="lock_held"):
        call("locks.acquire", key="a", owner="alice")


def test_a_released_lock_is_free_and_its_next_token_is_larger(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice")
    released = call("locks.release", key="a", lock_id=first["lock_id"])
    assert released.status == 200
    assert released.value == {"key": "a", "released": True, "fencing_token": first["fencing_token"]}
    second = call("locks.acquire", key="a", owner="bob")
    assert second["fencing_token"] > first["fencing_token"]
    assert second["lock_id"] != first["lock_id"]


def test_a_token_is_epoch_and_counter(call: Door) -> None:
    from core.models import Cluster

    epoch = Cluster.objects.get().epoch
    first = call("locks.acquire", key="a", owner="alice")
    second = call("locks.acquire", key="b", owner="alice")
    assert first["fencing_token"] >> 40 == second["fencing_token"] >> 40 == epoch
    call("locks.release", key="a", lock_id=first["lock_id"])
    assert call("locks.acquire", key="a", owner="bob")["fencing_token"] == first["fencing_token"] + 1


def test_an_expired_lock_is_free_without_anybody_asking_before(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", ttl_seconds=0.1)
    time.sleep(0.15)
    assert call("locks.get", key="a")["is_locked"] is False
    second = call("locks.acquire", key="a", owner="bob")
    assert second["fencing_token"] > first["fencing_token"]


def test_a_renewal_extends_and_keeps_the_token(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", ttl_seconds=TTL)
    renewed = call("locks.renew", key="a", lock_id=first["lock_id"], ttl_seconds=60)
    assert renewed["fencing_token"] == first["fencing_token"]
    assert renewed["ttl_seconds"] == 60
    assert renewed["expires_at"] > first["expires_at"]
    assert renewed["acquired_at"] == first["acquired_at"]
    time.sleep(TTL + 0.1)
    assert call("locks.get", key="a")["is_locked"] is True


def test_a_renewal_without_a_ttl_keeps_the_lock_s_own(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", ttl_seconds=45)
    assert call("locks.renew", key="a", lock_id=first["lock_id"])["ttl_seconds"] == 45


@pytest.mark.parametrize("operation", ["locks.renew", "locks.release"])
def test_who_does_not_hold_is_told_why(call: Door, operation: str) -> None:
    def reason(lock_id: str) -> str:
        with pytest.raises(Refused) as refused:
            call(operation, key="a", lock_id=lock_id)
        assert (refused.value.status, refused.value.code) == (409, "lock_not_held")
        found: str = refused.value.problem["reason"]
        return found

    assert reason("nobody") == "never_held"
    first = call("locks.acquire", key="a", owner="alice", ttl_seconds=0.1)["lock_id"]
    time.sleep(0.15)
    assert reason(first) == "expired"
    second = call("locks.acquire", key="a", owner="bob")["lock_id"]
    assert reason(first) == "expired"  # remembered, although another has held since
    assert reason("guess") == "never_held"
    call("locks.release", key="a", lock_id=second)
    assert reason(second) == "released"


def test_who_does_not_hold_changes_nothing(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="alice")
    with pytest.raises(Refused):
        call("locks.release", key="a", lock_id="guess")
    assert call("locks.get", key="a")["holders"][0]["fencing_token"] == grant["fencing_token"]


def test_a_token_can_be_checked(call: Door) -> None:
    assert call("locks.check", key="a", fencing_token=1).value == {"current": False, "last_token": 0}
    first = call("locks.acquire", key="a", owner="alice")
    token = first["fencing_token"]
    assert call("locks.check", key="a", fencing_token=token).value == {"current": True, "last_token": token}
    assert call("locks.check", key="a", fencing_token=token - 1)["current"] is False
    call("locks.release", key="a", lock_id=first["lock_id"])
    assert call("locks.check", key="a", fencing_token=token).value == {"current": False, "last_token": token}


def test_an_unknown_lock_is_free(call: Door) -> None:
    state = call("locks.get", key="never/seen")
    assert state.status == 200
    assert state.value == {
        "key": "never/seen", "is_locked": False, "capacity": 1, "last_token": 0, "holders": [],
        "waiters": [], "queue_length": 0, "lock_delay_until": None,
    }  # fmt: skip


def test_locks_are_found_by_prefix_owner_and_state(call: Door) -> None:
    def keys(**filters: Any) -> list[str]:
        return [item["key"] for item in call("locks.find", **filters)["items"]]

    for key, owner in (("a/1", "alice"), ("a/2", "bob"), ("b/1", "alice")):
        call("locks.acquire", key=key, owner=owner)
    free = call("locks.acquire", key="a/0", owner="alice")
    call("locks.release", key="a/0", lock_id=free["lock_id"])
    assert keys() == ["a/0", "a/1", "a/2", "b/1"]
    assert keys(prefix="a/") == ["a/0", "a/1", "a/2"]
    assert keys(prefix="a/", held=True) == ["a/1", "a/2"]
    assert keys(held=False) == ["a/0"]
    assert keys(owner="alice") == ["a/1", "b/1"]
    assert keys(contended=True) == []
    assert keys(prefix="a_") == []  # no wildcard


def test_a_list_goes_on_with_its_cursor(call: Door) -> None:
    for number in range(5):
        call("locks.acquire", key=f"k{number}", owner="alice")
    first = call("locks.find", limit=2)
    assert [item["key"] for item in first["items"]] == ["k0", "k1"]
    second = call("locks.find", limit=2, cursor=first["next_cursor"])
    assert [item["key"] for item in second["items"]] == ["k2", "k3"]
    last = call("locks.find", limit=2, cursor=second["next_cursor"])
    assert [item["key"] for item in last["items"]] == ["k4"]
    assert last["next_cursor"] is None


def test_locks_of_another_namespace_are_others(call: Door, served: Any) -> None:
    call("locks.acquire", key="a", owner="alice")
    elsewhere = type(call)(served, "default")
    assert call.namespace not in str(elsewhere("locks.find", limit=200).value)
    key = f"only-{call.namespace}"
    mine = call("locks.acquire", key=key, owner="alice")
    with pytest.raises(Refused, match="never_held"):
        elsewhere("locks.release", key=key, lock_id=mine["lock_id"])


def test_keys_hold_slashes_and_look_like_verbs(call: Door) -> None:
    for key in ("a/b/c", "renewals", "a.b:c@d=e+f-g_h", "x" * 255, "a/release/b"):
        grant = call("locks.acquire", key=key, owner="alice")
        assert call("locks.get", key=key)["is_locked"] is True
        assert call("locks.release", key=key, lock_id=grant["lock_id"])["released"] is True


def test_a_lock_s_history_is_in_the_log(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice")
    call("locks.renew", key="a", lock_id=first["lock_id"])
    call("locks.release", key="a", lock_id=first["lock_id"])
    events = call("events.read", stream_id="$lock:a")["events"]
    assert [(e["event_type"], e["version"]) for e in events] == [("lock.acquired", 1), ("lock.released", 2)]
    assert events[0]["data"]["fencing_token"] == first["fencing_token"]
    assert first["lock_id"] not in str(events)


# -- waiting -----------------------------------------------------------------------------------------


def test_a_waiter_gets_the_lock_when_it_is_released(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="alice")
    second = later(waiting, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["bob"])
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    grant = second.result(5)
    assert grant.status == 201
    assert grant["owner"] == "bob"
    assert grant["fencing_token"] > first["fencing_token"]
    assert grant["waited_seconds"] > 0
    assert waiting("locks.renew", key="a", lock_id=grant["lock_id"])["owner"] == "bob"


def test_a_waiter_gets_the_lock_when_it_expires(waiting: Door) -> None:
    waiting("locks.acquire", key="a", owner="alice", ttl_seconds=TTL)
    grant = waiting("locks.acquire", key="a", owner="bob", wait_seconds=20)
    assert grant["owner"] == "bob"
    assert grant["waited_seconds"] < TTL + 1  # P2


def test_waiters_are_served_in_order(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="first")
    names = [f"w{number}" for number in range(6)]
    order: list[str] = []

    def take_and_give_back(name: str) -> None:
        grant = waiting("locks.acquire", key="a", owner=name, wait_seconds=30)
        order.append(name)
        waiting("locks.release", key="a", lock_id=grant["lock_id"])

    workers = []
    for count, name in enumerate(names, 1):
        workers.append(later(take_and_give_back, name))
        until(lambda count=count: len(queue(waiting, "a")) == count)
    assert queue(waiting, "a") == names
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    for worker in workers:
        worker.result(20)
    assert order == names


def test_nobody_overtakes_the_queue(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="alice")
    second = later(waiting, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["bob"])
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    with pytest.raises(Refused, match="lock_held"):
        waiting("locks.acquire", key="a", owner="carol")
    assert second.result(5)["owner"] == "bob"


def test_a_wait_ends_in_time_and_leaves_the_queue(waiting: Door) -> None:
    waiting("locks.acquire", key="a", owner="alice")
    started = time.monotonic()
    with pytest.raises(Refused) as refused:
        waiting("locks.acquire", key="a", owner="bob", wait_seconds=0.4)
    assert (refused.value.status, refused.value.code) == (409, "lock_wait_timeout")
    assert refused.value.problem["key"] == "a"
    assert time.monotonic() - started >= 0.4
    assert queue(waiting, "a") == []
    kinds = [e["event_type"] for e in waiting("events.read", stream_id="$lock:a")["events"]]
    assert kinds == ["lock.acquired", "lock.queued", "lock.withdrawn"]


def test_waiters_are_shown_with_their_tickets(waiting: Door, later: Any) -> None:
    first = waiting("locks.acquire", key="a", owner="alice")
    second = later(waiting, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["bob"])
    state = waiting("locks.get", key="a")
    (waiter,) = state["waiters"]
    assert (waiter["ticket"], waiter["mode"], waiter["permits"]) == (1, "exclusive", 1)
    assert waiter["since"] < waiter["deadline"]
    assert state["queue_length"] == 1
    assert [i["key"] for i in waiting("locks.find", contended=True)["items"]] == ["a"]
    waiting("locks.release", key="a", lock_id=first["lock_id"])
    second.result(5)


# -- the fence ---------------------------------------------------------------------------------------


def test_a_write_with_the_current_token_is_taken(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="alice")
    fence = {"key": "a", "fencing_token": grant["fencing_token"]}
    assert call("events.append", stream_id="s", event_type="t", data=1, fence=fence).status == 201


@pytest.mark.parametrize("stale", ["released", "passed_on", "never"])
def test_a_write_with_a_stale_token_is_refused_and_recorded(call: Door, stale: str) -> None:
    grant = call("locks.acquire", key="a", owner="alice")
    token = grant["fencing_token"] if stale != "never" else 5
    if stale != "never":
        call("locks.release", key="a", lock_id=grant["lock_id"])
    if stale == "passed_on":
        call("locks.acquire", key="a", owner="bob")
    fence = {"key": "a", "fencing_token": token}
    with pytest.raises(Refused) as refused:
        call("events.append", stream_id="s", event_type="t", data=1, fence=fence)
    assert (refused.value.status, refused.value.code) == (409, "fence_stale")
    assert call("events.read", stream_id="s")["version"] == 0
    (violation,) = call("events.read", stream_id="$fence")["events"]
    assert violation["data"]["key"] == "a"
    assert violation["data"]["fencing_token"] == token
    assert violation["data"]["operation"] == "events.append"


def test_a_lock_may_be_guarded_by_another(call: Door) -> None:
    with pytest.raises(Refused, match="fence_stale"):
        call("locks.acquire", key="b", owner="alice", fence={"key": "a", "fencing_token": 7})
    assert call("locks.get", key="b")["is_locked"] is False
