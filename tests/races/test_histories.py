"""The checkers find what they are there to find: each is given a sound history, and then a broken one."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.races.histories import (
    Hold,
    Violation,
    Written,
    check_agreement,
    check_holds,
    check_lock_log,
    check_log,
    check_once,
    check_seen,
    check_written,
)

Event = dict[str, Any]


def holds() -> list[Hold]:
    return [
        Hold("k", "alice", 11, told_at=1.0, expires_at=31.0, given_back_at=2.0, released=True),
        Hold("k", "bob", 12, told_at=2.1, expires_at=3.0),
        Hold("other", "carol", 5, told_at=2.2, expires_at=32.0, given_back_at=9.0, released=True),
        Hold("k", "dave", 13, told_at=3.1, expires_at=33.0, given_back_at=4.0, released=True),
    ]


def test_a_sound_history_of_holds_passes() -> None:
    check_holds(holds())


def test_holds_that_were_never_believed_overlap_with_nobody() -> None:
    late = Hold("k", "eve", 14, told_at=9.0, expires_at=4.5)
    check_holds([*holds(), late, Hold("k", "fay", 15, told_at=4.6, expires_at=40.0)])


def overlapping(found: list[Hold]) -> None:
    found[0].given_back_at = 2.2


def overlapping_by_expiry(found: list[Hold]) -> None:
    found[1].expires_at = 3.2


def overlapping_past_one_between(found: list[Hold]) -> None:
    found[1].told_at = 9.0  # told too late to believe it: its neighbours must not overlap all the same
    found[0].given_back_at = 3.5


def repeated_token(found: list[Hold]) -> None:
    found[3].token = 12


def falling_token(found: list[Hold]) -> None:
    found[3].token = 10


@pytest.mark.parametrize(
    "corrupt",
    [overlapping, overlapping_by_expiry, overlapping_past_one_between, repeated_token, falling_token],
)
def test_a_broken_history_of_holds_is_found(corrupt: Callable[[list[Hold]], None]) -> None:
    found = holds()
    corrupt(found)
    with pytest.raises(Violation):
        check_holds(found)


def story(*lines: tuple[str, dict[str, Any]], key: str = "k") -> list[Event]:
    return [
        {
            "stream_id": f"$lock:{key}",
            "event_type": f"lock.{verb}",
            "version": number,
            "position": number,
            "data": data,
        }
        for number, (verb, data) in enumerate(lines, 1)
    ]


def acquired(owner: str, token: int, ticket: int | None = None) -> tuple[str, dict[str, Any]]:
    return "acquired", {"owner": owner, "fencing_token": token, **({"ticket": ticket} if ticket else {})}


def released(owner: str, token: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "released", {"owner": owner, "fencing_token": token, **more}


def queued(owner: str, ticket: int) -> tuple[str, dict[str, Any]]:
    return "queued", {"owner": owner, "ticket": ticket}


def withdrawn(owner: str, ticket: int) -> tuple[str, dict[str, Any]]:
    return "withdrawn", {"owner": owner, "ticket": ticket, "reason": "timed_out"}


SOUND = [
    acquired("alice", 1),
    queued("bob", 1),
    queued("carol", 2),
    queued("dave", 3),
    withdrawn("carol", 2),
    released("alice", 1),
    acquired("bob", 2, 1),
    ("expired", {"owner": "bob", "fencing_token": 2}),
    acquired("dave", 3, 3),
    released("dave", 3, by="client_gone"),
    acquired("eve", 4),
]


def test_a_sound_log_of_a_lock_passes() -> None:
    lock = check_lock_log(story(*SOUND))["k"]
    assert lock.holder == ("eve", 4)
    assert lock.waiting == {}
    assert lock.grants == {1: "alice", 2: "bob", 3: "dave", 4: "eve"}
    assert lock.endings == {1: "released", 2: "expired", 3: "client_gone"}


def edited(index: int, line: tuple[str, dict[str, Any]] | None) -> list[Event]:
    lines = list(SOUND)
    if line is None:
        del lines[index]
    else:
        lines[index] = line
    return story(*lines)


BROKEN = {
    "two holders": edited(5, None),
    "a token again": edited(8, acquired("dave", 2, 3)),
    "a token that falls": edited(10, acquired("eve", 3)),
    "a waiter overtakes": edited(6, acquired("dave", 2, 3)),
    "a newcomer overtakes": edited(6, acquired("eve", 2)),
    "served after leaving": edited(8, acquired("carol", 3, 2)),
    "served twice": edited(8, acquired("bob", 3, 1)),
    "another owner's ticket": edited(6, acquired("carol", 2, 1)),
    "left without waiting": edited(4, withdrawn("zoe", 9)),
    "a ticket is left out": edited(2, queued("carol", 3)),
    "a stranger's release": edited(5, released("bob", 1)),
    "a release of nothing": [*story(*SOUND[:6]), *story(*SOUND[:7], released("alice", 1))[-1:]],
    "a queue for a free lock": story(queued("bob", 1)),
    "an unknown event": edited(7, ("lost", {"owner": "bob", "fencing_token": 2})),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_log_of_a_lock_is_found(case: str) -> None:
    with pytest.raises(Violation):
        check_lock_log(BROKEN[case])


@pytest.mark.parametrize("field", ["version", "position"])
def test_a_lock_s_events_that_repeat_or_are_missing_are_found(field: str) -> None:
    found = story(*SOUND)
    found[3][field] = 3
    with pytest.raises(Violation):
        check_lock_log(found)


def told() -> list[Hold]:
    return [
        Hold("k", "alice", 1, told_at=1.0, expires_at=31.0, given_back_at=2.0, released=True),
        Hold("k", "bob", 2, told_at=2.1, expires_at=3.0),
    ]


def test_what_clients_were_told_agrees_with_the_log() -> None:
    check_agreement(told(), check_lock_log(story(*SOUND)))


@pytest.mark.parametrize(
    ("which", "change"),
    [(0, {"token": 9}), (0, {"owner": "bob"}), (1, {"released": True}), (1, {"key": "another"})],
)
def test_what_only_a_client_knows_is_found(which: int, change: dict[str, Any]) -> None:
    found = told()
    for name, value in change.items():
        setattr(found[which], name, value)
    with pytest.raises(Violation):
        check_agreement(found, check_lock_log(story(*SOUND)))


# -- events ------------------------------------------------------------------------------------------


def log() -> list[Event]:
    rows = [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]
    return [
        {
            "position": position,
            "stream_id": stream,
            "version": version,
            "event_id": f"id-{position}",
            "data": f"d{position}",
            "recorded_at": f"2026-01-01T00:00:0{position}Z",
        }
        for position, (stream, version) in enumerate(rows, 1)
    ]


WRITTEN = [Written("b", 1, 2, "id-2", "d2"), Written("a", 3, 4, "id-4", "d4")]


def test_a_sound_log_passes() -> None:
    check_log(log())
    check_written(WRITTEN, log())
    check_once([f"d{n}" for n in range(1, 6)], log())
    check_seen([1, 2, 3, 4, 5], 5, "reader")


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (2, {"position": 2}),
        (2, {"position": 4}),
        (3, {"version": 4}),
        (3, {"version": 2}),
        (3, {"event_id": "id-1"}),
        (3, {"recorded_at": "2025-01-01T00:00:00Z"}),
    ],
)
def test_a_broken_log_is_found(index: int, change: dict[str, Any]) -> None:
    found = log()
    found[index].update(change)
    with pytest.raises(Violation):
        check_log(found)


def test_a_missing_event_is_found() -> None:
    for index in range(4):
        found = log()
        del found[index]
        with pytest.raises(Violation):
            check_log(found)


@pytest.mark.parametrize(
    "change", [{"version": 9}, {"event_id": "x"}, {"data": "other"}, {"stream_id": "b"}, {"position": 99}]
)
def test_a_write_that_is_not_where_it_was_told_to_be_is_found(change: dict[str, Any]) -> None:
    found = log()
    found[3].update(change)
    with pytest.raises(Violation):
        check_written(WRITTEN, found)


def test_an_event_written_twice_or_never_is_found() -> None:
    found = log()
    found[3]["data"] = "d2"
    with pytest.raises(Violation):
        check_once(["d2"], found)
    with pytest.raises(Violation):
        check_once(["d4"], found)


@pytest.mark.parametrize(
    "seen", [[1, 2, 4, 5], [1, 2, 2, 3, 4, 5], [1, 3, 2, 4, 5], [1, 2, 3, 4], [2, 3, 4, 5]]
)
def test_a_reader_that_misses_doubles_or_mixes_up_is_found(seen: list[int]) -> None:
    with pytest.raises(Violation):
        check_seen(seen, 5, "reader")
