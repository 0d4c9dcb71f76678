"""What discovery promises, through every door."""

import time
from collections import Counter
from typing import Any

import pytest

from tests.doors import Door, Lane, Refused
from tests.test_locks import until


def register(door: Door, name: str = "one", service: str = "bank", **more: Any) -> Any:
    about = {"address": "10.0.0.7", "port": 80, "ttl_seconds": 600, **more}
    return door("services.register", service=service, instance_id=name, **about).value


def refused(door: Door, operation: str, **params: Any) -> dict[str, Any]:
    with pytest.raises(Refused) as refusal:
        door(operation, **params)
    return refusal.value.problem


def listed(door: Door, service: str = "bank", **params: Any) -> list[str]:
    return [each["instance_id"] for each in door("services.get", service=service, **params)["instances"]]


def one(door: Door, name: str = "one", service: str = "bank") -> Any:
    """The instance, healthy or not."""
    found = door("services.get", service=service, healthy=False)["instances"]
    return next(each for each in found if each["instance_id"] == name)


def kinds(door: Door, service: str = "bank") -> list[str]:
    events = door("events.read", stream_id=f"$service:{service}")["events"]
    return [event["event_type"].removeprefix("service.") for event in events]


# -- tombstones --------------------------------------------------------------------------------------


def test_an_instance_is_registered_found_and_deregistered(call: Door) -> None:
    found = register(call, tags=["eu"], metadata={"v": 2}, weight=3)
    assert (found["incarnation"], found["status"], found["reason"], found["healthy"]) == (
        1,
        "healthy",
        None,
        True,
    )
    assert (found["tags"], found["metadata"], found["weight"]) == (["eu"], {"v": 2}, 3)
    assert one(call) == {**found, "expires_at": one(call)["expires_at"]}
    kept = call("services.heartbeat", service="bank", instance_id="one", incarnation=1)
    assert kept["expires_at"] > found["expires_at"]
    assert call("services.find")["items"] == [
        {"service": "bank", "instances": 1, "healthy": 1, "protected": 0, "maintenance": None}
    ]
    assert call("services.deregister", service="bank", instance_id="one", reason="sold")["deregistered"]
    assert listed(call, healthy=False) == []
    assert kinds(call) == ["registered", "deregistered"]
    assert call("services.find")["items"][0]["instances"] == 0


def test_a_heartbeat_revives_nothing_and_registering_does(call: Door) -> None:
    problem = refused(call, "services.heartbeat", service="bank", instance_id="one")
    assert (problem["status"], problem["code"], problem["reason"]) == (404, "instance_not_found", "unknown")
    register(call)
    call("services.deregister", service="bank", instance_id="one")
    for incarnation in ({}, {"incarnation": 1}):
        problem = refused(call, "services.heartbeat", service="bank", instance_id="one", **incarnation)
        assert (problem["status"], problem["reason"]) == (404, "deregistered")
    assert listed(call) == []
    again = refused(call, "services.deregister", service="bank", instance_id="one")
    assert (again["code"], again["reason"]) == ("instance_not_found", "deregistered")
    assert register(call)["incarnation"] == 2
    assert listed(call) == ["one"]
    assert kinds(call) == ["registered", "deregistered", "registered"]


def test_an_old_incarnation_speaks_for_nobody(call: Door) -> None:
    old, new = register(call)["incarnation"], register(call, address="10.0.0.8")["incarnation"]
    assert (old, new) == (1, 2)
    about = {"service": "bank", "instance_id": "one", "incarnation": old}
    for operation in ("services.heartbeat", "services.deregister"):
        problem = refused(call, operation, **about)
        assert (problem["status"], problem["code"], problem["incarnation"]) == (409, "instance_superseded", 2)
    problem = refused(call, "services.register", **about, address="10.0.0.7", port=80)
    assert problem["code"] == "instance_superseded"
    assert one(call)["address"] == "10.0.0.8"
    assert register(call, incarnation=2, weight=5)["incarnation"] == 2
    assert call("services.heartbeat", service="bank", instance_id="one", incarnation=2)["weight"] == 5


