"""What is particular to the WebSocket: frames, subscriptions, who it is, and peers that misbehave."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import httpx
import pytest
from django.core.management import call_command
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api import websocket
from core import sockets
from core.errors import Forbidden
from core.runtime import runtime
from tests.doors import Lane, Served
from tests.test_events import many
from tests.test_locks import queue, until

PATIENCE = 15.0
SMALL = 1 << 17  # bytes that the kernel takes for one that does not read; on the other side it takes some MB


class Peer:
    """A client that says and hears frames."""

    def __init__(self, connection: ClientConnection, namespace: str) -> None:
        self.connection, self.namespace = connection, namespace

    def say(self, op: str, name: str = "1", **params: Any) -> None:
        self.connection.send(
            json.dumps({"id": name, "op": op, "params": params, "namespace": self.namespace})
        )

    def send(self, **frame: Any) -> None:
        self.connection.send(json.dumps(frame))

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.connection.recv(PATIENCE))
        return found

    def ask(self, op: str, name: str = "1", **params: Any) -> dict[str, Any]:
        self.say(op, name, **params)
        return self.hear()

    def subscribe(self, name: str = "s", **params: Any) -> int:
        """The position that the subscription begins after."""
        answer = self.ask("subscribe", name, **params)
        assert answer == {"id": name, "subscribed": True, "position": answer.get("position")}, answer
        found: int = answer["position"]
        return found

    def events(self, count: int, name: str = "s") -> list[dict[str, Any]]:
        """The next events; heartbeats may come between."""
        found = []
        while len(found) < count:
            frame = self.hear()
            assert frame["id"] == name, frame
            if "heartbeat" not in frame:
                found.append(frame["event"])
        return found

    def closed(self) -> tuple[int, str]:
        """The code and reason that the server closes with, whatever it says before."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.connection.recv(PATIENCE)
        assert self.connection.close_code is not None
        return self.connection.close_code, self.connection.close_reason or ""


@contextlib.contextmanager
def opened(served: Served, namespace: str, path: str = "/ws", **options: Any) -> Iterator[Peer]:
    url = f"ws://127.0.0.1:{served.port}{path}"
    with connect(url, compression=None, max_size=None, proxy=None, close_timeout=1, **options) as connection:
        yield Peer(connection, namespace)


@pytest.fixture
def peer(served: Served, namespace: str) -> Iterator[Peer]:
    with opened(served, namespace) as found:
        yield found


def refusal(frame: dict[str, Any]) -> tuple[int, str]:
    return frame["error"]["status"], frame["error"]["code"]


LOCK = {"key": "a", "owner": "alice"}


# -- frames ------------------------------------------------------------------------------------------


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
    (record,) = [record for record in caplog.records if record.name == "syros.websocket"]
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


# -- where -------------------------------------------------------------------------------------------


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


# -- giving up ---------------------------------------------------------------------------------------


def test_a_cancelled_call_leaves_its_queue(peer: Peer, lane: Lane) -> None:
    lane("locks.acquire", key="a", owner="alice")
    peer.say("locks.acquire", key="a", owner="bob", wait_seconds=60)
    until(lambda: queue(lane, "a") == ["bob"])
    peer.send(id="1", op="cancel")
    assert peer.hear() == {"id": "1", "cancelled": True}
    until(lambda: queue(lane, "a") == [])
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


# -- subscriptions -----------------------------------------------------------------------------------


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
    assert peer.hear()["heartbeat"]["position"] > 5


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


# -- who ---------------------------------------------------------------------------------------------


@pytest.fixture
def key(lane: Lane) -> Any:
    return lane("api_keys.create", name="ci")


@pytest.fixture
def production(key: Any, settings: Any) -> None:
    """No development mode: everybody needs credentials."""
    from core.callers import verdicts

    settings.DEV = False
    verdicts.clear()


