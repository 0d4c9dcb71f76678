"""GraphQL over WebSocket: graphql-transport-ws by the letter, subscriptions, and what a socket may do."""

import gc
import json
import time
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.test import Client
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from api.graphql import socket as door
from core import sockets
from tests.doors import Lane, Served
from tests.test_locks import queue, until

FOLLOW = """subscription($from: BigInt, $category: String) {
    eventsFollow(fromPosition: $from, category: $category, heartbeatSeconds: 1) {
        event { position streamId eventType data } heartbeat { position }
    }
}"""
WHO = "{ authWhoami { principal namespace } }"


class Peer:
    """A client that says what it is told to, and reads what comes."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def say(self, kind: str, **more: Any) -> None:
        self.connection.send(json.dumps({"type": kind, **more}))

    def hear(self, seconds: float = 10) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.connection.recv(seconds))
        return found

    def begin(self, **payload: str) -> "Peer":
        self.say("connection_init", payload=payload)
        assert self.hear() == {"type": "connection_ack"}
        return self

    def subscribe(self, name: str, query: str, **variables: Any) -> None:
        self.say("subscribe", id=name, payload={"query": query, "variables": variables})

    def next(self, name: str) -> Any:
        """The data of the next answer."""
        found = self.hear()
        assert (found["type"], found["id"]) == ("next", name), found
        assert "errors" not in found["payload"], found
        return found["payload"]["data"]

    def events(self, name: str, count: int) -> list[dict[str, Any]]:
        """The next events, heartbeats passed over."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + 30
        while len(found) < count:
            assert time.monotonic() < deadline, "what should come does not"
            item = self.next(name)["eventsFollow"]
            found += [item["event"]] if item["event"] else []
        return found

    def closed(self, seconds: float = 10) -> int:
        """The code that the server closes with; what comes before is passed over."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self.connection.recv(max(0.01, deadline - time.monotonic()))
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0


Open = Callable[..., Peer]


@pytest.fixture
def peer(served: Served, namespace: str) -> Any:
    """Opens sockets that are closed after the test."""
    with ExitStack() as stack:

        def open_one(protocols: tuple[str, ...] = ("graphql-transport-ws",), **headers: str) -> Peer:
            about = {"Syros-Namespace": namespace, **{k.replace("_", "-"): v for k, v in headers.items()}}
            connection = connect(
                f"ws://127.0.0.1:{served.port}/graphql", subprotocols=list(protocols), additional_headers=about,
            )  # fmt: skip
            return Peer(stack.enter_context(connection))

        yield open_one


# -- subscriptions ----------------------------------------------------------------------------------


def test_a_subscription_catches_up_and_goes_on_live(peer: Open, lane: Lane) -> None:
    lane("events.append", stream_id="s", events=[{"event_type": "t", "data": n} for n in range(3)])
    socket = peer().begin()
    socket.subscribe("1", FOLLOW, **{"from": 2})
    assert socket.next("1") == {"eventsFollow": {"event": None, "heartbeat": {"position": 1}}}
    assert [each["position"] for each in socket.events("1", 2)] == [2, 3]
    lane("events.append", stream_id="s", event_type="Live", data={"x": 1})
    assert socket.events("1", 1) == [{"position": 4, "streamId": "s", "eventType": "Live", "data": {"x": 1}}]
    assert socket.next("1")["eventsFollow"] == {"event": None, "heartbeat": {"position": 4}}


def test_a_client_that_lost_its_connection_goes_on_where_it_was(peer: Open, lane: Lane) -> None:
    """Position for position, over any number of connections: nothing twice, nothing missed."""
    seen: list[int] = []
    for turn in range(4):
        lane("events.append", stream_id="s", events=[{"event_type": "t", "data": n} for n in range(5)])
        socket = peer().begin()
        socket.subscribe("1", FOLLOW, **{"from": seen[-1] + 1 if seen else 1})
        seen += [each["position"] for each in socket.events("1", 5 if turn == 3 else 4)]
        socket.connection.close()
    assert seen == list(range(1, 18))


def test_several_operations_share_a_socket(peer: Open, lane: Lane) -> None:
    lane("events.append", stream_id="order-1", event_type="t", data=1)
    lane("events.append", stream_id="user-1", event_type="t", data=2)
    socket = peer().begin()
    socket.subscribe("orders", FOLLOW, **{"from": 1, "category": "order"})
    socket.next("orders")
    assert [each["streamId"] for each in socket.events("orders", 1)] == ["order-1"]
    socket.subscribe("who", WHO)
    assert socket.next("who")["authWhoami"]["namespace"] == lane.namespace
    assert socket.hear() == {"type": "complete", "id": "who"}
    socket.subscribe("who", 'mutation { locksAcquire(key: "a", owner: "me") { key } }')
    answer = socket.hear()
    assert answer["payload"] == {
        "data": {"locksAcquire": {"key": "a"}},
        "extensions": {"syros": {"locksAcquire": {"status": 201, "replayed": False}}},
    }
    assert socket.hear() == {"type": "complete", "id": "who"}
    assert lane("locks.get", key="a")["is_locked"] is True


def test_a_subscription_ends_when_the_client_says_so(peer: Open, lane: Lane) -> None:
    socket = peer().begin()
    socket.subscribe("1", FOLLOW)
    socket.next("1")
    socket.say("complete", id="1")
    socket.say("ping")
    while (message := socket.hear())["type"] != "pong":
        assert message["type"] == "next"  # one may have been on its way
    lane("events.append", stream_id="s", event_type="t", data=1)
    socket.subscribe("1", WHO)  # the name is free again
    assert socket.next("1")["authWhoami"]
    assert socket.hear() == {"type": "complete", "id": "1"}


def test_a_refusal_ends_the_operation_and_not_the_socket(peer: Open) -> None:
    socket = peer().begin()
    for query, variables, code in (
        (FOLLOW, {"from": 99}, "position_ahead"),
        (FOLLOW, {"from": "x"}, "invalid"),
        ("subscription { eventsFollow(heartbeatSeconds: 0.5) { __typename } }", {}, "invalid"),
        ("subscription { nothing }", {}, "malformed"),
        ("subscription {", {}, "malformed"),
        ("{ " + " ".join(f"a{n}: __typename" for n in range(40)) + " }", {}, "too_complex"),
        ("", {}, "invalid"),
    ):
        socket.subscribe("1", query, **variables)
        found = socket.hear()
        assert (found["type"], found["id"]) == ("error", "1")
        assert found["payload"][0]["extensions"]["code"] == code
        assert found["payload"][0]["message"] == found["payload"][0]["extensions"]["detail"]
    socket.subscribe("1", WHO)
    assert socket.next("1")


def test_a_field_s_refusal_is_in_the_answer(peer: Open, lane: Lane) -> None:
    lane("locks.acquire", key="a", owner="alice")
    socket = peer().begin()
    socket.subscribe("1", 'mutation { locksAcquire(key: "a", owner: "bob") { key } }')
    payload = socket.hear()["payload"]
    assert payload["data"] == {"locksAcquire": None}
    assert payload["errors"][0]["extensions"]["code"] == "lock_held"


def test_a_subscription_may_have_nested_fields(peer: Open, lane: Lane) -> None:
    socket = peer().begin()
    socket.subscribe("1", '{ streamsGet(streamId: "s") { events { version } } }')
    assert socket.next("1") == {"streamsGet": {"events": []}}


# -- the protocol -----------------------------------------------------------------------------------


def test_another_protocol_is_refused(peer: Open) -> None:
    assert peer(("graphql-ws",)).closed() == 4406
    assert peer(("graphql-ws", "graphql-transport-ws")).connection.subprotocol == "graphql-transport-ws"


def test_who_does_not_begin_is_sent_away(peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "INIT_SECONDS", 0.3)
    silent, talking = peer(), peer().begin()
    assert silent.closed() == 4408
    talking.say("ping")
    assert talking.hear() == {"type": "pong"}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "1", '"x"', "null", "{}", '{"type": 1}', '{"type": "nonsense"}', '{"type": "_watch"}', "\x00",
        '{"type": "subscribe"}', '{"type": "subscribe", "id": 1, "payload": {"query": "{ __typename }"}}',
        '{"type": "subscribe", "id": "", "payload": {"query": "{ __typename }"}}',
        '{"type": "subscribe", "id": "1", "payload": []}', '{"type": "complete"}', b"\x01\x02",
        '{"type": "ping", "payload": ' + "[" * 100 + "]" * 100 + "}",
        json.dumps({"type": "subscribe", "id": "x" * 129, "payload": {"query": "{ __typename }"}}),
    ],
)  # fmt: skip
def test_what_is_no_message_closes_the_socket(peer: Open, text: str | bytes) -> None:
    socket = peer().begin()
    socket.connection.send(text)
    assert socket.closed() == 4400


def test_what_comes_after_the_end_is_not_heard(peer: Open, caplog: pytest.LogCaptureFixture) -> None:
    socket = peer().begin()
    with suppress(ConnectionClosed):  # it may be told before all was sent
        for text in ("{", '{"type": "ping"}', "{", '{"type": "connection_init"}'):
            socket.connection.send(text)
    assert socket.closed() == 4400
    assert not caplog.records


def test_the_order_of_messages_is_kept(peer: Open) -> None:
    early = peer()
    early.subscribe("1", WHO)
    assert early.closed() == 4401
    twice = peer().begin()
    twice.say("connection_init")
    assert twice.closed() == 4429
    odd = peer()
    odd.say("connection_init", payload=[1])
    assert odd.closed() == 4400
    same = peer().begin()
    same.subscribe("1", FOLLOW)
    same.subscribe("1", FOLLOW)
    assert same.closed() == 4409


def test_pings_are_answered_before_the_beginning_too(peer: Open) -> None:
    socket = peer()
    socket.say("ping", payload={"x": 1})
    assert socket.hear() == {"type": "pong"}
    socket.say("pong")
    socket.begin()


def test_a_socket_has_a_bounded_number_of_operations(peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_OPERATIONS", 3)
    socket = peer().begin()
    for number in range(4):
        socket.subscribe(str(number), FOLLOW)
    found = {message["id"]: message for message in (socket.hear() for _ in range(4))}
    assert [found[str(number)]["type"] for number in range(4)] == ["next", "next", "next", "error"]
    assert found["3"]["payload"][0]["extensions"]["code"] == "too_many_operations"
    socket.say("complete", id="0")
    socket.subscribe("4", WHO)
    while (message := socket.hear())["id"] != "4":
        assert message["type"] == "next"
    assert message["payload"]["data"]["authWhoami"]


# -- who --------------------------------------------------------------------------------------------


def test_credentials_come_in_the_payload_or_in_headers(peer: Open, lane: Lane) -> None:
    made = lane("api_keys.create", name="ci")
    key, principal = made["key"], f"key:{made['id']}"
    for socket in (
        peer().begin(authorization=f"Bearer {key}"),
        peer().begin(Authorization=f"Bearer {key}"),
        peer().begin(**{"x-api-key": key, "namespace": lane.namespace}),
        peer(X_API_Key=key).begin(),
    ):
        socket.subscribe("1", WHO)
        assert socket.next("1")["authWhoami"] == {"principal": principal, "namespace": lane.namespace}


def test_the_payload_names_the_namespace(peer: Open, lane: Lane) -> None:
    socket = peer().begin(namespace="default")
    socket.subscribe("1", WHO)
    assert socket.next("1")["authWhoami"]["namespace"] == "default"
    lost = peer()
    lost.say("connection_init", payload={"Syros-Namespace": "nowhere"})
    assert lost.closed() == 4403


@pytest.mark.usefixtures("production")
def test_without_credentials_nobody_gets_in(peer: Open) -> None:
    for payload in (
        {},
        {"authorization": "Bearer nonsense"},
        {"x-api-key": "syr_nonsense"},
        {"authorization": 1},
    ):
        socket = peer()
        socket.say("connection_init", payload=payload)
        assert socket.closed() == 4401


def test_a_web_page_cannot_drive_a_laptop_s_syros(peer: Open) -> None:
    for origin in ("https://evil.example", "null"):
        socket = peer(Origin=origin)
        socket.say("connection_init")
        assert socket.closed() == 4403


@pytest.mark.usefixtures("production")
def test_a_session_is_good_for_its_own_site_only(
    peer: Open, served: Served, staff: Client, namespace: str
) -> None:
    cookie = f"sessionid={staff.cookies['sessionid'].value}"
    own = peer(Cookie=cookie, Origin=f"http://127.0.0.1:{served.port}").begin()
    own.subscribe("1", WHO)
    assert own.next("1")["authWhoami"]["principal"] == f"user:ada-{namespace}"
    for headers in (
        {},
        {"Origin": "https://evil.example"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
    ):
        socket = peer(Cookie=cookie, **headers)
        socket.say("connection_init")
        assert socket.closed() == 4401


def test_a_revoked_key_s_socket_is_closed_within_five_seconds(peer: Open, lane: Lane) -> None:
    made, kept = lane("api_keys.create", name="gone"), lane("api_keys.create", name="kept")["key"]
    going, staying = (
        peer().begin(authorization=f"Bearer {made['key']}"),
        peer().begin(authorization=f"Bearer {kept}"),
    )
    for socket in (going, staying):
        socket.subscribe("1", FOLLOW)
        socket.next("1")
    lane("api_keys.revoke", key_id=made["id"])
    assert going.closed(5) == 4401
    lane("events.append", stream_id="s", event_type="t", data=1)
    assert staying.events("1", 1)[0]["streamId"] == "s"


# -- going away -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["complete", "close", "abort"])
def test_a_waiter_whose_client_goes_away_leaves_the_queue(peer: Open, lane: Lane, how: str) -> None:
    lane("locks.acquire", key="a", owner="alice")
    socket = peer().begin()
    socket.subscribe("1", 'mutation { locksAcquire(key: "a", owner: "bob", waitSeconds: 60) { key } }')
    until(lambda: queue(lane, "a") == ["bob"])
    if how == "complete":
        socket.say("complete", id="1")
    elif how == "close":
        socket.connection.close()
    else:
        socket.connection.socket.close()
    until(lambda: queue(lane, "a") == [])


def listeners() -> int:
    """How many follow a log in this process."""
    from core.runtime import runtime

    assert runtime.tail
    return sum(len(each.listeners) for each in runtime.tail._logs.values())


def test_a_socket_that_is_gone_leaves_nothing_behind(peer: Open) -> None:
    before = listeners()
    for _ in range(5):
        socket = peer().begin()
        for number in range(3):
            socket.subscribe(str(number), FOLLOW)
            socket.next(str(number))
        socket.connection.socket.close()
    until(lambda: listeners() <= before)


def test_who_does_not_read_holds_up_nobody_and_is_not_waited_for_long(
    peer: Open, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SLOW_SECONDS", 1.0)
    before = listeners()
    slow, quick = peer().begin(), peer().begin()
    for socket in (slow, quick):
        socket.subscribe("1", FOLLOW, **{"from": 1})
    quick.next("1")
    until(lambda: listeners() == before + 2)
    big = [{"event_type": "t", "data": "x" * 100_000} for _ in range(40)]
    for _ in range(8):  # 32 MB: more than the buffers of kernel, client and server take
        lane("events.append", stream_id="s", events=big)
        assert len(quick.events("1", 40)) == 40
    until(lambda: listeners() == before + 1)  # the slow one's has ended
    assert slow.closed() == 1008  # and it is told
    lane("events.append", stream_id="s", event_type="Last", data=1)
    assert quick.events("1", 1)[0]["eventType"] == "Last"
    slow.connection.socket.close()


def test_a_connection_that_is_gone_is_no_garbage(peer: Open) -> None:
    """The collector's next long look may be far away: what was asked for must go without it."""
    gone: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        for query in (FOLLOW, WHO, "{", "{ nothing }"):
            socket = peer().begin()
            known = {id(each) for each in living()}
            socket.subscribe("1", query)
            socket.hear()
            assert {id(each) for each in living()} <= known  # those of tests before may go meanwhile
            gone += [weakref.ref(each) for each in living()]
            socket.connection.close()
        until(lambda: not any(each() for each in gone))
    finally:
        gc.enable()


