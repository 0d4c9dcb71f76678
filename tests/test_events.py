"""What the event store promises, through every door."""

import asyncio
import json
import time
from contextlib import aclosing, closing
from secrets import token_hex
from typing import Any
from uuid import uuid4

import httpx
import pytest

from core.callers import DEVELOPER, Call, namespaces
from core.operations import registry
from core.runtime import runtime
from tests.doors import Door, Refused, Served


def many(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"event_type": "Counted", "data": {"n": n}, **more} for n in range(count)]


def versions(page: Any) -> list[int]:
    return [event["version"] for event in page["events"]]


# -- appending ---------------------------------------------------------------------------------------


def test_an_event_is_appended_and_read_back(call: Door) -> None:
    appended = call(
        "events.append", stream_id="order-1", event_type="OrderCreated",
        data={"total": 129.9, "name": "Zoë \u0001"}, metadata={"source": "app"},
    )  # fmt: skip
    assert appended.status == 201
    assert (appended["stream_id"], appended["event_type"], appended["version"]) == (
        "order-1",
        "OrderCreated",
        1,
    )
    (event,) = call("events.read", stream_id="order-1")["events"]
    assert event == {
        **appended.value,
        "data": {"total": 129.9, "name": "Zoë \u0001"},
        "metadata": {"source": "app"},
        "correlation_id": None,
        "causation_id": None,
    }


@pytest.mark.parametrize("data", [None, 0, "", [], {}, [1, None, {"a": []}], "text", 2**53, -1.5, False])
def test_data_is_any_json(lane: Door, data: Any) -> None:
    if data is None:
        lane("events.append", stream_id="s", events=[{"event_type": "t", "data": None}])
    else:
        lane("events.append", stream_id="s", event_type="t", data=data)
    assert lane("events.read", stream_id="s")["events"][0]["data"] == data


def test_several_events_are_appended_at_once(call: Door) -> None:
    call("events.append", stream_id="s", event_type="First", data={})
    batch = call("events.append", stream_id="s", events=many(3))
    assert batch.status == 201
    assert (batch["first_version"], batch["last_version"]) == (2, 4)
    assert batch["last_position"] - batch["first_position"] == 2
    page = call("events.read", stream_id="s")
    assert versions(page) == [1, 2, 3, 4]
    assert [event["event_id"] for event in page["events"][1:]] == batch["event_ids"]


def test_several_streams_are_appended_to_in_one_transaction(call: Door) -> None:
    answer = call(
        "events.append_many",
        appends=[{"stream_id": "a-1", "events": many(2)}, {"stream_id": "b-1", "events": many(1)}],
    )
    assert [each["last_version"] for each in answer["appends"]] == [2, 1]
    with pytest.raises(Refused, match="wrong_expected_version"):
        call(
            "events.append_many",
            appends=[
                {"stream_id": "a-1", "events": many(1)},
                {"stream_id": "b-1", "events": many(1), "expected_version": 7},
            ],
        )
    assert call("events.read", stream_id="a-1")["version"] == 2  # all of it or nothing


@pytest.mark.parametrize(
    ("before", "expected", "fits"),
    [
        (0, "any", True), (2, "any", True),
        (0, "no_stream", True), (1, "no_stream", False),
        (0, "exists", False), (1, "exists", True),
        (0, 0, True), (2, 2, True), (2, 1, False), (2, 3, False), (0, 1, False),
    ],
)  # fmt: skip
def test_the_expected_version(call: Door, before: int, expected: Any, fits: bool) -> None:
    for _ in range(before):
        call("events.append", stream_id="s", event_type="t", data={})
    if fits:
        done = call("events.append", stream_id="s", event_type="t", data={}, expected_version=expected)
        assert done["version"] == before + 1
        return
    with pytest.raises(Refused) as refused:
        call("events.append", stream_id="s", event_type="t", data={}, expected_version=expected)
    problem = refused.value.problem
    assert (refused.value.status, refused.value.code) == (409, "wrong_expected_version")
    assert (problem["expected"], problem["actual"]) == (expected, before)
    assert call("events.read", stream_id="s")["version"] == before


