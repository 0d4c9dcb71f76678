"""What discovery promises, through every door."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from api.messages import messages
from api.proto import full
from core.callers import namespaces
from discovery.services import looking
from tests.doors import Door, Lane, Refused, Served, free_port
from tests.doors.grpc import channel
from tests.participant import Participant
from tests.test_locks import until
from tests.websockets import opened


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


def test_a_heartbeat_is_told_that_the_whole_service_is_out(call: Door) -> None:
    register(call)

    def is_healthy() -> bool:
        return bool(call("services.heartbeat", service="bank", instance_id="one")["healthy"])

    assert is_healthy()
    call("services.maintenance", service="bank")
    until(lambda: not is_healthy())
    time.sleep(0.6)
    assert not is_healthy()
    call("services.maintenance", service="bank", enabled=False)
    until(is_healthy)


def test_what_another_process_took_out_is_known_within_a_second(lane: Lane) -> None:
    from discovery.models import Service

    register(lane)
    Service.objects.filter(id=f"{lane.namespace}/bank").update(maintenance="moving")
    time.sleep(1.5)
    assert not lane("services.heartbeat", service="bank", instance_id="one")["healthy"]


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


def test_a_large_service_is_not_told_whole_but_picked_of_whole(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MOST", 3)
    for n in range(4):
        register(lane, f"i{n}", weight=int(n == 3))
    monkeypatch.setattr(looking.look, "__defaults__", (3,))
    found = lane("services.get", service="bank")
    assert (names(found.value), found["partial"]) == (["i0", "i1", "i2"], True)
    assert lane("services.pick", service="bank")["instance_id"] == "i3"
    lane("services.deregister", service="bank", instance_id="i0")
    assert not lane("services.get", service="bank")["partial"]


def test_a_position_that_the_log_has_not_reached_is_refused(waiting: Door) -> None:
    register(waiting)
    problem = refused(waiting, "services.get", service="bank", wait_seconds=20, from_position=99)
    assert (problem["code"], problem["head"]) == ("position_ahead", 1)


@pytest.mark.parametrize(
    "address",
    [":", "...", "-", "999", "10.0.0.999", "127.0.0.1:80", "a..b", "-a.test", "a" * 64, "1::2::3", "a b"],
)
def test_what_is_no_address_is_refused(lane: Lane, address: str) -> None:
    about = {"service": "bank", "instance_id": "one", "port": 80, "address": address}
    assert [each["pointer"] for each in refused(lane, "services.register", **about)["errors"]] == ["/address"]


@pytest.mark.parametrize(
    "address", ["bank", "a.test.", "_x.a-1.test", "7.bank", "::1", "10.0.0.7", "fd00::1"]
)
def test_what_is_an_address_is_taken(lane: Lane, address: str) -> None:
    assert register(lane, address=address)["address"] == address


def test_another_service_stands_in(call: Door) -> None:
    how = {"service": "bank", "failover": ["bank-eu", "bank-us"]}
    assert call("services.get", **how).value == {
        "service": "bank", "instances": [], "position": 0, "maintenance": None, "partial": False,
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


# -- checks ------------------------------------------------------------------------------------------

QUICK = {"interval_seconds": 0.5, "timeout_seconds": 0.5, "failures": 2, "successes": 2}


@pytest.fixture
def participant() -> Iterator[Participant]:
    with Participant() as found:
        yield found


def checked(door: Door, port: int, *checks: dict[str, Any], **more: Any) -> Any:
    about = {"address": "127.0.0.1", "port": port, **more}
    return register(door, checks=[{**QUICK, **check} for check in checks], **about)


def becomes(door: Door, status: str, seconds: float = 10.0) -> Any:
    until(lambda: one(door)["status"] == status, seconds)
    return one(door)


def test_an_instance_is_healthy_while_its_checks_pass(call: Door, participant: Participant) -> None:
    answers = {"": 200}
    participant.script["health"] = lambda asked: (answers[""], None, {})
    found = checked(call, participant.port, {"kind": "http", "path": "/health"}, {"kind": "tcp"})
    assert (found["status"], found["reason"], found["healthy"]) == ("failing", "not_checked", False)
    found = becomes(call, "healthy")
    assert [(each["kind"], each["path"], each["state"]) for each in found["checks"]] == [
        ("http", "/health", "passing"), ("tcp", "", "passing"),
    ]  # fmt: skip
    assert listed(call) == ["one"]
    answers[""] = 503
    found = becomes(call, "failing")
    assert (found["reason"], found["healthy"]) == ("http check: Answered with status 503.", False)
    assert listed(call) == []
    answers[""] = 204
    becomes(call, "healthy")
    assert kinds(call) == ["registered", "instance_healthy", "instance_failing", "instance_healthy"]
    again = checked(call, participant.port, {"kind": "http", "path": "/health"}, {"kind": "tcp"})
    assert again["status"] == "healthy"  # what was found is kept, as long as the checks are the same


def test_nobody_there_is_told_in_words(lane: Lane) -> None:
    checked(lane, free_port(), {"kind": "tcp"})
    found = becomes(lane, "failing")
    until(lambda: one(lane)["checks"][0]["state"] == "failing")
    assert "Cannot connect to 127.0.0.1" in one(lane)["reason"]
    assert found["healthy"] is False


def test_an_instance_that_does_not_answer_is_failing(lane: Lane, participant: Participant) -> None:
    participant.script[""] = lambda asked: 30.0
    checked(lane, participant.port, {"kind": "http"})
    until(lambda: one(lane)["checks"][0]["state"] == "failing")
    assert one(lane)["reason"] == "http check: No answer within 0.5 s."


def test_grpc_instances_are_asked_for_their_health(lane: Lane) -> None:
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        servicer.set("bank.v1.Bank", serving)
        checked(lane, port, {"kind": "grpc", "path": "bank.v1.Bank"}, scheme="grpc")
        becomes(lane, "healthy")
        servicer.set("bank.v1.Bank", not_serving)
        assert becomes(lane, "failing")["reason"] == "grpc check: It says NOT_SERVING."
        checked(lane, port, {"kind": "grpc", "path": "nobody"}, scheme="grpc")
        until(lambda: "NOT_FOUND" in (one(lane)["reason"] or ""))
    finally:
        server.stop(None)


def test_addresses_that_may_not_be_called_are_not_checked(lane: Lane, participant: Participant) -> None:
    checked(lane, participant.port, {"kind": "http"}, {"kind": "tcp"}, address="169.254.169.254")
    until(lambda: all(each["state"] == "failing" for each in one(lane)["checks"]))
    assert [each["message"] for each in one(lane)["checks"]] == [
        "169.254.169.254 is 169.254.169.254, which may not be called."
    ] * 2


def test_one_that_flaps_is_held_back(lane: Lane, participant: Participant) -> None:
    answers = {"": 200}
    participant.script[""] = lambda asked: (answers[""], None, {})
    checked(lane, participant.port, {"kind": "http", "failures": 1, "successes": 1})
    for _ in range(4):
        answers[""] = 200
        becomes(lane, "healthy")
        answers[""] = 500
        becomes(lane, "failing")
    answers[""] = 200
    until(lambda: one(lane)["reason"] == "flapping")
    assert one(lane)["checks"][0]["state"] == "passing"
    assert listed(lane) == []


@pytest.mark.parametrize(
    ("check", "pointer"),
    [
        ({"kind": "icmp"}, "/checks/0/kind"),
        ({"kind": "http", "path": "a b"}, "/checks/0/path"),
        ({"kind": "http", "path": "a\r\nb"}, "/checks/0/path"),
        ({"kind": "http", "interval_seconds": 0.1}, "/checks/0/interval_seconds"),
        ({"kind": "http", "failures": 0}, "/checks/0/failures"),
        ({"kind": "http", "shell": "rm"}, "/checks/0/shell"),
    ],
)
def test_a_check_that_is_none_is_refused(lane: Lane, check: dict[str, Any], pointer: str) -> None:
    about = {"service": "bank", "instance_id": "one", "address": "10.0.0.7", "port": 0, "checks": [check]}
    problem = refused(lane, "services.register", **about)
    assert (problem["status"], {each["pointer"] for each in problem["errors"]}) == (422, {"/port", pointer})
    assert listed(lane, healthy=False) == []


# -- when many fail at once --------------------------------------------------------------------------


def test_half_of_a_crowd_stays_listed_whatever_fails(call: Door) -> None:
    from discovery.directory import directory

    for number in range(4):
        register(call, str(number), ttl_seconds=2)

    def crowd() -> Any:
        return call("services.get", service="bank")["instances"]

    until(lambda: [each["protected"] for each in crowd()] == [True, True])
    found = crowd()
    assert [(each["status"], each["healthy"], each["protected"]) for each in found] == [
        ("expired", True, True)
    ] * 2
    assert call("services.find")["items"][0] == {
        "service": "bank", "instances": 2, "healthy": 2, "protected": 2, "maintenance": None,
    }  # fmt: skip
    address = f"{call.namespace}/bank"
    known = {each["instance_id"] for each in found}
    until(lambda: {place.instance for place in directory.places(address)} == known)
    assert call("services.pick", service="bank")["instance_id"] in known
    kept, other = sorted(known)
    revived = call("services.heartbeat", service="bank", instance_id=kept)  # nobody declared it dead
    assert (revived["status"], revived["protected"]) == ("healthy", False)
    register(call, kept)  # for longer
    register(call, "9")
    until(lambda: listed(call) == [kept, "9"])
    assert refused(call, "services.heartbeat", service="bank", instance_id=other)["reason"] == "expired"
    assert Counter(kinds(call)) == {
        "registered": 5, "changed": 1, "instance_expired": 4, "instance_healthy": 1, "instance_released": 1,
    }  # fmt: skip


def test_the_directory_lists_what_lookups_list(lane: Lane) -> None:
    from discovery.directory import directory

    def known(name: str = "bank") -> list[str]:
        return sorted(place.instance for place in directory.places(f"{lane.namespace}/{name}"))

    register(lane, "one")
    register(lane, "two")
    assert known() == ["one", "two"]
    lane("services.maintenance", service="bank", instance_id="one")
    assert known() == listed(lane) == ["two"]
    lane("services.maintenance", service="bank")
    assert known() == listed(lane) == []
    lane("services.maintenance", service="bank", enabled=False)
    until(lambda: known() == listed(lane) == ["two"])
    checked(lane, free_port(), {"kind": "tcp"}, service="shop")
    time.sleep(0.6)
    assert known("shop") == listed(lane, "shop") == []


# -- watching ----------------------------------------------------------------------------------------


def names(state: Any) -> list[str]:
    return [each["instance_id"] for each in state["instances"]]


def watched(lane: Lane, more: dict[str, str] | None = None, /, **query: Any) -> Any:
    """Over server-sent events: the kind of each item, its id and what it says."""
    url = f"http://127.0.0.1:{lane.served.port}/api/v1/services/bank/watch"
    headers = {"Syros-Namespace": lane.namespace, **(more or {})}
    with httpx.stream("GET", url, params=query, headers=headers, timeout=20) as response:
        assert response.status_code == 200, response.read()
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            else:
                yield fields["event"], int(fields["id"]), json.loads(fields["data"])


def test_who_watches_is_told_of_every_change(lane: Lane) -> None:
    register(lane)
    with closing(watched(lane, heartbeat_seconds=1)) as items:
        kind, position, state = next(items)
        assert (kind, position, names(state)) == ("service", state["position"], ["one"])
        register(lane, "two")
        assert names(next(items)[2]) == ["one", "two"]
        lane("services.maintenance", service="bank", instance_id="one")
        _, reached, state = next(items)
        assert names(state) == ["two"]
        register(lane, service="other")
        assert next(items) == ("heartbeat", reached, {"position": reached})
        lane("services.deregister", service="bank", instance_id="two")
        assert names(next(items)[2]) == []


def test_who_watches_again_goes_on_where_it_was(lane: Lane) -> None:
    register(lane)
    with closing(watched(lane)) as items:
        _, position, _ = next(items)
    register(lane, "two")  # at the very next position
    with closing(watched(lane, {"Last-Event-ID": str(position)}, from_position=1)) as items:
        _, position, state = next(items)
        assert names(state) == ["one", "two"]
    with closing(
        watched(lane, {"Last-Event-ID": str(position)}, from_position=1, heartbeat_seconds=1)
    ) as items:
        assert next(items)[0] == "heartbeat"


def test_a_watch_over_grpc(served: Served, lane: Lane) -> None:
    register(lane)
    method = f"/{full('ServicesService')}/Watch"
    asked = messages()["ServicesServiceWatchRequest"](service="bank")
    items = channel(served).unary_stream(
        method, request_serializer=lambda each: each.SerializeToString(),
        response_deserializer=messages()["ServicesServiceWatchResponse"].FromString,
    )(asked, metadata=[("syros-namespace", lane.namespace)], timeout=30)  # fmt: skip
    assert [each.instance_id for each in next(items).service.instances] == ["one"]
    register(lane, "two")
    assert [each.instance_id for each in next(items).service.instances] == ["one", "two"]
    items.cancel()


def test_a_watch_over_a_websocket(served: Served, lane: Lane) -> None:
    with opened(served, lane.namespace) as peer:
        register(lane)
        begun = peer.ask("services.watch", "w", service="bank")
        assert (begun["id"], begun["subscribed"]) == ("w", True)
        assert names(peer.hear()["service"]) == ["one"]
        register(lane, "two")
        assert names(peer.hear()["service"]) == ["one", "two"]


def test_many_who_watch_cost_one_follower(lane: Lane, later: Any) -> None:
    from core.watching import watchers

    register(lane)
    position = lane("services.get", service="bank")["position"]
    how = {"service": "bank", "wait_seconds": 20, "from_position": position}
    asked = [later(lane, "services.get", **how) for _ in range(20)]
    number = lane.served.do(namespaces.get(lane.namespace)).number
    until(lambda: len(watchers._listeners.get(number, {}).get("$service:bank", ())) == 20)
    assert number in watchers._followers
    register(lane, "two")
    assert {tuple(names(each.result(5).value)) for each in asked} == {("one", "two")}
    until(lambda: number not in watchers._followers and number not in watchers._listeners)
