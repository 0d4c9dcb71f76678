"""Single rules of locks, in exact values. How they work together is in test_lock_machine.py."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from locks import rules
from locks.models import Claim, Hold, Lock
from locks.rules import ENDINGS, MARK

START = datetime(2026, 1, 1, tzinfo=UTC)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def claim(lock_id: str = "1", **values: Any) -> Claim:
    usual = {"owner": "me", "ttl_seconds": 10.0, "since": START, "ticket": 0}
    return Claim(lock_id=lock_id, **{**usual, **values})


def take(lock: Lock, epoch: int = 1, now: datetime = START, **values: Any) -> Hold:
    """A hold with a row of its own."""
    hold = Hold(id="n/a#1")
    rules.take(lock, hold, claim(**values), now, epoch)
    return hold


# -- tokens ------------------------------------------------------------------------------------------


def test_first_token_of_an_epoch_is_the_epoch_times_2_to_the_40_plus_1() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim(), START, 3)
    assert lock.last_token == 3 * 2**40 + 1


def test_token_goes_on_from_the_floor() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim(), START, 1, floor=2**40 + 500)
    assert lock.last_token == 2**40 + 501


def test_token_never_falls_when_the_epoch_does() -> None:
    lock = Lock(id="n/a", last_token=5 * 2**40 + 7)
    rules.take(lock, lock, claim(), START, 4)
    assert lock.last_token == 5 * 2**40 + 8


def test_each_of_several_holds_has_a_token_of_its_own() -> None:
    lock = Lock(id="n/a", capacity=2)
    tokens = [take(lock).token, take(lock).token]
    assert tokens == [2**40 + 1, 2**40 + 2]


# -- room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "used", "shared", "mode", "permits", "fits"),
    [
        (1, 0, 0, "exclusive", 1, True),
        (1, 0, 0, "shared", 1, True),
        (1, 0, 5, "shared", 1, True),
        (1, 0, 1, "exclusive", 1, False),
        (3, 1, 0, "shared", 1, False),
        (3, 1, 0, "exclusive", 2, True),
        (3, 2, 0, "exclusive", 2, False),
        (3, 3, 0, "exclusive", 1, False),
        (3, 0, 1, "exclusive", 1, False),
    ],
)
def test_room(capacity: int, used: int, shared: int, mode: str, permits: int, fits: bool) -> None:
    lock = Lock(id="n/a", capacity=capacity, used=used, shared=shared)
    assert rules.fits(lock, claim(mode=mode, permits=permits), START) is fits


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_nothing_fits_beside_a_sole_hold(mode: str) -> None:
    lock = Lock(id="n/a", capacity=3)
    rules.take(lock, lock, claim(permits=3), START, 1)
    assert not rules.fits(lock, claim(mode=mode), START)


def test_lock_delay_lasts_until_its_last_instant_and_the_longer_one_counts() -> None:
    lock = Lock(id="n/a")
    rules.delay(lock, START + seconds(5))
    rules.delay(lock, START + seconds(3))
    assert not rules.fits(lock, claim(), START + timedelta(seconds=5, microseconds=-1))
    assert rules.fits(lock, claim(), START + seconds(5))


@pytest.mark.parametrize(
    ("mode", "permits", "capacity", "is_sole"),
    [
        ("exclusive", 1, 1, True),
        ("exclusive", 3, 3, True),
        ("exclusive", 2, 3, False),
        ("shared", 1, 1, False),
    ],
)
def test_sole_hold_leaves_no_room(mode: str, permits: int, capacity: int, is_sole: bool) -> None:
    assert rules.is_sole(Lock(id="n/a", capacity=capacity), claim(mode=mode, permits=permits)) is is_sole


# -- holds -------------------------------------------------------------------------------------------


def test_acquired_says_everything_but_the_lock_id() -> None:
    lock = Lock(id="n/a")
    fact = rules.take(lock, lock, claim("secret", ticket=4), START + seconds(2.5), 1)
    assert fact.type == "lock.acquired"
    assert fact.data == {
        "owner": "me",
        "mode": "exclusive",
        "permits": 1,
        "fencing_token": 2**40 + 1,
        "acquired_at": START + seconds(2.5),
        "expires_at": START + seconds(12.5),
        "ttl_seconds": 10.0,
        "waited_seconds": 2.5,
        "ticket": 4,
    }


def test_hold_of_a_session_ends_with_it_alone() -> None:
    lock = Lock(id="n/a")
    fact = rules.take(lock, lock, claim(session="s"), START, 1, lease_until=START + seconds(7))
    assert (lock.session, lock.expires_at) == ("s", None)
    assert (fact.data["session_id"], fact.data["expires_at"]) == ("s", START + seconds(7))
    assert rules.is_held(lock, START + timedelta(days=1000))


def test_hold_ends_at_its_last_instant() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim(), START, 1)
    assert rules.is_held(lock, START + timedelta(seconds=10, microseconds=-1))
    assert not rules.is_held(lock, START + seconds(10))


def test_several_holds_are_counted_and_the_first_end_is_minded() -> None:
    lock = Lock(id="n/a", capacity=5)
    take(lock, permits=2)
    take(lock, permits=1, ttl_seconds=4.0)
    take(lock, permits=1, session="s")
    assert (lock.used, lock.shared, lock.lock_id) == (4, 0, None)
    assert lock.expires_at == START + seconds(4)


def test_renewal_gives_the_whole_time_again() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim(), START, 1)
    rules.renew(lock, lock, 20.0, START + seconds(9))
    assert (lock.expires_at, lock.ttl_seconds) == (START + seconds(29), 20.0)


def test_renewal_of_one_of_several_never_puts_off_the_end_of_another() -> None:
    lock = Lock(id="n/a", capacity=2)
    hold = take(lock)
    take(lock, ttl_seconds=5.0)
    rules.renew(lock, hold, 2.0, START)
    assert lock.expires_at == START + seconds(2)
    rules.renew(lock, hold, 60.0, START)
    assert hold.expires_at == START + seconds(60)
    assert lock.expires_at == START + seconds(2)


def test_end_leaves_nothing_of_the_holder_on_the_lock() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim(metadata='{"a":1}', session="s"), START, 1)
    fact = rules.end(lock, lock, "force_released", START + seconds(3), because="operator")
    left = (
        lock.lock_id,
        lock.owner,
        lock.session,
        lock.metadata,
        lock.acquired_at,
        lock.expires_at,
        lock.ttl_seconds,
    )
    assert left == (None,) * 7
    assert lock.last_token == 2**40 + 1
    assert fact.type == "lock.force_released"
    assert fact.data == {"owner": "me", "fencing_token": 2**40 + 1, "held_seconds": 3.0, "because": "operator",
                         "session_id": "s"}  # fmt: skip


def test_end_of_the_last_of_several_holds_leaves_nothing_to_mind() -> None:
    lock = Lock(id="n/a", capacity=2)
    first, second = take(lock), take(lock, ttl_seconds=5.0)
    rules.end(lock, first, "released", START)
    assert (lock.used, lock.expires_at) == (1, START + seconds(5))
    rules.end(lock, second, "released", START)
    assert (lock.used, lock.expires_at) == (0, None)


def test_wait_never_counts_below_zero_when_the_clock_steps_back() -> None:
    lock = Lock(id="n/a")
    fact = rules.take(lock, lock, claim(since=START + seconds(1)), START, 1)
    assert fact.data["waited_seconds"] == 0.0


# -- what became of a hold ---------------------------------------------------------------------------


def test_expired_hold_that_nobody_ended_is_already_told_as_expired() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, lock, claim("1"), START, 1)
    assert rules.why_not_held(lock, lock, "1") == "expired"


def test_unknown_lock_was_never_held() -> None:
    assert rules.why_not_held(None, None, "1") == "never_held"


def test_no_more_than_the_last_endings_are_remembered() -> None:
    lock = Lock(id="n/a")
    reasons = ["released", "expired"] * 20
    for number, reason in enumerate(reasons):
        rules.take(lock, lock, claim(str(number)), START, 1)
        rules.end(lock, lock, reason, START)
    told = [rules.why_not_held(lock, None, str(number)) for number in range(len(reasons))]
    forgotten = len(reasons) - ENDINGS
    assert told == ["never_held"] * forgotten + reasons[forgotten:]
    assert len(lock.endings) == ENDINGS * (MARK + 1)


def test_all_whom_an_operator_ended_together_are_told() -> None:
    lock = Lock(id="n/a", capacity=100)
    holds = [take(lock, lock_id=f"{number:08d}") for number in range(100)]
    for hold in holds:
        rules.end(lock, hold, "force_released", START)
    assert {rules.why_not_held(lock, None, f"{number:08d}") for number in range(100)} == {"force_released"}


# -- the queue ---------------------------------------------------------------------------------------


def test_queue_is_counted_and_told() -> None:
    lock = Lock(id="n/a")
    waiting = claim(ticket=7, deadline=START + seconds(9), session="s")
    fact = rules.enqueue(lock, waiting)
    assert (lock.queued, lock.last_ticket) == (1, 7)
    assert (fact.type, fact.data) == (
        "lock.queued",
        {"owner": "me", "mode": "exclusive", "permits": 1, "ticket": 7, "session_id": "s",
         "deadline": START + seconds(9)},
    )  # fmt: skip
    gone = rules.withdraw(lock, waiting, "timed_out")
    assert lock.queued == 0
    assert (gone.type, gone.data) == ("lock.withdrawn", {"owner": "me", "ticket": 7, "reason": "timed_out"})
