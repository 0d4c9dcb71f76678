"""What sagas promise, through every door."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import httpx
import pytest

from sagas.worker import LEASES_OVER, WAITING_FOR
from tests.doors import Django, Door, Grpc, Lane, Refused, Served
from tests.participant import Participant
from tests.test_locks import until

RETRY = {"backoff_strategy": "fixed", "initial_delay_seconds": 0.05, "jitter": "none"}


@pytest.fixture
def participant() -> Iterator[Participant]:
    with Participant() as found:
        yield found


def register(door: Door, participant: Participant, *services: str) -> None:
    for service in services or ("shop",):
        door(
            "services.register",
            service=service,
            instance_id="one",
            address="127.0.0.1",
            port=participant.port,
        )


def step(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "service": "shop", "action": name, "compensation": f"undo_{name}", **more}


def start(door: Door, *steps: dict[str, Any], **more: Any) -> str:
    return str(door("sagas.start", name="order", steps=list(steps), **more)["saga_id"])


def reaches(door: Door, saga_id: str, *statuses: str, seconds: float = 10.0) -> Any:
    """The saga, once it is so."""
    deadline = time.monotonic() + seconds
    while (found := door("sagas.get", saga_id=saga_id).value)["status"] not in statuses:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def fetched(door: Door, service: str = "shop") -> Any:
    """The next task for a worker; not every door can wait for it."""
    deadline = time.monotonic() + 10
    while not (found := door("workers.poll", service=service, worker_id="w")["tasks"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (task,) = found
    return task


def polled(door: Door, count: int, **how: Any) -> list[Any]:
    """So many tasks."""
    found: list[Any] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += door("workers.poll", **how)["tasks"]
        time.sleep(0.02)
    return found


def instant(text: Any) -> datetime:
    return datetime.fromisoformat(text)


def kinds(door: Door, saga_id: str) -> list[str]:
    events = door("sagas.history", saga_id=saga_id)["events"]
    return [" ".join([event["type"], event["data"].get("step", "")]).strip() for event in events]


# -- through every door ------------------------------------------------------------------------------


def test_steps_are_carried_out_in_order_and_know_what_came_before(
    call: Door, participant: Participant
) -> None:
    register(call, participant)
    participant.script["reserve"] = lambda asked: (200, {"id": 7, "of": asked.body["input"]["sku"]}, {})
    saga_id = start(
        call, step("reserve"), step("charge", input={"for": "${steps.reserve.output.id}", "text": "r${input.sku}"}),
        input={"sku": "x"}, output={"paid": "${steps.charge.output.did}"}, metadata={"why": "ü"}, tags={"shop": "a"},
    )  # fmt: skip
    saga = reaches(call, saga_id, "succeeded")
    assert [(each["name"], each["status"], each["attempts"]) for each in saga["steps"]] == [
        ("reserve", "succeeded", 1), ("charge", "succeeded", 1),
    ]  # fmt: skip
    assert saga["output"] == {"paid": "charge"}
    assert (saga["input"], saga["metadata"], saga["tags"]) == ({"sku": "x"}, {"why": "ü"}, {"shop": "a"})
    assert [asked.path for asked in participant.asked] == ["reserve", "charge"]
    charge = participant.asked[1]
    assert charge.body["input"] == {"for": 7, "text": "rx"}
    assert charge.headers["idempotency-key"] == f"{saga_id}.charge.a"
    assert (charge.headers["syros-step"], charge.headers["syros-op"], charge.headers["syros-attempt"]) == (
        "charge", "action", "1",
    )  # fmt: skip
    assert kinds(call, saga_id) == [
        "saga.started", "step.dispatched reserve", "step.succeeded reserve", "step.dispatched charge",
        "step.succeeded charge", "saga.succeeded",
    ]  # fmt: skip


def test_a_failure_is_taken_back_in_reverse(call: Door, participant: Participant) -> None:
    register(call, participant)
    participant.script["c"] = lambda asked: (409, {"code": "declined", "detail": "No."}, {})
    saga_id = start(call, step("a"), step("b"), step("c"))
    saga = reaches(call, saga_id, "compensated")
    assert participant.paths() == ["a", "b", "c", "undo_b", "undo_a"]
    assert (saga["reason"], saga["error"]) == (
        "step_failed", {"step": "c", "code": "declined", "message": "No."},
    )  # fmt: skip
    assert [each["compensation"]["status"] for each in saga["steps"]] == [
        "compensated",
        "compensated",
        "pending",
    ]
    undo = participant.asked[3]
    assert undo.headers["idempotency-key"] == f"{saga_id}.b.c"
    assert undo.headers["syros-outcome"] == "succeeded"
    assert undo.body["input"] == {"input": None, "output": {"did": "b"}, "outcome": "succeeded"}


def test_without_participants_it_ends_and_says_why(call: Door) -> None:
    saga_id = start(call, step("a", timeout_seconds=0.3), step("b"))
    saga = reaches(call, saga_id, "failed", "compensated")
    assert (saga["status"], saga["error"]["code"]) == ("failed", "no_participant")
    assert "shop" in saga["error"]["message"]


def test_workers_fetch_what_nobody_serves(call: Door) -> None:
    saga_id = start(call, step("a", input={"n": 1}), step("b"), input={"x": 1})
    assert call("workers.poll", service="other", worker_id="w").value == {"tasks": []}
    task = fetched(call)
    assert (task["saga_id"], task["step"], task["op"], task["action"], task["attempt"]) == (
        saga_id, "a", "action", "a", 1,
    )  # fmt: skip
    assert (task["input"], task["idempotency_key"]) == ({"n": 1}, f"{saga_id}.a.a")
    assert call("workers.poll", service="shop", worker_id="v").value == {"tasks": []}
    lease = {"task_id": task["task_id"], "lease_token": task["lease_token"]}
    assert call("tasks.heartbeat", **lease, lease_seconds=60)["cancel_requested"] is False
    with pytest.raises(Refused, match="lease_lost"):
        call("tasks.complete", task_id=task["task_id"], lease_token="ünother")
    assert call("tasks.complete", **lease, output={"y": 2})["status"] == "succeeded"
    with pytest.raises(Refused, match="lease_lost"):
        call("tasks.complete", **lease)
    task = fetched(call)
    lease = {"task_id": task["task_id"], "lease_token": task["lease_token"]}
    assert task["input"] == {"x": 1}
    assert call("tasks.fail", **lease, code="no", message="It does not.")["status"] == "failed"
    undo = fetched(call)
    assert (undo["step"], undo["op"], undo["action"]) == ("a", "compensate", "undo_a")
    done = {"task_id": undo["task_id"], "lease_token": undo["lease_token"], "output": None}
    found = call("tasks.complete_many", tasks=[done, {**done, "task_id": f"{saga_id}.b.action"}])["items"]
    assert [each["status"] for each in found] == ["succeeded", "lease_lost"]
    assert reaches(call, saga_id, "compensated")["steps"][0]["output"] == {"y": 2}


def test_workers_say_the_same_of_many_tasks(call: Door) -> None:
    """One that is refused is none of the others' business."""
    ids = [start(call, step("a", retry_policy=RETRY)) for _ in range(3)]
    tasks = {each["saga_id"]: each for each in polled(call, 3, service="shop", worker_id="w")}
    leases = [{name: tasks[saga_id][name] for name in ("task_id", "lease_token")} for saga_id in ids]
    others = {**leases[1], "lease_token": "another"}
    nobodys = {**leases[0], "task_id": f"{ids[0]}.b.action"}
    found = call("tasks.heartbeat_many", tasks=[{**leases[0], "lease_seconds": 3600}, others, nobodys])[
        "items"
    ]
    assert [each["status"] for each in found] == ["kept", "lease_lost", "task_not_found"]
    assert [each["task_id"] for each in found] == [
        leases[0]["task_id"],
        leases[1]["task_id"],
        nobodys["task_id"],
    ]
    assert instant(found[0]["lease_expires_at"]) - datetime.now(UTC) > timedelta(minutes=59)
    assert found[1]["lease_expires_at"] is None
    assert not any(each["cancel_requested"] for each in found)
    refused = {**leases[0], "code": "declined", "message": "No."}
    again = {**leases[1], "retryable": True, "retry_after_seconds": 60}
    found = call(
        "tasks.fail_many", tasks=[refused, {**refused, "lease_token": "another"}, again, {**nobodys}]
    )["items"]
    assert [each["status"] for each in found][::2] == ["failed", "backoff"]
    assert found[3]["status"] == "task_not_found"
    assert call("sagas.get", saga_id=ids[0])["error"] == {"step": "a", "code": "declined", "message": "No."}
    for tasks in ([], [{**refused, "surprise": 1}], [{**refused, "retry_after_seconds": -1}]):
        with pytest.raises(Refused, match="invalid"):
            call("tasks.fail_many", tasks=tasks)
    with pytest.raises(Refused, match="invalid"):
        call("tasks.heartbeat_many", tasks=[{**leases[2], "lease_seconds": 0}])