def test_an_instance_expires_once_and_is_not_revived(call: Door) -> None:
    register(call, ttl_seconds=1)
    started = time.monotonic()
    until(lambda: not listed(call))
    assert time.monotonic() - started < 3
    until(lambda: "instance_expired" in kinds(call))
    problem = refused(call, "services.heartbeat", service="bank", instance_id="one")
    assert (problem["code"], problem["reason"]) == ("instance_not_found", "expired")
    found = one(call)
    assert (found["status"], found["healthy"], found["protected"]) == ("expired", False, False)
    time.sleep(0.9)
    assert kinds(call) == ["registered", "instance_expired"]
    assert register(call)["incarnation"] == 2


def test_an_instance_lives_as_long_as_its_session(call: Door) -> None:
    session = call("sessions.open", owner="shop", ttl_seconds=30)["session_id"]
    about = {"service": "bank", "address": "10.0.0.7", "port": 80, "session_id": session}
    problem = refused(call, "services.register", instance_id="one", ttl_seconds=5, **about)
    assert (problem["status"], [each["pointer"] for each in problem["errors"]]) == (422, ["/ttl_seconds"])
    found = call("services.register", instance_id="one", **about)
    call("services.register", instance_id="two", **about)
    assert (found["session_id"], found["ttl_seconds"]) == (session, 30)
    kept = call("sessions.keepalive", session_id=session)["expires_at"]
    assert one(call)["expires_at"] == kept
    assert call("services.heartbeat", service="bank", instance_id="one")["expires_at"] == kept
    call("sessions.close", session_id=session)
    assert listed(call, healthy=False) == []
    problem = refused(call, "services.heartbeat", service="bank", instance_id="one")
    assert (problem["code"], problem["reason"]) == ("instance_not_found", "session_closed")
    assert refused(call, "services.register", instance_id="one", **about)["code"] == "session_ended"


def test_an_expired_session_takes_its_instances_along(lane: Lane) -> None:
    session = lane("sessions.open", owner="shop", ttl_seconds=0.6)["session_id"]
    lane("services.register", service="bank", instance_id="one", address="::1", port=80, session_id=session)
    assert listed(lane) == ["one"]
    until(lambda: not listed(lane))
    assert (one(lane)["status"], one(lane)["reason"]) == ("expired", "session_expired")
    assert kinds(lane) == ["registered", "instance_expired"]


def test_tombstones_go(lane: Lane) -> None:
    from discovery.models import Instance
    from discovery.services.upkeep import bury

    for name in ("one", "two", "three"):
        register(lane, name)
    for name in ("one", "two"):
        lane("services.deregister", service="bank", instance_id=name)
    rows = Instance.objects.filter(id__startswith=f"{lane.namespace}/bank#")
    old = rows.get(id__endswith="#one").changed_at
    assert old
    rows.filter(id__endswith="#one").update(changed_at=old.replace(year=old.year - 1))
    rows.filter(id__endswith="#three").update(changed_at=old.replace(year=old.year - 1))
    lane.served.do(bury())
    assert sorted(row.instance for row in rows) == ["three", "two"]
    assert register(lane)["incarnation"] == 4  # what was buried speaks for nobody either


# -- maintenance -------------------------------------------------------------------------------------


def test_an_instance_is_taken_out_for_maintenance_and_comes_back(call: Door) -> None:
    for name in ("one", "two"):
        register(call, name)
    about = {"service": "bank", "instance_id": "one"}
    done = call("services.maintenance", **about, reason="new disk")
    assert done.value == {**about, "enabled": True, "reason": "new disk"}
    assert listed(call) == ["two"]
    found = one(call)
    assert (found["status"], found["reason"], found["healthy"]) == ("maintenance", "new disk", False)
    call("services.heartbeat", **about)
    register(call)
    assert listed(call) == ["two"]
    call("services.maintenance", **about, enabled=False)
    assert listed(call) == ["one", "two"]
    said = call("events.read", stream_id="$service:bank")["events"][2]
    assert (said["event_type"], said["data"]["reason"]) == ("service.maintenance", "new disk")
    assert (
        refused(call, "services.maintenance", service="bank", instance_id="x")["code"] == "instance_not_found"
    )
    assert refused(call, "services.maintenance", service="x")["code"] == "service_not_found"


