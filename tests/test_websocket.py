"""What is particular to the WebSocket: its frames, what is under way on a connection, and subscriptions."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft7Validator
from websockets.exceptions import InvalidStatus

from api import websocket
from api.asyncapi import document
from core.runtime import runtime
from tests.doors import Lane, Served
from tests.test_events import many
from tests.test_locks import queue, until
from tests.unit.test_asyncapi import payload as schema_of
from tests.websockets import Peer, opened, refusal, text_frame


@pytest.fixture
def peer(served: Served, namespace: str) -> Iterator[Peer]:
    with opened(served, namespace) as found:
        yield found


LOCK = {"key": "a", "owner": "alice"}


# -- frames -----------------------------------------------------------------------------------------


def test_an_answer_bears_the_id_of_what_was_asked(peer: Peer) -> None:
    granted = peer.ask("locks.acquire", "first", **LOCK)
    assert granted == {"id": "first", "result": granted["result"], "status": 201}
    assert granted["result"]["owner"] == "alice"
    held = peer.ask("locks.acquire", "second", key="a", owner="bob")
    assert (held["id"], refusal(held)) == ("second", (409, "lock_held"))
    assert set(held["error"]) >= {"type", "title", "status", "detail", "code", "request_id", "retryable"}


def test_a_replay_is_called_one(peer: Peer, namespace: str) -> None:
    asked = {"id": "1", "op": "locks.acquire", "params": LOCK, "idempotency_key": "k", "namespace": namespace}
    peer.send(**asked)
    first = peer.hear()
    peer.send(**asked)
    assert peer.hear() == {**first, "replayed": True}


def test_what_is_asked_meanwhile_does_not_wait(peer: Peer, lane: Lane) -> None:
    held = lane("locks.acquire", key="a", owner="alice")
    peer.say("locks.acquire", "waits", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(lane, "a") == ["bob"])
    assert peer.ask("locks.get", "asks", key="a")["id"] == "asks"
    peer.say("locks.release", "gives back", key="a", lock_id=held["lock_id"])
    answers = {frame["id"]: frame for frame in (peer.hear(), peer.hear())}
    assert answers["gives back"]["result"]["released"] is True
    assert answers["waits"]["result"]["owner"] == "bob"


@pytest.mark.parametrize(
    ("text", "name", "status", "code"),
    [
        ("", None, 400, "malformed"),
        ("nonsense", None, 400, "malformed"),
        ('{"id": "1", "op": "locks.get"', None, 400, "malformed"),
        ('{"id": "1", "op": "x", "params": {"x": NaN}}', None, 400, "malformed"),
        ('{"id": "1", "op": "x", "params": {"x": "\\ud800"}}', None, 400, "malformed"),
        ('{"a":' + "[" * 100 + "]" * 100 + "}", None, 400, "malformed"),
        ("[" * 60_000, None, 400, "malformed"),
        ("[]", None, 422, "invalid"),
        ("null", None, 422, "invalid"),
        ("{}", None, 422, "invalid"),
        ('{"op": "locks.get"}', None, 422, "invalid"),
        ('{"id": 1, "op": "locks.get"}', None, 422, "invalid"),
        ('{"id": "", "op": "locks.get"}', "", 422, "invalid"),
        ('{"id": "1"}', "1", 422, "invalid"),
        ('{"id": "1", "op": ["auth"]}', "1", 422, "invalid"),
        ('{"id": "1", "op": "locks.get", "params": []}', "1", 422, "invalid"),
        ('{"id": "1", "op": "locks.get", "colour": "red"}', "1", 422, "invalid"),
        ('{"id": "1", "op": "locks.get", "params": {"key": "a"}, "idempotency_key": ""}', "1", 422, "invalid"),
        ('{"id": "1", "op": "locks.get", "params": {}}', "1", 422, "invalid"),
        ('{"id": "1", "op": "nothing.here"}', "1", 404, "not_found"),
        ('{"id": "1", "op": "locks.withdraw", "params": {}}', "1", 404, "not_found"),
        ('{"id": "1", "op": "cancel"}', "1", 404, "not_found"),
        ('{"id": "1", "op": "unsubscribe"}', "1", 404, "not_found"),
        ('{"op": "cancel"}', None, 422, "invalid"),
        ('{"op": "auth"}', None, 422, "invalid"),
        ('{"id": "1", "op": "locks.get", "params": {"key": "a"}, "namespace": "nowhere"}', "1", 404, "not_found"),
    ],
)  # fmt: skip
def test_a_frame_that_is_none_is_refused_and_the_next_one_taken(
    peer: Peer, text: str, name: str | None, status: int, code: str
) -> None:
    peer.connection.send(text)
    frame = peer.hear()
    assert (frame["id"], *refusal(frame)) == (name, status, code)
    assert frame["error"]["request_id"]
    assert peer.ask("locks.get", key="a")["status"] == 200


def test_every_bad_field_of_a_frame_is_named(peer: Peer) -> None:
    peer.send(id=1, params=[], colour="red", namespace="")
    frame = peer.hear()
    pointers = {error["pointer"] for error in frame["error"]["errors"]}
    assert pointers == {"/id", "/op", "/params", "/colour", "/namespace"}


def test_an_internal_operation_exists_and_is_not_called() -> None:
    from core.operations import registry

    assert registry["locks.withdraw"].route is None


def test_parameters_over_an_operation_s_limit_are_refused(peer: Peer) -> None:
    frame = peer.ask("locks.acquire", key="a", owner="b", metadata={"x": "y" * (2 << 20)})
    assert refusal(frame) == (413, "too_large")
    assert frame["error"]["limit"] == 1 << 20
    events = [{"event_type": "t", "data": "y" * 10_000}] * 400
    assert peer.ask("events.append", stream_id="s", events=events)["status"] == 201


def test_an_id_is_taken_while_something_is_under_way(peer: Peer, lane: Lane) -> None:
    peer.subscribe("1")
    assert refusal(peer.ask("locks.get", "1", key="a")) == (409, "id_in_use")
    assert peer.ask("unsubscribe_", "2")["error"]["operation"] == "unsubscribe_"
    peer.send(id="1", op="unsubscribe")
    assert peer.hear() == {"id": "1", "unsubscribed": True}
    assert peer.ask("locks.get", "1", key="a")["status"] == 200


def test_what_breaks_is_an_internal_error_with_an_id_that_is_logged(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(runtime, "run", broken)
    frame = peer.ask("locks.get", key="a")
    assert refusal(frame) == (500, "internal")
    assert "secret" not in str(frame)
    (record,) = [record for record in caplog.records if record.name == "syros.api"]
    assert record.__dict__["request_id"] == frame["error"]["request_id"]


def test_a_request_id_of_the_client_s_leads_all_of_a_connection(served: Served, namespace: str) -> None:
    with opened(served, namespace, additional_headers={"X-Request-Id": "mine"}) as peer:
        assert peer.connection.response
        assert peer.connection.response.headers["x-request-id"] == "mine"
        assert peer.ask("nothing.here")["error"]["request_id"] == "mine.1"
        assert peer.ask("nothing.here")["error"]["request_id"] == "mine.2"


def test_traceparent_becomes_the_correlation_id(served: Served, namespace: str, lane: Lane) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with opened(served, namespace, additional_headers=headers) as peer:
        peer.ask("events.append", stream_id="s", event_type="t", data=1)
    assert lane("events.read", stream_id="s")["events"][0]["correlation_id"] == trace


def test_what_is_heard_is_what_the_contract_shows(peer: Peer, lane: Lane) -> None:
    def check(message: str, frame: dict[str, Any]) -> None:
        Draft7Validator(schema_of(contract, message)).validate(frame)

    contract = document()
    check("locks_acquire_result", peer.ask("locks.acquire", **LOCK))
    check("error", peer.ask("locks.acquire", **LOCK))
    check("error", peer.ask("locks.acquire"))
    check("locks_get_result", peer.ask("locks.get", key="a"))
    check("locks_find_result", peer.ask("locks.find"))
    check("events_append_result", peer.ask("events.append", stream_id="s", events=many(2)))
    check("events_read_result", peer.ask("events.read", stream_id="s"))
    check("subscribe_subscribed", peer.ask("subscribe", "s", from_position=2, heartbeat_seconds=1))
    check("subscribe_event", peer.hear())
    check("subscribe_event", peer.hear())
    check("subscribe_heartbeat", peer.hear())
    peer.send(id="s", op="unsubscribe")
    check("unsubscribe_done", peer.hear())


# -- where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ws", "/"])
def test_both_paths_are_taken(served: Served, namespace: str, path: str) -> None:
    with opened(served, namespace, path) as peer:
        assert peer.ask("locks.get", key="a")["status"] == 200


def test_no_other_path_is(served: Served, namespace: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(served, namespace, "/api/v1/locks"):
        pass
    assert refused.value.response.status_code == 403


def test_the_namespace_is_the_frame_s_else_the_connection_s(served: Served, namespace: str) -> None:
    def where(path: str, headers: dict[str, str], **frame: str) -> str:
        with opened(served, "", path, additional_headers=headers) as peer:
            peer.send(id="1", op="auth.whoami", **frame)
            found: str = peer.hear()["result"]["namespace"]
            return found

    named = {"Syros-Namespace": namespace}
    assert where("/ws", {}) == "default"
    assert where(f"/ws?namespace={namespace}", {}) == namespace
    assert where("/ws", named) == namespace
    assert where("/ws?namespace=nowhere", named) == namespace
    assert where("/ws", named, namespace="default") == "default"


@pytest.mark.parametrize("query", ["token=syr_1", "namespace=a&namespace=b", "namespace=%ff"])
def test_an_address_takes_nothing_else(served: Served, namespace: str, query: str) -> None:
    with opened(served, namespace, f"/ws?{query}") as peer:
        assert peer.hear()["error"]["status"] in {400, 422}
        assert peer.closed()[0] == 1008


# -- giving up --------------------------------------------------------------------------------------


def test_a_cancelled_call_leaves_its_queue(peer: Peer, lane: Lane) -> None:
    lane("locks.acquire", key="a", owner="alice")
    peer.say("locks.acquire", key="a", owner="bob", wait_seconds=60)
    until(lambda: queue(lane, "a") == ["bob"])
    peer.send(id="1", op="cancel")
    assert peer.hear() == {"id": "1", "cancelled": True}
    until(lambda: queue(lane, "a") == [])
    assert peer.ask("locks.get", key="a")["status"] == 200


def test_what_is_cancelled_in_the_same_breath_never_begins(peer: Peer, lane: Lane) -> None:
    for _ in range(3):  # and the id is free again
        peer.connection.socket.sendall(
            text_frame(b'{"id":"1","op":"locks.get","params":{"key":"a"}}')
            + text_frame(b'{"id":"1","op":"cancel"}')
        )
        assert peer.hear() == {"id": "1", "cancelled": True}
    assert peer.ask("locks.get", key="a")["status"] == 200


@pytest.mark.parametrize("how", ["says good-bye", "hangs up"])
def test_a_client_that_goes_leaves_its_queue(served: Served, lane: Lane, how: str) -> None:
    held = lane("locks.acquire", key="a", owner="alice")
    with opened(served, lane.namespace) as peer:
        peer.say("locks.acquire", key="a", owner="bob", wait_seconds=60)
        until(lambda: queue(lane, "a") == ["bob"])
        if how == "hangs up":
            linger = struct.pack("ii", 1, 0)
            peer.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            peer.connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            peer.connection.close()
    until(lambda: queue(lane, "a") == [])
    lane("locks.release", key="a", lock_id=held["lock_id"])
    assert lane("locks.get", key="a")["is_locked"] is False


def test_a_connection_has_so_many_waits_and_subscriptions(
    peer: Peer, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(websocket.MOST, websocket.WAIT, 2)
    monkeypatch.setitem(websocket.MOST, websocket.STREAM, 2)
    lane("locks.acquire", key="a", owner="alice")
    for n in range(2):
        peer.say("locks.acquire", f"w{n}", key="a", owner=f"w{n}", wait_seconds=60)
        peer.subscribe(f"s{n}")
    until(lambda: queue(lane, "a") == ["w0", "w1"])
    refused = peer.ask("locks.acquire", "w2", key="a", owner="w2", wait_seconds=60)
    assert (refusal(refused), refused["error"]["limit"]) == ((429, "too_many_waits"), 2)
    assert refusal(peer.ask("subscribe", "s2")) == (429, "too_many_subscriptions")
    peer.send(id="w0", op="cancel")
    assert peer.hear() == {"id": "w0", "cancelled": True}
    peer.say("locks.acquire", "w2", key="a", owner="w2", wait_seconds=60)
    until(lambda: queue(lane, "a") == ["w1", "w2"])


def test_with_enough_under_way_the_connection_is_not_read(
    peer: Peer, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CALLS", 2)
    held = lane("locks.acquire", key="a", owner="alice")
    for owner in ("bob", "carol"):
        peer.say("locks.acquire", owner, key="a", owner=owner, wait_seconds=60)
    until(lambda: queue(lane, "a") == ["bob", "carol"])
    peer.say("locks.acquire", "late", key="b", owner="late")
    with pytest.raises(TimeoutError):
        peer.connection.recv(0.3)
    assert lane("locks.get", key="b")["is_locked"] is False
    lane("locks.release", key="a", lock_id=held["lock_id"])
    assert [peer.hear()["id"], peer.hear()["id"]] == ["bob", "late"]


def test_with_enough_bytes_under_way_the_connection_is_not_read(
    peer: Peer, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "HELD_BYTES", 1 << 20)
    data = "x" * 200_000
    for n in range(20):
        peer.say("events.append", str(n), stream_id=f"s-{n}", event_type="t", data=data)
    assert {peer.hear()["status"] for _ in range(20)} == {201}
    assert lane("events.read_all", limit=1)["head"] == 20


def test_a_thousand_frames_at_once_are_all_answered(peer: Peer) -> None:
    def ask() -> None:
        for n in range(1000):
            peer.say("locks.acquire", str(n), key=f"k{n}", owner="me")

    asking = threading.Thread(target=ask)
    asking.start()
    answers = [peer.hear() for _ in range(1000)]
    asking.join()
    assert sorted(int(answer["id"]) for answer in answers) == list(range(1000))
    assert {answer["status"] for answer in answers} == {201}


# -- subscriptions ----------------------------------------------------------------------------------


def test_a_subscription_catches_up_and_goes_on(peer: Peer, lane: Lane) -> None:
    lane("events.append", stream_id="order-1", events=many(3))
    assert peer.subscribe(from_position=1) == 0
    lane("events.append", stream_id="order-1", events=many(2))
    events = peer.events(5)
    assert [event["position"] for event in events] == [1, 2, 3, 4, 5]
    assert events == lane("events.read_all")["events"]


@pytest.mark.parametrize(("start", "first"), [({}, 4), ({"from_position": 0}, 1), ({"from_position": 1}, 1),
                                              ({"from_position": 3}, 3), ({"from_position": 4}, 4)])  # fmt: skip
def test_where_a_subscription_begins(peer: Peer, lane: Lane, start: dict[str, int], first: int) -> None:
    lane("events.append", stream_id="s", events=many(3))
    assert peer.subscribe(**start) == first - 1
    lane("events.append", stream_id="s", event_type="t", data={})
    assert [event["position"] for event in peer.events(5 - first)] == list(range(first, 5))


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({}, ["order-1", "order-2", "user-1"]),
        ({"streams": ["order-2", "user-1"]}, ["order-2", "user-1"]),
        ({"category": "order"}, ["order-1", "order-2"]),
        ({"prefix": "us"}, ["user-1"]),
        ({"prefix": "$lock:jobs/"}, ["$lock:jobs/a"]),
        ({"streams": ["$lock:jobs/a"]}, ["$lock:jobs/a"]),
        ({"event_types": ["Kept", "Lost"]}, ["user-1"]),
    ],
)
def test_a_subscription_is_to_what_is_chosen(
    peer: Peer, lane: Lane, choice: dict[str, Any], found: list[str]
) -> None:
    for stream, kind in (("order-1", "Made"), ("order-2", "Made"), ("user-1", "Kept")):
        lane("events.append", stream_id=stream, event_type=kind, data={})
    lane("locks.acquire", key="jobs/a", owner="alice")
    peer.subscribe(from_position=0, **choice)
    assert [event["stream_id"] for event in peer.events(len(found))] == found


def test_several_subscriptions_share_a_connection(peer: Peer, lane: Lane) -> None:
    peer.subscribe("a", category="a")
    peer.subscribe("b", category="b")
    lane("events.append", stream_id="a-1", event_type="t", data={})
    assert [event["stream_id"] for event in peer.events(1, "a")] == ["a-1"]
    lane("events.append", stream_id="b-1", event_type="t", data={})
    assert [event["stream_id"] for event in peer.events(1, "b")] == ["b-1"]
    peer.send(id="a", op="unsubscribe")
    assert peer.hear() == {"id": "a", "unsubscribed": True}
    for stream in ("a-1", "b-1"):
        lane("events.append", stream_id=stream, event_type="t", data={})
    assert [event["version"] for event in peer.events(1, "b")] == [2]


def test_a_stream_has_its_own_name_too(peer: Peer, lane: Lane) -> None:
    assert peer.ask("events.follow", "s") == {"id": "s", "subscribed": True, "position": 0}
    lane("events.append", stream_id="s", event_type="t", data={})
    assert peer.events(1)[0]["position"] == 1


def test_a_heartbeat_says_how_far_it_came_also_where_nothing_matched(peer: Peer, lane: Lane) -> None:
    peer.subscribe(category="rare", heartbeat_seconds=1)
    assert peer.hear() == {"id": "s", "heartbeat": {"position": 0}}
    end = time.monotonic() + 1.5
    while time.monotonic() < end:  # never a second without an event that is not wanted
        lane("events.append", stream_id="common-1", event_type="t", data={})
        time.sleep(0.05)
    assert peer.hear()["heartbeat"]["position"] > 0


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"from_position": 5}, 409, "position_ahead"),
        ({"from_position": -1}, 422, "invalid"),
        ({"colour": "red"}, 422, "invalid"),
        ({"streams": "order-42"}, 422, "invalid"),
    ],
)
def test_a_subscription_that_cannot_be_is_refused(
    peer: Peer, params: dict[str, Any], status: int, code: str
) -> None:
    assert refusal(peer.ask("subscribe", **params)) == (status, code)
    assert peer.subscribe("1") == 0


def test_below_the_floor_is_gone(peer: Peer, lane: Lane) -> None:
    from core.models import Namespace

    lane("events.append", stream_id="s", events=many(5))
    Namespace.objects.filter(name=lane.namespace).update(floor=3)
    frame = peer.ask("subscribe", from_position=3)
    assert (refusal(frame), frame["error"]["floor"]) == ((410, "position_pruned"), 3)


def test_who_resumes_after_its_last_position_misses_nothing(served: Served, lane: Lane, later: Any) -> None:
    """Four writers, and a reader whose connection breaks after every 20 events."""

    def write(stream: str) -> None:
        for n in range(50):
            lane("events.append", stream_id=stream, event_type="t", data=n)

    writers = [later(write, f"s-{n}") for n in range(4)]
    found: list[int] = []
    while len(found) < 200:
        with opened(served, lane.namespace) as peer:
            peer.subscribe(from_position=len(found) + 1)
            found += [event["position"] for event in peer.events(20)]
            peer.connection.socket.shutdown(socket.SHUT_RDWR)
    for writer in writers:
        writer.result(30)
    assert found == list(range(1, 201))
