"""What configuration promises, through every door."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from secrets import token_urlsafe
from typing import Any

import httpx
import pytest
from django.core.management import call_command

from api.messages import messages
from core.callers import namespaces
from core.watching import watchers
from tests.doors import Door, Lane, Refused, Served
from tests.doors.grpc import channel
from tests.test_locks import until
from tests.websockets import opened


def refusal(call: Door, operation: str, **params: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        call(operation, **params)
    return refused.value


def keys(call: Door, **params: Any) -> list[str]:
    return [item["key"] for item in call("config.find", **params)["items"]]


# -- setting and reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"url": "db://ü", "ports": [1, 2.5]}, "text", 7, False, None, [], {}])
def test_what_was_put_is_read(call: Door, value: Any) -> None:
    put = call("config.put", key="app/db", value=value)
    assert (put.status, put["key"], put["revision"]) == (200, "app/db", 1)
    state = call("config.get", key="app/db").value
    assert (state["key"], state["value"], state["revision"]) == ("app/db", value, 1)
    assert state["changed_by"] == "developer"


def test_a_key_that_is_not_set_is_not_found(call: Door) -> None:
    refused = refusal(call, "config.get", key="nothing")
    assert (refused.status, refused.code, refused.problem["key"]) == (404, "config_not_found", "nothing")
    assert refusal(call, "config.delete", key="nothing").code == "config_not_found"


def test_revisions_of_a_key_rise_and_positions_order_all_changes(call: Door) -> None:
    changes = [call("config.put", key=key, value=key).value for key in ("a", "b", "a", "a")]
    assert [change["revision"] for change in changes] == [1, 1, 2, 3]
    first = changes[0]["position"]
    assert [change["position"] for change in changes] == [first, first + 1, first + 2, first + 3]


def test_a_put_by_an_old_revision_is_refused(call: Door) -> None:
    call("config.put", key="a", value=1)
    call("config.put", key="a", value=2, expected_revision=1)
    refused = refusal(call, "config.put", key="a", value=3, expected_revision=1)
    assert (refused.status, refused.code) == (409, "wrong_expected_revision")
    assert (refused.problem["expected"], refused.problem["actual"]) == (1, 2)
    assert refusal(call, "config.delete", key="a", expected_revision=1).code == "wrong_expected_revision"
    assert call("config.get", key="a")["value"] == 2


def test_revision_0_means_that_it_is_not_set(call: Door) -> None:
    call("config.put", key="a", value=1, expected_revision=0)
    assert refusal(call, "config.put", key="a", value=2, expected_revision=0).problem["actual"] == 1
    assert refusal(call, "config.put", key="b", value=2, expected_revision=1).problem["actual"] == 0
    call("config.delete", key="a", expected_revision=1)
    assert call("config.put", key="a", value=3, expected_revision=0)["revision"] == 3


def test_a_deleted_key_is_gone_and_its_revision_goes_on(call: Door) -> None:
    call("config.put", key="a", value=1)
    assert call("config.delete", key="a")["revision"] == 2
    assert refusal(call, "config.get", key="a").status == 404
    assert refusal(call, "config.put", key="a", value=1, expected_revision=2).problem["actual"] == 0
    assert keys(call) == []
    assert call("config.put", key="a", value=1)["revision"] == 3


def test_keys_are_found_by_prefix_a_page_at_a_time(call: Door) -> None:
    for key in ("app/a", "app/b", "app/c", "apple", "zoo"):
        call("config.put", key=key, value={"of": key})
    assert keys(call) == ["app/a", "app/b", "app/c", "apple", "zoo"]
    assert keys(call, prefix="app/") == ["app/a", "app/b", "app/c"]
    assert keys(call, prefix="none") == []
    page = call("config.find", prefix="app", limit=3)
    assert [item["value"]["of"] for item in page["items"]] == ["app/a", "app/b", "app/c"]
    rest = call("config.find", prefix="app", limit=3, cursor=page["next_cursor"])
    assert ([item["key"] for item in rest["items"]], rest["next_cursor"]) == (["apple"], None)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_page_of_large_values_ends_early(lane: Door, is_compressed: bool) -> None:
    for n in range(8):
        value = "x" * 900_000 if is_compressed else random_text(900_000)
        lane("config.put", key=f"k{n}", value=value)
    page = lane("config.find")
    assert 3 < len(page["items"]) < 8
    rest = lane("config.find", cursor=page["next_cursor"])
    assert [item["key"] for item in page["items"] + rest["items"]] == [f"k{n}" for n in range(8)]


def random_text(size: int) -> str:
    """A text that nothing compresses."""
    return token_urlsafe(size)[:size]


@pytest.mark.parametrize("key", ["watch/history", "a/b/rollback"])
def test_a_key_that_would_read_as_a_route_is_refused(call: Door, key: str) -> None:
    refused = refusal(call, "config.put", key=key, value=1)
    assert (refused.status, refused.code) == (422, "reserved_name")


def test_many_who_read_at_once_share_statements_and_each_gets_its_own(lane: Lane, served: Served) -> None:
    from config.services.looking import ONE

    for n in range(5):
        lane("config.put", key=f"k{n}", value=n)

    async def read() -> list[Any]:
        names = [f"{lane.namespace}/k{n % 7}" for n in range(200)]
        return [row and row[1] for row in await asyncio.gather(*map(ONE.row, names))]

    assert served.do(read()) == [str(n % 7) if n % 7 < 5 else None for n in range(200)]


# -- history -----------------------------------------------------------------------------------------


def test_history_says_who_set_what_and_why(call: Door) -> None:
    call("config.put", key="a", value={"x": 1}, reason="first")
    call("config.put", key="a", value=2)
    call("config.delete", key="a", reason="not needed")
    items = call("config.history", key="a")["items"]
    assert [(item["revision"], item["change"], item.get("value"), item["reason"]) for item in items] == [
        (3, "deleted", None, "not needed"), (2, "put", 2, None), (1, "put", {"x": 1}, "first"),
    ]  # fmt: skip
    assert {item["changed_by"] for item in items} == {"developer"}
    assert [item["position"] for item in items] == [3, 2, 1]
    assert call("config.history", key="never")["items"] == []


def test_history_comes_a_page_at_a_time(call: Door) -> None:
    for n in range(5):
        call("config.put", key="a", value=n)
    page = call("config.history", key="a", limit=3)
    rest = call("config.history", key="a", limit=3, cursor=page["next_cursor"])
    assert [item["value"] for item in page["items"] + rest["items"]] == [4, 3, 2, 1, 0]
    assert rest["next_cursor"] is None


def test_a_rollback_is_a_new_revision(call: Door) -> None:
    call("config.put", key="a", value={"x": 1})
    call("config.put", key="a", value=2)
    back = call("config.rollback", key="a", revision=1, expected_revision=2, reason="2 was wrong")
    assert back["revision"] == 3
    assert "value" not in back.value
    assert call("config.get", key="a")["value"] == {"x": 1}
    last = call("config.history", key="a")["items"][0]
    assert (last["change"], last["to_revision"], last["reason"]) == ("rolled_back", 1, "2 was wrong")
    call("config.put", key="a", value=4)
    call("config.rollback", key="a", revision=3)  # to a rollback
    assert call("config.get", key="a")["value"] == {"x": 1}


def test_a_rollback_brings_a_deleted_key_back(call: Door) -> None:
    call("config.put", key="a", value="here")
    call("config.delete", key="a")
    call("config.rollback", key="a", revision=1, expected_revision=0)
    assert call("config.get", key="a").value["value"] == "here"
    assert call("config.get", key="a")["revision"] == 3


def test_a_rollback_to_what_there_was_not_is_refused(call: Door) -> None:
    assert refusal(call, "config.rollback", key="a", revision=1).code == "revision_not_found"
    call("config.put", key="a", value=1)
    call("config.delete", key="a")
    for revision, code in (
        (0, "revision_not_found"),
        (3, "revision_not_found"),
        (2, "revision_without_value"),
    ):
        assert refusal(call, "config.rollback", key="a", revision=revision).code == code
    refused = refusal(call, "config.rollback", key="a", revision=1, expected_revision=2)
    assert (refused.code, refused.problem["actual"]) == ("wrong_expected_revision", 0)
    assert len(call("config.history", key="a")["items"]) == 2


def prune(served: Served) -> int:
    from config.services.upkeep import prune
    from core.database import pool

    found: int = served.do(prune(0, pool))
    return found


def test_what_is_pruned_is_gone_but_what_is_set_stays(lane: Lane, served: Served) -> None:
    for n in range(3):
        lane("config.put", key="a", value=n)
    lane("events.append", stream_id="s", event_type="t", data={})
    assert prune(served) >= 3
    refused = refusal(lane, "config.rollback", key="a", revision=1)
    assert (refused.status, refused.code) == (410, "revision_pruned")
    assert lane("config.get", key="a").value["value"] == 2
    assert lane("config.put", key="a", value=3, expected_revision=3)["revision"] == 4
    assert [item["revision"] for item in lane("config.history", key="a")["items"]] == [4]
    answer = httpx.get(address(lane, from_position=2), headers={"Syros-Namespace": lane.namespace})
    assert (answer.status_code, answer.json()["code"]) == (410, "position_pruned")


# -- learning of changes -----------------------------------------------------------------------------


def test_a_reader_waits_for_the_next_revision(waiting: Door, later: Any) -> None:
    waiting("config.put", key="a", value=1)
    reader = later(waiting, "config.get", key="a", wait_seconds=30, from_revision=2)
    time.sleep(0.2)
    assert not reader.done()
    waiting("config.put", key="b", value="another")
    waiting("config.put", key="a", value=2)
    state = reader.result(5)
    assert (state["value"], state["revision"]) == (2, 2)


def test_a_reader_who_waits_for_what_is_there_already_is_answered_at_once(waiting: Door) -> None:
    waiting("config.put", key="a", value=1)
    started = time.monotonic()
    assert waiting("config.get", key="a", wait_seconds=30, from_revision=1)["value"] == 1
    assert time.monotonic() - started < 10


def test_a_reader_who_waited_in_vain_is_told_what_is(waiting: Door) -> None:
    waiting("config.put", key="a", value=1)
    assert waiting("config.get", key="a", wait_seconds=0.2, from_revision=2)["revision"] == 1
    refused = refusal(waiting, "config.get", key="b", wait_seconds=0.2, from_revision=1)
    assert (refused.code, refused.problem["revision"]) == ("config_not_found", 0)


def test_a_reader_hears_of_a_deletion(waiting: Door, later: Any) -> None:
    waiting("config.put", key="a", value=1)
    reader = later(refusal, waiting, "config.get", key="a", wait_seconds=30, from_revision=2)
    time.sleep(0.1)
    waiting("config.delete", key="a")
    refused = reader.result(5)
    assert (refused.code, refused.problem["revision"]) == ("config_not_found", 2)


def test_many_who_wait_for_keys_cost_one_follower(lane: Lane, later: Any) -> None:
    how = {"wait_seconds": 20, "from_revision": 1}
    asked = [later(lane, "config.get", key=f"k{n % 4}", **how) for n in range(20)]
    number = lane.served.do(namespaces.get(lane.namespace)).number
    until(lambda: sum(map(len, watchers._listeners.get(number, {}).values())) == 20)
    assert number in watchers._followers
    for n in range(4):
        lane("config.put", key=f"k{n}", value=n)
    assert [each.result(5).value["value"] for each in asked] == [n % 4 for n in range(20)]
    until(lambda: number not in watchers._followers and number not in watchers._listeners)


def address(lane: Lane, **query: Any) -> str:
    return str(httpx.URL(f"http://127.0.0.1:{lane.served.port}/api/v1/config/watch", params=query))


def watch(lane: Lane, **query: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a watcher is told, over server-sent events."""
    headers = {"Syros-Namespace": lane.namespace}
    with httpx.stream("GET", address(lane, **query), headers=headers, timeout=20) as response:
        kind = ""
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


