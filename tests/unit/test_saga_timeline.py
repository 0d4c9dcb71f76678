"""What facts tell of a saga's course."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sagas.facts import Fact
from sagas.timeline import Told, told
from sagas.types import TimelineLane

ZERO = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return ZERO + timedelta(seconds=seconds)


def fact(seconds: float, kind: str, step: str = "a", **more: Any) -> Fact:
    about = {"attempt": None, "code": "", "message": "", "outcome": "", "waits_for": "", "about": "",
             "retry_at": None, "until": None, "fetched_at": None, **more}  # fmt: skip
    return Fact(0, 1, kind, "system", at(seconds), "" if kind.startswith("saga") else step, **about)


def seen(*facts: Fact, status: str = "running", fetched: Any = None) -> Told:
    return told(["a"], status, facts, fetched or {})


def only(found: Told, side: str = "action") -> TimelineLane:
    (lane,) = [lane for lane in found.lanes if lane.side == side]
    return lane


def attempts(lane: TimelineLane) -> list[tuple[Any, ...]]:
    return [(each.attempt, each.by, seconds(each.started_at), seconds(each.finished_at), each.outcome)
            for each in lane.attempts]  # fmt: skip


def waits(lane: TimelineLane) -> list[tuple[Any, ...]]:
    return [(each.reason, seconds(each.started_at), seconds(each.finished_at)) for each in lane.waits]


def seconds(instant: datetime | None) -> float | None:
    return instant and (instant - ZERO).total_seconds()


def test_a_call_is_repeated_after_a_pause() -> None:
    lane = only(seen(
        fact(1, "step.dispatched", attempt=1),
        fact(2, "step.failed", attempt=1, code="busy", outcome="refused", retry_at=at(4)),
        fact(4, "step.dispatched", attempt=2),
    ))  # fmt: skip
    assert attempts(lane) == [(1, "push", 1, 2, "refused"), (2, "push", 4, None, None)]
    assert waits(lane) == [("retry", 2, 4)]
    assert (lane.attempts[0].code, lane.waits[0].until, lane.outcome) == ("busy", at(4), None)


def test_who_is_left_alone_was_not_called() -> None:
    lane = only(seen(
        fact(1, "step.dispatched", attempt=1), fact(2, "step.ongoing", attempt=1, until=at(3)),
        fact(3, "step.dispatched", attempt=2), fact(3, "step.deferred", attempt=2, until=at(5)),
        fact(5, "step.dispatched", attempt=3),
    ))  # fmt: skip
    assert attempts(lane) == [(1, "push", 1, 2, "ongoing"), (3, "push", 5, None, None)]
    assert waits(lane) == [("ongoing", 2, 3), ("deferred", 3, 5)]


def test_what_was_accepted_lasts_until_it_is_answered() -> None:
    lane = only(seen(
        fact(1, "step.dispatched", attempt=1), fact(2, "step.accepted", attempt=1, until=at(30)),
        fact(5, "step.succeeded", attempt=1),
    ))  # fmt: skip
    assert attempts(lane) == [(1, "push", 1, 5, "succeeded")]
    assert waits(lane) == [("answer", 2, 5)]


def test_a_call_whose_caller_is_gone_is_lost() -> None:
    lane = only(seen(fact(1, "step.dispatched", attempt=1), fact(9, "step.dispatched", attempt=2)))
    assert attempts(lane) == [(1, "push", 1, 9, "lost"), (2, "push", 9, None, None)]


def test_what_was_asked_about_an_action_is_a_lane_of_its_own() -> None:
    found = seen(
        fact(1, "step.dispatched", attempt=1), fact(2, "step.verifying", attempt=2),
        fact(3, "step.verifying", attempt=3), fact(4, "step.succeeded", attempt=3),
    )  # fmt: skip
    assert [lane.side for lane in found.lanes] == ["action", "verify"]
    assert attempts(only(found)) == [(1, "push", 1, 2, "unknown")]
    assert attempts(only(found, "verify")) == [(2, "push", 2, 3, "unknown"), (3, "push", 3, 4, "applied")]
    assert (only(found).outcome, only(found, "verify").outcome) == ("succeeded", "applied")


def test_who_waits_for_locks_and_has_them() -> None:
    lane = only(seen(
        fact(1, "step.waiting", waits_for="locks", about="k, l", until=at(30)), fact(3, "step.locked"),
        fact(3, "step.dispatched", attempt=1), fact(4, "step.succeeded", attempt=1),
    ))  # fmt: skip
    assert waits(lane) == [("locks", 1, 3)]
    assert lane.waits[0].about == "k, l"


def test_a_worker_has_a_task_from_when_it_fetched_it() -> None:
    queued = fact(1, "step.queued", attempt=1)
    done = seen(queued, fact(5, "step.succeeded", attempt=1, fetched_at=at(3)))
    assert (attempts(only(done)), waits(only(done))) == ([(1, "pull", 3, 5, "succeeded")], [("worker", 1, 3)])
    now = seen(queued, fetched={("a", "action"): at(3)})
    assert (attempts(only(now)), waits(only(now))) == ([(1, "pull", 3, None, None)], [("worker", 1, 3)])
    waiting = seen(queued)
    assert (attempts(only(waiting)), waits(only(waiting))) == ([], [("worker", 1, None)])
    nobody = seen(queued, fact(5, "step.failed", attempt=1, code="no_participant"))
    assert (attempts(only(nobody)), waits(only(nobody))) == ([], [("worker", 1, 5)])
    lost = seen(
        queued, fact(5, "step.failed", attempt=1, code="lease_lost", outcome="unknown", retry_at=at(6))
    )
    assert (attempts(only(lost)), waits(only(lost))) == ([(1, "pull", 1, 5, "unknown")], [("retry", 5, None)])


def test_a_saga_that_turns_back_waits_for_nothing_but_who_is_at_it() -> None:
    turned = fact(5, "saga.compensating")
    assert waits(only(seen(fact(1, "step.waiting", waits_for="signal"), turned))) == [("signal", 1, 5)]
    assert waits(only(seen(fact(1, "step.waiting", waits_for="saga"), turned))) == [("saga", 1, None)]
    late = seen(
        fact(1, "step.queued", attempt=1), turned, fact(7, "step.succeeded", attempt=1, fetched_at=at(3))
    )
    assert (attempts(only(late)), waits(only(late))) == ([(1, "pull", 3, 7, "succeeded")], [("worker", 1, 3)])
    ended = seen(fact(1, "step.dispatched", attempt=1), fact(2, "saga.terminated"), status="terminated")
    assert attempts(only(ended)) == [(1, "push", 1, 2, "abandoned")]


def test_a_stuck_compensation_is_tried_again() -> None:
    facts = [
        fact(1, "saga.started"), fact(2, "saga.compensating"), fact(2, "compensation.dispatched", attempt=1),
        fact(3, "compensation.stuck", attempt=1, code="no"), fact(3, "saga.attention"),
    ]  # fmt: skip
    stuck = seen(*facts, status="attention")
    assert attempts(only(stuck, "compensation")) == [(1, "push", 2, 3, "failed")]
    assert (only(stuck, "compensation").outcome, only(stuck, "compensation").code) == ("stuck", "no")
    again = seen(*facts, fact(9, "saga.step_retried"), fact(9, "compensation.retried"),
                 fact(9, "compensation.dispatched", attempt=2), status="compensating")  # fmt: skip
    assert only(again, "compensation").outcome is None
    assert [(each.status, seconds(each.started_at), seconds(each.finished_at)) for each in again.states] == [
        ("running", 1, 2), ("compensating", 2, 3), ("attention", 3, 9), ("compensating", 9, None),
    ]  # fmt: skip


def test_what_was_cut_off_is_not_guessed() -> None:
    found = seen(fact(5, "step.succeeded", attempt=3), fact(5, "saga.paused"), status="paused")
    assert (attempts(only(found)), only(found).outcome) == ([], "succeeded")
    assert [each.status for each in found.states] == ["paused"]
