"""Sessions: one lease for all that a client holds, through every door."""

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest

from core.types import encode_cursor
from tests.doors import Door, Lane, Served
from tests.test_lock_kinds import owners, refused
from tests.test_locks import queue, until

TTL = 0.6  # seconds


def test_a_session_is_opened_kept_alive_and_closed(call: Door) -> None:
    session = call(
        "sessions.open", owner="worker 1", ttl_seconds=20, lock_delay_seconds=1, metadata={"pod": "x"}
    )
    assert session.status == 201
    assert (session["owner"], session["ttl_seconds"], session["lock_delay_seconds"]) == ("worker 1", 20, 1)
    kept = call("sessions.keepalive", session_id=session["session_id"])
    assert kept["expires_at"] > session["expires_at"]
    found = call("sessions.get", session_id=session["session_id"])
    assert (found["metadata"], found["ended_at"]) == ({"pod": "x"}, None)
    assert [s["session_id"] for s in call("sessions.find", owner="worker 1")["items"]] == [
        session["session_id"]
    ]
    closed = call("sessions.close", session_id=session["session_id"])
    assert (closed["reason"], closed["ended_at"] is None) == ("closed", False)
    assert call("sessions.find")["items"] == []
    for operation in ("sessions.keepalive", "sessions.close"):
        problem = refused(call, operation, session_id=session["session_id"])
        assert (problem["status"], problem["code"], problem["reason"]) == (409, "session_ended", "closed")
    events = call("events.read", stream_id=f"$session:{session['session_id']}")["events"]
    assert [event["event_type"] for event in events] == ["session.opened", "session.closed"]


@pytest.mark.parametrize("operation", ["sessions.keepalive", "sessions.close", "sessions.get"])
def test_an_unknown_session_is_not_found(call: Door, operation: str) -> None:
    problem = refused(call, operation, session_id="unknown")
    assert (problem["status"], problem["code"]) == (404, "session_not_found")


def test_locks_of_a_session_last_as_long_as_it(call: Door) -> None:
    session = call("sessions.open", owner="s", ttl_seconds=60)
    one = call("locks.acquire", key="a", owner="o", session_id=session["session_id"])
    call("locks.acquire", key="r", owner="o", mode="shared", session_id=session["session_id"])
    call("locks.acquire_many", keys=["b", "c"], owner="o", session_id=session["session_id"])
    assert (one["ttl_seconds"], one["expires_at"]) == (60, session["expires_at"])
    kept = call("sessions.keepalive", session_id=session["session_id"])
    for key in ("a", "b", "c", "r"):
        (holder,) = call("locks.get", key=key)["holders"]
        assert (holder["session_id"], holder["expires_at"]) == (session["session_id"], kept["expires_at"])
    assert call("locks.renew", key="a", lock_id=one["lock_id"])["expires_at"] == kept["expires_at"]
    call("sessions.close", session_id=session["session_id"])
    assert [owners(call, key) for key in ("a", "b", "c", "r")] == [[], [], [], []]
    assert refused(call, "locks.release", key="a", lock_id=one["lock_id"])["reason"] == "released"
    problem = refused(call, "locks.acquire", key="a", owner="o", session_id=session["session_id"])
    assert (problem["code"], problem["reason"]) == ("session_ended", "closed")


def test_an_expired_session_sets_its_locks_free_and_is_never_revived(waiting: Door) -> None:
    session = waiting("sessions.open", owner="s", ttl_seconds=TTL)["session_id"]
    grant = waiting("locks.acquire", key="a", owner="o", session_id=session)
    following = waiting("locks.acquire", key="a", owner="p", wait_seconds=20)
    assert following["owner"] == "p"
    assert following["waited_seconds"] < TTL + 1
    problem = refused(waiting, "sessions.keepalive", session_id=session)
    assert (problem["code"], problem["reason"]) == ("session_ended", "expired")
    assert refused(waiting, "locks.renew", key="a", lock_id=grant["lock_id"])["reason"] == "expired"