def test_a_whole_service_is_taken_out_for_maintenance(call: Door) -> None:
    register(call)
    call("services.maintenance", service="bank", reason="moving")
    found = call("services.get", service="bank", healthy=False)
    assert (found["maintenance"], found["instances"][0]["healthy"]) == ("moving", False)
    register(call, "two")
    assert listed(call) == []
    assert call("services.find")["items"][0] == {
        "service": "bank", "instances": 2, "healthy": 0, "protected": 0, "maintenance": "moving",
    }  # fmt: skip
    call("services.maintenance", service="bank", enabled=False)
    assert listed(call) == ["one", "two"]


# -- looking -----------------------------------------------------------------------------------------


def test_a_lookup_can_want_a_tag(call: Door) -> None:
    register(call, "one", tags=["eu", "new"])
    register(call, "two", tags=["us"])
    assert [listed(call, tag=tag) for tag in ("eu", "us", "asia")] == [["one"], ["two"], []]
    assert call("services.pick", service="bank", tag="us")["instance_id"] == "two"
    assert refused(call, "services.pick", service="bank", tag="asia")["code"] == "no_healthy_instance"


def test_a_pick_is_by_weight(lane: Lane) -> None:
    register(lane, "one", weight=3)
    register(lane, "two", weight=1)
    register(lane, "none", weight=0)
    picks = Counter(lane("services.pick", service="bank")["instance_id"] for _ in range(200))
    assert set(picks) == {"one", "two"}
    assert 110 < picks["one"] < 190


def test_another_service_stands_in(call: Door) -> None:
    how = {"service": "bank", "failover": ["bank-eu", "bank-us"]}
    assert call("services.get", **how).value == {
        "service": "bank", "instances": [], "position": 0, "maintenance": None,
    }  # fmt: skip
    assert refused(call, "services.pick", **how)["status"] == 404
    register(call, service="bank-us")
    assert call("services.get", **how)["service"] == "bank-us"
    assert call("services.pick", **how)["service"] == "bank-us"
    register(call, service="bank-eu")
    assert call("services.pick", **how)["service"] == "bank-eu"
    register(call)
    found = call("services.get", **how)
    assert (found["service"], len(found["instances"])) == ("bank", 1)


def test_a_lookup_waits_until_something_changes(waiting: Door, later: Any) -> None:
    register(waiting)
    first = waiting("services.get", service="bank")
    how = {"service": "bank", "wait_seconds": 20, "from_position": first["position"]}
    asked = later(waiting, "services.get", **how)
    time.sleep(0.3)
    register(waiting, service="other")  # which is nothing to it
    waiting("services.heartbeat", service="bank", instance_id="one")
    time.sleep(0.3)
    assert not asked.done()
    register(waiting, "two")
    found = asked.result(5)
    assert [each["instance_id"] for each in found["instances"]] == ["one", "two"]
    assert found["position"] > first["position"]
    assert waiting("services.get", **how)["position"] == found["position"]  # at once: it has changed since
    started = time.monotonic()
    same = waiting("services.get", service="bank", wait_seconds=0.5)
    assert (same["position"], time.monotonic() - started > 0.45) == (found["position"], True)


def test_who_waits_is_told_of_an_expiry_and_of_a_stand_in(waiting: Door, later: Any) -> None:
    register(waiting, ttl_seconds=1)
    position = waiting("services.get", service="bank")["position"]
    found = waiting("services.get", service="bank", wait_seconds=20, from_position=position)
    assert found["instances"] == []
    how = {"service": "bank", "failover": ["spare"], "wait_seconds": 20, "from_position": found["position"]}
    asked = later(waiting, "services.get", **how)
    time.sleep(0.2)
    register(waiting, service="spare")
    assert asked.result(5)["service"] == "spare"
