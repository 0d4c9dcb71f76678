"""The checkers find what they are there to find: each is given a sound history, and then a broken one."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.races.histories import (
    Hold,
    Violation,
    Window,
    Written,
    check_agreement,
    check_endings,
    check_holds,
    check_lock_log,
    check_log,
    check_once,
    check_seen,
    check_written,
    mind_force,
)

Event = dict[str, Any]
START = 1_800_000_000.0  # seconds since 1970


def hold(key: str, owner: str, token: int, *, told_at: float, **more: Any) -> Hold:
    """Told as soon as it was acquired, if nothing else is said."""
    return Hold(key, owner, token, told_at, **{"acquired_at": told_at, **more})


def holds() -> list[Hold]:
    return [
        hold("k", "alice", 11, told_at=1.0, expires_at=31.0, given_back_at=2.0),
        hold("k", "bob", 12, told_at=2.1, expires_at=3.0),
        hold("other", "carol", 5, told_at=2.2, expires_at=32.0, given_back_at=9.0),
        hold("k", "dave", 13, told_at=3.1, expires_at=33.0, given_back_at=4.0),
    ]


def test_a_sound_history_of_holds_passes() -> None:
    check_holds(holds())


def test_holds_that_were_never_believed_overlap_with_nobody() -> None:
    late = hold("k", "eve", 14, told_at=9.0, expires_at=4.5, acquired_at=4.2)
    check_holds([*holds(), late, hold("k", "fay", 15, told_at=4.6, expires_at=40.0)])


def overlapping(found: list[Hold]) -> None:
    found[0].given_back_at = 2.2


def overlapping_by_expiry(found: list[Hold]) -> None:
    found[1].expires_at = 3.2


def overlapping_past_one_between(found: list[Hold]) -> None:
    found[1].told_at = 9.0  # told too late to believe it: its neighbours must not overlap all the same
    found[0].given_back_at = 3.5


def overlapping_shared(found: list[Hold]) -> None:
    found[0].given_back_at = 2.2
    found[0].mode = "shared"


def repeated_token(found: list[Hold]) -> None:
    found[3].token = 12


def falling_token(found: list[Hold]) -> None:
    found[3].token = 10


@pytest.mark.parametrize(
    "corrupt",
    [
        overlapping,
        overlapping_by_expiry,
        overlapping_past_one_between,
        overlapping_shared,
        repeated_token,
        falling_token,
    ],
)
def test_a_broken_history_of_holds_is_found(corrupt: Callable[[list[Hold]], None]) -> None:
    found = holds()
    corrupt(found)
    with pytest.raises(Violation):
        check_holds(found)


def test_a_semaphore_s_holds_may_overlap_as_far_as_it_has_permits() -> None:
    def taken(permits: int) -> list[Hold]:
        times = {"told_at": 1.0, "expires_at": 9.0}
        return [hold("k", f"o{n}", n, permits=permits if n == 3 else 1, **times) for n in (1, 2, 3)]

    check_holds(taken(1), {"k": 3})
    with pytest.raises(Violation):
        check_holds(taken(2), {"k": 3})
    shared = [hold("k", f"o{n}", n, mode="shared", told_at=1.0, expires_at=9.0) for n in range(5)]
    check_holds(shared, {"k": 3})


def at(second: float) -> str:
    return datetime.fromtimestamp(START + second, UTC).isoformat()


def story(*lines: tuple[str, dict[str, Any]]) -> list[Event]:
    """The events of a log, one a second. A line that names a `key` is of that lock, else of `k`."""
    found: list[Event] = []
    versions: dict[str, int] = {}
    for number, (verb, given) in enumerate(lines, 1):
        data = {"mode": "exclusive", "permits": 1, "acquired_at": at(number), "expires_at": at(number + 30)}
        data |= {"held_seconds": 1.0, "expired_at": at(number), **given}
        key = data.pop("key", "k")
        versions[key] = versions.get(key, 0) + 1
        found.append(
            {
                "stream_id": f"$session:{key}" if verb == "opened" else f"$lock:{key}",
                "event_type": f"session.{verb}" if verb == "opened" else f"lock.{verb}",
                "version": versions[key],
                "position": number,
                "recorded_at": at(data.pop("second", number)),
                "data": data,
            }
        )
    return found


def acquired(owner: str, token: int, ticket: int | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    return "acquired", {
        "owner": owner,
        "fencing_token": token,
        **({"ticket": ticket} if ticket else {}),
        **more,
    }


def released(owner: str, token: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "released", {"owner": owner, "fencing_token": token, **more}


def expired(owner: str, token: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "expired", {"owner": owner, "fencing_token": token, **more}


def queued(owner: str, ticket: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "queued", {"owner": owner, "ticket": ticket, "deadline": "later", **more}


def withdrawn(owner: str, ticket: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "withdrawn", {"owner": owner, "ticket": ticket, "reason": "timed_out", **more}


SOUND = [
    acquired("alice", 1),
    queued("bob", 1),
    queued("carol", 2),
    queued("dave", 3),
    withdrawn("carol", 2),
    released("alice", 1),
    acquired("bob", 2, 1),
    expired("bob", 2),
    acquired("dave", 3, 3),
    released("dave", 3, by="client_gone"),
    acquired("eve", 4),
]


def test_a_sound_log_of_a_lock_passes() -> None:
    lock = check_lock_log(story(*SOUND))["k"]
    assert [hold.owner for hold in lock.holds.values()] == ["eve"]
    assert lock.waiting == {}
    grants = {token: grant.owner for token, grant in lock.grants.items()}
    assert grants == {1: "alice", 2: "bob", 3: "dave", 4: "eve"}
    endings = {token: ended.how for token, ended in lock.endings.items()}
    assert endings == {1: "released", 2: "expired", 3: "client_gone"}


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
    "a release of nothing": [*story(*SOUND[:6]), *story(*SOUND[:6], released("alice", 1))[-1:]],
    "a queue for a free lock": story(queued("bob", 1)),
    "an unknown event": edited(7, ("lost", {"owner": "bob", "fencing_token": 2})),
    "passed on late": edited(8, acquired("dave", 3, 3, second=12)),
    "left alone with a free lock": edited(8, withdrawn("dave", 3, second=12)),
    "an end that is noticed late": edited(7, expired("bob", 2, expired_at=at(4))),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_log_of_a_lock_is_found(case: str) -> None:
    with pytest.raises(Violation):
        check_lock_log(BROKEN[case])


def test_nothing_is_late_while_the_database_is_away() -> None:
    late = story(*SOUND[:8], acquired("dave", 3, 3, second=12))
    check_lock_log(late, away=[Window(START + 8, START + 11)])
    with pytest.raises(Violation):
        check_lock_log(late, away=[Window(START + 9, START + 10)])


# -- several holders ---------------------------------------------------------------------------------

SHARING: list[tuple[str, dict[str, Any]]] = [
    acquired("alice", 1, mode="shared"),
    acquired("bob", 2, mode="shared"),
    queued("carol", 1, permits=2),
    queued("dave", 2, mode="shared"),
    released("bob", 2),
    ("force_released", {"owner": "alice", "fencing_token": 1}),
    acquired("carol", 4, 1, permits=2),
    queued("eve", 3),
    released("carol", 4),
    acquired("dave", 5, 2, mode="shared"),
]
SEMAPHORE: list[tuple[str, dict[str, Any]]] = [
    acquired("alice", 1),
    acquired("bob", 2, permits=2),
    queued("carol", 1, permits=3),
    queued("dave", 2),
    released("alice", 1),
    released("bob", 2),
    acquired("carol", 3, 1, permits=3),
    expired("carol", 3),
    acquired("dave", 4, 2),
]


def test_a_sound_log_of_several_holders_passes() -> None:
    check_lock_log(story(*SHARING), {"k": 3})
    check_lock_log(story(*SEMAPHORE), {"k": 3})


CROWDED = {
    "exclusive beside shared": [*SHARING[:2], acquired("carol", 3)],
    "shared beside exclusive": [*SEMAPHORE[:1], acquired("carol", 3, mode="shared")],
    "a permit too many": [*SEMAPHORE[:2], acquired("carol", 3)],
    "shared past a waiter": [*SHARING[:4], acquired("eve", 3, mode="shared")],
    "a small one past a large one": [*SEMAPHORE[:5], acquired("dave", 3, 2)],
    "queued though there is room": [*SEMAPHORE[:1], queued("bob", 1, permits=2), queued("carol", 2)],
}


@pytest.mark.parametrize("case", CROWDED)
def test_a_crowded_lock_is_found(case: str) -> None:
    with pytest.raises(Violation):
        check_lock_log(story(*CROWDED[case]), {"k": 3})


BOTH = {"grants": [{"key": "k", "fencing_token": 2}, {"key": "l", "fencing_token": 1}]}
TOGETHER = [
    acquired("alice", 1),
    queued("bob", 1),
    queued("bob", 1, key="l"),
    released("alice", 1),
    acquired("bob", 2, 1, **BOTH),
    acquired("bob", 1, 1, key="l"),
]


def test_a_sound_log_of_locks_that_are_taken_together_passes() -> None:
    check_lock_log(story(*TOGETHER))
    check_lock_log(story(*TOGETHER[:3], withdrawn("bob", 1), withdrawn("bob", 1, key="l")))


TORN = {
    "half of it": TOGETHER[:5],
    "something between": [*TOGETHER[:5], acquired("carol", 1, key="m"), *TOGETHER[5:]],
    "the second without the first": [*TOGETHER[:4], acquired("bob", 1, 1, key="l")],
    "another token than told": [*TOGETHER[:5], acquired("bob", 9, 1, key="l")],
    "half of it leaves": [*TOGETHER[:3], withdrawn("bob", 1), released("alice", 1)],
    "only one was told of": [*TOGETHER[:4], acquired("bob", 2, 1, grants=BOTH["grants"][:1]), *TOGETHER[5:]],
    "all were free": TOGETHER[1:3],
}


@pytest.mark.parametrize("case", TORN)
def test_what_was_not_taken_together_is_found(case: str) -> None:
    with pytest.raises(Violation):
        check_lock_log(story(*TORN[case]))


@pytest.mark.parametrize(("second", "is_sound"), [(4.5, False), (5.1, True), (5.6, True), (9.0, False)])
def test_a_lock_delay_is_kept_and_not_longer(second: float, is_sound: bool) -> None:
    events = story(
        ("opened", {"key": "s", "lock_delay_seconds": 2}),
        acquired("alice", 1, session_id="s"),
        queued("bob", 1),
        expired("alice", 1, expired_at=at(3), second=3.5),
        acquired("bob", 2, 1, second=second, acquired_at=at(second)),
    )
    if is_sound:
        check_lock_log(events)
    else:
        with pytest.raises(Violation):
            check_lock_log(events)


@pytest.mark.parametrize("field", ["version", "position"])
def test_a_lock_s_events_that_repeat_or_are_missing_are_found(field: str) -> None:
    found = story(*SOUND)
    found[3][field] = 3
    with pytest.raises(Violation):
        check_lock_log(found)


# -- what clients were told, beside the log ----------------------------------------------------------


def told() -> list[Hold]:
    def hold(owner: str, token: int, second: int, **more: Any) -> Hold:
        when = {"told_at": START + second, "expires_at": START + second + 30, "acquired_at": START + second}
        return Hold("k", owner, token, **{**when, **more})

    return [
        hold("alice", 1, 1, given_back_at=START + 2, released=True),
        hold("bob", 2, 7, expires_at=START + 8),
        hold("eve", 4, 11, given_back_at=START + 12, released=True),
    ]


LOG = [
    *SOUND[:6],
    acquired("bob", 2, 1, expires_at=at(8)),
    *SOUND[7:],
    released("eve", 4),
]  # and dave hung up


def test_what_clients_were_told_agrees_with_the_log() -> None:
    locks = check_lock_log(story(*LOG))
    check_agreement(told(), locks)
    check_endings(told(), locks, untold={"dave": START + 10})


@pytest.mark.parametrize(
    ("which", "change"),
    [
        (0, {"token": 9}),
        (0, {"owner": "bob"}),
        (1, {"released": True}),
        (1, {"key": "another"}),
        (1, {"mode": "shared"}),
        (2, {"permits": 2}),
    ],
)
def test_what_only_a_client_knows_is_found(which: int, change: dict[str, Any]) -> None:
    found = told()
    for name, value in change.items():
        setattr(found[which], name, value)
    with pytest.raises(Violation):
        check_agreement(found, check_lock_log(story(*LOG)))


@pytest.mark.parametrize(
    ("which", "change"),
    [
        (0, {"given_back_at": None}),  # somebody else gave it back
        (1, {"expires_at": START + 9}),  # expired before its time
        (1, {"revived_at": START + 8.5}),
        (2, {"refused_at": START + 11.5}),  # although it held
    ],
)
def test_an_end_that_may_not_be_is_found(which: int, change: dict[str, Any]) -> None:
    found = told()
    for name, value in change.items():
        setattr(found[which], name, value)
    with pytest.raises(Violation):
        check_endings(found, check_lock_log(story(*LOG)), untold={"dave": START + 10})


@pytest.mark.parametrize(
    ("index", "line"),
    [
        (7, expired("bob", 2, expired_at=at(8.5))),  # longer than its time
        (9, released("dave", 3)),  # by whom? It was told nothing
        (11, released("eve", 4, by="client_gone")),
        (11, released("eve", 4, held_seconds=31)),
    ],
)
def test_an_end_that_the_log_may_not_tell_is_found(index: int, line: tuple[str, dict[str, Any]]) -> None:
    locks = check_lock_log(story(*LOG[:index], line, *LOG[index + 1 :]))
    with pytest.raises(Violation):
        check_endings(told(), locks, untold={"dave": START + 10})


def test_a_hold_that_nobody_knows_of_and_one_that_never_ends_are_found() -> None:
    locks = check_lock_log(story(*LOG))
    with pytest.raises(Violation):
        check_endings(told(), locks)
    with pytest.raises(Violation):
        check_endings(told(), check_lock_log(story(*LOG[:-1])), untold={"dave": START + 10})


def test_an_absence_gives_leases_their_time_back() -> None:
    log = story(*LOG[:7], expired("bob", 2, expired_at=at(13), second=13), *LOG[8:])
    for number, event in enumerate(log[8:]):
        event["recorded_at"] = at(13 + number)
    locks = check_lock_log(log)
    check_endings(told(), locks, {"dave": START + 16}, extensions=[Window(START + 7, START + 12)])
    with pytest.raises(Violation):
        check_endings(told(), locks, {"dave": START + 16}, extensions=[Window(START + 7, START + 11)])


def test_who_was_force_released_may_believe_that_it_holds() -> None:
    locks = check_lock_log(story(acquired("alice", 1), ("force_released", SHARING[5][1]), acquired("bob", 3)))
    found = [
        Hold("k", "alice", 1, START + 1, START + 30, acquired_at=START + 1),
        Hold("k", "bob", 3, START + 3, START + 30, acquired_at=START + 3),
    ]
    with pytest.raises(Violation):
        check_holds(found)
    mind_force(found, locks)
    check_holds(found)


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