def test_a_watcher_is_told_what_was_and_what_comes(lane: Lane) -> None:
    lane("config.put", key="app/a", value=1)
    lane("config.put", key="other", value=1)
    lane("config.put", key="app/b", value=2, reason="why not")
    with closing(watch(lane, prefix="app/", from_position=1)) as items:
        assert next(items) == ("heartbeat", {"position": 0})
        assert [next(items)[1]["key"] for _ in range(2)] == ["app/a", "app/b"]
        lane("config.put", key="other", value=2)
        lane("config.delete", key="app/a", reason="gone")
        kind, change = next(items)
    assert kind == "change"
    assert change.pop("changed_at")
    assert change == {
        "key": "app/a", "revision": 2, "position": 5, "change": "deleted", "value": None, "secret": False,
        "rollout": None, "to_revision": None, "reason": "gone", "changed_by": "developer",
    }  # fmt: skip


def test_a_page_and_then_a_watch_miss_nothing(lane: Lane) -> None:
    lane("config.put", key="a", value=1)
    position = lane("config.find")["position"]
    lane("config.put", key="a", value=2)
    with closing(watch(lane, from_position=position + 1)) as items:
        next(items)
        assert next(items)[1]["value"] == 2


def test_a_watch_over_websocket(lane: Lane, served: Served) -> None:
    with opened(served, lane.namespace) as peer:
        first = peer.ask("config.watch", "w", prefix="app/")
        assert first == {"id": "w", "subscribed": True, "position": 0}
        lane("config.put", key="app/a", value={"x": [1]})
        told = peer.hear()
    assert (told["id"], told["change"]["key"], told["change"]["value"]) == ("w", "app/a", {"x": [1]})