def test_the_same_event_id_again_changes_nothing(call: Door) -> None:
    event_id = str(uuid4())
    first = call("events.append", stream_id="s", event_type="t", data={"n": 1}, event_id=event_id)
    call("events.append", stream_id="s", event_type="t", data={})
    again = call(
        "events.append", stream_id="s", event_type="t", data={"n": 1}, event_id=event_id, expected_version=0
    )
    assert (first.status, again.status) == (201, 200)
    assert again.value == first.value
    assert call("events.read", stream_id="s")["version"] == 2


def test_the_same_batch_again_changes_nothing(call: Door) -> None:
    events = [{"event_type": "t", "data": n, "event_id": str(uuid4())} for n in range(3)]
    first = call("events.append", stream_id="s", events=events)
    again = call("events.append", stream_id="s", events=events)
    assert (first.status, again.status) == (201, 200)
    assert again.value == first.value


@pytest.mark.parametrize("case", ["partly", "another_stream", "another_order"])
def test_event_ids_used_otherwise_are_a_conflict(call: Door, case: str) -> None:
    events = [{"event_type": "t", "data": n, "event_id": str(uuid4())} for n in range(2)]
    call("events.append", stream_id="s", events=events)
    stream, retry = "s", events
    if case == "partly":
        retry = [*events, {"event_type": "t", "data": 3, "event_id": str(uuid4())}]
    elif case == "another_stream":
        stream = "other"
    else:
        retry = events[::-1]
    with pytest.raises(Refused) as refused:
        call("events.append", stream_id=stream, events=retry)
    assert (refused.value.status, refused.value.code) == (409, "event_id_conflict")
    assert call("events.read", stream_id="s")["version"] == 2


def test_an_event_id_that_syros_gave_is_known_again(call: Door) -> None:
    first = call("events.append", stream_id="s", event_type="t", data={"n": 1})
    again = call("events.append", stream_id="s", event_type="t", data={"n": 1}, event_id=first["event_id"])
    assert again.status == 200
    assert again.value == first.value


def test_ids_that_repeat_within_an_append_are_refused(call: Door) -> None:
    same = str(uuid4())
    with pytest.raises(Refused, match="422"):
        call("events.append", stream_id="s", events=many(2, event_id=same))


def test_correlation_and_causation_come_from_the_metadata(call: Door) -> None:
    about = {"correlation_id": "c-1", "causation_id": "e-9"}
    call("events.append", stream_id="s", event_type="t", data={}, metadata=about)
    (event,) = call("events.read", stream_id="s")["events"]
    assert (event["correlation_id"], event["causation_id"]) == ("c-1", "e-9")
    assert event["metadata"] == about


# -- reading a stream --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found", "has_more"),
    [
        ({}, [1, 2, 3, 4, 5, 6], False),
        ({"limit": 2}, [1, 2], True),
        ({"from_version": 3, "limit": 2}, [3, 4], True),
        ({"from_version": 5}, [5, 6], False),
        ({"from_version": 2, "to_version": 3}, [2, 3], False),
        ({"direction": "backward"}, [6, 5, 4, 3, 2, 1], False),
        ({"direction": "backward", "limit": 2}, [6, 5], True),
        ({"direction": "backward", "from_version": 4, "to_version": 3}, [4, 3], False),
        ({"event_type": "Odd"}, [1, 3, 5], False),
        ({"event_type": "Odd", "limit": 1, "direction": "backward"}, [5], True),
        ({"from_version": 99}, [], False),
        ({"until": "2001-01-01T00:00:00Z"}, [], False),
        ({"since": "2001-01-01T00:00:00+01:00", "until": "2999-01-01T00:00:00Z"}, [1, 2, 3, 4, 5, 6], False),
    ],
)
def test_a_stream_is_read(call: Door, query: dict[str, Any], found: list[int], has_more: bool) -> None:
    kinds = [{"event_type": "Even" if n % 2 else "Odd", "data": n} for n in range(6)]
    call("events.append", stream_id="s", events=kinds)
    page = call("events.read", stream_id="s", **query)
    assert versions(page) == found
    assert (page["has_more"], page["version"]) == (has_more, 6)


