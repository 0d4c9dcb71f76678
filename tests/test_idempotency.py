"""The same Idempotency-Key, the same effect: through every door."""

import asyncio
import time
from concurrent.futures import CancelledError
from typing import Any

import orjson
import pytest
from orjson import Fragment

from core.batch import Job
from core.callers import DEVELOPER, Call, namespaces
from core.encoding import encode
from core.operations import registry
from core.runtime import runtime
from tests.doors import Door, Lane, Refused, Served
from tests.test_locks import queue, until


def test_the_same_key_and_body_give_the_first_answer(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", _={"key": "k1"})
    again = call("locks.acquire", key="a", owner="alice", _={"key": "k1"})
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.status, again.value) == (201, first.value)
    assert len(call("events.read", stream_id="$lock:a")["events"]) == 1


def test_an_append_is_replayed(call: Door) -> None:
    first = call("events.append", stream_id="s", event_type="t", data={"n": 1}, _={"key": "k1"})
    again = call("events.append", stream_id="s", event_type="t", data={"n": 1}, _={"key": "k1"})
    assert again.value == first.value
    assert again.replayed
    assert call("events.read", stream_id="s")["version"] == 1


def test_another_body_under_the_same_key_is_refused(call: Door) -> None:
    call("locks.acquire", key="a", owner="alice", _={"key": "k1"})
    with pytest.raises(Refused) as refused:
        call("locks.acquire", key="b", owner="alice", _={"key": "k1"})
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")
    assert call("locks.get", key="b")["is_locked"] is False


def test_refusals_are_not_kept(call: Door) -> None:
    held = call("locks.acquire", key="a", owner="alice")
    with pytest.raises(Refused, match="lock_held"):
        call("locks.acquire", key="a", owner="bob", _={"key": "k1"})
    call("locks.release", key="a", lock_id=held["lock_id"])
    granted = call("locks.acquire", key="a", owner="bob", _={"key": "k1"})
    assert granted["owner"] == "bob"
    assert not granted.replayed


def test_the_key_is_that_of_one_operation(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="alice", _={"key": "k1"})
    renewed = call("locks.renew", key="a", lock_id=grant["lock_id"], _={"key": "k1"})
    assert not renewed.replayed


def test_the_key_is_that_of_one_namespace(call: Door, served: Any) -> None:
    first = call("events.append", stream_id="s", event_type="t", data={}, _={"key": call.namespace})
    other = call(
        "events.append", stream_id=call.namespace, event_type="t", data={},
        _={"key": call.namespace, "namespace": "default"},
    )  # fmt: skip
    assert not other.replayed
    assert first["stream_id"] != other["stream_id"]


