"""What nobody asks for: old history goes, tokens rise all the same; epochs give leases their time again."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from core.callers import namespaces
from tests.doors import Door, Lane, Refused, Served
from tests.test_locks import queue, until


def prune(served: Served, days: float = 0.0) -> tuple[int, int]:
    from core.database import pool
    from locks.services.upkeep import prune

    found: tuple[int, int] = served.do(prune(days, pool))
    return found


def lock_events(call: Door, key: str) -> list[str]:
    return [event["event_type"] for event in call("events.read", stream_id=f"$lock:{key}")["events"]]


def test_history_and_idle_rows_go_and_tokens_rise_all_the_same(lane: Lane, served: Served) -> None:
    from locks.models import Lock

    first = lane("locks.acquire", key="a", owner="o", capacity=1)
    lane("locks.release", key="a", lock_id=first["lock_id"])
    held = lane("locks.acquire", key="held", owner="o")
    assert prune(served, days=1) == (0, 0)
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    prune(served)
    assert not Lock.objects.filter(id=f"{lane.namespace}/a").exists()
    assert lock_events(lane, "a") == lock_events(lane, "held") == []
    assert lane("events.read", stream_id="order-1")["version"] == 1
    assert lane("locks.release", key="held", lock_id=held["lock_id"])["released"] is True
    again = lane("locks.acquire", key="a", owner="o")
    assert again["fencing_token"] > first["fencing_token"]
    assert lock_events(lane, "a") == ["lock.acquired"]
    assert lane("locks.check", key="a", fencing_token=first["fencing_token"])["current"] is False


def test_a_lock_whose_last_event_ends_the_log_stays(lane: Lane, served: Served) -> None:
    """The log's last event says where the log ends."""
    from locks.models import Lock

    first = lane("locks.acquire", key="a", owner="o")
    lane("locks.release", key="a", lock_id=first["lock_id"])
    prune(served)
    assert lock_events(lane, "a") == ["lock.released"]
    assert Lock.objects.filter(id=f"{lane.namespace}/a").exists()
    assert lane("locks.acquire", key="a", owner="o")["fencing_token"] > first["fencing_token"]


def test_who_goes_on_where_history_is_gone_is_told(lane: Lane, served: Served) -> None:
    for _ in range(3):
        grant = lane("locks.acquire", key="a", owner="o")
        lane("locks.release", key="a", lock_id=grant["lock_id"])
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    prune(served)
    with pytest.raises(Refused, match="position_pruned"):
        lane("events.read_all", from_position=2, system=True)
    with pytest.raises(Refused, match="position_pruned"):
        lane("events.read_all", from_position=2, prefix="$lock:")
    from_start = lane("events.read_all", system=True)["events"]
    assert [event["stream_id"] for event in from_start] == ["order-1"]
    assert lane("events.read_all", from_position=2)["events"] == from_start  # its events are all there


def test_a_process_that_prunes_late_does_not_note_less(lane: Lane, served: Served) -> None:
    """Two prune at once, and the slower one is a page behind."""
    from core.database import pool
    from core.retention import FORGET, pruned

    number = served.do(namespaces.get(lane.namespace)).number
    start = number << 40
    for position in (20, 10):
        values = {"number": number, "after": start, "until": start + position, "prefix": "$lock:"}
        served.do(pool.rows(FORGET, {**values, "noted": f"{lane.namespace}/$lock:"}))
    assert served.do(pruned(lane.namespace)) == 20


def test_locks_in_use_are_never_pruned(lane: Lane, served: Served, later: Any) -> None:
    shared = lane("locks.acquire", key="r", owner="o", mode="shared")
    lane("locks.acquire", key="w", owner="o")
    waiting = later(lane, "locks.acquire", key="w", owner="next", wait_seconds=20)
    until(lambda: queue(lane, "w") == ["next"])
    lane("locks.acquire", key="d", owner="o")
    lane("locks.force_release", key="d", reason="x", lock_delay_seconds=60)
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    prune(served)
    assert lane("locks.release", key="r", lock_id=shared["lock_id"])["released"] is True
    assert lane("locks.get", key="d")["lock_delay_until"] is not None
    lane("locks.force_release", key="w", reason="x")
    assert waiting.result(5)["owner"] == "next"


def test_the_command_prunes_too(lane: Lane) -> None:
    grant = lane("locks.acquire", key="a", owner="o")
    lane("locks.release", key="a", lock_id=grant["lock_id"])
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    said = StringIO()
    call_command("prune_locks", days=0, stdout=said)
    assert "idle locks are gone" in said.getvalue()
    assert lock_events(lane, "a") == []


def test_a_new_epoch_gives_every_lease_its_whole_time_again(lane: Lane) -> None:
    session = lane("sessions.open", owner="s", ttl_seconds=60)["session_id"]
    sole = lane("locks.acquire", key="a", owner="o", ttl_seconds=60)
    reader = lane("locks.acquire", key="r", owner="o", mode="shared", ttl_seconds=60)
    started = timezone.now()
    call_command("raise_epoch", stdout=StringIO())
    later = [
        lane("sessions.get", session_id=session)["expires_at"],
        lane("locks.get", key="a")["holders"][0]["expires_at"],
        lane("locks.get", key="r")["holders"][0]["expires_at"],
    ]
    assert all(each > (started + timedelta(seconds=60)).isoformat() for each in later)
    lane("locks.release", key="a", lock_id=sole["lock_id"])
    again = lane("locks.acquire", key="a", owner="o")
    assert again["fencing_token"] >> 40 > reader["fencing_token"] >> 40