def test_an_unknown_stream_has_no_events(call: Door) -> None:
    page = call("events.read", stream_id="nothing/here")
    assert page.value == {"stream_id": "nothing/here", "events": [], "version": 0, "has_more": False}
    info = call("streams.get", stream_id="nothing/here")
    assert info.value == {"stream_id": "nothing/here", "version": 0, "created_at": None, "changed_at": None}


def test_a_stream_says_when_it_changed(call: Door) -> None:
    first = call("events.append", stream_id="s", event_type="t", data={})
    last = call("events.append", stream_id="s", event_type="t", data={})
    assert call("streams.get", stream_id="s").value == {
        "stream_id": "s", "version": 2, "created_at": first["recorded_at"], "changed_at": last["recorded_at"],
    }  # fmt: skip


# -- reading the log ---------------------------------------------------------------------------------


def test_positions_are_dense_and_in_order(call: Door) -> None:
    for stream in ("a-1", "b-1", "a-2"):
        call("events.append", stream_id=stream, events=many(2))
    page = call("events.read_all", limit=4)
    assert [event["position"] for event in page["events"]] == [1, 2, 3, 4]
    assert (page["next_position"], page["head"], page["has_more"]) == (5, 6, True)
    rest = call("events.read_all", from_position=page["next_position"])
    assert [event["position"] for event in rest["events"]] == [5, 6]
    assert (rest["next_position"], rest["has_more"]) == (7, False)
    times = [event["recorded_at"] for event in page["events"] + rest["events"]]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("query", "streams"),
    [
        ({}, ["order-1", "order-2", "user-1"]),
        ({"category": "order"}, ["order-1", "order-2"]),
        ({"category": "ord"}, []),
        ({"prefix": "order-"}, ["order-1", "order-2"]),
        ({"prefix": "us"}, ["user-1"]),
        ({"prefix": "$lock:"}, ["$lock:a"]),
        ({"system": True}, ["order-1", "order-2", "user-1", "$lock:a"]),
        ({"event_type": "Kept"}, ["user-1"]),
        ({"prefix": "%"}, []),
    ],
)
def test_the_log_is_filtered(call: Door, query: dict[str, Any], streams: list[str]) -> None:
    for stream, kind in (("order-1", "Made"), ("order-2", "Made"), ("user-1", "Kept")):
        call("events.append", stream_id=stream, event_type=kind, data={})
    call("locks.acquire", key="a", owner="alice")
    page = call("events.read_all", **query)
    assert [event["stream_id"] for event in page["events"]] == streams
    assert page["next_position"] == page["head"] + 1 == 5