def living() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is door.Socket]


BIG = 'mutation($m: JSON) { locksAcquire(key: "a", owner: "b", waitSeconds: 60, metadata: $m) { key } }'


@pytest.mark.parametrize("query", [BIG, FOLLOW, WHO, "{ nothing }"])
def test_a_request_is_as_large_as_its_operation_takes(peer: Open, query: str) -> None:
    socket = peer().begin()
    socket.subscribe("1", query, m={"x": "y" * (1 << 20)})
    found = socket.hear()
    assert (found["type"], found["payload"][0]["extensions"]["code"]) == ("error", "too_large")


def test_what_a_subscription_keeps_is_small(peer: Open) -> None:
    """Of what was sent with it only the variables that it has."""
    mark = f"mark-{uuid4()}"
    socket = peer().begin()
    socket.subscribe("1", FOLLOW, more=[mark] * 1000)
    socket.next("1")
    until(lambda: not any(type(each) is list and each[500:501] == [mark] for each in gc.get_objects()))
    assert socket.next("1")


def test_a_connection_keeps_its_last_message_once(peer: Open) -> None:
    socket = peer().begin()
    tracemalloc.start()
    try:
        socket.say("ping", payload="x" * (4 << 20))
        assert socket.hear() == {"type": "pong"}
        # The parser of frames has it still, until the next one.
        until(lambda: tracemalloc.get_traced_memory()[0] < 6 << 20)
    finally:
        tracemalloc.stop()