def test_a_paused_saga_begins_nothing(call: Door, participant: Participant) -> None:
    register(call, participant)
    saga_id = start(call, {"name": "wait", "kind": "sleep", "seconds": 0.2}, step("a"))
    assert call("sagas.pause", saga_id=saga_id, reason="lunch")["status"] == "paused"
    time.sleep(0.5)
    assert participant.asked == []
    assert call("sagas.get", saga_id=saga_id)["status"] == "paused"
    assert call("sagas.resume", saga_id=saga_id)["status"] == "running"
    reaches(call, saga_id, "succeeded")
    with pytest.raises(Refused, match="saga_over"):
        call("sagas.pause", saga_id=saga_id)


def test_a_cancelled_saga_is_taken_back(call: Door, participant: Participant) -> None:
    register(call, participant)
    saga_id = start(call, step("a"), {"name": "wait", "kind": "signal"}, step("b"))
    while "wait" not in str(call("sagas.get", saga_id=saga_id)["current_step"]):
        time.sleep(0.02)
    assert call("sagas.cancel", saga_id=saga_id, reason="changed my mind")["reason"] == "cancelled"
    assert reaches(call, saga_id, "compensated")["error"]["message"] == "changed my mind"
    assert participant.paths() == ["a", "undo_a"]


def test_a_signal_goes_to_who_waits_for_it_or_is_kept(call: Door) -> None:
    wait = [{"name": name, "kind": "signal"} for name in ("one", "two")]
    saga_id = start(call, *wait, output={"one": "${steps.one.output}", "two": "${steps.two.output}"})
    call("sagas.signal", saga_id=saga_id, signal="two", payload={"n": 2})
    assert call("sagas.get", saga_id=saga_id)["status"] == "running"
    found = call("sagas.signal", saga_id=saga_id, signal="one", payload=1)
    assert (found["status"], found["output"]) == ("succeeded", {"one": 1, "two": {"n": 2}})


def test_the_log_says_why_a_signal_was_given_and_an_instance_taken_out(
    call: Door, participant: Participant
) -> None:
    saga_id = start(call, {"name": "go", "kind": "signal"})
    call("sagas.signal", saga_id=saga_id, signal="go", payload=1, reason="anna called")
    (said,) = [each["data"] for each in call("sagas.history", saga_id=saga_id)["events"]
               if each["type"] == "saga.signalled"]  # fmt: skip
    assert said == {"signal": "go", "payload": 1, "reason": "anna called"}
    register(call, participant)
    call("services.deregister", service="shop", instance_id="one", reason="it is on fire")
    said = call("events.read", stream_id="$service:shop")["events"][-1]
    assert (said["event_type"], said["data"]) == (
        "service.deregistered", {"instance_id": "one", "reason": "it is on fire"},
    )  # fmt: skip


def test_a_terminated_saga_is_left_as_it_is(call: Door, participant: Participant) -> None:
    register(call, participant)
    saga_id = start(call, step("a"), {"name": "wait", "kind": "sleep", "seconds": 60})
    while call("sagas.get", saga_id=saga_id)["steps"][1]["status"] != "waiting":
        time.sleep(0.02)
    found = call("sagas.terminate", saga_id=saga_id, reason="enough")
    assert (found["status"], found["dirty"], found["error"]["message"]) == ("terminated", True, "enough")
    assert participant.paths() == ["a"]


@pytest.mark.parametrize(
    ("verb", "ends", "dirty"),
    [("sagas.retry", "compensated", False), ("steps.retry", "compensated", False), ("steps.skip", "failed", True),
     ("steps.complete", "compensated", False)],
)  # fmt: skip
def test_who_is_stuck_is_helped(
    call: Door, participant: Participant, verb: str, ends: str, dirty: bool
) -> None:
    register(call, participant)
    participant.script["b"] = lambda asked: (422, {"code": "no"}, {})
    participant.script["undo_a"] = lambda asked: (500, {"code": "broken"}, {})
    undo = {**RETRY, "max_attempts": 2}
    saga_id = start(call, step("a", compensation_retry_policy=undo), step("b"))
    saga = reaches(call, saga_id, "attention")
    assert (saga["steps"][0]["compensation"]["status"], saga["steps"][0]["compensation"]["attempts"]) == (
        "stuck",
        2,
    )
    participant.script["undo_a"] = lambda asked: (200, None, {})
    about = {"step": "a"} if verb.startswith("steps") else {}
    call(verb, saga_id=saga_id, reason="I looked at it", **about)
    assert reaches(call, saga_id, "compensated", "failed")["status"] == ends
    assert call("sagas.get", saga_id=saga_id)["dirty"] is dirty
    assert "I looked at it" in str(call("sagas.history", saga_id=saga_id).value)


def test_definitions_have_versions_that_stay(call: Door) -> None:
    wait = {"name": "a", "kind": "sleep", "seconds": 0}
    first = call("definitions.put", name="d", steps=[wait], output={"v": 1})
    assert (first["version"], first["steps"]) == (1, [wait])
    assert call("definitions.put", name="d", steps=[wait], output={"v": 1})["version"] == 1
    assert call("definitions.put", name="d", steps=[wait], output={"v": 2})["version"] == 2
    assert call("definitions.get", name="d", version=1)["output"] == {"v": 1}
    assert call("definitions.get", name="d")["output"] == {"v": 2}
    assert call("definitions.find").value == {"items": [{"name": "d", "version": 2}], "next_cursor": None}
    assert call("sagas.start", name="x", definition="d")["output"] == {"v": 2}
    assert call("sagas.start", name="x", definition="d", definition_version=1)["output"] == {"v": 1}
    with pytest.raises(Refused, match="definition_not_found"):
        call("sagas.start", name="x", definition="d", definition_version=3)
    with pytest.raises(Refused, match="definition_not_found"):
        call("definitions.get", name="e")
    assert call("definitions.validate", steps=[wait]).value == {"valid": True, "steps": ["a"]}
    with pytest.raises(Refused) as refused:
        call("definitions.validate", steps=[{**wait, "depends_on": ["b"]}])
    assert refused.value.problem["errors"][0]["pointer"] == "/steps/0/depends_on/0"


def test_a_saga_starts_when_it_was_said(call: Door, participant: Participant) -> None:
    register(call, participant)
    begun = time.time()
    found = call("sagas.start", name="later", steps=[step("a")], delay_seconds=0.7, deadline_seconds=60)
    saga_id = found["saga_id"]
    assert (found["status"], found["steps"][0]["status"]) == ("scheduled", "pending")
    assert instant(found["start_at"]) - instant(found["created_at"]) == timedelta(seconds=0.7)
    assert instant(found["deadline_at"]) - instant(found["start_at"]) == timedelta(seconds=60)
    assert [each["saga_id"] for each in call("sagas.find", status="scheduled")["items"]] == [saga_id]
    saga = reaches(call, saga_id, "succeeded")
    assert time.time() - begun >= 0.7
    assert saga["start_at"] == found["start_at"]
    assert instant(saga["steps"][0]["started_at"]) >= instant(saga["start_at"])
    assert kinds(call, saga_id)[:2] == ["saga.scheduled", "saga.started"]


def test_a_scheduled_saga_is_told_what_others_are(call: Door, participant: Participant) -> None:
    register(call, participant)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    one, other = (start(call, step("a"), start_at=tomorrow) for _ in range(2))
    assert call("sagas.pause", saga_id=one)["status"] == "paused"
    assert call("sagas.resume", saga_id=one)["status"] == "scheduled"
    assert call("sagas.signal", saga_id=one, signal="x")["status"] == "scheduled"
    found = call("sagas.cancel", saga_id=one, reason="not needed")
    assert (found["status"], found["reason"], found["dirty"]) == ("failed", "cancelled", False)
    found = call("sagas.terminate", saga_id=other, reason="not needed")
    assert (found["status"], found["dirty"]) == ("terminated", False)
    assert participant.asked == []


def test_a_start_that_is_past_is_one_at_once(call: Door) -> None:
    wait = {"name": "a", "kind": "sleep", "seconds": 0}
    found = call("sagas.start", name="x", steps=[wait], start_at="2020-01-01T00:00:00Z")
    assert (found["status"], found["start_at"]) == ("succeeded", None)


def test_a_start_has_one_time_within_ten_years(call: Door) -> None:
    for when, pointer in (
        ({"start_at": "2030-01-01T00:00:00Z", "delay_seconds": 1}, "/start_at"),
        ({"start_at": "2200-01-01T00:00:00Z"}, "/start_at"),
        ({"delay_seconds": -1}, "/delay_seconds"),
    ):
        with pytest.raises(Refused) as refused:
            start(call, step("a"), **when)
        assert [each["pointer"] for each in refused.value.problem["errors"]] == [pointer]


def test_sagas_are_found(call: Door) -> None:
    wait = {"name": "a", "kind": "sleep", "seconds": 0}
    over = start(call, wait, tags={"shop": "a", "n": "1"})
    lasts = call("sagas.start", name="other", steps=[{**wait, "seconds": 60}])["saga_id"]

    def find(**about: Any) -> list[str]:
        return [each["saga_id"] for each in call("sagas.find", **about)["items"]]

    assert find() == [lasts, over]
    assert find(status="running") == [lasts]
    assert find(name="order") == [over]
    assert find(tag=["shop:a", "n:1"]) == [over]
    assert find(tag=["shop:b"]) == []
    assert find(tag=["shop:a", "shop:b"]) == []
    page = call("sagas.find", limit=1)
    assert [each["saga_id"] for each in page["items"]] == [lasts]
    assert find(limit=1, cursor=page["next_cursor"]) == [over]