def test_a_rare_choice_is_searched_for_in_steps(call: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    from events import services

    monkeypatch.setattr(services, "SEARCH", 3)
    call("events.append", stream_id="common-1", events=many(10))
    call("events.append", stream_id="rare-1", event_type="t", data={})
    call("events.append", stream_id="common-1", events=many(4))
    found = call("events.read_all", category="rare")
    assert [event["position"] for event in found["events"]] == [11]
    assert (found["next_position"], found["has_more"]) == (13, True)
    rest = call("events.read_all", category="rare", from_position=13)
    assert (rest["events"], rest["next_position"], rest["has_more"]) == ([], 16, False)
    monkeypatch.setattr(services, "SEARCH_SECONDS", -1)  # no time for a second step
    first = call("events.read_all", category="rare")
    assert (first["events"], first["next_position"], first["has_more"]) == ([], 4, True)


def test_beyond_the_head_is_a_later_past(call: Door) -> None:
    call("events.append", stream_id="s", event_type="t", data={})
    assert call("events.read_all", from_position=2)["events"] == []
    with pytest.raises(Refused) as refused:
        call("events.read_all", from_position=3)
    assert (refused.value.status, refused.value.code) == (409, "position_ahead")
    assert refused.value.problem["head"] == 1


def test_below_the_floor_is_gone(call: Door) -> None:
    from core.models import Namespace

    call("events.append", stream_id="s", events=many(5))
    Namespace.objects.filter(name=call.namespace).update(floor=3)
    with pytest.raises(Refused) as refused:
        call("events.read_all", from_position=3)
    assert (refused.value.status, refused.value.code) == (410, "position_pruned")
    assert [e["position"] for e in call("events.read_all", from_position=4)["events"]] == [4, 5]


def test_a_pruned_log_goes_on_where_it_was(call: Door) -> None:
    from core.models import Namespace

    Namespace.objects.filter(name=call.namespace).update(floor=41)
    assert call("events.append", stream_id="s", event_type="t", data={})["position"] == 42


def test_a_long_poll_answers_when_something_comes(waiting: Door, later: Any) -> None:
    waiting("events.append", stream_id="s", event_type="Old", data={})
    poll = later(waiting, "events.read_all", from_position=2, wait_seconds=20)
    time.sleep(0.2)
    assert not poll.done()
    waiting("events.append", stream_id="s", event_type="New", data={})
    page = poll.result(5)
    assert [event["event_type"] for event in page["events"]] == ["New"]
    assert page["next_position"] == 3


def test_a_long_poll_passes_over_what_is_not_wanted(waiting: Door, later: Any) -> None:
    poll = later(waiting, "events.read_all", category="order", wait_seconds=20)
    time.sleep(0.1)
    waiting("events.append", stream_id="user-1", event_type="t", data={})
    time.sleep(0.1)
    assert not poll.done()
    waiting("events.append", stream_id="order-1", event_type="t", data={})
    assert [event["stream_id"] for event in poll.result(5)["events"]] == ["order-1"]


def test_a_long_poll_ends_in_time(waiting: Door) -> None:
    started = time.monotonic()
    page = waiting("events.read_all", wait_seconds=0.3)
    assert time.monotonic() - started >= 0.3
    assert (page["events"], page["next_position"]) == ([], 1)


# -- following ---------------------------------------------------------------------------------------


def follow(lane: Door, more: dict[str, str] | None = None, /, **query: Any) -> Any:
    """The items of a followed log: (event name, id, data), for at most a minute."""
    deadline = time.monotonic() + 60
    url = f"http://127.0.0.1:{lane.served.port}/api/v1/events/follow"
    headers = {"Syros-Namespace": lane.namespace, **(more or {})}
    with httpx.stream("GET", url, params=query, headers=headers, timeout=20) as response:
        assert response.headers["content-type"] == "text/event-stream"
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            assert time.monotonic() < deadline, "what should come does not"
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            else:
                yield fields["event"], int(fields["id"]), json.loads(fields["data"])


def test_following_catches_up_and_goes_on_live(lane: Door, later: Any) -> None:
    lane("events.append", stream_id="s", events=many(3))
    with closing(follow(lane, from_position=2)) as items:
        assert next(items) == ("heartbeat", 1, {"position": 1})
        assert [next(items)[1] for _ in range(2)] == [2, 3]
        lane("events.append", stream_id="s", event_type="Live", data={"x": 1})
        name, position, event = next(items)
        assert (name, position, event["event_type"], event["data"]) == ("event", 4, "Live", {"x": 1})


def test_following_without_a_position_gives_only_what_comes(lane: Door) -> None:
    lane("events.append", stream_id="s", events=many(3))
    with closing(follow(lane)) as items:
        assert next(items) == ("heartbeat", 3, {"position": 3})
        lane("events.append", stream_id="s", event_type="Live", data={})
        assert next(items)[1] == 4


def test_following_chooses_streams_types_and_categories(lane: Door) -> None:
    lane("events.append", stream_id="order-1", event_type="A", data={})
    lane("events.append", stream_id="order-2", event_type="B", data={})
    lane("events.append", stream_id="user-1", event_type="A", data={})
    lane("locks.acquire", key="a", owner="alice")
    lane("events.append", stream_id="end", event_type="End", data={})

    def streams(**query: Any) -> list[str]:
        found = []
        with closing(follow(lane, from_position=1, **query)) as items:
            for name, _, value in items:
                if name == "heartbeat" and value["position"] == 5:
                    return found
                if name == "event":
                    found.append(value["stream_id"])
        return found

    assert streams(streams=["order-1", "$lock:a"], heartbeat_seconds=1) == ["order-1", "$lock:a"]
    assert streams(category="order", heartbeat_seconds=1) == ["order-1", "order-2"]
    assert streams(event_types=["A"], heartbeat_seconds=1) == ["order-1", "user-1"]


def test_a_browser_that_reconnects_goes_on_where_it_was(lane: Door) -> None:
    lane("events.append", stream_id="s", events=many(5))
    with closing(follow(lane, {"Last-Event-ID": "3"}, from_position=1)) as items:
        assert next(items) == ("heartbeat", 3, {"position": 3})
        assert [next(items)[1] for _ in range(2)] == [4, 5]


def test_following_from_ahead_is_refused(lane: Door) -> None:
    url = f"http://127.0.0.1:{lane.served.port}/api/v1/events/follow?from_position=9"
    answer = httpx.get(url, headers={"Syros-Namespace": lane.namespace})
    assert (answer.status_code, answer.json()["code"]) == (409, "position_ahead")


def test_a_follower_sees_every_event_of_many_writers(lane: Door, later: Any) -> None:
    def write(name: str) -> None:
        for _ in range(20):
            lane("events.append", stream_id=name, events=many(5))

    with closing(follow(lane, from_position=1)) as items:
        next(items)
        writers = [later(write, f"s-{number}") for number in range(4)]
        found = [next(items)[2] for _ in range(400)]
        for writer in writers:
            writer.result(30)
    assert [event["position"] for event in found] == list(range(1, 401))
    for number in range(4):
        mine = [event["version"] for event in found if event["stream_id"] == f"s-{number}"]
        assert mine == list(range(1, 101))


# -- who comes back late -----------------------------------------------------------------------------


async def followed(namespace: str, last: int) -> list[int]:
    """The positions that one who follows from the start is given, up to this one."""
    operation = registry["events.follow"]
    call = Call(DEVELOPER, await namespaces.get(namespace))
    found = []
    async with aclosing(runtime.stream(operation, call, operation.parse({"from_position": 1}))) as items:
        async for item in items:
            if event := item.get("event"):
                found.append(event["position"])
            if found and found[-1] == last:
                return found
    return found


def test_a_page_of_the_log_ends_where_it_gets_large(lane: Door, served: Served) -> None:
    for _ in range(5):
        lane("events.append", stream_id="s", event_type="t", data=token_hex(300_000))
    number = served.do(namespaces.get(lane.namespace)).number
    assert runtime.tail
    page = served.do(runtime.tail.after(number, 0))
    assert [entry.position for entry in page] == [1, 2]
    assert served.do(followed(lane.namespace, 5)) == [1, 2, 3, 4, 5]


def test_many_who_come_back_together_all_get_there(lane: Door, served: Served) -> None:
    for _ in range(3):
        lane("events.append", stream_id="s", events=many(1000))

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(followed(lane.namespace, 3000) for _ in range(100)))

    for positions in served.do(all_of_them()):
        assert positions == list(range(1, 3001))