def test_a_race_of_the_same_key_has_one_effect(call: Door, later: Any) -> None:
    def append() -> Any:
        return call("events.append", stream_id="s", event_type="t", data={}, _={"key": "k1"})

    answers = [worker.result(20) for worker in [later(append) for _ in range(12)]]
    assert len({answer["position"] for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert call("events.read", stream_id="s")["version"] == 1


def test_a_race_for_a_lock_with_one_key_has_one_grant(call: Door, later: Any) -> None:
    def acquire() -> Any:
        return call("locks.acquire", key="a", owner="alice", _={"key": "k1"})

    answers = [worker.result(20) for worker in [later(acquire) for _ in range(8)]]
    assert len({answer["lock_id"] for answer in answers}) == 1


def test_a_retry_joins_the_first_call_s_wait(waiting: Door, later: Any) -> None:
    held = waiting("locks.acquire", key="a", owner="alice")

    def ask() -> Any:
        return waiting("locks.acquire", key="a", owner="bob", wait_seconds=20, _={"key": "k1"})

    first = later(ask)
    until(lambda: queue(waiting, "a") == ["bob"])
    second = later(ask)
    third = later(waiting, "locks.acquire", key="a", owner="carol", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["bob", "carol"])
    waiting("locks.release", key="a", lock_id=held["lock_id"])
    one, two = first.result(5), second.result(5)
    assert one["lock_id"] == two["lock_id"]
    assert one.value == ask().value  # and once more, from what was kept
    assert ask().replayed
    waiting("locks.release", key="a", lock_id=one["lock_id"])
    assert third.result(5)["owner"] == "carol"


@pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
def test_a_retry_for_several_is_answered_as_the_first_call_was(
    waiting: Door, later: Any, keys: list[str]
) -> None:
    held = waiting("locks.acquire", key="a", owner="alice")

    def ask() -> Any:
        return waiting("locks.acquire_many", keys=keys, owner="bob", wait_seconds=20, _={"key": "k1"})

    first = later(ask)
    until(lambda: queue(waiting, "a") == ["bob"])
    waiting("locks.release", key="a", lock_id=held["lock_id"])
    again = (first.result(5), ask())
    assert again[1].replayed
    assert again[0].value == again[1].value


def test_a_wait_that_timed_out_may_be_asked_again(waiting: Door) -> None:
    held = waiting("locks.acquire", key="a", owner="alice")
    with pytest.raises(Refused, match="lock_wait_timeout"):
        waiting("locks.acquire", key="a", owner="bob", wait_seconds=0.3, _={"key": "k1"})
    waiting("locks.release", key="a", lock_id=held["lock_id"])
    granted = waiting("locks.acquire", key="a", owner="bob", wait_seconds=0.3, _={"key": "k1"})
    assert granted["owner"] == "bob"


def test_the_secret_of_a_key_is_not_kept(call: Door) -> None:
    first = call("api_keys.create", name="ci", _={"key": "k1"})
    again = call("api_keys.create", name="ci", _={"key": "k1"})
    assert again.replayed
    assert first["key"].startswith("syr_")
    assert "key" not in again.value
    assert again["id"] == first["id"]


# -- a client that goes away, and asks again ---------------------------------------------------------


def keyed(served: Served, lane: Lane) -> Job:
    """Bob's wish for a lock, under a key."""
    operation = registry["locks.acquire"]
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)), idempotency_key="k1")
    return Job(operation, operation.parse({"key": "a", "owner": "bob", "wait_seconds": 20}), call)


async def ask(job: Job) -> Any:
    return (await runtime.carry_out(job.operation, job.call, job.params)).value


def has_what_is_answered(served: Served, lane: Lane, job: Job) -> None:
    again = orjson.loads(encode(served.do(ask(job))))
    assert lane("locks.renew", key="a", lock_id=again["lock_id"])["fencing_token"] == again["fencing_token"]


def test_what_was_taken_for_a_client_that_went_away_is_its_retry_s(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runtime.engine
    submit = runtime.engine.submit
    job = keyed(served, lane)

    def submit_and_go(each: Job) -> None:
        submit(each)
        if each.params is job.params and each.future:
            each.future.cancel()

    monkeypatch.setattr(runtime.engine, "submit", submit_and_go)
    with pytest.raises(CancelledError):
        served.do(ask(job))
    monkeypatch.undo()
    until(lambda: lane("locks.get", key="a")["is_locked"])
    time.sleep(0.3)  # for whoever would take it back
    has_what_is_answered(served, lane, job)


def test_a_grant_that_came_before_the_client_s_going_is_its_retry_s(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, job = lane("locks.acquire", key="a", owner="alice"), keyed(served, lane)
    waiting = asyncio.run_coroutine_threadsafe(ask(job), served.loop)
    until(lambda: queue(lane, "a") == ["bob"])
    monkeypatch.setattr(
        runtime.waiters, "notice", lambda entries: None
    )  # as in a process that hears of it late
    lane("locks.release", key="a", lock_id=held["lock_id"])
    waiting.cancel()
    until(lambda: not runtime.waiters.streams)
    time.sleep(0.3)
    has_what_is_answered(served, lane, job)


def test_a_replay_that_nobody_hears_is_nothing_to_the_others(served: Served, lane: Lane) -> None:
    gone, other = keyed(served, lane), keyed(served, lane)

    async def deliver() -> None:
        gone.future, other.future = (asyncio.get_running_loop().create_future() for _ in range(2))
        gone.future.cancel()
        gone.answer_id, gone.value = "kept", Fragment(b"{}")
        runtime._delivered([gone, other], [], [])
        await asyncio.wait_for(other.future, 1)

    served.do(deliver())