@pytest.mark.parametrize("door", [Lane, Django])
def test_a_query_string_may_name_the_tag(served: Served, namespace: str, door: type[Door]) -> None:
    rest = door(served, namespace)
    a, b = (start(rest, SLEEP, tags={"order": order, "shop": "x"}) for order in ("42", "4:3"))

    def find(**query: Any) -> list[str]:
        return [each["saga_id"] for each in rest("sagas.find", **query)["items"]]

    assert find(**{"tag.order": "42"}) == [a]
    assert (
        find(**{"tag.order": "4:3", "tag.shop": "x"}) == find(**{"tag.order": "4:3", "tag": "shop:x"}) == [b]
    )
    assert find(**{"tag.shop": "x"}) == find(tag="shop:x") == [b, a]
    assert find(**{"tag.order": ["42", "4:3"]}) == find(**{"tag.order": ""}) == []
    for bad, pointer in (({"tag.order": "x" * 256}, "/tag/0"), ({"name.order": "42"}, "/name.order")):
        with pytest.raises(Refused) as refused:
            find(**bad)
        assert [each["pointer"] for each in refused.value.problem["errors"]] == [pointer]


@pytest.mark.parametrize("door", [Lane, Django])
def test_who_starts_a_saga_is_told_where_it_is(served: Served, namespace: str, door: type[Door]) -> None:
    rest = door(served, namespace)
    first, again = (rest("sagas.start", name="x", steps=[SLEEP], _={"key": "k"}) for _ in range(2))
    assert again.replayed
    for answer in (first, again):
        assert answer.headers["location"] == f"/api/v1/sagas/{first['saga_id']}"
    assert "location" not in rest("sagas.get", saga_id=first["saga_id"]).headers
    found = httpx.get(
        f"http://127.0.0.1:{served.port}{first.headers['location']}", headers={"syros-namespace": namespace}
    )
    assert found.json()["saga_id"] == first["saga_id"]


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("door", [Lane, Django, Grpc])
def test_all_calls_of_a_saga_belong_to_the_trace_of_its_start(
    served: Served, namespace: str, participant: Participant, door: type[Door]
) -> None:
    with closing(door(served, namespace)) as rest:
        register(rest, participant)
        rest("definitions.put", name="inner", steps=[step("i")])
        participant.script["b"] = lambda asked: (409, {"code": "no"}, {})
        nap = {"name": "nap", "kind": "sleep", "seconds": 0.1}
        child = {"name": "child", "kind": "saga", "definition": "inner"}
        steps = [step("a"), nap, child, step("w", service="workers"), step("b")]
        saga_id = rest("sagas.start", name="x", steps=steps, _={"trace": TRACE})["saga_id"]
        task = fetched(rest, "workers")
        assert task["context"]["traceparent"] == TRACE
        rest("tasks.complete", task_id=task["task_id"], lease_token=task["lease_token"])
        task = fetched(rest, "workers")
        rest("tasks.complete", task_id=task["task_id"], lease_token=task["lease_token"])
        reaches(rest, saga_id, "compensated")
        assert participant.paths() == ["a", "i", "b", "undo_i", "undo_a"]
        assert [asked.headers["traceparent"] for asked in participant.asked] == [TRACE] * 5
        assert {asked.body["context"]["traceparent"] for asked in participant.asked} == {TRACE}


def test_a_call_belongs_to_the_trace_of_who_caused_it(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["a"] = lambda asked: (409, {"code": "no"}, {})
    saga_id = start(lane, step("p", pivot=True), step("a"))
    reaches(lane, saga_id, "attention")
    participant.script["a"] = lambda asked: (200, None, {})
    lane("sagas.retry", saga_id=saga_id, reason="mended", _={"trace": TRACE})
    reaches(lane, saga_id, "succeeded")
    assert [asked.headers.get("traceparent") for asked in participant.asked] == [None, None, TRACE]


@pytest.mark.parametrize(
    "bad",
    ["x", f"{TRACE}-more", TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), f"ff{TRACE[2:]}"],
)
def test_a_trace_that_is_none_is_not_passed_on(lane: Lane, participant: Participant, bad: str) -> None:
    register(lane, participant)
    saga_id = lane("sagas.start", name="x", steps=[step("a")], _={"trace": bad})["saga_id"]
    reaches(lane, saga_id, "succeeded")
    assert "traceparent" not in participant.asked[0].headers


def test_a_timeline_tells_attempts_and_waits(call: Door, participant: Participant) -> None:
    register(call, participant)
    answers: list[Any] = [(503, {"code": "busy"}, {}), (200, None, {})]
    participant.script["a"] = lambda asked: answers.pop(0)
    participant.script["undo_a"] = lambda asked: (200, None, {})
    work = step("w", service="nobody")
    saga_id = start(call, step("a", retry_policy=RETRY), {"name": "s", "kind": "signal"}, work, step("never"))
    call("sagas.signal", saga_id=saga_id, signal="s")
    task = fetched(call, "nobody")
    lease = {"task_id": task["task_id"], "lease_token": task["lease_token"]}
    under_way = lanes_of(call, saga_id)["w", "action"]
    assert [(each["attempt"], each["by"], each["outcome"]) for each in under_way["attempts"]] == [
        (1, "pull", None)
    ]
    call("tasks.fail", **lease, code="no")
    reaches(call, saga_id, "compensated")
    found = call("sagas.timeline", saga_id=saga_id)
    assert (found["saga_id"], found["name"], found["status"]) == (saga_id, "order", "compensated")
    assert (found["from_version"], found["is_cut"]) == (1, False)
    assert [each["status"] for each in found["states"]] == ["running", "compensating"]
    assert found["states"][1]["finished_at"] >= found["finished_at"]
    assert found["states"][0]["finished_at"] == found["states"][1]["started_at"]
    lanes = lanes_of(call, saga_id)
    assert list(lanes) == [
        ("a", "action"), ("s", "action"), ("w", "action"), ("never", "action"), ("a", "compensation"),
    ]  # fmt: skip
    told = [(each["by"], each["outcome"], each["code"]) for each in lanes["a", "action"]["attempts"]]
    assert told == [("push", "unknown", "busy"), ("push", "succeeded", None)]
    first, second = lanes["a", "action"]["attempts"]
    (pause,) = lanes["a", "action"]["waits"]
    assert (pause["reason"], pause["started_at"], pause["finished_at"]) == (
        "retry", first["finished_at"], second["started_at"],
    )  # fmt: skip
    (queued,), (worked,) = lanes["w", "action"]["waits"], lanes["w", "action"]["attempts"]
    assert (queued["reason"], worked["by"], worked["outcome"], worked["code"]) == (
        "worker", "pull", "failed", "no",
    )  # fmt: skip
    assert queued["started_at"] < queued["finished_at"] == worked["started_at"] < worked["finished_at"]
    assert under_way["attempts"][0]["started_at"] == worked["started_at"]
    assert (lanes["w", "action"]["outcome"], lanes["w", "action"]["code"]) == ("failed", "no")
    assert (lanes["never", "action"]["outcome"], lanes["never", "action"]["attempts"]) == (None, [])
    assert lanes["a", "compensation"]["outcome"] == "succeeded"


def lanes_of(door: Door, saga_id: str) -> dict[tuple[str, str], Any]:
    lanes = door("sagas.timeline", saga_id=saga_id)["lanes"]
    return {(lane["step"], lane["side"]): lane for lane in lanes}


def test_a_history_comes_in_pages(call: Door) -> None:
    saga_id = start(call, *({**SLEEP, "name": f"s{n}"} for n in range(3)))
    reaches(call, saga_id, "succeeded")
    whole = call("sagas.history", saga_id=saga_id)
    assert [event["version"] for event in whole["events"]] == list(range(1, 9))
    assert (whole["version"], whole["has_more"]) == (8, False)
    page = call("sagas.history", saga_id=saga_id, from_version=2, limit=3)
    assert page["events"] == whole["events"][1:4]
    assert (page["version"], page["has_more"]) == (4, True)


