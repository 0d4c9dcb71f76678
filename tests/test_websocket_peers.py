"""WebSocket peers that misbehave: the right code, and no harm to the others."""

import contextlib
import json
import time
from typing import Any

import pytest

from api import websocket
from core import sockets
from tests.doors import Lane, Served
from tests.test_locks import queue, until
from tests.websockets import SMALL, Raw, opened, text_frame

LOCK = {"key": "a", "owner": "alice"}
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
    served: Served, lane: Lane, data: bytes, code: int
) -> None:
    with Raw(served, {}) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.send(data)
        connection.until_closed()
        assert connection.code == code
    assert lane("locks.acquire", **LOCK).status == 201


def test_a_message_may_come_in_parts(served: Served) -> None:
    parts = [text_frame(bytes([byte]), 0x00) for byte in ASK[1:]]
    with Raw(served, {}) as connection:
        connection.send(text_frame(ASK[:1], 0x01) + text_frame(b"now", 0x89) + b"".join(parts))
        connection.send(text_frame(b"", 0x80))
        frames = connection.frames()
        assert next(frames) == (10, b"now")
        opcode, payload = next(frames)
        assert opcode == 1
        assert json.loads(payload)["result"]["principal"] == "developer"


def test_parts_without_end_weigh_no_more_than_what_they_say(served: Served) -> None:
    import tracemalloc

    with Raw(served, {}) as connection:
        connection.send(text_frame(b'{"id"', 0x01))
        tracemalloc.start()
        for _ in range(50):
            connection.send(text_frame(b"  ", 0x00) * 1000)
        connection.send(text_frame(b"alive", 0x89))
        assert next(connection.frames()) == (10, b"alive")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        connection.send(text_frame(b':"1","op":"auth.whoami"}', 0x80))
        assert next(connection.frames())[1].startswith(b'{"id":"1","result"')
    assert peak < 2 << 20  # 1.6 MB, most of it to look through them; as objects of their own they take 3.4


def test_who_answers_no_ping_is_gone(served: Served, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PING_SECONDS", 0.3)
    lane("locks.acquire", key="a", owner="alice")
    started = time.monotonic()
    with Raw(served, {"Syros-Namespace": lane.namespace}) as connection:
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
    with Raw(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
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
    with Raw(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
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
    monkeypatch.setattr(websocket, "HELD_BYTES", 4 << 20)
    monkeypatch.setattr(sockets, "SLOW_SECONDS", 0.5)
    large(lane, 1)
    with Raw(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
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
    with Raw(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
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
    with Raw(served, {"Syros-Namespace": lane.namespace}, SMALL) as connection:
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