@pytest.fixture
def alice(database: None, namespace: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.create_user(f"alice-{namespace}", password="correct horse")


def token(user: Any, seconds: float = 900) -> str:
    from datetime import timedelta

    from rest_framework_simplejwt.tokens import AccessToken

    found: Any = AccessToken.for_user(user)
    found.set_exp(lifetime=timedelta(seconds=seconds))
    return str(found)


def said(how: str, key: str) -> dict[str, Any]:
    """The options of a connection that says its credential this way."""
    return {
        "authorization": {"additional_headers": {"Authorization": f"Bearer {key}"}},
        "x-api-key": {"additional_headers": {"X-API-Key": key}},
        "subprotocol": {"subprotocols": [f"syros.bearer.{key}"]},
        "first frame": {},
    }[how]


WAYS = ["authorization", "x-api-key", "subprotocol", "first frame"]


@pytest.mark.parametrize("how", WAYS)
def test_a_credential_is_said(served: Served, key: Any, production: None, how: str) -> None:
    with opened(served, "", **said(how, key["key"])) as peer:
        if how == "first frame":
            peer.send(op="auth", token=key["key"])
            assert peer.hear() == {"authenticated": True, "principal": f"key:{key['id']}"}
        peer.send(id="1", op="auth.whoami")
        assert peer.hear()["result"]["principal"] == f"key:{key['id']}"
        assert peer.connection.subprotocol == (f"syros.bearer.{key['key']}" if how == "subprotocol" else None)


@pytest.mark.parametrize("how", WAYS)
def test_a_wrong_credential_is_closed_with_4401(served: Served, production: None, how: str) -> None:
    with opened(served, "", **said(how, "syr_nonsense")) as peer:
        if how == "first frame":
            peer.send(op="auth", token="syr_nonsense")
        assert refusal(peer.hear()) == (401, "unauthenticated")
        assert peer.closed() == (4401, "unauthenticated")


def test_who_asks_before_it_said_who_it_is_is_closed_with_4401(served: Served, lane: Lane, production: None,
                                                               settings: Any) -> None:  # fmt: skip
    with opened(served, lane.namespace) as peer:
        assert refusal(peer.ask("locks.acquire", **LOCK)) == (401, "unauthenticated")
        assert peer.closed()[0] == 4401
    settings.DEV = True
    assert lane("locks.get", key="a")["is_locked"] is False


def test_who_never_says_who_it_is_is_closed_with_4401(
    served: Served, production: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "AUTH_SECONDS", 0.5)
    started = time.monotonic()
    with opened(served, "") as peer:
        assert peer.closed() == (4401, "unauthenticated")
    assert 0.5 < time.monotonic() - started < 5


def test_a_stranger_s_message_is_small(served: Served, key: Any, production: None) -> None:
    with opened(served, "") as peer:
        peer.send(op="auth", token="x" * 70_000)
        assert peer.closed()[0] == 1009
    with opened(served, "") as peer:
        peer.send(op="auth", token=key["key"])
        peer.hear()
        events = [{"event_type": "t", "data": "y" * 70_000}]
        peer.send(id="1", op="events.append", params={"stream_id": "s", "events": events})
        assert peer.hear()["status"] == 201


def test_a_user_logs_in_over_the_connection_itself(
    served: Served, alice: Any, key: Any, production: None
) -> None:
    with opened(served, "") as peer:
        peer.send(id="1", op="auth.login", params={"username": alice.username, "password": "correct horse"})
        peer.send(id="2", op="auth", token=peer.hear()["result"]["access"])
        assert peer.hear() == {"id": "2", "authenticated": True, "principal": f"user:{alice.username}"}
        peer.send(id="3", op="auth", token=token(alice))  # and goes on with a new token
        assert peer.hear()["authenticated"] is True
        peer.send(op="auth", token=key["key"])
        assert refusal(peer.hear()) == (403, "forbidden")
        peer.send(id="4", op="auth.whoami")
        assert peer.hear()["result"]["principal"] == f"user:{alice.username}"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}]
)
def test_a_web_page_cannot_drive_a_laptop_s_syros(served: Served, headers: dict[str, str]) -> None:
    answer = raw_handshake(served, headers)
    with answer as connection:
        assert b"forbidden" in connection.until_closed()
        assert connection.code == 4403