def test_a_history_s_page_ends_before_it_is_too_large(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    from core import log

    gates = [{"name": f"s{n}", "kind": "signal"} for n in range(3)]
    saga_id = start(lane, *gates)
    for gate in gates:
        lane("sagas.signal", saga_id=saga_id, signal=gate["name"], payload=token_hex(1500))
    monkeypatch.setattr(log, "READ_BYTES", 4000)
    pages, has_more = [[0]], True
    while has_more:
        page = lane("sagas.history", saga_id=saga_id, from_version=pages[-1][-1] + 1)
        pages.append([event["version"] for event in page["events"]])
        has_more = page["has_more"]
    assert [version for page in pages[1:] for version in page] == list(range(1, 12))
    assert len(pages) > 3


def test_a_timeline_of_many_events_says_that_it_is_cut(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagas.services import looking

    naps = [{"name": f"s{n}", "kind": "sleep", "seconds": 0} for n in range(5)]
    saga_id = start(lane, *naps)
    reaches(lane, saga_id, "succeeded")
    version = lane("sagas.history", saga_id=saga_id)["version"]
    monkeypatch.setattr(looking, "TOLD", 4)
    found = lane("sagas.timeline", saga_id=saga_id)
    assert (found["from_version"], found["is_cut"]) == (version - 3, True)
    assert len(found["lanes"]) == 5


def test_failures_are_grouped_and_found_by_their_code(call: Door, participant: Participant) -> None:
    register(call, participant)
    participant.script["b"] = lambda asked: (409, {"code": asked.body["input"]}, {})
    participant.script["undo_a"] = lambda asked: (500, {"code": "broken"}, {})
    undo = {**RETRY, "max_attempts": 1}
    stuck = start(call, step("a", compensation_retry_policy=undo), step("b"), input="declined")
    reaches(call, stuck, "attention")
    participant.script["undo_a"] = lambda asked: (200, None, {})
    first, second, other = (start(call, step("a"), step("b"), input=code) for code in ("no", "no", "other"))
    late = start(call, {"name": "s", "kind": "sleep", "seconds": 60}, deadline_seconds=0.1)
    fine = start(call, step("a"))
    for saga_id, status in ((first, "compensated"), (second, "compensated"), (other, "compensated"),
                            (late, "failed"), (fine, "succeeded")):  # fmt: skip
        reaches(call, saga_id, status)
    found = call("sagas.failures")
    groups = {each["newest"]: each for each in found["items"]}
    assert found["is_partial"] is False
    assert found["items"][0]["count"] == 2
    assert set(groups) in ({stuck, first, other, late}, {stuck, second, other, late})
    told = [(each["name"], each["step"], each["side"], each["code"], each["count"], each["attention"])
            for each in (found["items"][0], *(groups[saga_id] for saga_id in (other, stuck, late)))]  # fmt: skip
    assert told == [
        ("order", "b", "action", "no", 2, 0), ("order", "b", "action", "other", 1, 0),
        ("order", "a", "compensation", "broken", 1, 1), ("order", None, None, "deadline", 1, 0),
    ]  # fmt: skip
    assert found["items"][0]["first_seen_at"] <= found["items"][0]["last_seen_at"]  # in one batch, perhaps
    assert [each["newest"] for each in call("sagas.failures", status="attention")["items"]] == [stuck]
    assert call("sagas.failures", name="nothing")["items"] == []
    assert call("sagas.failures", since="2999-01-01T00:00:00Z")["items"] == []

    def find(**about: Any) -> list[str]:
        return [each["saga_id"] for each in call("sagas.find", **about)["items"]]

    assert find(error_code="no") == [second, first]
    assert find(error_code="broken", status="attention") == [stuck]
    assert find(error_code="declined") == []
    begun = call("sagas.get", saga_id=second)["created_at"]
    assert find(error_code="no", until=begun) == [first]
    assert find(error_code="no", since=begun) == [second]
    done = call("sagas.batch", verb="retry", reason="mended", error_code="broken", dry_run=False)
    assert (done["matched"], done["done"]) == (1, 1)
    assert reaches(call, stuck, "compensated")["error"]["code"] == "declined"
    assert find(error_code="declined") == [stuck]


def test_the_last_failures_are_looked_at(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagas.services import looking

    for _ in range(3):
        saga_id = start(lane, {**SLEEP, "seconds": 60})
        lane("sagas.cancel", saga_id=saga_id, reason="x")
    assert (lane("sagas.failures")["items"][0]["count"], lane("sagas.failures")["is_partial"]) == (3, False)
    monkeypatch.setattr(looking, "SCANNED", 2)
    assert lane("sagas.failures")["is_partial"] is True


def test_the_same_key_starts_one_saga(call: Door) -> None:
    wait = {"name": "a", "kind": "sleep", "seconds": 0}
    first, again = (call("sagas.start", name="x", steps=[wait], _={"key": "k"}) for _ in range(2))
    assert first["saga_id"] == again["saga_id"]
    assert again.replayed
    with pytest.raises(Refused, match="idempotency_key_reused"):
        call("sagas.start", name="y", steps=[wait], _={"key": "k"})


def test_what_is_not_there(call: Door) -> None:
    for operation in ("sagas.get", "sagas.history", "sagas.timeline", "sagas.pause"):
        with pytest.raises(Refused, match="saga_not_found"):
            call(operation, saga_id="nothing")
    with pytest.raises(Refused, match="task_not_found"):
        call("tasks.complete", task_id="nothing.a.action", lease_token="x")


def test_who_wants_to_waits_for_the_end(waiting: Door, participant: Participant) -> None:
    register(waiting, participant)
    participant.script["a"] = lambda asked: (200, 1, {})
    begun = time.monotonic()
    found = waiting("sagas.start", name="x", steps=[step("a")], wait_seconds=10)
    assert (found.status, found["status"], found["steps"][0]["output"]) == (201, "succeeded", 1)
    sleep = {"name": "s", "kind": "sleep", "seconds": 60}
    lasts = waiting("sagas.start", name="x", steps=[sleep], wait_seconds=0.2)
    assert lasts["status"] == "running"
    assert waiting("sagas.get", saga_id=lasts["saga_id"], wait_seconds=0.2)["status"] == "running"
    assert time.monotonic() - begun < 5


# -- how participants are understood -----------------------------------------------------------------


def test_attempts_have_one_key(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    answers: list[Any] = [
        (500, {"code": "oops"}, {}),
        None,
        (429, None, {"retry-after": "0.1"}),
        (200, {"ok": 1}, {}),
    ]
    participant.script["a"] = lambda asked: answers.pop(0)
    saga = reaches(lane, start(lane, step("a", retry_policy=RETRY)), "succeeded")
    assert saga["steps"][0]["attempts"] == 4
    assert len({asked.headers["idempotency-key"] for asked in participant.asked}) == 1
    assert [asked.headers["syros-attempt"] for asked in participant.asked] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "answer",
    [
        0.5,
        None,
        b"nonsense",
        b"HTTP/1.1 200 X\r\ncontent-length: 50\r\n\r\n{}",
        (503, None, {}),
        (302, None, {"location": "/b"}),
        b"HTTP/1.1 200 X\r\ncontent-length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 X\r\ncontent-length: 104857600\r\n\r\n" + b"x" * (2 << 20),
    ],
    ids=["slow", "reset", "garbage", "lies", "503", "redirect", "no json", "100 MB"],
)
def test_a_step_in_doubt_is_compensated(lane: Lane, participant: Participant, answer: Any) -> None:
    register(lane, participant)
    participant.script["b"] = lambda asked: answer if asked.headers["syros-attempt"] == "1" else (409, {}, {})
    one = {**RETRY, "max_attempts": 1}
    begun = time.monotonic()
    saga_id = start(lane, step("a"), step("b", timeout_seconds=0.3, retry_policy=one))
    saga = reaches(lane, saga_id, "compensated")
    assert time.monotonic() - begun < 3
    assert participant.paths() == ["a", "b", "undo_b", "undo_a"]
    assert participant.asked[2].headers["syros-outcome"] == "unknown"
    assert saga["steps"][1]["status"] == "unknown"


def test_a_refusal_after_doubt_is_no_certainty(lane: Lane, participant: Participant) -> None:
    """The first attempt may have worked, and the second may be refused for that very reason."""
    register(lane, participant)
    answers: list[Any] = [(500, None, {}), (409, {"code": "duplicate"}, {})]
    participant.script["b"] = lambda asked: answers.pop(0)
    reaches(lane, start(lane, step("a"), step("b", retry_policy=RETRY)), "compensated")
    assert participant.paths() == ["a", "b", "b", "undo_b", "undo_a"]


def test_who_accepts_answers_later(lane: Lane, participant: Participant) -> None:
    saga_id, task = accepted(lane, participant)
    with pytest.raises(Refused, match="lease_lost"):
        lane("tasks.complete", task_id=task["task_id"], lease_token="f" * 40)
    assert lane("tasks.heartbeat", **task)["task_id"] == task["task_id"]
    assert lane("tasks.complete", **task, output={"late": True})["status"] == "succeeded"
    with pytest.raises(Refused, match="lease_lost"):
        lane("tasks.fail", **task)
    assert reaches(lane, saga_id, "succeeded")["steps"][0]["output"] == {"late": True}
    assert late_results(lane, saga_id) == [{"step": "a", "op": "action", "attempt": 1, "outcome": "failed"}]


def test_who_keeps_what_it_accepted_hears_that_the_saga_was_ended(
    lane: Lane, participant: Participant
) -> None:
    """Nothing is kept then."""
    saga_id, task = accepted(lane, participant)
    until = lane("tasks.heartbeat", **task, lease_seconds=60)["lease_expires_at"]
    lane("sagas.terminate", saga_id=saga_id, reason="enough")
    found = lane("tasks.heartbeat", **task, lease_seconds=3600)
    assert (found["cancel_requested"], found["lease_expires_at"]) == (True, until)


def test_who_keeps_what_it_accepted_hears_that_the_saga_turned_back_though_it_is_paused(
    lane: Lane, participant: Participant
) -> None:
    saga_id, task = accepted(lane, participant)
    lane("sagas.pause", saga_id=saga_id)
    assert lane("tasks.heartbeat", **task)["cancel_requested"] is False
    lane("sagas.cancel", saga_id=saga_id, reason="no more")
    assert lane("tasks.heartbeat", **task)["cancel_requested"] is True
    lane("sagas.pause", saga_id=saga_id)
    assert lane("tasks.heartbeat", **task)["cancel_requested"] is True


def accepted(lane: Lane, participant: Participant) -> tuple[str, dict[str, str]]:
    """A saga whose step the participant accepted, and what it needs to answer."""
    register(lane, participant)
    participant.script["a"] = lambda asked: (202, None, {})
    saga_id = start(lane, step("a"))
    deadline = time.monotonic() + 5
    while lane("sagas.get", saga_id=saga_id)["steps"][0]["status"] != "waiting":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    token = participant.asked[0].headers["syros-task-token"]
    return saga_id, {"task_id": f"{saga_id}.a.action", "lease_token": token}


@pytest.mark.parametrize(
    ("said", "ends"), [("applied", "succeeded"), ("not_applied", "failed"), ("?", "compensated")]
)
def test_a_participant_may_be_asked_what_became_of_it(
    lane: Lane, participant: Participant, said: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagas.rules.CHECK_AGAIN", 0.05)
    register(lane, participant)
    participant.script["a"] = lambda asked: None
    participant.script["check"] = lambda asked: (200, {"outcome": said, "output": 7}, {})
    one = {**RETRY, "max_attempts": 1}
    saga = reaches(lane, start(lane, step("a", verify="check", retry_policy=one, timeout_seconds=1)), ends)
    asked = participant.asked[1]
    assert (asked.path, asked.headers["syros-op"]) == ("check", "verify")
    assert asked.headers["idempotency-key"] == f"{saga['saga_id']}.a.v"
    assert saga["steps"][0]["output"] == (7 if said == "applied" else None)


def test_an_operator_may_retry_with_another_input(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["b"] = lambda asked: (200 if asked.body["input"] == 2 else 409, None, {})
    saga_id = start(lane, step("a", pivot=True), step("b", input=1))
    reaches(lane, saga_id, "attention")
    lane("steps.retry", saga_id=saga_id, step="b", reason="a typing error", input=2)
    reaches(lane, saga_id, "succeeded")


def test_ongoing_costs_no_attempt(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    answers: list[Any] = [(425, None, {"retry-after": "0.05"})] * 3 + [(200, None, {})]
    participant.script["a"] = lambda asked: answers.pop(0)
    saga = reaches(lane, start(lane, step("a", retry_policy={**RETRY, "max_attempts": 1})), "succeeded")
    assert len(participant.asked) == 4
    assert saga["steps"][0]["error"] is None


@pytest.mark.parametrize("status", [401, 404])
def test_a_misconfigured_compensation_is_no_hot_loop(
    lane: Lane, participant: Participant, status: int
) -> None:
    register(lane, participant)
    participant.script["undo_a"] = lambda asked: (status, None, {})
    participant.script["b"] = lambda asked: (409, None, {})
    saga_id = start(lane, step("a", compensation_retry_policy=RETRY), step("b"))
    time.sleep(1.5)
    assert participant.paths().count("undo_a") == 1
    assert lane("sagas.get", saga_id=saga_id)["steps"][0]["compensation"]["status"] == "backoff"


def test_addresses_that_nobody_may_call(lane: Lane, participant: Participant, settings: Any) -> None:
    """Also for an administrator, the metadata services of clouds."""
    lane("services.register", service="shop", instance_id="one", address="169.254.169.254", port=80)
    saga_id = start(lane, step("a", retry_policy={**RETRY, "max_attempts": 1}))
    saga = reaches(lane, saga_id, "failed")
    assert saga["error"]["code"] == "not_sent"
    assert "may not be called" in saga["error"]["message"]


# -- the graph ---------------------------------------------------------------------------------------


def test_branches_run_beside_each_other_and_are_taken_back_so(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["d"] = lambda asked: (409, None, {})
    saga_id = start(
        lane,
        step("a"),
        step("b", depends_on=["a"]),
        step("c", depends_on=["a"]),
        step("d", depends_on=["b", "c"]),
    )
    reaches(lane, saga_id, "compensated")
    paths = participant.paths()
    assert (paths[0], set(paths[1:3]), paths[3]) == ("a", {"b", "c"}, "d")
    assert (set(paths[4:6]), paths[6]) == ({"undo_b", "undo_c"}, "undo_a")


def test_a_step_whose_condition_is_false_is_skipped(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    saga_id = start(lane, step("a", when="input.n > 1"), step("b"), step("c", when="steps.b.output.did == 'b'"),
                    input={"n": 1})  # fmt: skip
    saga = reaches(lane, saga_id, "succeeded")
    assert [each["status"] for each in saga["steps"]] == ["skipped", "skipped", "skipped"]
    assert participant.asked == []


def test_after_the_pivot_there_is_no_way_back(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["c"] = lambda asked: (409, {"code": "no"}, {})
    saga_id = start(lane, step("a"), step("b", pivot=True), step("c"))
    assert reaches(lane, saga_id, "attention")["reason"] == "step_failed"
    with pytest.raises(Refused, match="pivot_passed"):
        lane("sagas.cancel", saga_id=saga_id, reason="x")
    participant.script["c"] = lambda asked: (200, None, {})
    lane("steps.retry", saga_id=saga_id, step="c", reason="mended")
    reaches(lane, saga_id, "succeeded")
    assert participant.paths() == ["a", "b", "c", "c"]


def test_an_operator_may_turn_back_after_the_pivot(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["c"] = lambda asked: (409, {"code": "no"}, {})
    saga_id = start(lane, step("a"), step("b", pivot=True), step("c"))
    reaches(lane, saga_id, "attention")
    lane("steps.compensate", saga_id=saga_id, step="c", reason="give it up")
    reaches(lane, saga_id, "compensated")
    assert participant.paths() == ["a", "b", "c", "undo_b", "undo_a"]


def test_a_deadline_turns_it_back(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    saga_id = start(lane, step("a"), {"name": "s", "kind": "sleep", "seconds": 60}, deadline_seconds=0.3)
    saga = reaches(lane, saga_id, "compensated")
    assert (saga["reason"], participant.paths()) == ("deadline", ["a", "undo_a"])


def test_a_mapping_that_finds_nothing_fails_the_step(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    saga_id = start(lane, step("a"), step("b", input="${steps.a.output.nothing}"))
    saga = reaches(lane, saga_id, "compensated")
    assert (saga["error"]["step"], saga["error"]["code"]) == ("b", "mapping_failed")


def test_a_service_that_comes_late_is_called(lane: Lane, participant: Participant) -> None:
    saga_id = start(lane, step("a", timeout_seconds=10))
    assert lane("sagas.get", saga_id=saga_id)["steps"][0]["status"] == "queued"
    register(lane, participant)
    saga = reaches(lane, saga_id, "succeeded")
    assert saga["steps"][0]["attempts"] == 1


def late_results(door: Door, saga_id: str) -> list[Any]:
    events = door("sagas.history", saga_id=saga_id)["events"]
    return [event["data"] for event in events if event["type"] == "step.late_result"]


def test_what_comes_after_a_task_was_given_up_is_late_and_told(call: Door) -> None:
    """Also of each of many. A token that nobody was given, and the wish to keep a task, tell nothing."""
    saga_id = start(call, step("a", retry_policy={"max_attempts": 1}))
    (task,) = polled(call, 1, service="shop", worker_id="w", lease_seconds=1)
    lease = {"task_id": task["task_id"], "lease_token": task["lease_token"]}
    (undo,) = polled(call, 1, service="shop", worker_id="w")
    assert undo["op"] == "compensate"
    for operation in ("tasks.heartbeat", "tasks.complete"):
        with pytest.raises(Refused, match="lease_lost"):
            call(operation, **lease)
    forged, nobodys = {**lease, "lease_token": "ü"}, {**lease, "task_id": f"{saga_id}.b.action"}
    found = call("tasks.fail_many", tasks=[forged, lease, nobodys])["items"]
    assert [each["status"] for each in found] == ["lease_lost", "lease_lost", "task_not_found"]
    assert [each["outcome"] for each in late_results(call, saga_id)] == ["succeeded", "failed"]


def test_a_lost_lease_is_doubt(lane: Lane) -> None:
    saga_id = start(lane, step("a", retry_policy=RETRY))
    (first,) = lane("workers.poll", service="shop", worker_id="w", lease_seconds=1)["tasks"]
    (again,) = lane("workers.poll", service="shop", worker_id="v", wait_seconds=10)["tasks"]
    assert (again["attempt"], again["idempotency_key"]) == (2, first["idempotency_key"])
    with pytest.raises(Refused, match="lease_lost"):
        lane("tasks.complete", task_id=first["task_id"], lease_token=first["lease_token"])
    lane("tasks.fail", task_id=again["task_id"], lease_token=again["lease_token"])
    with pytest.raises(Refused, match="lease_lost"):
        lane("tasks.fail", task_id=first["task_id"], lease_token=first["lease_token"])
    late = [{"step": "a", "op": "action", "outcome": outcome} for outcome in ("succeeded", "failed")]
    assert late_results(lane, saga_id) == late
    (undo,) = lane("workers.poll", service="shop", worker_id="v", wait_seconds=10)["tasks"]
    assert (undo["op"], undo["context"]["outcome"]) == ("compensate", "unknown")
    assert lane("sagas.get", saga_id=saga_id)["status"] == "compensating"


# -- bad input ---------------------------------------------------------------------------------------

SLEEP = {"name": "a", "kind": "sleep", "seconds": 0}


@pytest.mark.parametrize(
    ("steps", "pointers"),
    [
        ([], ["/steps"]),
        ([SLEEP, SLEEP], ["/steps/1/name"]),
        ([{**SLEEP, "depends_on": ["x", "y"]}], ["/steps/0/depends_on/0", "/steps/0/depends_on/1"]),
        ([{**SLEEP, "depends_on": ["a"]}], ["/steps/0/depends_on"]),
        ([{**SLEEP, "depends_on": ["b"]}, {**SLEEP, "name": "b", "depends_on": ["a"]}], ["/steps/0/depends_on"]),
        ([{"name": "a"}], ["/steps/0/action", "/steps/0/service"]),
        ([{**SLEEP, "action": "x"}], ["/steps/0/action"]),
        ([{"name": "a", "kind": "sleep"}], ["/steps/0/seconds"]),
        ([{**SLEEP, "colour": 1}], ["/steps/0/colour"]),
        ([{**SLEEP, "when": "1 +"}], ["/steps/0/when"]),
        ([{**SLEEP, "when": "nothing == 1"}], ["/steps/0/when"]),
        ([{**SLEEP, "seconds": "${input.x"}], ["/steps/0/seconds"]),
        ([{**SLEEP, "seconds": "${steps.b.output}"}], ["/steps/0/seconds"]),
        ([{**SLEEP, "retry_policy": {"max_attempts": 0, "jitter": "no"}}],
         ["/steps/0/retry_policy/jitter", "/steps/0/retry_policy/max_attempts"]),
        ([{**SLEEP, "name": f"s{n}"} for n in range(501)], ["/steps"]),
    ],
)  # fmt: skip
def test_every_fault_of_the_steps_is_named(lane: Lane, steps: Any, pointers: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        lane("sagas.start", name="x", steps=steps)
    assert refused.value.status == 422
    assert sorted(error["pointer"] for error in refused.value.problem["errors"]) == pointers


def test_either_steps_or_a_definition(lane: Lane) -> None:
    for about in ({}, {"steps": [SLEEP], "definition": "d"}):
        with pytest.raises(Refused) as refused:
            lane("sagas.start", name="x", **about)
        assert refused.value.problem["errors"][0]["pointer"] == "/steps"


@pytest.mark.parametrize(
    ("about", "pointer"),
    [({"steps": [SLEEP], "definition_version": 1}, "/definition_version"),
     ({"definition": "d", "output": 1}, "/output"),
     ({"definition": "d", "compensation_order": "parallel"}, "/compensation_order")],
)  # fmt: skip
def test_what_does_not_go_together_is_named(lane: Lane, about: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Refused) as refused:
        lane("sagas.start", name="x", **about)
    assert [error["pointer"] for error in refused.value.problem["errors"]] == [pointer]


def test_a_tag_is_a_pair(lane: Lane) -> None:
    with pytest.raises(Refused) as refused:
        lane("sagas.find", tag=["foo"])
    assert (refused.value.status, refused.value.problem["errors"][0]["pointer"]) == (422, "/tag/0")


# -- what lies beside a saga -------------------------------------------------------------------------


def test_a_step_holds_its_locks_until_the_saga_is_over(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    held = []
    participant.script["a"] = lambda asked: (
        held.append(lane("locks.get", key="orders/7")["holders"]) or (200, 1, {})
    )
    lock = {"key": "orders/${input.id}"}
    saga_id = start(lane, step("a", locks=[lock]), {"name": "s", "kind": "signal"}, input={"id": 7})
    reaches(lane, saga_id, "running")
    deadline = time.monotonic() + 5
    while lane("sagas.get", saga_id=saga_id)["steps"][0]["status"] != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ((holder,),) = held
    assert holder["session_id"] == f"saga-{saga_id}"
    asked = participant.asked[0]
    assert asked.headers["syros-fencing-token"] == str(holder["fencing_token"])
    assert asked.body["context"]["fencing_tokens"] == {"orders/7": holder["fencing_token"]}
    assert lane("locks.get", key="orders/7")["is_locked"] is True
    lane("sagas.signal", saga_id=saga_id, signal="s")
    assert lane("locks.get", key="orders/7")["is_locked"] is False


def test_a_lock_may_be_given_back_after_the_step(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    lock = {"key": "a", "release": "step"}
    saga_id = start(lane, step("a", locks=[lock]), {"name": "s", "kind": "signal"})
    deadline = time.monotonic() + 5
    while lane("sagas.get", saga_id=saga_id)["steps"][0]["status"] != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert lane("locks.get", key="a")["is_locked"] is False
    lane("sagas.terminate", saga_id=saga_id, reason="over")


def test_sagas_wait_for_their_locks_in_order(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    grant = lane("locks.acquire", key="b", owner="me")
    both = step("a", locks=[{"key": "a"}, {"key": "b"}])
    first, second = start(lane, both), start(lane, both)
    time.sleep(0.3)
    assert participant.asked == []
    assert [w["owner"] for w in lane("locks.get", key="b")["waiters"]] == ["order/a"] * 2
    lane("locks.release", key="b", lock_id=grant["lock_id"])
    for saga_id in (first, second):
        reaches(lane, saga_id, "succeeded")
    assert [asked.headers["syros-saga-id"] for asked in participant.asked] == [first, second]


def test_a_lock_that_does_not_come_fails_the_step(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    lane("locks.acquire", key="b", owner="me")
    saga_id = start(lane, step("z"), step("a", locks=[{"key": "b"}], schedule_to_start_seconds=0.5))
    saga = reaches(lane, saga_id, "compensated")
    assert saga["error"]["code"] == "lock_wait_timeout"
    assert participant.paths() == ["z", "undo_z"]


def test_events_go_out_with_the_success(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    event = {"stream": "order-${input.id}", "type": "paid", "data": {"by": "${steps.a.output.did}"}}
    saga_id = start(lane, step("a", events=[event]), input={"id": 7})
    reaches(lane, saga_id, "succeeded")
    (found,) = lane("events.read", stream_id="order-7")["events"]
    assert (found["event_type"], found["data"], found["correlation_id"]) == ("paid", {"by": "a"}, saga_id)


def test_a_step_may_be_a_saga_and_is_taken_back_as_one(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    lane("definitions.put", name="inner", steps=[step("i"), step("j")], output={"sum": "${input.n}"})
    child = {"name": "child", "kind": "saga", "definition": "inner", "input": {"n": 5}}
    participant.script["b"] = lambda asked: (409, None, {})
    saga_id = start(lane, step("a"), child, step("b", input="${steps.child.output.sum}"))
    reaches(lane, saga_id, "compensated")
    assert participant.paths() == ["a", "i", "j", "b", "undo_j", "undo_i", "undo_a"]
    assert participant.asked[3].body["input"] == 5
    inner, outer = lane("sagas.find", limit=2)["items"]
    assert (inner["name"], inner["status"], outer["saga_id"]) == ("inner", "compensated", saga_id)


def test_a_child_that_fails_fails_its_step(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    participant.script["j"] = lambda asked: (409, {"code": "no"}, {})
    lane("definitions.put", name="inner", steps=[step("i"), step("j")])
    saga_id = start(lane, step("a"), {"name": "child", "kind": "saga", "definition": "inner"})
    saga = reaches(lane, saga_id, "compensated")
    assert (saga["error"]["step"], saga["error"]["code"]) == ("child", "no")
    assert participant.paths() == ["a", "i", "j", "undo_i", "undo_a"]


def test_a_cancelled_saga_waits_for_its_child_to_turn_back(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    lane("definitions.put", name="inner", steps=[step("i"), {"name": "s", "kind": "signal"}])
    saga_id = start(lane, step("a"), {"name": "child", "kind": "saga", "definition": "inner"})
    deadline = time.monotonic() + 5
    while "i" not in participant.paths():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lane("sagas.cancel", saga_id=saga_id, reason="no more")
    reaches(lane, saga_id, "compensated")
    assert participant.paths() == ["a", "i", "undo_i", "undo_a"]


def test_signals_that_come_early_are_kept_in_order(lane: Lane) -> None:
    first, go = {"name": "a", "kind": "signal"}, {"kind": "signal", "signal": "go"}
    saga_id = start(lane, first, {**go, "name": "b"}, {**go, "name": "c"})
    for payload in range(1, 101):
        lane("sagas.signal", saga_id=saga_id, signal="go", payload=payload)
    with pytest.raises(Refused, match="too_many_signals"):
        lane("sagas.signal", saga_id=saga_id, signal="other")
    lane("sagas.signal", saga_id=saga_id, signal="a")
    saga = reaches(lane, saga_id, "succeeded")
    assert [each["output"] for each in saga["steps"]] == [None, 1, 2]


def test_a_definition_that_is_not_there_fails_the_step(lane: Lane) -> None:
    saga_id = start(lane, {"name": "child", "kind": "saga", "definition": "nowhere"})
    assert reaches(lane, saga_id, "failed")["error"]["code"] == "definition_not_found"


INNER = {"name": "child", "kind": "saga", "definition": "inner"}


def ended(lane: Lane, saga_id: str) -> str:
    """The id of the saga that a step is, once that one is over."""
    return str(next(each for each in lane("sagas.find")["items"] if each["saga_id"] != saga_id)["saga_id"])


@pytest.mark.parametrize(
    ("inner", "status", "dirty"),
    [
        ([{**SLEEP, "seconds": 0}], "failed", False),
        ([{"name": "i", "service": "shop", "action": "i"}], "failed", True),
        ([step("i"), {"name": "j", "service": "shop", "action": "j"}], "compensated", True),
    ],
)
def test_a_saga_that_is_taken_back_after_its_child_was_over_ends(
    lane: Lane, participant: Participant, inner: list[Any], status: str, dirty: bool
) -> None:
    """Whether the child has nothing to take back, or cannot."""
    register(lane, participant)
    lane("definitions.put", name="inner", steps=inner)
    participant.script["b"] = lambda asked: (409, None, {})
    saga_id = start(lane, INNER, step("b"))
    saga = reaches(lane, saga_id, "compensated")
    assert saga["dirty"] is dirty
    assert lane("sagas.get", saga_id=ended(lane, saga_id))["status"] == status


def test_a_child_that_failed_and_left_something_is_waited_for_by_nobody(
    lane: Lane, participant: Participant
) -> None:
    register(lane, participant)
    participant.script["j"] = lambda asked: (409, None, {})
    lane("definitions.put", name="inner", steps=[{"name": "i", "service": "shop", "action": "i"}, step("j")])
    saga = reaches(lane, start(lane, INNER), "compensated")
    assert (saga["steps"][0]["status"], saga["dirty"]) == ("unknown", True)


def test_a_child_that_was_terminated_is_not_taken_back_unnoticed(
    lane: Lane, participant: Participant
) -> None:
    """Nor does anything bring it back to life: a human says what becomes of what it left."""
    register(lane, participant)
    lane("definitions.put", name="inner", steps=[step("i"), {"name": "s", "kind": "signal"}])
    saga_id = start(lane, step("a"), INNER)
    until(lambda: "i" in participant.paths())
    until(lambda: lane("sagas.get", saga_id=ended(lane, saga_id))["current_step"] == "s")
    child = ended(lane, saga_id)
    lane("sagas.terminate", saga_id=child, reason="enough")
    saga = reaches(lane, saga_id, "attention")
    assert [each["status"] for each in saga["steps"]] == ["succeeded", "unknown"]
    assert lane("sagas.get", saga_id=child)["status"] == "terminated"
    (told,) = [e for e in lane("sagas.history", saga_id=child)["events"] if e["type"] == "saga.terminated"]
    assert told["data"]["steps"] == ["i"]
    lane("steps.skip", saga_id=saga_id, step="child", reason="done by hand")
    assert reaches(lane, saga_id, "compensated")["dirty"] is True
    assert participant.paths() == ["a", "i", "undo_a"]


def test_what_a_terminated_saga_consists_of_ends_with_it(lane: Lane) -> None:
    lane("definitions.put", name="inner", steps=[step("i")])
    saga_id = start(lane, INNER)
    child = ended(lane, saga_id)
    lane("sagas.terminate", saga_id=saga_id, reason="enough")
    assert lane("sagas.get", saga_id=child)["status"] == "terminated"
    assert lane("workers.poll", service="shop", worker_id="w")["tasks"] == []


def test_a_step_that_is_given_up_wants_no_lock_any_more(lane: Lane, participant: Participant) -> None:
    register(lane, participant)
    held = lane("locks.acquire", key="k", owner="me")
    waits = {"key": "k", "release": "step"}
    participant.script["undo_a"] = lambda asked: None
    saga_id = start(lane, step("a"), step("b", locks=[waits], schedule_to_start_seconds=600))
    until(lambda: lane("locks.get", key="k")["queue_length"] == 1)
    lane("sagas.cancel", saga_id=saga_id, reason="no more")
    assert lane("locks.get", key="k")["queue_length"] == 0
    lane("locks.release", key="k", lock_id=held["lock_id"])
    assert lane("locks.get", key="k")["is_locked"] is False
    lane("sagas.terminate", saga_id=saga_id, reason="enough")


def test_a_step_that_is_given_up_has_its_lock_no_more(lane: Lane, participant: Participant) -> None:
    register(lane, participant, "other")
    participant.script["undo_a"] = lambda asked: None
    waits = {"key": "k", "release": "step"}
    saga_id = start(lane, step("a", service="other"), step("b", locks=[waits]))
    until(lambda: lane("locks.get", key="k")["is_locked"])
    lane("sagas.cancel", saga_id=saga_id, reason="no more")
    assert lane("sagas.get", saga_id=saga_id)["status"] == "compensating"
    assert lane("locks.get", key="k")["is_locked"] is False
    lane("sagas.terminate", saga_id=saga_id, reason="enough")


def test_a_definition_that_refers_to_itself_comes_to_an_end(lane: Lane) -> None:
    """At the deepest saga its step fails, and so does every one above it; it is nobody else's business."""
    me = {"name": "me", "kind": "saga", "definition": "rec"}
    lane("definitions.put", name="rec", steps=[SLEEP])
    lane("definitions.put", name="rec", steps=[me])
    late = start(lane, {**SLEEP, "seconds": 0.2}, me)
    for saga_id in (lane("sagas.start", name="rec", definition="rec")["saga_id"], late):
        saga = reaches(lane, saga_id, "failed")
        assert (saga["error"]["step"], saga["error"]["code"]) == ("me", "too_deep")
    assert len(lane("sagas.find", name="rec", status="failed", limit=100)["items"]) == 17 + 16


def test_a_saga_that_breaks_keeps_no_other_from_its_turn(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagas.models import Saga

    monkeypatch.setattr("sagas.services.courses.NEAR", -1.0)  # nobody but the look wakes them
    ids = [start(lane, {**SLEEP, "seconds": 0.5}) for _ in range(5)]
    Saga.objects.filter(id=f"{lane.namespace}/{ids[2]}").update(progress='{"no_such_field": 1, "steps": {}}')
    for saga_id in (*ids[:2], *ids[3:]):
        reaches(lane, saga_id, "succeeded")
    Saga.objects.filter(id=f"{lane.namespace}/{ids[2]}").delete()


def test_a_look_that_breaks_keeps_no_other_from_its_turn(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    start(lane, step("a", retry_policy=RETRY))
    (task,) = lane("workers.poll", service="shop", worker_id="w", lease_seconds=1, wait_seconds=5)["tasks"]
    monkeypatch.setattr("sagas.worker.DUE", "select %s::int")
    (again,) = lane("workers.poll", service="shop", worker_id="w", wait_seconds=5)["tasks"]
    assert (task["attempt"], again["attempt"]) == (1, 2)


def test_leases_of_sagas_that_are_paused_keep_no_other_from_its_turn(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are over when the saga goes on."""
    monkeypatch.setattr("sagas.worker.LEASES_OVER", LEASES_OVER.replace("limit 200", "limit 2"))
    paused = [start(lane, step("a", retry_policy=RETRY)) for _ in range(4)]
    leases = {"service": "shop", "worker_id": "w", "lease_seconds": 1}
    assert len(polled(lane, 4, **leases)) == 4
    for saga_id in paused:
        lane("sagas.pause", saga_id=saga_id)
    start(lane, step("a", retry_policy=RETRY))
    polled(lane, 1, **leases)
    assert [task["attempt"] for task in polled(lane, 1, service="shop", worker_id="w")] == [2]
    for saga_id in paused:
        lane("sagas.resume", saga_id=saga_id)
    assert [task["attempt"] for task in polled(lane, 4, service="shop", worker_id="w")] == [2] * 4


def test_tasks_of_sagas_that_wait_for_a_human_keep_no_other_from_being_pushed(
    lane: Lane, participant: Participant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagas.worker.WAITING_FOR", WAITING_FOR.replace("limit 200", "limit 2"))
    pivot = step("p", service="desk", pivot=True, depends_on=[], retry_policy={"max_attempts": 1})
    stuck = [start(lane, pivot, step("a", depends_on=[])) for _ in range(3)]
    for task in polled(lane, 3, service="desk", worker_id="w"):
        lane("tasks.fail", task_id=task["task_id"], lease_token=task["lease_token"], effect="unknown")
    for saga_id in stuck:
        reaches(lane, saga_id, "attention")
    saga_id = start(lane, step("b"))
    register(lane, participant)
    reaches(lane, saga_id, "succeeded")
    assert participant.paths() == ["b"]


# -- schedules, many at once, trying out -------------------------------------------------------------


def test_schedules_start_sagas_by_the_clock(call: Door) -> None:
    call("definitions.put", name="d", steps=[SLEEP])
    found = call("schedules.put", name="s", definition="d", interval_seconds=1, input={"n": 1})
    assert (found["definition"], found["time_zone"], found["last_saga_id"]) == ("d", "UTC", None)
    deadline = time.monotonic() + 10
    while not (saga_id := call("schedules.get", name="s")["last_saga_id"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    saga = reaches(call, saga_id, "succeeded")
    assert (saga["name"], saga["input"], saga["metadata"]["schedule"]) == ("d", {"n": 1}, "s")
    assert [each["name"] for each in call("schedules.find")["items"]] == ["s"]
    assert call("schedules.drop", name="s").value == {"name": "s", "dropped": True}
    with pytest.raises(Refused, match="schedule_not_found"):
        call("schedules.get", name="s")


def test_a_schedule_is_paused_resumed_and_run(call: Door) -> None:
    call("definitions.put", name="d", steps=[SLEEP])
    made = call("schedules.put", name="s", definition="d", cron="0 0 1 1 *", input={"n": 1})
    assert made["next_at"]
    found = call("schedules.pause", name="s", reason="holidays")
    assert (found["paused"], found["next_at"]) == (True, None)
    assert call("schedules.get", name="s")["next_at"] is None
    ran = call("schedules.run", name="s", reason="once by hand")
    assert reaches(call, ran["last_saga_id"], "succeeded")["input"] == {"n": 1}
    found = call("schedules.resume", name="s", reason="back")
    assert (found["paused"], found["next_at"]) == (False, made["next_at"])
    with pytest.raises(Refused, match="not_paused"):
        call("schedules.resume", name="s")
    call("schedules.drop", name="s", reason="not needed")
    said = [(each["event_type"], each["data"].get("reason"))
            for each in call("events.read", stream_id="$schedule:s")["events"]]  # fmt: skip
    assert said == [
        ("schedule.put", None), ("schedule.paused", "holidays"), ("schedule.fired", "once by hand"),
        ("schedule.resumed", "back"), ("schedule.dropped", "not needed"),
    ]  # fmt: skip
    for verb in ("pause", "resume", "run"):
        with pytest.raises(Refused, match="schedule_not_found"):
            call(f"schedules.{verb}", name="s")


@pytest.mark.parametrize(("catch_up", "is_first"), [("none", False), ("last", False), ("all", True)])
def test_times_that_pass_in_a_pause_are_made_up_for(lane: Lane, catch_up: str, is_first: bool) -> None:
    """A time that is a few seconds late is none that was missed."""
    lane("definitions.put", name="d", steps=[SLEEP])
    about = {"definition": "d", "interval_seconds": 1, "catch_up": catch_up, "overlap": "allow"}
    lane("schedules.put", name="s", **about, paused=True)
    time.sleep(2.2)
    assert lane("sagas.find")["items"] == []
    lane("schedules.put", name="s", **about)
    deadline = time.monotonic() + 5
    while not lane("schedules.get", name="s")["last_saga_id"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lane("schedules.drop", name="s")
    made, _, fired, *_ = lane("events.read", stream_id="$schedule:s")["events"]
    late = instant(fired["data"]["due_at"]) - instant(made["recorded_at"])
    assert (late < timedelta(seconds=1.5)) == is_first


def test_a_schedule_does_not_start_beside_itself(lane: Lane) -> None:
    lane("definitions.put", name="d", steps=[{**SLEEP, "seconds": 60}])
    lane("schedules.put", name="s", definition="d", interval_seconds=1)
    time.sleep(3.5)
    assert len(lane("sagas.find")["items"]) == 1
    kinds = [event["event_type"] for event in lane("events.read", stream_id="$schedule:s")["events"]]
    assert kinds[:3] == ["schedule.put", "schedule.fired", "schedule.skipped"]
    lane("schedules.drop", name="s")


def test_a_schedule_that_breaks_keeps_no_other_from_its_turn(lane: Lane) -> None:
    from sagas.models import Schedule

    lane("definitions.put", name="d", steps=[SLEEP])
    for name in "abc":
        lane("schedules.put", name=name, definition="d", interval_seconds=1)
    Schedule.objects.filter(id=f"{lane.namespace}/b").update(cron="* * * * *", time_zone="Nowhere")
    time.sleep(2.5)
    assert all(lane("schedules.get", name=name)["last_saga_id"] for name in "ac")
    for name in "abc":
        lane("schedules.drop", name=name)


def test_many_sagas_are_told_the_same(call: Door) -> None:
    ids = [start(call, {**SLEEP, "seconds": 60}, tags={"n": str(n)}) for n in range(3)]
    tried = call("sagas.batch", verb="terminate", reason="over", tag=["n:1"])
    assert (tried["matched"], tried["done"]) == (1, 0)
    done = call("sagas.batch", verb="terminate", reason="over", status="running", dry_run=False)
    assert (done["matched"], done["done"], done["failed"], done["more"]) == (3, 3, [], False)
    assert {call("sagas.get", saga_id=saga_id)["status"] for saga_id in ids} == {"terminated"}


def test_what_is_over_stands_in_the_way_of_nothing(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagas.services.operating.MANY", 2)
    old = start(lane, {**SLEEP, "seconds": 60})
    for _ in range(3):
        reaches(lane, start(lane, SLEEP), "succeeded")
    done = lane("sagas.batch", verb="cancel", name="order", reason="over", dry_run=False)
    assert (done["matched"], done["done"], done["more"]) == (1, 1, False)
    assert lane("sagas.get", saga_id=old)["reason"] == "cancelled"


def test_a_time_of_six_fields_is_none(lane: Lane) -> None:
    with pytest.raises(Refused, match="invalid") as refused:
        lane("schedules.put", name="s", definition="d", cron="* * * * * *")
    assert [each["pointer"] for each in refused.value.problem["errors"]] == ["/cron"]


def test_whatever_is_tried_out_has_an_end(lane: Lane) -> None:
    def ends(*steps: dict[str, Any], **answers: Any) -> tuple[str, Any]:
        found = lane("definitions.simulate", steps=list(steps), answers=answers, output="${steps.s.output}")
        return found["status"], found["output"]

    failed, child = {"outcome": "failed"}, {"name": "s", "kind": "saga", "definition": "d"}
    assert ends({"name": "s", "kind": "signal"}, s={"output": {"by": "anna"}}) == (
        "succeeded",
        {"by": "anna"},
    )
    assert ends(step("s", verify="check"), s={"outcome": "unknown"}) == ("compensated", None)
    assert ends(child, step("b"), b=failed) == ("compensated", None)
    assert ends(child, s=failed) == ("failed", None)
    with pytest.raises(Refused, match="invalid") as refused:
        ends({**SLEEP, "name": "s"}, s=failed, other=failed)
    assert [each["pointer"] for each in refused.value.problem["errors"]] == ["/answers/s", "/answers/other"]


def test_a_definition_is_tried_out(call: Door) -> None:
    steps = [step("a"), {**SLEEP, "name": "s", "seconds": 3600}, step("b", input="${steps.a.output.id}")]
    good = call("definitions.simulate", steps=steps, answers={"a": {"output": {"id": 7}}})
    assert (good["status"], good["seconds"]) == ("succeeded", 3600)
    bad = call(
        "definitions.simulate", steps=steps,
        answers={"a": {"output": {"id": 7}}, "b": {"outcome": "unknown", "code": "timeout"}},
        compensations={"b": {"outcome": "unknown", "times": 2}},
    )  # fmt: skip
    assert (bad["status"], bad["error"]["code"]) == ("compensated", "timeout")
    told = [event["type"] for event in bad["events"]]
    assert told.count("step.failed") == 4
    assert told.count("compensation.dispatched") == 4


def test_a_service_that_is_silent_is_left_alone(lane: Lane, participant: Participant) -> None:
    """Its sagas wait, and burn no attempts."""
    register(lane, participant)
    participant.script["a"] = lambda asked: None
    patient = {**RETRY, "max_attempts": 60}
    sagas = [start(lane, step("a", retry_policy=patient)) for _ in range(10)]
    time.sleep(2)
    asked = len(participant.asked)
    time.sleep(1)
    assert len(participant.asked) - asked <= 5
    participant.script["a"] = lambda asked: (200, None, {})
    for saga_id in sagas:
        reaches(lane, saga_id, "succeeded", seconds=15)


def test_old_sagas_go_with_their_history(lane: Lane) -> None:
    from core.database import pool
    from sagas.services.upkeep import prune

    over, lasts = start(lane, SLEEP), start(lane, {**SLEEP, "seconds": 60})
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    assert lane.served.do(prune(1, pool)) == 0
    assert lane.served.do(prune(0, pool)) >= 1
    with pytest.raises(Refused, match="saga_not_found"):
        lane("sagas.history", saga_id=over)
    assert lane("sagas.get", saga_id=lasts)["status"] == "running"
    assert lane("events.read", stream_id=f"$saga:{over}")["events"] == []
    assert lane("events.read", stream_id=f"$saga:{lasts}")["version"] == 2