def test_a_session_that_is_kept_alive_keeps_its_lock(call: Door) -> None:
    session = call("sessions.open", owner="s", ttl_seconds=1.5)["session_id"]
    call("locks.acquire", key="a", owner="o", session_id=session)
    for _ in range(4):
        time.sleep(0.5)
        call("sessions.keepalive", session_id=session)
    assert owners(call, "a") == ["o"]


def test_the_lock_delay_of_a_session_counts_when_it_expires(waiting: Door) -> None:
    session = waiting("sessions.open", owner="s", ttl_seconds=TTL, lock_delay_seconds=1)
    waiting("locks.acquire", key="a", owner="o", session_id=session["session_id"])
    grant = waiting("locks.acquire", key="a", owner="p", wait_seconds=20)
    after = datetime.fromisoformat(grant["acquired_at"]) - datetime.fromisoformat(session["expires_at"])
    assert after.total_seconds() >= 1
    assert grant["waited_seconds"] < TTL + 1 + 1


def test_the_lock_delay_does_not_count_when_it_is_closed(call: Door) -> None:
    session = call("sessions.open", owner="s", lock_delay_seconds=60)["session_id"]
    call("locks.acquire", key="a", owner="o", session_id=session)
    call("sessions.close", session_id=session)
    assert call("locks.acquire", key="a", owner="p")["owner"] == "p"


def test_places_in_queues_end_with_the_session(waiting: Door, later: Any) -> None:
    for key in ("a", "b"):
        waiting("locks.acquire", key=key, owner="o", ttl_seconds=60)
    session = waiting("sessions.open", owner="s")["session_id"]
    how = {"session_id": session, "wait_seconds": 20}
    one = later(refused, waiting, "locks.acquire", key="a", owner="one", **how)
    two = later(refused, waiting, "locks.acquire_many", keys=["b", "c"], owner="two", **how)
    until(lambda: (queue(waiting, "a"), queue(waiting, "c")) == (["one"], ["two"]))
    waiting("sessions.close", session_id=session)
    for problem in (one.result(5), two.result(5)):
        assert (problem["code"], problem["reason"]) == ("session_ended", "closed")
    assert [queue(waiting, key) for key in ("a", "b", "c")] == [[], [], []]


def test_no_cursor_leads_into_another_namespace(call: Door) -> None:
    """A cursor is a place that the client sends, made up or not: `default` comes before the test's namespace."""
    kept = call("sessions.open", owner="theirs", ttl_seconds=60, _={"namespace": "default"})
    mine = call("sessions.open", owner="mine", ttl_seconds=60)
    found = call("sessions.find", cursor=encode_cursor("!"))
    assert [session["session_id"] for session in found["items"]] == [mine["session_id"]]
    call("sessions.close", session_id=kept["session_id"], _={"namespace": "default"})


def test_what_is_taken_and_closed_in_one_batch_is_gone(lane: Lane, served: Served) -> None:
    """Commands that come together are decided together, also again and again until all they need is there."""
    from core.callers import DEVELOPER, Call, namespaces
    from core.operations import registry
    from core.runtime import runtime

    session = lane("sessions.open", owner="s")["session_id"]
    lane("locks.acquire", key="held", owner="o", session_id=session)
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)), "test")

    def carried(operation: str, **params: Any) -> Any:
        found = registry[operation]
        return runtime.carry_out(found, call, found.parse(params))

    async def together() -> list[Any]:
        how = {"owner": "o", "session_id": session}
        tasks = [
            carried("locks.acquire", key="shared", mode="shared", **how),
            carried("locks.acquire", key="sole", **how),
            carried("sessions.close", session_id=session),
            carried("locks.acquire", key="late", **how),
        ]
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    *taken, closed, late = served.do(together())
    assert closed.value.reason == "closed"
    assert getattr(late, "code", "") == "session_ended"
    for outcome in taken:
        assert outcome.value.key in {"shared", "sole"}
    assert [owners(lane, key) for key in ("held", "shared", "sole", "late")] == [[], [], [], []]
