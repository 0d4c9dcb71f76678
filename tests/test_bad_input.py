"""Whatever comes in: a 4xx problem that names every bad field, never a 500, and the server stays well."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.test import Client

from core import express
from tests.doors import Door, Refused, Served

NUL, LONE = "a\x00b", "\ud800"


def pointers(refused: Refused) -> set[str]:
    return {error["pointer"] for error in refused.problem["errors"]}


@pytest.mark.parametrize(
    ("operation", "params", "bad"),
    [
        ("locks.acquire", {}, {"/key", "/owner"}),
        ("locks.acquire", {"key": "a"}, {"/owner"}),
        ("locks.acquire", {"key": 1, "owner": [], "ttl_seconds": "x"}, {"/key", "/owner", "/ttl_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "colour": 1, "size": 2}, {"/colour", "/size"}),
        ("locks.acquire", {"key": "a", "owner": "b", "ttl_seconds": 0}, {"/ttl_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "ttl_seconds": 86401}, {"/ttl_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "ttl_seconds": True}, {"/ttl_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "wait_seconds": 301}, {"/wait_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "wait_seconds": -1}, {"/wait_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "mode": "odd"}, {"/mode"}),
        ("locks.acquire", {"key": "a", "owner": "b", "permits": 0}, {"/permits"}),
        ("locks.acquire", {"key": "a", "owner": "b", "permits": 2, "mode": "shared"}, {"/permits"}),
        ("locks.acquire", {"key": "a", "owner": "b", "capacity": 2**31, "permits": 2**31}, {"/capacity", "/permits"}),
        ("locks.acquire", {"key": "a", "owner": "b", "session_id": "a", "ttl_seconds": 1}, {"/ttl_seconds"}),
        ("locks.acquire", {"key": "a", "owner": "b", "session_id": "/"}, {"/session_id"}),
        ("locks.acquire_many", {"owner": "b"}, {"/keys"}),
        ("locks.acquire_many", {"owner": "b", "keys": ["a"], "items": [{"key": "b"}]}, {"/keys"}),
        ("locks.acquire_many", {"owner": "b", "keys": [f"k{n}" for n in range(10_000)]}, {"/keys"}),
        ("locks.acquire_many", {"owner": "b", "keys": ["a", "b", "a", "b"]}, {"/keys/2", "/keys/3"}),
        ("locks.acquire_many", {"owner": "b", "items": [{"key": "$a"}, {"mode": "x"}]},
            {"/items/0/key", "/items/1/key", "/items/1/mode"}),
        ("sessions.open", {"owner": "", "ttl_seconds": 0, "lock_delay_seconds": 61},
            {"/owner", "/ttl_seconds", "/lock_delay_seconds"}),
        ("elections.campaign", {"name": "$x", "candidate": "", "ttl_seconds": 0, "wait_seconds": 301},
            {"/name", "/candidate", "/ttl_seconds", "/wait_seconds"}),
        ("locks.force_release", {"key": "a", "reason": "", "lock_delay_seconds": -1},
            {"/reason", "/lock_delay_seconds"}),
        ("config.put", {"key": "$a", "expected_revision": -1, "reason": ""},
            {"/key", "/value", "/expected_revision", "/reason"}),
        ("config.put", {"key": "a", "value": {"x": [NUL]}}, {"/value"}),
        ("config.find", {"prefix": NUL, "limit": 201, "cursor": "!"}, {"/prefix", "/limit", "/cursor"}),
        ("locks.acquire", {"key": "a", "owner": "b", "metadata": []}, {"/metadata"}),
        ("locks.acquire", {"key": "a", "owner": "b", "metadata": {"x": NUL}}, {"/metadata"}),
        ("locks.acquire", {"key": "a", "owner": NUL}, {"/owner"}),
        ("locks.acquire", {"key": "a", "owner": "x" * 256}, {"/owner"}),
        ("locks.acquire", {"key": "a", "owner": ""}, {"/owner"}),
        ("locks.acquire", {"key": "a", "owner": "b", "fence": {}}, {"/fence/key", "/fence/fencing_token"}),
        ("locks.acquire", {"key": "a", "owner": "b", "fence": 1}, {"/fence"}),
        ("locks.acquire", {"key": "a", "owner": "b", "ttl_seconds": 10**30}, {"/ttl_seconds"}),
        ("events.append", {"stream_id": "s"}, {"/event_type", "/data"}),
        ("events.append", {"stream_id": "s", "event_type": "t"}, {"/data"}),
        ("events.append", {"stream_id": "s", "events": []}, {"/events"}),
        (
            "events.append",
            {"stream_id": "s", "events": [{}, 1]},
            {"/events/0/event_type", "/events/0/data", "/events/1"},
        ),
        ("events.append", {"stream_id": "s", "event_type": "t", "data": NUL}, {"/data"}),
        ("events.append", {"stream_id": "s", "event_type": "t", "data": 1, "event_id": "x"}, {"/event_id"}),
        ("events.append", {"stream_id": "s", "event_type": "t", "data": {NUL: 1}}, {"/data"}),
        ("events.append", {"stream_id": "s", "event_type": "\n", "data": 1}, {"/event_type"}),
        ("events.append_many", {"appends": []}, {"/appends"}),
        (
            "events.append_many",
            {"appends": [{"stream_id": "$x", "events": []}]},
            {"/appends/0/stream_id", "/appends/0/events"},
        ),
        ("events.read", {"stream_id": "s", "limit": 0, "direction": "up"}, {"/limit", "/direction"}),
        ("events.read", {"stream_id": "s", "since": "yesterday"}, {"/since"}),
        ("events.read", {"stream_id": "s", "since": "2026-01-01T00:00:00"}, {"/since"}),
        ("events.read_all", {"from_position": -1, "limit": 1001}, {"/from_position", "/limit"}),
        ("events.read_all", {"from_position": 2**53}, {"/from_position"}),
        ("locks.find", {"limit": 201}, {"/limit"}),
        ("locks.find", {"cursor": "%%%"}, {"/cursor"}),
        ("locks.check", {"key": "a", "fencing_token": -1}, {"/fencing_token"}),
        ("locks.renew", {"key": "a", "lock_id": ""}, {"/lock_id"}),
        ("locks.renew", {"key": "a", "lock_id": f"{NUL}h"}, {"/lock_id"}),
        ("locks.release", {"key": "a", "lock_id": NUL}, {"/lock_id"}),
        ("elections.renew", {"name": "a", "lock_id": f"{NUL}h"}, {"/lock_id"}),
        (
            "locks.acquire",
            {"key": "a", "owner": "b", "fence": {"key": NUL, "fencing_token": 1}},
            {"/fence/key"},
        ),
        ("api_keys.create", {"name": "", "expires_in_days": 0}, {"/name", "/expires_in_days"}),
    ],
)  # fmt: skip
def test_every_bad_field_is_named(call: Door, operation: str, params: dict[str, Any], bad: set[str]) -> None:
    if params.get("events") == [] and not call.has_empty_lists:
        bad = {"/event_type", "/data"}  # protobuf cannot tell an empty list from none
    with pytest.raises(Refused) as refused:
        call(operation, **params)
    assert refused.value.status == 422
    assert pointers(refused.value) >= bad if operation == "events.append" else pointers(refused.value) == bad
    assert refused.value.problem["retryable"] is False


@pytest.mark.parametrize(
    "key",
    [
        "",
        "$system",
        "a b",
        "a//b",
        "/a",
        "a/",
        ".",
        "..",
        "a/../b",
        "a/./b",
        "x" * 256,
        "ü",
        "a\n",
        "a?",
        "%",
        "a\\b",
        NUL,
    ],
)
def test_odd_keys_are_refused(call: Door, key: str) -> None:
    with pytest.raises(Refused) as refused:
        call("locks.acquire", key=key, owner="alice")
    assert refused.value.status == 422
    assert pointers(refused.value) == {"/key"}


@pytest.mark.parametrize("name", ["batch", "follow"])
def test_the_name_of_a_route_is_reserved(call: Door, name: str) -> None:
    with pytest.raises(Refused) as refused:
        call("events.append_many", appends=[{"stream_id": name, "events": [{"event_type": "t", "data": 1}]}])
    assert (refused.value.status, refused.value.code) == (422, "reserved_name")


def test_an_unknown_namespace_is_not_there(call: Door) -> None:
    with pytest.raises(Refused) as refused:
        call("locks.acquire", key="a", owner="b", _={"namespace": "nowhere"})
    assert (refused.value.status, refused.value.code) == (404, "not_found")


# -- as bytes ----------------------------------------------------------------------------------------


class Bytes:
    """Requests as they come, to the lane over its socket or to Django in process."""

    def __init__(self, served: Served, namespace: str, through: str) -> None:
        self.served, self.namespace, self.through = served, namespace, through

    def __call__(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", **more: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        headers = {"Syros-Namespace": self.namespace, **more}
        if self.through == "lane":
            url = f"http://127.0.0.1:{self.served.port}{path}"
            found: Any = httpx.request(
                method, url, content=body, headers={"content-type": kind, **headers}, timeout=20
            )
        else:
            found = Client(headers={"host": "localhost"}, raise_request_exception=False).generic(
                method, path, body, content_type=kind, headers=headers
            )
        answered = dict(found.headers.items())
        return found.status_code, json.loads(found.content), {k.lower(): v for k, v in answered.items()}


@pytest.fixture(params=["lane", "drf"])
def send(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Bytes]:
    yield Bytes(served, namespace, request.param)
    ready = httpx.get(f"http://127.0.0.1:{served.port}/ready", timeout=10)
    assert ready.status_code == 200, "the server did not stay well"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"nonsense", 400, "malformed"),
        (b'{"key": NaN}', 400, "malformed"),
        (b'{"key": "\xff\xfe"}', 400, "malformed"),
        (b'{"key": "a", "owner": "\\ud800"}', 400, "malformed"),
        (b'{"key": "a", "owner": "b", "ttl_seconds": 1e999}', 400, "malformed"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b"[]", 422, "invalid"),
        (b'"text"', 422, "invalid"),
        (b"null", 422, "invalid"),
        (b"", 422, "invalid"),
        (b'{"key": "a", "key": "b", "owner": 3}', 422, "invalid"),
    ],
)
def test_bodies_that_are_none(send: Bytes, body: bytes, status: int, code: str) -> None:
    found, problem, headers = send("POST", "/api/v1/locks", body)
    assert (found, problem["code"]) == (status, code)
    assert headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == headers["x-request-id"]


def test_brackets_in_texts_are_not_depth(send: Bytes) -> None:
    body = json.dumps({"key": "a", "owner": "[" * 200, "metadata": {"deep": "{" * 300}}).encode()
    assert send("POST", "/api/v1/locks", body)[0] == 201


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "x",
    ],
)
def test_other_content_types_are_refused(send: Bytes, kind: str) -> None:
    found, problem, _ = send("POST", "/api/v1/locks", b'{"key": "a", "owner": "b"}', kind)
    assert (found, problem["code"]) == (415, "unsupported_media_type")


def test_a_body_over_the_limit_is_refused(send: Bytes) -> None:
    body = json.dumps({"key": "a", "owner": "b", "metadata": {"x": "y" * (1 << 20)}}).encode()
    found, problem, _ = send("POST", "/api/v1/locks", body)
    assert (found, problem["code"], problem["limit"]) == (413, "too_large", 1 << 20)


def test_a_batch_of_events_may_be_larger(send: Bytes) -> None:
    body = json.dumps({"events": [{"event_type": "t", "data": "y" * 10_000}] * 400}).encode()
    assert send("POST", "/api/v1/events/s", body)[0] == 201


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/", 404),
        ("PATCH", "/api/v1/locks", 405),
        ("DELETE", "/api/v1/events/s", 405),
        ("PUT", "/api/v1/locks/a", 405),
        ("GET", "/api/v1/locks/%00", 422),
        ("GET", "/api/v1/locks/%FF", 422),
        ("GET", "/api/v1/locks/" + "x" * 5000, 422),
        ("GET", "/api/v1/events/s?limit=abc", 422),
        ("GET", "/api/v1/events/s?limit=1&limit=2", 422),
        ("GET", "/api/v1/events/s?colour=red", 422),
        ("GET", "/api/v1/events?from_position=1e3", 422),
        ("GET", "/api/v1/locks?prefix=%ff", 400),
    ],
)
def test_odd_addresses(send: Bytes, method: str, path: str, status: int) -> None:
    found, problem, _ = send(method, path)
    assert found == status
    assert problem["status"] == status


def test_path_and_body_must_agree(send: Bytes) -> None:
    found, problem, _ = send("POST", "/api/v1/locks/a/renew", b'{"key": "b", "lock_id": "x"}')
    assert (found, problem["errors"][0]["pointer"]) == (422, "/key")


@pytest.mark.parametrize(("given", "kept"), [("mine-1", True), ("a b", False), ("x" * 129, False)])
def test_a_request_id_is_echoed_or_made(send: Bytes, given: str, kept: bool) -> None:
    _, _, headers = send("GET", "/api/v1/locks/a", **{"X-Request-Id": given})
    assert (headers["x-request-id"] == given) is kept
    assert headers["x-request-id"]


def test_a_bad_idempotency_key_is_refused(send: Bytes) -> None:
    found, problem, _ = send(
        "POST", "/api/v1/locks", b'{"key":"a","owner":"b"}', **{"Idempotency-Key": "x" * 256}
    )
    assert (found, problem["errors"][0]["pointer"]) == (422, "/Idempotency-Key")


def test_aliases_are_taken(send: Bytes) -> None:
    status, grant, _ = send(
        "POST", "/api/v1/locks", b'{"key":"a","owner":"b","ttl":7,"wait_timeout_seconds":0}'
    )
    assert (status, grant["ttl_seconds"]) == (201, 7)
    lock_id = grant["lock_id"]
    extend = json.dumps({"lock_id": lock_id, "ttl": 9}).encode()
    assert send("PUT", "/api/v1/locks/a/extend", extend)[1]["ttl_seconds"] == 9
    assert send("GET", "/api/v1/locks/a/status")[1]["is_locked"] is True
    assert send("DELETE", f"/api/v1/locks/a?lock_id={lock_id}")[0] == 200
    again = send("POST", "/api/v1/locks", b'{"key":"a","owner":"b"}')[1]
    assert send("DELETE", "/api/v1/locks/a", json.dumps({"lock_id": again["lock_id"]}).encode())[0] == 200
    event = b'{"stream_id":"s","type":"t","data":1}'
    assert send("POST", "/api/v1/events", event)[1]["event_type"] == "t"


def test_traceparent_becomes_the_correlation_id(send: Bytes) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    send("POST", "/api/v1/events/s", b'{"event_type":"t","data":1}', **headers)
    _, page, _ = send("GET", "/api/v1/events/s")
    assert page["events"][0]["correlation_id"] == trace


def silence(served: Served, *parts: bytes) -> bytes:
    """What the server says to a client that sends these and no more, until it hangs up."""
    with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
        connection.settimeout(5)
        for part in parts:
            connection.sendall(part)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_a_request_must_arrive_whole_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("REQUEST_SECONDS", 0.3), ("KEEP_ALIVE_SECONDS", 0.6), ("LOOK_SECONDS", 0.1)):
        monkeypatch.setattr(express, name, seconds)
    head = b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert silence(served) == b""
    assert silence(served, head) == b""
    assert silence(served, head + b"Content-Length: 100\r\n\r\n{") == b""
    whole = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert silence(served, whole, head).startswith(b"HTTP/1.1 200")
    started = time.monotonic()
    assert silence(served, whole).startswith(b"HTTP/1.1 200")
    assert 0.6 < time.monotonic() - started < 4


@pytest.mark.parametrize(
    "text",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n",
        b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/locks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api/v1/locks/a HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /api/v1/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_http_hurts_nobody(served: Served, text: bytes) -> None:
    answer = b""
    with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):  # hung up on before it was done
            connection.sendall(text)
            answer = connection.recv(65536)
    assert not answer or answer.startswith((b"HTTP/1.1 4",))
    assert httpx.get(f"http://127.0.0.1:{served.port}/ready", timeout=10).status_code == 200
