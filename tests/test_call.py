"""`manage.py call`: one operation, in a process of its own, on the database itself."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.management.base import CommandError
from websockets.sync.client import connect

from api.management.commands.call import find, parameters
from core.errors import Malformed, SyrosError
from core.operations import registry
from tests.doors import Door
from tests.races.processes import Syros
from tests.servers import WORKER, database
from tests.test_locks import until
from tests.websockets import Peer

ROOT = Path(__file__).resolve().parent.parent


def start(namespace: str, *line: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "manage.py", "call", *line, "--namespace", namespace]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(namespace: str, *line: str) -> tuple[int, str, str]:
    process = start(namespace, *line)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_carries_out_what_a_serving_process_sees(lane: Door) -> None:
    code, out, err = call(lane.namespace, "locks.acquire", "key=jobs/nightly", "owner=me", "ttl_seconds=60")
    assert (code, err) == (0, "")
    grant = json.loads(out)
    assert (
        lane("locks.renew", key="jobs/nightly", lock_id=grant["lock_id"])["fencing_token"]
        == grant["fencing_token"]
    )
    code, out, err = call(lane.namespace, "locks.acquire", "key=jobs/nightly", "owner=other")
    assert (code, out) == (1, "")
    assert "lock_held: jobs/nightly is held by me." in err


def test_it_acts_as_the_system(lane: Door) -> None:
    code, out, _ = call(lane.namespace, "auth.whoami")
    assert code == 0
    assert json.loads(out) == {"principal": "system", "namespace": lane.namespace, "is_admin": True}
    code, out, _ = call(lane.namespace, "api_keys.create", "name=k", "--idempotency-key", "once")
    first = json.loads(out)
    assert first["key"].startswith("syr_")
    again = json.loads(call(lane.namespace, "api_keys.create", "name=k", "--idempotency-key", "once")[1])
    assert again["id"] == first["id"]


def test_a_plain_query_reads(lane: Door) -> None:
    code, out, err = call(lane.namespace, "api_keys.find", "limit=1")
    assert (code, json.loads(out), err) == (0, {"items": [], "next_cursor": None}, "")


def test_a_refusal_names_every_bad_field() -> None:
    code, out, err = call("default", "locks.acquire", "key=..", "ttl=0")
    assert (code, out) == (1, "")
    assert "invalid: " in err
    for line in (
        "/key: no empty, . or .. segments (bad_segment)",
        "/owner: Field required (missing)",
        "/ttl: ",
    ):
        assert f"\n  {line}" in err


def test_an_unknown_namespace_is_refused(database: None) -> None:
    code, _, err = call("nowhere", "locks.get", "key=a")
    assert code == 1
    assert "not_found: There is no such namespace." in err


def test_a_stream_gives_a_line_an_item_until_it_is_interrupted(lane: Door) -> None:
    lane("events.append", stream_id="s", event_type="T", data={"n": 1})
    process = start(lane.namespace, "events.follow", "from_position=1", "streams=s")
    assert process.stdout
    assert json.loads(process.stdout.readline()) == {"heartbeat": {"position": 0}}
    assert json.loads(process.stdout.readline())["event"]["data"] == {"n": 1}
    lane("events.append", stream_id="other", event_type="T", data=0)
    lane("events.append", stream_id="s", event_type="T", data={"n": 2})
    assert json.loads(process.stdout.readline())["event"]["data"] == {"n": 2}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_who_is_interrupted_while_it_waits_leaves_the_queue(lane: Door) -> None:
    lane("locks.acquire", key="a", owner="holder", ttl_seconds=60)
    process = start(lane.namespace, "locks.acquire", "key=a", "owner=waiter", "wait_seconds=60")
    until(lambda: lane("locks.get", key="a")["queue_length"] == 1, 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert lane("locks.get", key="a")["queue_length"] == 0
    events = lane("events.read", stream_id="$lock:a").value["events"]
    assert [event["event_type"] for event in events][-1] == "lock.withdrawn"


# -- beside a server of `make serve` -----------------------------------------------------------------


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Syros]:
    """A server in development mode, with a secret that it made itself."""
    environ = {
        **os.environ, "DATABASE_URL": database(f"syros_laptop_{WORKER}"), "SYROS_DEV": "1",
        "SYROS_VAR": str(tmp_path_factory.mktemp("var")),
    }  # fmt: skip
    del environ["JWT_SECRET"]
    found = Syros(environ, role=None)
    try:
        yield found.start()
    finally:
        found.end()


def beside(laptop: Syros, *line: str, **environment: str) -> tuple[int, str, str]:
    """A command in a shell where SYROS_DEV is not set."""
    kept = {name: value for name, value in laptop.environ.items() if name != "SYROS_DEV"}
    found = subprocess.run(
        [sys.executable, "manage.py", *line], cwd=ROOT, env={**kept, **environment}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr


def test_a_key_that_it_makes_is_good(laptop: Syros) -> None:
    code, out, err = beside(laptop, "call", "api_keys.create", "name=k")
    assert (code, err) == (0, "")
    key = json.loads(out)
    found = httpx.get(f"http://127.0.0.1:{laptop.port}/api/v1/auth/whoami", headers={"X-API-Key": key["key"]})
    assert found.json()["principal"] == f"key:{key['id']}"


def test_who_is_disconnected_is_disconnected(laptop: Syros) -> None:
    with connect(f"ws://127.0.0.1:{laptop.port}/ws") as connection:
        peer = Peer(connection, "default")
        assert peer.ask("auth.whoami")["status"] == 200
        assert beside(laptop, "disconnect", "developer")[0] == 0
        assert peer.closed() == (4403, "closed by an operator")


OTHERS = {"JWT_SECRET": "changeme"}, {"DATABASE_URL": "postgresql://db.example.com/syros"}


@pytest.mark.parametrize("line", [("call", "auth.whoami"), ("disconnect", "developer"), ("serve", "web")])
@pytest.mark.parametrize("environment", OTHERS)
def test_a_secret_that_is_not_the_servers_is_refused(
    laptop: Syros, line: tuple[str, ...], environment: dict[str, str]
) -> None:
    code, out, err = beside(laptop, *line, **environment)
    assert (code, out) == (1, "")
    assert "JWT_SECRET is missing, well known or shorter" in err


def test_nothing_serves_in_earnest_with_a_secret_made_for_development(laptop: Syros) -> None:
    code, _, err = beside(laptop, "serve", "web", *laptop.address)
    assert code == 1
    assert "JWT_SECRET is missing" in err


# -- reading the line --------------------------------------------------------------------------------


def test_an_unknown_operation_names_the_near_ones() -> None:
    with pytest.raises(CommandError, match=r"Near: locks\.acquire") as refused:
        find("locks.aquire")
    assert refused.value.returncode == 2


def test_what_has_no_route_is_no_operation() -> None:
    assert registry["locks.sweep"].route is None
    with pytest.raises(CommandError, match="There is no operation"):
        find("locks.sweep")


def read(name: str, *values: str, body: str = "") -> dict[str, Any]:
    return parameters(registry[name], body, values)


def test_values_are_read_as_query_strings_are() -> None:
    found = read("locks.find", "held=true", "limit=7", "prefix=a=b")
    assert (found["held"], found["limit"], found["prefix"]) == (True, 7, "a=b")
    assert read("events.follow", "streams=a")["streams"] == ["a"]
    assert read("events.follow", "streams=a", "streams=b")["streams"] == ["a", "b"]


def test_json_is_read_where_it_looks_so() -> None:
    found = read("events.append", "stream_id=s", "type=T", 'data={"n": [1]}', "expected_version=3")
    assert (found["data"], found["expected_version"]) == ('{"n":[1]}', 3)
    assert read("events.append", "stream_id=s", "type=T", 'data="{"')["data"] == '"{"'
    assert read("events.append", "stream_id=s", "type=T", "data=7")["data"] == '"7"'


def test_an_object_is_read_strictly_and_values_go_on_top() -> None:
    assert read("locks.find", body='{"limit": 3}')["limit"] == 3
    assert read("locks.find", "limit=4", body='{"limit": 3, "held": true}')["limit"] == 4
    with pytest.raises(SyrosError, match="/limit"):
        read("locks.find", body='{"limit": "3"}')


@pytest.mark.parametrize("value", ["{", '{"a": 1}, "x": {}', "[" * 65 + "]" * 65, "[1] [2]"])
def test_what_is_no_json_is_refused(value: str) -> None:
    with pytest.raises(Malformed):
        read("events.append", "stream_id=s", "type=T", f"data={value}")


def test_a_value_needs_a_name() -> None:
    with pytest.raises(CommandError, match="key=value"):
        read("locks.get", "a")