def test_a_web_page_with_a_credential_may_come_from_anywhere(served: Served, key: Any) -> None:
    headers = {"Origin": "https://app.example", "Sec-WebSocket-Protocol": f"syros.bearer.{key['key']}"}
    with raw_handshake(served, headers) as connection:
        connection.send(text_frame(b'{"id":"1","op":"auth.whoami"}'))
        assert b'"result"' in connection.recv()


def test_a_key_is_no_administrator(served: Served, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer:
        peer.send(id="1", op="api_keys.create", params={"name": "more"})
        assert refusal(peer.hear()) == (403, "forbidden")


def test_a_revoked_key_s_idle_connection_is_closed(served: Served, lane: Lane, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer, opened(served, "") as other:
        lane("api_keys.revoke", key_id=key["id"])
        started = time.monotonic()
        assert peer.closed() == (4401, "unauthenticated")
        assert time.monotonic() - started < 5
        other.send(id="1", op="auth.whoami")
        assert other.hear()["status"] == 200


def test_a_revoked_key_s_subscription_ends(served: Served, lane: Lane, key: Any) -> None:
    with opened(served, lane.namespace, **said("x-api-key", key["key"])) as peer:
        peer.subscribe()
        lane("api_keys.revoke", key_id=key["id"])
        assert peer.closed()[0] == 4401
        assert len(list(websocket.sockets)) < 50


@pytest.mark.parametrize("why", ["disabled", "run out"])
def test_a_user_s_idle_connection_is_closed(served: Served, alice: Any, production: None, why: str) -> None:
    access = token(alice, 1.0 if why == "run out" else 900)
    with opened(served, "", **said("authorization", access)) as peer:
        if why == "disabled":  # by nobody who would tell
            type(alice).objects.filter(pk=alice.pk).update(is_active=False)
        started = time.monotonic()
        assert peer.closed() == (4401, "unauthenticated")
        assert time.monotonic() - started < (5 if why == "disabled" else 6)


def test_a_subscription_ends_with_the_right_to_it(
    served: Served, lane: Lane, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(caller: Any, operation: Any, params: Any) -> None:
        if operation.streams:
            raise Forbidden

    with opened(served, lane.namespace, **said("x-api-key", key["key"])) as peer:
        peer.subscribe()
        monkeypatch.setattr(websocket, "authorize", denied)
        frame = peer.hear()
        assert (frame["id"], *refusal(frame)) == ("s", 403, "forbidden")
        assert peer.ask("locks.get", key="a")["status"] == 200


def test_while_the_database_is_away_nobody_is_turned_away(
    served: Served, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.callers import verdicts
    from core.errors import Unavailable

    asked = threading.Event()

    async def away(_: Any) -> Any:
        asked.set()
        raise Unavailable

    with opened(served, "", **said("x-api-key", key["key"])) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(websocket, "review", away)
            verdicts.clear()
            assert asked.wait(5)
            time.sleep(0.2)
        peer.send(id="1", op="auth.whoami")
        assert peer.hear()["status"] == 200


def test_an_operator_closes_the_connections_of_a_principal(served: Served, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer, opened(served, "") as other:
        call_command("disconnect", f"key:{key['id']}", stdout=StringIO())
        assert peer.closed() == (4403, "closed by an operator")
        other.send(id="1", op="auth.whoami")
        assert other.hear()["status"] == 200


# -- peers that misbehave ----------------------------------------------------------------------------


class Raw:
    """A connection whose bytes are one's own."""

    def __init__(self, served: Served, headers: dict[str, str], receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", served.port))
        about = {"Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers}  # fmt: skip
        lines = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in about.items()), "", ""]
        self.send("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 101"), head
        self.code = 0

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *error: Any) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def recv(self) -> bytes:
        return self.socket.recv(1 << 16)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each frame, until the server hangs up."""
        buffer = b""
        while True:
            while len(buffer) < 2 or len(buffer) < (size := frame_size(buffer))[0] + size[1]:
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = self.recv()
                if not data:
                    return
                buffer += data
            head, length = frame_size(buffer)
            yield buffer[0] & 15, buffer[head : head + length]
            buffer = buffer[head + length :]

    def until_closed(self) -> bytes:
        """All that the server says in text; then `code` is what it closed with."""
        said = b""
        for opcode, payload in self.frames():
            if opcode == 8:
                self.code = int.from_bytes(payload[:2])
                self.reason = payload[2:].decode()
                break
            elif opcode == 1:
                said += payload + b"\n"
        return said


def frame_size(buffer: bytes) -> tuple[int, int]:
    """Bytes of a server's frame's head and of its payload."""
    length = buffer[1] & 127
    if length == 126:
        return 4, int.from_bytes(buffer[2:4].ljust(2, b"\xff"))
    if length == 127:
        return 10, int.from_bytes(buffer[2:10].ljust(8, b"\xff"))
    return 2, length


def raw_handshake(served: Served, headers: dict[str, str], receive_buffer: int = 0) -> Raw:
    return Raw(served, headers, receive_buffer)


def text_frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame, masked by nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8)
    return bytes([first]) + length + b"\0\0\0\0" + payload


ASK = b'{"id":"1","op":"auth.whoami"}'


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (text_frame(b"x", 0x82), 1003),  # binary
        (text_frame(b'{"id":"\xff"}'), 1007),
        (b"\x81\x02{}", 1002),  # not masked
        (text_frame(b"{}", 0xC1), 1002),  # a reserved bit
        (text_frame(b"{}", 0x83), 1002),  # no such opcode
        (text_frame(b"{}", 0x80), 1002),  # goes on with nothing
        (text_frame(b"{", 0x01) + text_frame(b"{}"), 1002),  # begins another message in the midst of one
        (text_frame(b"x" * 126, 0x89), 1002),  # a ping of that size
        (text_frame(b"", 0x09), 1002),  # a ping in parts
        (text_frame(b"\x03", 0x88), 1002),  # half a close code
        (b"\x81\xff" + (1 << 40).to_bytes(8) + b"\0\0\0\0", 1009),
        (b"\x81\xff" + ((16 << 20) + 1).to_bytes(8) + b"\0\0\0\0", 1009),
        (text_frame(b"x" * (15 << 20), 0x01) + b"\x80\xff" + (2 << 20).to_bytes(8) + b"\0\0\0\0", 1009),
    ],
)
def test_what_is_no_message_closes_the_connection_with_the_right_code(
    served: Served, data: bytes, code: int
) -> None:
    with raw_handshake(served, {}) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.send(data)
        connection.until_closed()
        assert connection.code == code
    assert httpx.get(f"http://127.0.0.1:{served.port}/ready", timeout=10).status_code == 200


def test_a_message_may_come_in_parts(served: Served) -> None:
    parts = [text_frame(bytes([byte]), 0x00) for byte in ASK[1:]]
    with raw_handshake(served, {}) as connection:
        connection.send(text_frame(ASK[:1], 0x01) + text_frame(b"now", 0x89) + b"".join(parts))
        connection.send(text_frame(b"", 0x80))
        frames = connection.frames()
        assert next(frames) == (10, b"now")
        opcode, payload = next(frames)
        assert opcode == 1
        assert json.loads(payload)["result"]["principal"] == "developer"


def test_parts_without_end_weigh_no_more_than_what_they_say(served: Served) -> None:
    import tracemalloc

    with raw_handshake(served, {}) as connection:
        connection.send(text_frame(b'{"id"', 0x01))
        tracemalloc.start()
        for _ in range(100):
            connection.send(text_frame(b"", 0x00) * 1000)
        connection.send(text_frame(b"alive", 0x89))
        assert next(connection.frames()) == (10, b"alive")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        connection.send(text_frame(b':"1","op":"auth.whoami"}', 0x80))
        assert next(connection.frames())[1].startswith(b'{"id":"1","result"')
    assert peak < 5 << 20  # a hundred thousand objects would be more


def test_who_answers_no_ping_is_gone(served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PING_SECONDS", 0.3)
    lane("locks.acquire", key="a", owner="alice")
    started = time.monotonic()
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}) as connection:
        params = {"key": "a", "owner": "half-open", "wait_seconds": 60}
        connection.send(text_frame(json.dumps({"id": "1", "op": "locks.acquire", "params": params}).encode()))
        until(lambda: queue(lane, "a") == ["half-open"])
        connection.until_closed()
        assert connection.code == 1011
        until(lambda: queue(lane, "a") == [])
    assert time.monotonic() - started < 5


def large(lane: Lane, rounds: int) -> None:
    for _ in range(rounds):
        lane("events.append", stream_id="s", events=[{"event_type": "t", "data": "x" * 10_000}] * 100)


def test_a_slow_consumer_is_closed_with_4429_and_its_last_position(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(sockets, "CLOSE_SECONDS", 10.0)
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
        connection.send(text_frame(b'{"id":"s","op":"subscribe","params":{"from_position":1}}'))
        large(lane, 8)
        until(lambda: not any(s.under_way for s in websocket.sockets), 10)  # it was given up
        frames = [json.loads(text) for text in connection.until_closed().splitlines()]
        positions = [frame["event"]["position"] for frame in frames if "event" in frame]
        assert positions == list(range(1, len(positions) + 1))
        assert 0 < len(positions) < 800
        assert (connection.code, connection.reason) == (4429, f"slow consumer; position {len(positions)}")
        error = frames[-1]["error"]
        assert (error["code"], error["position"]) == ("slow_consumer", len(positions))
    with opened(served, lane.namespace) as peer:  # and goes on there
        peer.subscribe(from_position=len(positions) + 1)
        assert peer.events(1)[0]["position"] == len(positions) + 1


def test_who_reads_slowly_but_reads_is_served(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SLOW_SECONDS", 0.5)
    large(lane, 2)
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
        connection.send(text_frame(b'{"id":"s","op":"subscribe","params":{"from_position":1}}'))
        seen, end = 0, time.monotonic() + 2
        for opcode, payload in connection.frames():
            assert opcode == 1, payload
            seen += b'"event":' in payload
            if time.monotonic() < end:
                time.sleep(0.03)
            if seen == 200:
                break
        assert seen == 200


def test_answers_left_lying_are_too_many_at_some_point(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "UNREAD_BYTES", 4 << 20)
    monkeypatch.setattr(sockets, "SLOW_SECONDS", 0.5)
    large(lane, 1)
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
        for n in range(20):
            ask = b'{"id":"%d","op":"events.read","params":{"stream_id":"s","limit":1000}}' % n
            connection.send(text_frame(ask))
        time.sleep(1.5)
        connection.until_closed()
        assert connection.code == 4429


def test_one_that_does_not_read_is_cut_off_in_the_end(
    served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLOW_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(sockets, name, 0.3)
    large(lane, 8)
    before = set(websocket.sockets)
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
        connection.send(text_frame(b'{"id":"s","op":"subscribe","params":{"from_position":1}}'))
        until(lambda: set(websocket.sockets) - before)
        until(lambda: not set(websocket.sockets) - before)
        time.sleep(1.0)  # longer than it is waited for
        connection.until_closed()
        assert connection.code == 0  # not a word more


@pytest.mark.parametrize("flood", ["pings", "empty messages", "nonsense", "commands"])
def test_a_flood_that_nobody_reads_the_answers_to_stops(
    served: Served, lane: Lane, later: Any, flood: str
) -> None:
    """The peer is not read any further, and the others are served."""
    frames = {
        "pings": text_frame(b"x" * 100, 0x89),
        "empty messages": text_frame(b""),
        "nonsense": text_frame(b"x" * 100),
        "commands": text_frame(b'{"id":"1","op":"locks.get","params":{"key":"a"}}'),
    }
    with raw_handshake(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
        connection.socket.settimeout(2.0)
        sent = later(sent_until_full, connection, frames[flood] * 100)
        slowest = 0.0
        while not sent.done():
            started = time.monotonic()
            assert lane("locks.get", key="a").status == 200
            slowest = max(slowest, time.monotonic() - started)
        assert sent.result() < 64 << 20
    assert slowest < 2.0


def sent_until_full(connection: Raw, data: bytes) -> int:
    """Bytes that the server took before it took no more."""
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            connection.send(data)
            sent += len(data)
    return sent
