"""When schedules are due."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from sagas.services.schedules import MOST, due_times, times_after

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=400, seconds=30)


def schedule(catch_up: str, **said: Any) -> Any:
    found = {"cron": None, "interval_seconds": None, "time_zone": "Europe/Vienna", "created_at": START}
    return SimpleNamespace(**{**found, "next_at": START + timedelta(hours=1), "catch_up": catch_up, **said})


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ({"cron": "* * * * *"}, NOW - timedelta(seconds=30)),
        ({"cron": "30 2 * * *"}, datetime(2027, 2, 4, 1, 30, tzinfo=UTC)),
        ({"cron": "0 0 1 6 *"}, datetime(2026, 5, 31, 22, tzinfo=UTC)),
        ({"interval_seconds": 1.0}, NOW),
        ({"interval_seconds": 86400.0 * 300}, START + timedelta(days=300)),
    ],
)
def test_the_last_time_of_a_long_pause_is_found(said: dict[str, Any], last: datetime) -> None:
    assert due_times(schedule("last", **said), NOW) == [last]


def test_no_more_than_so_many_times_are_made_up_for_at_once() -> None:
    found = due_times(schedule("all", cron="0 * * * *"), NOW)
    assert (found[0], len(found)) == (START + timedelta(hours=1), MOST)


@pytest.mark.parametrize("interval", [1.0, 1.1, 1.3, 7.7, 60.1])
def test_no_time_of_an_interval_comes_twice(interval: float) -> None:
    every = schedule("all", interval_seconds=interval)
    found = [START]
    for _ in range(3000):
        found.append(next(times_after(every, found[-1])))
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(seconds=interval)}


def test_what_is_late_counts_as_missed_and_what_is_not_as_due() -> None:
    assert due_times(schedule("none", cron="* * * * *"), NOW) == [NOW - timedelta(seconds=30)]
    assert due_times(schedule("none", cron="0 * * * *"), NOW + timedelta(minutes=5)) == []


@pytest.mark.parametrize("catch_up", ["none", "last", "all"])
def test_nothing_is_due_before_its_time(catch_up: str) -> None:
    later = {"cron": "0 0 1 1 *", "next_at": NOW + timedelta(days=30)}
    assert due_times(schedule(catch_up, **later), NOW) == []
