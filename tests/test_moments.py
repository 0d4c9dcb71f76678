"""What comes in the very moment in which something else begins or ends: nobody is left waiting, nothing stays taken."""

import asyncio
import time
from typing import Any

import pytest

from core.batch import Job
from core.callers import DEVELOPER, Call, namespaces
from core.log import Entry
from core.operations import registry
from core.runtime import runtime
from core.waiting import Waiters
from tests.doors import Lane, Served
from tests.test_engine import Alone, alone  # noqa: F401

SOON = 10.0  # seconds; what is not heard of comes after 60


def test_an_event_between_the_look_at_the_log_and_the_wait_ends_the_wait(
    lane: Lane, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from events import services

    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)))
    look = services.head_for

    async def look_and_append(*about: Any) -> int:
        head = await look(*about)
        operation = registry["events.append"]
        event = {"event_type": "placed", "data": {}}
        await runtime.run(operation, call, operation.parse({"stream_id": "order-1", **event}))
        await asyncio.sleep(0.05)  # it is handed on
        return head

    lane("events.append", stream_id="order-0", event_type="placed", data={})
    monkeypatch.setattr(services, "head_for", look_and_append)
    started = time.monotonic()
    page = lane("events.read_all", from_position=2, wait_seconds=60)
    assert [event["stream_id"] for event in page["events"]] == ["order-1"]
    assert time.monotonic() - started < SOON


def test_a_retry_in_the_batch_of_the_first_call_waits_in_its_place(alone: Alone, served: Served) -> None:  # noqa: F811
    waiters = Waiters()
    alone.engine._expecting = waiters.expect
    acquire = registry["locks.acquire"]

    def job(owner: str, key: str = "", **more: Any) -> Job:
        found = alone.job(acquire, **acquire.parse({"key": "k", "owner": owner, **more}))
        found.granted = served.do(future())
        if key:
            found.answer_id, found.fingerprint = f"{alone.namespace.name}/{key}", "same"
        return found

    (held,) = alone.carry_out([job("holder", ttl_seconds=60)])
    first, again = alone.carry_out([job("next", "key", wait_seconds=30), job("next", "key", wait_seconds=30)])
    assert again.twin is first
    release = registry["locks.release"]
    params = release.parse({"key": "k", "lock_id": held.value.lock_id})
    alone.carry_out([alone.job(release, **params)])
    waiters.notice(log_of(alone, "$lock:k"))
    assert (first.granted.done(), again.granted.done()) == (True, True)
    assert not waiters.streams


async def future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def log_of(alone: Alone, stream: str) -> list[Entry]:  # noqa: F811
    return [entry for entry in alone.entries if entry.stream == stream]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_grant_in_the_last_moment_of_a_wait_is_given_back_if_the_caller_goes(
    lane: Lane, served: Served, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """It is kept for one who has a key, and may ask again."""
    held = lane("locks.acquire", key="k", owner="holder")
    acquire, withdraw = registry["locks.acquire"], runtime._withdraw
    key = "a-key" if keeps else None
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)), idempotency_key=key)

    async def story() -> None:
        def withdraw_and_go(job: Job, facts: dict[str, Any], reason: str = "client_gone") -> Any:
            if reason == "timed_out":
                asyncio.get_running_loop().call_soon(waiting.cancel)
            return withdraw(job, facts, reason)

        monkeypatch.setattr(runtime, "_withdraw", withdraw_and_go)
        monkeypatch.setattr(runtime.waiters, "notice", lambda entries: None)  # the news is late
        params = acquire.parse({"key": "k", "owner": "late", "wait_seconds": 1.0})
        waiting = asyncio.create_task(runtime.run(acquire, call, params))
        await asyncio.sleep(0.2)
        release = registry["locks.release"]
        params = release.parse({"key": "k", "lock_id": held["lock_id"]})
        await runtime.run(release, Call(DEVELOPER, call.namespace), params)
        await asyncio.wait((waiting,))
        assert waiting.cancelled()

    def owners() -> list[str]:
        return [each["owner"] for each in lane("locks.get", key="k")["holders"]]

    served.do(story())
    until = time.monotonic() + (1.0 if keeps else SOON)
    while time.monotonic() < until and owners():
        time.sleep(0.05)
    assert owners() == (["late"] if keeps else [])