def test_a_watch_over_grpc(lane: Lane, served: Served) -> None:
    lane("config.put", key="app/a", value={"x": [1]})
    items = channel(served).unary_stream(
        "/syros.v1.ConfigService/Watch",
        response_deserializer=messages()["ConfigServiceWatchResponse"].FromString,
    )(
        messages()["ConfigServiceWatchRequest"](from_position=1).SerializeToString(),
        metadata=[("syros-namespace", lane.namespace)], timeout=20,
    )  # fmt: skip
    assert next(items).heartbeat.position == 0
    assert next(items).change.key == "app/a"
    items.cancel()


# -- schemas -----------------------------------------------------------------------------------------

PORT = {"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]}


def test_a_value_that_does_not_fit_its_schema_is_refused_by_place(call: Door) -> None:
    assert call("config.put_schema", prefix="app", json_schema=PORT)["revision"] == 1
    refused = refusal(call, "config.put", key="app/db", value={"port": "x"})
    assert (refused.status, refused.code, refused.problem["prefix"]) == (422, "value_does_not_fit", "app")
    assert [error["pointer"] for error in refused.problem["errors"]] == ["/value/port"]
    assert refusal(call, "config.put", key="app", value={}).code == "value_does_not_fit"
    assert refusal(call, "config.get", key="app/db").code == "config_not_found"
    assert call("config.put", key="app/db", value={"port": 1})["revision"] == 1
    assert call("config.put", key="apple", value="free")["revision"] == 1


def test_the_longest_prefix_has_the_say(call: Door) -> None:
    call("config.put_schema", prefix="app", json_schema={"type": "integer"})
    call("config.put_schema", prefix="app/names", json_schema={"type": "string"})
    call("config.put", key="app/names/a", value="text")
    call("config.put", key="app/numbers", value=1)
    assert refusal(call, "config.put", key="app/names/a", value=1).problem["prefix"] == "app/names"
    call("config.delete_schema", prefix="app/names", reason="not needed")
    assert refusal(call, "config.put", key="app/names/a", value="x").problem["prefix"] == "app"
    call("config.delete_schema", prefix="app")
    call("config.put", key="app/names/a", value=None)
    assert refusal(call, "config.delete_schema", prefix="app").code == "schema_not_found"


def test_a_schema_that_present_values_violate_is_refused_unless_forced(call: Door) -> None:
    for key, value in (("app/a", 1), ("app/b", "x"), ("app/own/c", "x"), ("app", "y"), ("apple", "z")):
        call("config.put", key=key, value=value)
    call("config.put", key="app/gone", value="x")
    call("config.delete", key="app/gone")
    call("config.put_schema", prefix="app/own", json_schema={"type": "string"})
    refused = refusal(call, "config.put_schema", prefix="app", json_schema={"type": "integer"})
    assert (refused.status, refused.code) == (409, "values_do_not_fit")
    assert (refused.problem["keys"], refused.problem["count"]) == (["app", "app/b"], 2)
    assert refusal(call, "config.get_schema", prefix="app").code == "schema_not_found"
    forced = call("config.put_schema", prefix="app", json_schema={"type": "integer"}, force=True)
    assert forced["violations"] == ["app", "app/b"]
    assert refusal(call, "config.put", key="app/b", value="x").code == "value_does_not_fit"


def test_no_schema_tells_what_a_secret_is(call: Door) -> None:
    call("config.put", key="app/pin", value="1234", secret=True)
    for pattern in ("^1", "^2"):
        call("config.put_schema", prefix="app", json_schema={"pattern": pattern})
    assert refusal(call, "config.put", key="app/pin", value="1235", secret=True).code == "value_does_not_fit"


def test_a_rollback_fits_the_schema_too_and_tells_nothing_of_the_value(call: Door) -> None:
    call("config.put", key="a", value={"password": "hunter2"})
    call("config.put", key="a", value=1)
    call("config.put_schema", prefix="a", json_schema={"type": "integer"})
    refused = refusal(call, "config.rollback", key="a", revision=1)
    assert (refused.code, refused.problem["errors"][0]["pointer"]) == ("value_does_not_fit", "/revision")
    assert "hunter2" not in str(refused.problem)
    assert call("config.get", key="a")["revision"] == 2


def test_a_schema_that_the_value_of_a_rollout_violates_is_refused_too(call: Door) -> None:
    call("config.put", key="app/a", value=1)
    call("config.put", key="app/a", value="next", rollout={"percentage": 10.0})
    refused = refusal(call, "config.put_schema", prefix="app", json_schema={"type": "integer"})
    assert (refused.code, refused.problem["keys"]) == ("values_do_not_fit", ["app/a"])
    forced = call("config.put_schema", prefix="app", json_schema={"type": "integer"}, force=True)
    assert forced["violations"] == ["app/a"]


@pytest.mark.parametrize("secret", [False, True])
def test_a_rollout_fits_the_schema_too_before_more_instances_get_it(call: Door, secret: bool) -> None:
    call("config.put", key="a", value=1, secret=secret)
    call("config.put", key="a", value={"password": "hunter2"}, rollout={"percentage": 10.0})
    call("config.put_schema", prefix="a", json_schema={"type": "integer"}, force=True)
    for operation, params in (("config.widen", {"percentage": 20.0}), ("config.finish", {})):
        refused = refusal(call, operation, key="a", **params)
        assert (refused.code, refused.problem["errors"][0]["pointer"]) == ("value_does_not_fit", "/key")
        assert "hunter2" not in str(refused.problem)
    assert call("config.get", key="a")["rollout"]["percentage"] == 10
    call("config.put_schema", prefix="a", json_schema={"type": ["integer", "object"]})
    assert call("config.finish", key="a")["revision"] == 3


@pytest.mark.parametrize("rollout", [None, {"percentage": 10}])
def test_a_schema_of_more_than_is_looked_at_is_refused_unless_forced(lane: Lane, rollout: Any) -> None:
    for n in range(19):
        lane("config.put", key=f"app/{n}", value=n)
        lane("config.put", key=f"app/{n}", value="x" * 900_000, **({"rollout": rollout} if rollout else {}))
    refused = refusal(lane, "config.put_schema", prefix="app", json_schema={})
    assert (refused.status, refused.code) == (409, "too_many_values")
    assert lane("config.put_schema", prefix="app", json_schema={}, force=True)["violations"] == []
    lane("config.delete", key="app/0")
    lane("config.put_schema", prefix="app", json_schema={})


def test_schemas_have_revisions_and_history(call: Door) -> None:
    call("config.put_schema", prefix="app", json_schema={}, expected_revision=0, reason="first")
    call("config.put_schema", prefix="app", json_schema=PORT, expected_revision=1)
    refused = refusal(call, "config.put_schema", prefix="app", json_schema={}, expected_revision=1)
    assert (refused.code, refused.problem["actual"]) == ("wrong_expected_revision", 2)
    state = call("config.get_schema", prefix="app").value
    assert (state["json_schema"], state["revision"], state["changed_by"]) == (PORT, 2, "developer")
    assert [item["prefix"] for item in call("config.find_schemas")["items"]] == ["app"]
    items = call("config.schema_history", prefix="app")["items"]
    assert [(item["revision"], item["change"], item.get("reason")) for item in items] == [
        (2, "put", None), (1, "put", "first"),
    ]  # fmt: skip


def test_what_is_no_schema_is_refused_by_place(call: Door) -> None:
    bad = {"type": "objekt", "properties": {"a": {"minimum": "x"}}}
    refused = refusal(call, "config.put_schema", prefix="app", json_schema=bad)
    assert {error["pointer"] for error in refused.problem["errors"]} == {
        "/json_schema/type", "/json_schema/properties/a/minimum",
    }  # fmt: skip
    large = {"description": "x" * (64 << 10)}
    refused = refusal(call, "config.put_schema", prefix="app", json_schema=large)
    assert [error["pointer"] for error in refused.problem["errors"]] == ["/json_schema"]


# -- secrets -----------------------------------------------------------------------------------------

HIDDEN = "hunter2-hunter2"


def stored() -> str:
    """Everything that the database holds, as text."""
    from django.db import connection

    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        found = []
        for table in tables:
            cursor.execute(f"select coalesce(string_agg(t::text, chr(10)), '') from \"{table}\" t")
            found.append(cursor.fetchone()[0])
    return "\n".join(found)


def test_a_secret_is_told_to_who_asks_for_it_and_nowhere_else(call: Door) -> None:
    hidden = f"{HIDDEN}-{call.namespace}"
    call("config.put", key="a", value={"password": hidden}, secret=True, _={"key": "k1"})
    call("config.put", key="a", value={"password": hidden})  # still one
    assert (call("config.get", key="a")["secret"], call("config.get", key="a").value.get("value")) == (
        True,
        None,
    )
    for operation, params in (("config.find", {}), ("config.history", {"key": "a"})):
        answer = call(operation, **params).value
        assert answer["items"][0]["secret"] is True
        assert hidden not in str(answer)
    told = call("config.reveal", key="a", reason="to look", _={"key": "k2"})
    assert (told["value"], told["revision"]) == ({"password": hidden}, 2)
    assert hidden not in stored()
    (event,) = call("events.read", stream_id="$config-reveals")["events"]
    assert (event["event_type"], event["data"]) == (
        "config.revealed", {"key": "a", "revision": 2, "reason": "to look"},
    )  # fmt: skip


def test_a_secret_becomes_public_only_by_saying_so(call: Door) -> None:
    call("config.put", key="a", value="x", secret=True)
    call("config.put", key="a", value="y", secret=False)
    assert call("config.get", key="a").value["value"] == "y"
    assert [item["secret"] for item in call("config.history", key="a")["items"]] == [False, True]


def test_a_secret_that_is_deleted_and_set_again_is_one_still(call: Door) -> None:
    hidden = f"{HIDDEN}-{call.namespace}"
    call("config.put", key="a", value="x", secret=True)
    call("config.put", key="b", value="x")
    for key in ("a", "b", "a"):
        call("config.delete", key=key)
        call("config.put", key=key, value=hidden if key == "a" else "y")
    assert [call("config.get", key=key)["secret"] for key in ("a", "b")] == [True, False]
    assert call("config.reveal", key="a")["value"] == hidden
    assert hidden not in stored()
    call("config.delete", key="a")
    call("config.put", key="a", value="z", secret=False)
    assert call("config.get", key="a").value["value"] == "z"


def test_a_key_that_was_to_become_secret_is_one_when_it_is_set_again(call: Door) -> None:
    call("config.put", key="a", value="x")
    call("config.put", key="a", value=HIDDEN, secret=True, rollout={"percentage": 10.0})
    call("config.delete", key="a")
    call("config.put", key="a", value=HIDDEN)
    assert call("config.get", key="a")["secret"] is True


def test_a_secret_is_rolled_back_without_being_shown(call: Door) -> None:
    for n in (1, 2):
        call("config.put", key="a", value=f"{HIDDEN}{n}", secret=True)
    call("config.delete", key="a")
    assert HIDDEN not in str(call("config.rollback", key="a", revision=1).value)
    assert call("config.get", key="a")["secret"] is True
    assert call("config.reveal", key="a")["value"] == f"{HIDDEN}1"


def test_a_secret_that_does_not_fit_is_not_told_in_the_refusal(call: Door) -> None:
    call(
        "config.put_schema",
        prefix="a",
        json_schema={"type": "object", "properties": {"n": {"type": "integer"}}},
    )
    refused = refusal(call, "config.put", key="a", value={"n": HIDDEN}, secret=True)
    assert [error["pointer"] for error in refused.problem["errors"]] == ["/value/n"]
    assert HIDDEN not in str(refused.problem)


def test_without_a_key_secrets_are_refused(call: Door, settings: Any) -> None:
    settings.CONFIG_KEYS = []
    refused = refusal(call, "config.put", key="a", value=HIDDEN, secret=True)
    assert (refused.status, refused.code) == (409, "no_sealing_key")
    assert "SYROS_CONFIG_KEYS" in refused.problem["detail"]
    assert refusal(call, "config.get", key="a").code == "config_not_found"


def test_keys_rotate(lane: Lane, settings: Any) -> None:
    first, second = bytes(range(32)), bytes(32)
    before = settings.CONFIG_KEYS
    settings.CONFIG_KEYS = [first]
    for n in range(3):
        lane("config.put", key="a", value=f"{HIDDEN}{n}", secret=True)
    settings.CONFIG_KEYS = [second]
    assert refusal(lane, "config.reveal", key="a").code == "unknown_sealing_key"
    settings.CONFIG_KEYS = [second, first, *before]
    assert lane("config.reveal", key="a")["value"] == f"{HIDDEN}2"
    call_command("reseal_config")
    settings.CONFIG_KEYS = [second]
    assert lane("config.reveal", key="a")["value"] == f"{HIDDEN}2"
    lane("config.rollback", key="a", revision=1)
    assert lane("config.reveal", key="a")["value"] == f"{HIDDEN}0"
    settings.CONFIG_KEYS = [*before, second]
    call_command("reseal_config")


def test_a_pruned_secret_is_gone_and_the_one_that_is_set_stays(lane: Lane, served: Served) -> None:
    for n in range(3):
        lane("config.put", key="a", value=n, secret=True)
    lane("events.append", stream_id="s", event_type="t", data={})
    prune(served)
    from config.models import Sealed

    kept = Sealed.objects.filter(id__startswith=f"{lane.namespace}/").values_list("id", flat=True)
    assert list(kept) == [f"{lane.namespace}/a#3"]
    assert lane("config.reveal", key="a")["value"] == 2


# -- rollouts ----------------------------------------------------------------------------------------

INSTANCES = [f"web-{n}" for n in range(100)]


def having(call: Door, value: Any) -> set[str]:
    return {name for name in INSTANCES if call("config.get", key="a", instance_id=name)["value"] == value}


def test_a_rollout_widens_and_is_finished(lane: Lane) -> None:
    lane("config.put", key="a", value="old")
    lane("config.put", key="a", value="new", rollout={"percentage": 20})
    state = lane("config.get", key="a").value
    assert (state["value"], state["is_next"], state["revision"]) == ("old", False, 2)
    assert state["rollout"] == {"percentage": 20, "salt": "a#2", "value": "new", "secret": False}
    few = having(lane, "new")
    assert 5 < len(few) < 40
    assert lane("config.widen", key="a", percentage=60, expected_revision=2)["revision"] == 3
    more = having(lane, "new")
    assert few < more
    lane("config.finish", key="a", reason="all well")
    assert having(lane, "new") == set(INSTANCES)
    assert lane("config.get", key="a").value["rollout"] is None
    assert [item["change"] for item in lane("config.history", key="a")["items"]] == [
        "rollout_finished", "rollout_widened", "rollout_started", "put",
    ]  # fmt: skip


def test_a_rollout_is_aborted(call: Door) -> None:
    call("config.put", key="a", value="old")
    call("config.put", key="a", value="new", rollout={"percentage": 100.0, "salt": "s"})
    assert call("config.get", key="a", instance_id="web-1").value["value"] == "new"
    for who, value in (({}, "old"), ({"instance_id": "web-1"}, "new")):
        (item,) = call("config.find", **who)["items"]
        assert (item["value"], item["rollout"]["percentage"]) == (value, 100.0)
    call("config.abort", key="a", reason="errors")
    assert call("config.get", key="a", instance_id="web-1").value["value"] == "old"
    assert refusal(call, "config.abort", key="a").code == "no_rollout"
    call("config.rollback", key="a", revision=2)  # what there was for all then
    assert call("config.get", key="a").value["value"] == "old"


def test_what_makes_no_rollout_is_refused(call: Door) -> None:
    part = {"percentage": 10.0}
    assert refusal(call, "config.put", key="a", value=1, rollout=part).code == "nothing_to_roll_out_from"
    call("config.put", key="a", value=1)
    call("config.put", key="a", value=2, rollout=part)
    assert refusal(call, "config.put", key="a", value=3, rollout=part).code == "rollout_under_way"
    assert refusal(call, "config.widen", key="a", percentage=9.5).code == "rollout_narrowed"
    assert refusal(call, "config.finish", key="a", expected_revision=1).code == "wrong_expected_revision"
    refused = refusal(call, "config.put", key="a", value=3, rollout={"percentage": 0.0})
    assert [error["pointer"] for error in refused.problem["errors"]] == ["/rollout/percentage"]
    assert call("config.get", key="a")["revision"] == 2


def test_a_secret_is_rolled_out(call: Door) -> None:
    call("config.put", key="a", value="old", secret=True)
    call("config.put", key="a", value=HIDDEN, rollout={"percentage": 100.0})
    assert HIDDEN not in str(call("config.get", key="a", instance_id="x").value)
    assert call("config.reveal", key="a")["value"] == "old"
    assert call("config.reveal", key="a", instance_id="x")["value"] == HIDDEN
    call("config.finish", key="a")
    assert call("config.reveal", key="a")["value"] == HIDDEN