def test_what_is_under_way_is_bounded_in_bytes(
    peer: Open, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HELD_BYTES", 1_000_000)
    lane("locks.acquire", key="a", owner="alice")
    socket = peer().begin()
    socket.subscribe("1", BIG, m={"x": "y" * 400_000})
    socket.subscribe("2", BIG, m={"x": "y" * 900_000})
    found = socket.hear()
    assert (found["id"], found["payload"][0]["extensions"]["code"]) == ("2", "too_many_operations")
    socket.say("complete", id="1")
    until(lambda: queue(lane, "a") == [])
    socket.subscribe("3", BIG, m={"x": "y" * 900_000})
    until(lambda: len(queue(lane, "a")) == 1)


def test_an_operator_closes_the_connections_of_a_principal(peer: Open, lane: Lane) -> None:
    made = lane("api_keys.create", name="ci")
    theirs, other = peer(X_API_Key=made["key"]).begin(), peer().begin()
    for socket in (theirs, other):
        socket.subscribe("1", FOLLOW)
        socket.next("1")
    call_command("disconnect", f"key:{made['id']}", stdout=StringIO())
    assert theirs.closed() == 4403
    other.say("complete", id="1")
    other.subscribe("2", WHO)
    while (message := other.hear())["id"] != "2":
        assert message["type"] == "next"
    assert message["payload"]["data"]["authWhoami"]


@pytest.mark.usefixtures("production")
def test_a_session_is_no_credential_for_another_site_s_page(
    peer: Open, served: Served, staff: Client, lane: Lane
) -> None:
    session = staff.cookies["sessionid"].value
    peer(Cookie=f"sessionid={session}", Origin=f"http://127.0.0.1:{served.port}").begin()  # it is known now
    for name, value in (
        ("x-api-key", "session\n{}"),
        ("x-api-key", "{}"),
        ("authorization", "Bearer session\n{}"),
    ):
        socket = peer(Origin="https://evil.example")
        socket.say("connection_init", payload={name: value.format(session)})
        assert socket.closed() == 4401


def test_a_session_s_key_is_no_credential(peer: Open, production: None) -> None:
    socket = peer()
    socket.say("connection_init", payload={"x-api-key": "session\nkey"})
    assert socket.closed() == 4401
