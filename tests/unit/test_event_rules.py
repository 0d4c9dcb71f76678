"""Whether an append may happen, and whether it already did."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.log import Entry
from events import rules
from events.errors import EventIdConflict, WrongExpectedVersion

A, B, C = (f"00000000-0000-4000-8000-00000000000{n}" for n in "123")


def entry(event_id: str, version: int, stream: str = "order-1") -> Entry:
    return Entry(1, stream, version, "placed", "{}", "me", event_id=event_id)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [("any", 0), ("any", 7), ("no_stream", 0), ("exists", 1), ("exists", 7), (0, 0), (7, 7)],
)
def test_expected_version_fits(expected: int | str, actual: int) -> None:
    rules.check_version("order-1", expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [("no_stream", 1), ("exists", 0), (0, 1), (1, 0), (7, 8), (8, 7), ("7", 7), ("nonsense", 0)],
)
def test_expected_version_does_not_fit(expected: int | str, actual: int) -> None:
    with pytest.raises(WrongExpectedVersion):
        rules.check_version("order-1", expected, actual)


@given(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_number_fits_only_itself(expected: int, actual: int) -> None:
    try:
        rules.check_version("order-1", expected, actual)
    except WrongExpectedVersion:
        assert expected != actual
    else:
        assert expected == actual


def test_refusal_names_stream_expected_and_actual() -> None:
    with pytest.raises(WrongExpectedVersion) as refused:
        rules.check_version("order-1", 3, 5)
    problem = refused.value.problem("r1")
    assert problem == {
        "type": "/api/docs/errors#wrong_expected_version",
        "title": "Wrong expected version",
        "status": 409,
        "detail": "order-1 is at version 5.",
        "code": "wrong_expected_version",
        "request_id": "r1",
        "retryable": False,
        "stream_id": "order-1",
        "expected": 3,
        "actual": 5,
    }


def test_new_ids_are_a_new_append() -> None:
    assert rules.already("order-1", [A, B], [None, None]) is False


def test_events_without_ids_are_a_new_append() -> None:
    assert rules.already("order-1", [None, None], [None, None]) is False


def test_same_ids_in_order_are_the_same_append() -> None:
    assert rules.already("order-1", [A, B, C], [entry(A, 4), entry(B, 5), entry(C, 6)]) is True


def test_one_known_id_is_the_same_append() -> None:
    assert rules.already("order-1", [A], [entry(A, 4)]) is True


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([A, B], [entry(A, 4), None]),
        ([A, B], [None, entry(B, 5)]),
        ([A, None], [entry(A, 4), None]),
        ([A, B], [entry(A, 4, "order-2"), entry(B, 5, "order-2")]),
        ([A, B], [entry(A, 4), entry(B, 5, "order-2")]),
        ([A, B], [entry(A, 5), entry(B, 4)]),
        ([A, B], [entry(A, 4), entry(B, 6)]),
    ],
    ids=["first only", "second only", "one without id", "elsewhere", "half elsewhere", "reversed", "a gap"],
)
def test_ids_used_otherwise_conflict(ids: list[str | None], found: list[Entry | None]) -> None:
    with pytest.raises(EventIdConflict):
        rules.already("order-1", ids, found)


def test_conflict_names_the_ids_that_were_used() -> None:
    with pytest.raises(EventIdConflict) as refused:
        rules.already("order-1", [A, B, C], [None, entry(B, 1), entry(C, 2)])
    assert refused.value.extra == {"event_ids": [B, C]}
    assert refused.value.status == 409


def test_conflict_names_a_hundred_ids_at_most() -> None:
    ids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(150)]
    found: list[Entry | None] = [entry(event_id, 2 * n) for n, event_id in enumerate(ids)]
    with pytest.raises(EventIdConflict) as refused:
        rules.already("order-1", ids, found)
    assert refused.value.extra == {"event_ids": ids[:100]}


@given(st.integers(1, 50), st.integers(1, 1000))
def test_any_run_of_versions_is_the_same_append(count: int, first: int) -> None:
    ids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(count)]
    found = [entry(event_id, first + n) for n, event_id in enumerate(ids)]
    assert rules.already("order-1", ids, found) is True