def test_who_looks_for_what_is_rare_hears_how_far_it_came(lane: Door, served: Served) -> None:
    """Who is broken off before the first event goes on there, and not at the beginning again."""
    for _ in range(4):
        lane("events.append", stream_id="s", events=many(1000))

    async def heartbeats() -> list[int]:
        operation = registry["events.follow"]
        call = Call(DEVELOPER, await namespaces.get(lane.namespace))
        params = operation.parse({"from_position": 1, "category": "none", "heartbeat_seconds": 1})
        params["heartbeat_seconds"] = 0  # sooner than clients may ask for it
        found = []
        async with aclosing(runtime.stream(operation, call, params)) as items:
            async for item in items:
                found.append(item["heartbeat"]["position"])
                if found[-1] == 4000:
                    return found
        return found

    assert served.do(heartbeats()) == [0, 1000, 2000, 3000, 4000]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_page_ends_before_its_limit_where_it_gets_large(lane: Door, direction: str) -> None:
    for _ in range(5):
        lane("events.append", stream_id="s", event_type="t", data=token_hex(3_000_000))
    page = lane("events.read", stream_id="s", direction=direction, limit=5)
    assert (versions(page), page["has_more"]) == ([1, 2, 3] if direction == "forward" else [5, 4, 3], True)
    log = lane("events.read_all", limit=5)
    assert ([event["position"] for event in log["events"]], log["next_position"]) == ([1, 2, 3], 4)
    rest = lane("events.read_all", from_position=4, limit=5)
    assert ([event["position"] for event in rest["events"]], rest["has_more"]) == ([4, 5], False)
