"""What the cache promises, through every door."""

import base64
import random
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from datetime import datetime
from typing import Any

import httpx
import pytest
import redis
from django.conf import settings
from django.db import connection
from django.test import Client

from cache import counting, relay, services
from cache.backends import postgres as postgres_backend
from cache.backends import redis as redis_backend
from cache.backends import statements as sql
from cache.backends.postgres import PostgresCache
from cache.models import Cache
from core.callers import DEVELOPER, Call, namespaces
from core.encoding import decode
from core.models import Namespace
from core.operations import Operation, registry
from core.runtime import runtime
from core.types import encode_cursor
from tests.doors import DOORS, Door, Lane, Refused, Served


def refusal(call: Door, operation: str, **params: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        call(operation, **params)
    return refused.value


def miss(call: Door, key: str, **params: Any) -> dict[str, Any]:
    refused = refusal(call, "cache.get", key=key, **params)
    assert (refused.status, refused.code) == (404, "cache_miss")
    return refused.problem


@pytest.fixture(scope="session")
def postgres(served: Served) -> PostgresCache:
    """The other backend, in the same process."""
    found = PostgresCache(relay.caches.quota)
    served.do(found.pool.open())
    return found


@pytest.fixture(params=[*DOORS, "postgres"])
def call(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Door]:
    """Through each door with Redis, and through one with PostgreSQL."""
    yield from opened(request, served, namespace)


@pytest.fixture(params=[*(name for name, door in DOORS.items() if door.can_wait), "postgres"])
def waiting(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Door]:
    yield from opened(request, served, namespace)


def opened(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Door]:
    name = request.param
    if name == "postgres":
        choose(request.getfixturevalue("monkeypatch"), request.getfixturevalue("postgres"))
        name = "lane"
    with closing(DOORS[name](served, namespace)) as door:
        yield door


@pytest.fixture(params=["redis", "postgres"])
def lane(request: pytest.FixtureRequest, served: Served, namespace: str) -> Lane:
    if request.param == "postgres":
        choose(request.getfixturevalue("monkeypatch"), request.getfixturevalue("postgres"))
    return Lane(served, namespace)


def choose(monkeypatch: pytest.MonkeyPatch, backend: PostgresCache) -> None:
    for module in (relay, services, counting):
        monkeypatch.setattr(module, "backend", backend)


@pytest.fixture
def store() -> Iterator[Any]:
    with redis.from_url(settings.REDIS_URL) as found:
        yield found


def names(store: Any, namespace: str) -> list[bytes]:
    return list(store.scan_iter(f"syros:cache:*/{namespace}/*"))


@pytest.fixture
def flush(store: Any, namespace: str) -> Callable[[], None]:
    """FLUSHALL, or what a crash makes of unlogged tables, for the test's namespace: other tests are there as well."""

    def delete() -> None:
        if found := names(store, namespace):
            store.delete(*found)
        empty(namespace, "cache_item", "cache_clock")

    return delete


# -- values ------------------------------------------------------------------------------------------


def test_a_value_is_there_until_its_time_is_over(call: Door) -> None:
    stored = call("cache.put", key="a/b", value={"x": [1, None, "é"]}, ttl_seconds=1, tags=["t"])
    found = call("cache.get", key="a/b")
    assert (stored.status, found.status) == (200, 200)
    assert (stored["key"], stored["stored"], found["key"]) == ("a/b", True, "a/b")
    assert (found["value"], found["tags"], found["stale"], found["negative"]) == (
        {"x": [1, None, "é"]},
        ["t"],
        False,
        False,
    )
    assert (found["etag"], found["expires_at"]) == (stored["etag"], stored["expires_at"])
    assert found["content_type"] == "application/json"
    time.sleep(1.05)
    assert miss(call, "a/b")["as_of"]


def test_a_value_may_be_null(call: Door) -> None:
    call("cache.put", key="a", value=[None])
    assert call("cache.get", key="a")["value"] == [None]


def test_an_invalidated_tag_takes_all_its_values_along(call: Door) -> None:
    call("cache.put", key="a", value=1, tags=["red", "round"])
    call("cache.put", key="b", value=2, tags=["red"])
    call("cache.put", key="c", value=3, tags=["blue"])
    answer = call("cache.invalidate", tags=["red", "unknown"])
    assert (answer["tags"], answer["mode"], answer["position"]) == (["red", "unknown"], "hard", 1)
    miss(call, "a")
    miss(call, "b")
    assert call("cache.get", key="c")["value"] == 3
    call("cache.put", key="a", value=4, tags=["red"])
    assert call("cache.get", key="a")["value"] == 4


def test_an_invalidation_is_an_event(call: Door) -> None:
    position = call("cache.invalidate", tags=["red"], mode="soft")["position"]
    (event,) = call("events.read_all", system=True)["events"]
    assert (event["stream_id"], event["event_type"], event["position"]) == (
        "$cache",
        "cache.invalidated",
        position,
    )
    assert event["data"] == {"tags": ["red"], "mode": "soft"}


def test_a_deleted_value_is_gone(call: Door) -> None:
    call("cache.put", key="a", value=1)
    assert call("cache.delete", key="a")["deleted"] is True
    assert call("cache.delete", key="a")["deleted"] is False
    miss(call, "a")


def test_a_load_that_began_before_an_invalidation_is_refused(call: Door) -> None:
    as_of = miss(call, "a")["as_of"]
    call("cache.invalidate", tags=["red"])
    refused = refusal(call, "cache.put", key="a", value="old", tags=["red"], as_of=as_of)
    assert (refused.status, refused.code) == (409, "stale_load")
    assert (refused.problem["reason"], refused.problem["tag"]) == ("invalidated", "red")
    miss(call, "a")
    call("cache.put", key="a", value="other", tags=["blue"], as_of=as_of)
    assert call("cache.get", key="a")["value"] == "other"


def test_an_older_load_does_not_replace_a_newer_one(call: Door) -> None:
    older = miss(call, "a")["as_of"]
    call("cache.invalidate", tags=["blue"])
    newer = miss(call, "a")["as_of"]
    call("cache.put", key="a", value="new", tags=["red"], as_of=newer)
    refused = refusal(call, "cache.put", key="a", value="old", tags=["green"], as_of=older)
    assert (refused.code, refused.problem["reason"]) == ("stale_load", "newer")
    assert call("cache.get", key="a")["value"] == "new"


def test_a_lease_that_ran_out_does_not_replace_what_its_successor_put(call: Door) -> None:
    first = miss(call, "a", lease_seconds=0.1)["lease"]
    time.sleep(0.15)
    second = miss(call, "a", lease_seconds=10)["lease"]
    call("cache.put", key="a", value="second", lease=second)
    assert refusal(call, "cache.put", key="a", value="first", lease=first).code == "stale_load"
    assert call("cache.get", key="a")["value"] == "second"


def test_a_load_of_the_future_is_refused(call: Door) -> None:
    """It would be newer than every invalidation."""
    at, begun, generation = miss(call, "a")["as_of"].split(".")
    as_of = f"{int(at) + 1000}.{begun}.{generation}"
    refused = refusal(call, "cache.put", key="a", value="old", tags=["red"], as_of=as_of)
    assert (refused.code, refused.problem["reason"]) == ("stale_load", "generation")
    refused = refusal(call, "cache.put", key="a", value="old", as_of=f"{'9' * 30}.{begun}.{generation}")
    assert (refused.status, refused.code) == (422, "invalid")


def test_values_of_another_namespace_are_others(call: Door) -> None:
    other = Namespace.objects.create(name=f"{call.namespace}-b").name
    call("cache.put", key="a", value=1, tags=["red"])
    with pytest.raises(Refused):
        call("cache.get", key="a", _={"namespace": other})
    call("cache.invalidate", tags=["red"], _={"namespace": other})
    assert call("cache.get", key="a")["value"] == 1


def test_an_overwritten_value_is_of_now(call: Door) -> None:
    as_of = miss(call, "a")["as_of"]
    call("cache.put", key="a", value="new")
    assert refusal(call, "cache.put", key="a", value="old", as_of=as_of).problem["reason"] == "newer"
    assert call("cache.get", key="a")["value"] == "new"


def test_a_load_that_began_before_a_delete_is_refused(call: Door) -> None:
    as_of = miss(call, "a")["as_of"]
    call("cache.delete", key="a")
    assert refusal(call, "cache.put", key="a", value="old", as_of=as_of).problem["reason"] == "deleted"
    miss(call, "a")
    call("cache.put", key="a", value="new", as_of=miss(call, "a")["as_of"])
    assert call("cache.get", key="a")["value"] == "new"


def test_a_stale_value_is_served_while_it_is_loaded_again(call: Door) -> None:
    call("cache.put", key="a", value=1, ttl_seconds=0.05, stale_seconds=60)
    time.sleep(0.1)
    first, second = (call("cache.get", key="a", lease_seconds=30) for _ in range(2))
    assert [(each["value"], each["stale"]) for each in (first, second)] == [(1, True), (1, True)]
    assert (bool(first["lease"]), bool(second["lease"])) == (True, False)
    call("cache.put", key="a", value=2, lease=first["lease"])
    found = call("cache.get", key="a")
    assert (found["value"], found["stale"], found["lease"]) == (2, False, None)


def test_what_was_invalidated_softly_is_stale(call: Door) -> None:
    call("cache.put", key="a", value=1, tags=["red"])
    call("cache.put", key="b", value=1, tags=["blue"])
    call("cache.invalidate", tags=["red"], mode="soft")
    assert call("cache.get", key="a")["stale"] is True
    assert call("cache.get", key="b")["stale"] is False
    call("cache.touch", key="a")
    assert call("cache.get", key="a")["stale"] is True
    call("cache.put", key="a", value=2, tags=["red"], as_of=call("cache.get", key="a")["as_of"])
    assert call("cache.get", key="a")["stale"] is False
    call("cache.invalidate", tags=["red"])
    call("cache.invalidate", tags=["red"], mode="soft")
    miss(call, "a")


def test_one_of_all_who_miss_it_has_the_lease(call: Door) -> None:
    first, second = (miss(call, "a", lease_seconds=20) for _ in range(2))
    assert first["lease"].startswith(first["as_of"])
    assert second["lease"] is None
    assert 10 < second["retry_after_seconds"] <= 20
    assert miss(call, "a")["lease"] is None
    call("cache.put", key="a", value=1, lease=first["lease"])
    call("cache.delete", key="a")
    assert miss(call, "a", lease_seconds=20)["lease"]


def test_a_lease_runs_out(call: Door) -> None:
    miss(call, "a", lease_seconds=0.1)
    time.sleep(0.15)
    assert miss(call, "a", lease_seconds=0.1)["lease"]


def test_the_others_wait_for_the_load(waiting: Door, later: Callable[..., "Future[Any]"]) -> None:
    lease = miss(waiting, "a", lease_seconds=20)["lease"]
    found = [later(waiting, "cache.get", key="a", lease_seconds=20, wait_seconds=20) for _ in range(3)]
    time.sleep(0.5)
    assert not any(each.done() for each in found)
    waiting("cache.put", key="a", value="loaded", lease=lease)
    assert [each.result()["value"] for each in found] == ["loaded"] * 3


def test_a_wait_has_an_end(waiting: Door) -> None:
    miss(waiting, "a", lease_seconds=20)
    started = time.monotonic()
    problem = miss(waiting, "a", lease_seconds=20, wait_seconds=0.4)
    assert 0.4 <= time.monotonic() - started < 10
    assert (problem["lease"], problem["as_of"] is not None) == (None, True)


def test_who_waits_for_what_nobody_loads_looks_ever_more_seldom(lane: Lane, monkeypatch: Any) -> None:
    looks, peek = [], services.backend.peek

    async def counted(*about: Any) -> str:
        looks.append(about)
        return await peek(*about)

    monkeypatch.setattr(services.backend, "peek", counted)
    miss(lane, "a", wait_seconds=1.2)
    assert 1 <= len(looks) <= 12


def test_who_waits_takes_the_lease_over(waiting: Door) -> None:
    miss(waiting, "a", lease_seconds=0.3)
    assert miss(waiting, "a", lease_seconds=5, wait_seconds=10)["lease"]


def test_that_there_is_nothing_can_be_cached(call: Door) -> None:
    call("cache.put", key="a", negative=True, tags=["red"])
    found = call("cache.get", key="a")
    assert (found["negative"], found.value.get("value"), found["value_base64"]) == (True, None, None)
    assert lifetime(found) == pytest.approx(30, abs=0.01)
    call("cache.invalidate", tags=["red"])
    miss(call, "a")


def lifetime(found: Any) -> float:
    created, expires = (datetime.fromisoformat(found[name]) for name in ("created_at", "expires_at"))
    return (expires - created).total_seconds()


def test_bytes_are_bytes(call: Door) -> None:
    for data in (bytes(range(256)) * 20, b"\xff\xfe", b""):
        encoded = base64.b64encode(data).decode()
        if not encoded and call.name.startswith("grpc"):
            continue  # protobuf cannot tell an empty string from none
        call("cache.put", key="a", value_base64=encoded, content_type="image/png")
        found = call("cache.get", key="a")
        assert base64.b64decode(found["value_base64"]) == data
        assert (found.value.get("value"), found["content_type"]) == (None, "image/png")


def test_a_value_is_replaced_only_if_it_is_the_one(call: Door) -> None:
    etag = call("cache.put", key="a", value=1)["etag"]
    changed = call("cache.put", key="a", value=2, if_etag=etag)["etag"]
    refused = refusal(call, "cache.put", key="a", value=3, if_etag=etag)
    assert (refused.status, refused.code, refused.problem["etag"]) == (409, "etag_mismatch", changed)
    assert refusal(call, "cache.put", key="b", value=3, if_etag=etag).problem["etag"] is None
    assert call("cache.get", key="a")["value"] == 2


def test_a_value_is_put_only_where_there_is_none(call: Door) -> None:
    first = call("cache.put", key="a", value=1, only_if_absent=True, tags=["red"])
    refused = refusal(call, "cache.put", key="a", value=2, only_if_absent=True)
    assert (refused.status, refused.code, refused.problem["etag"]) == (409, "already_cached", first["etag"])
    call("cache.invalidate", tags=["red"])
    call("cache.put", key="a", value=2, only_if_absent=True)
    assert call("cache.get", key="a")["value"] == 2


def test_numbers_are_counted(call: Door) -> None:
    assert call("cache.incr", key="a", by=5, initial=10, tags=["red"])["value"] == 15
    counted = call("cache.incr", key="a", by=-20)
    found = call("cache.get", key="a")
    assert (counted["value"], found["value"], found["tags"]) == (-5, -5, ["red"])
    assert counted["etag"] == found["etag"] == call("cache.put", key="b", value=-5)["etag"]
    call("cache.invalidate", tags=["red"])
    assert call("cache.incr", key="a")["value"] == 1
    call("cache.put", key="a", value="x")
    assert refusal(call, "cache.incr", key="a").code == "not_a_number"
    call("cache.put", key="a", value=2**53 - 1)
    assert refusal(call, "cache.incr", key="a").code == "not_a_number"
    assert call("cache.get", key="a")["value"] == 2**53 - 1


def test_nothing_is_added_to_a_number_that_is_too_large(lane: Lane) -> None:
    for number, by in ((2**53 + 1, -5), (-(2**53), 1), (10**17, -1)):
        lane("cache.put", key="a", value=number)
        assert refusal(lane, "cache.incr", key="a", by=by).code == "not_a_number"
        assert lane("cache.get", key="a")["value"] == number
    lane("cache.put", key="a", value=2**53 - 1)
    assert lane("cache.incr", key="a", by=-5)["value"] == 2**53 - 6


def test_a_value_that_is_good_still_lives_on(call: Door) -> None:
    call("cache.put", key="a", value=1, ttl_seconds=0.5, tags=["red"])
    touched = call("cache.touch", key="a", ttl_seconds=60)
    assert touched["expires_at"] == call("cache.get", key="a")["expires_at"]
    time.sleep(0.6)
    assert call("cache.get", key="a")["value"] == 1
    call("cache.invalidate", tags=["red"])
    refused = refusal(call, "cache.touch", key="a")
    assert (refused.status, refused.code) == (404, "cache_miss")
    miss(call, "a")


def test_many_at_once(call: Door) -> None:
    stored = call(
        "cache.put_many",
        items=[{"key": f"k{n}", "value": {"n": n}, "tags": [f"t{n % 2}"]} for n in range(120)]
        + [{"key": "k1", "value": "again", "only_if_absent": True}],
    )["items"]
    assert [each["stored"] for each in stored] == [True] * 120 + [False]
    assert stored[-1]["code"] == "already_cached"
    call("cache.invalidate", tags=["t1"])
    found = call("cache.get_many", keys=["x", *(f"k{n}" for n in range(120)), "k0"])
    assert [each["value"] for each in found["items"]] == [{"n": n} for n in range(0, 120, 2)]
    assert missing(found) == ["x", *(f"k{n}" for n in range(1, 120, 2))]
    again = [{**each, "value": 1, "tags": ["t1"]} for each in found["missing"][:2]]
    assert [each["stored"] for each in call("cache.put_many", items=again)["items"]] == [True, True]
    call("cache.invalidate", tags=["t1"])
    assert [each["code"] for each in call("cache.put_many", items=again)["items"]] == ["stale_load"] * 2


def missing(found: Any) -> list[str]:
    return [each["key"] for each in found["missing"]]


def test_values_are_found_by_prefix_and_tag(call: Door) -> None:
    call(
        "cache.put_many",
        items=[{"key": f"a/{n}", "value": n, "tags": ["even"] if n % 2 == 0 else ["odd"]} for n in range(30)]
        + [{"key": "b/1", "value": 1, "tags": ["odd"]}],
    )
    everything = pages(call)
    assert sorted(everything) == sorted([*(f"a/{n}" for n in range(30)), "b/1"])
    assert sorted(pages(call, prefix="a/1")) == sorted(["a/1", *(f"a/{n}" for n in range(10, 20))])
    assert sorted(pages(call, prefix="a/", tag="odd")) == sorted(f"a/{n}" for n in range(1, 30, 2))
    assert pages(call, prefix="a*") == pages(call, prefix="[a]") == []
    call("cache.invalidate", tags=["odd"])
    assert pages(call, tag="odd") == []


def pages(call: Door, **params: Any) -> list[str]:
    """All that is found, seven at a time."""
    found: list[str] = []
    cursor = None
    while True:
        page = call("cache.find", limit=7, **({"cursor": cursor} if cursor else {}), **params)
        assert len(page["items"]) <= 7
        found += [each["key"] for each in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            assert len(set(found)) == len(found)
            return found


def test_what_happens_is_counted(call: Door) -> None:
    call("cache.put", key="a", value=1, tags=["red"])
    call("cache.get", key="a")
    as_of = miss(call, "b", lease_seconds=1)["as_of"]
    call("cache.invalidate", tags=["red"])
    refusal(call, "cache.put", key="b", value=1, tags=["red"], as_of=as_of)
    stats = call("cache.stats").value
    assert {name: stats[name] for name in ("hits", "misses", "leases", "stored", "refused", "invalidated")} == {
        "hits": 1, "misses": 1, "leases": 1, "stored": 1, "refused": 1, "invalidated": 1,
    }  # fmt: skip
    assert (stats["hit_ratio"], stats["bytes_read"], stats["bytes_used"]) == (0.5, 1, None)


@pytest.mark.parametrize("by", ["lane", "django"])
def test_who_has_the_value_already_is_not_sent_it_again(served: Served, lane: Lane, by: str) -> None:
    def get(*tags: str) -> tuple[int, str, bytes]:
        headers = {"Syros-Namespace": lane.namespace, **({"If-None-Match": ", ".join(tags)} if tags else {})}
        if by == "lane":
            reply = httpx.get(f"http://127.0.0.1:{served.port}/api/v1/cache/a", headers=headers)
        else:
            reply = Client(headers={"host": "localhost"}).get("/api/v1/cache/a", headers=headers)
        return reply.status_code, reply.headers.get("etag", ""), reply.content

    etag = f'"{lane("cache.put", key="a", value={"x": 1})["etag"]}"'
    status, given, content = get()
    assert (status, given, decode(content)["value"]) == (200, etag, {"x": 1})
    assert get('"other"', f"W/{etag}") == (304, etag, b"")
    assert get("*") == (304, etag, b"")
    lane("cache.put", key="a", value={"x": 2})
    status, given, content = get(etag)
    assert (status, given != etag, decode(content)["value"]) == (200, True, {"x": 2})
    lane("cache.put", key="a", value={"x": 2}, ttl_seconds=0.01, stale_seconds=60)
    time.sleep(0.05)
    status, given, content = get(given)
    assert (status, given, decode(content)["stale"]) == (
        200,
        "",
        True,
    )  # who knows the value has to know that too


# -- settings ----------------------------------------------------------------------------------------


def test_a_namespace_has_settings_of_its_own(call: Door) -> None:
    assert call("caches.get").value == {
        "default_ttl_seconds": 300, "max_ttl_seconds": 604800, "max_value_bytes": 1048576, "quota_bytes": None,
        "on_error": "miss",
    }  # fmt: skip
    call("caches.put", default_ttl_seconds=10, max_ttl_seconds=20, max_value_bytes=100)
    assert call("caches.get")["max_value_bytes"] == 100
    call("cache.put", key="a", value=1)
    assert lifetime(call("cache.get", key="a")) == pytest.approx(10, abs=0.01)
    refused = refusal(call, "cache.put", key="a", value=1, ttl_seconds=21)
    assert (refused.status, [each["pointer"] for each in refused.problem["errors"]]) == (
        422,
        ["/ttl_seconds"],
    )
    refused = refusal(call, "cache.put", key="a", value=1, ttl_seconds=11, stale_seconds=10)
    assert [each["pointer"] for each in refused.problem["errors"]] == ["/stale_seconds"]
    refused = refusal(call, "cache.put", key="a", value="x" * 99)
    assert (refused.status, refused.code, refused.problem["limit"]) == (413, "value_too_large", 100)
    assert call("cache.get", key="a")["value"] == 1


def test_a_quota_is_kept_roughly(call: Door) -> None:
    call("caches.put", quota_bytes=10_000)
    for n in range(8):
        call("cache.put", key=f"k{n}", value=noise(900))
    refused = refusal(call, "cache.put", key="more", value=noise(2900))
    assert (refused.status, refused.code) == (409, "cache_full")
    call("cache.put", key="k7", value=noise(900))  # in the place of what is there
    used = call("cache.stats")["bytes_used"]
    assert 8 * 900 < used <= 10_000
    for n in range(4):
        call("cache.delete", key=f"k{n}")
    assert call("cache.stats")["bytes_used"] < used - 4 * 900
    call("cache.put", key="more", value=noise(2900))


def test_what_was_there_before_the_quota_gives_nothing_back(call: Door) -> None:
    call("cache.put", key="before", value=noise(5000))
    call("caches.put", quota_bytes=10_000)
    call("cache.put", key="after", value=noise(100))
    used = call("cache.stats")["bytes_used"]
    for key in ("before", "after"):
        call("cache.delete", key=key)
    assert 0 <= call("cache.stats")["bytes_used"] < used


def test_what_an_earlier_generation_held_gives_nothing_back(call: Door, store: Any) -> None:
    call("caches.put", quota_bytes=10_000)
    for n in range(8):
        call("cache.put", key=f"k{n}", value=noise(900))
    for evicted in (b":clocks", b":use"):
        for name in names(store, call.namespace):
            if name.endswith(evicted):
                store.delete(name)
        for n in range(8):
            call("cache.put", key=f"k{n}", value=noise(900))
        assert 8 * 900 < call("cache.stats")["bytes_used"] <= 10_000
        assert refusal(call, "cache.put", key="more", value=noise(2900)).code == "cache_full"


def test_what_is_deleted_of_an_earlier_generation_gives_nothing_back(call: Door, store: Any) -> None:
    call("caches.put", quota_bytes=10_000)
    call("cache.put", key="before", value=noise(2000))
    if clocks := [name for name in names(store, call.namespace) if name.endswith(b":clocks")]:
        store.delete(*clocks)
        call("cache.put", key="after", value=noise(3000))
        call("cache.delete", key="before")
        assert call("cache.stats")["bytes_used"] > 2000


def noise(length: int) -> str:
    return "".join(random.choices(string.ascii_letters, k=length))


@pytest.mark.parametrize(
    ("operation", "params", "bad"),
    [
        ("cache.put", {"key": "a"}, {"/value"}),
        ("cache.put", {"key": "a", "value": 1, "value_base64": "eA=="}, {"/value_base64"}),
        ("cache.put", {"key": "a", "value_base64": "?"}, {"/value_base64"}),
        ("cache.put", {"key": "a", "value": 1, "content_type": "text/plain"}, {"/content_type"}),
        ("cache.put", {"key": "a", "value": 1, "negative": True}, {"/value"}),
        ("cache.put", {"key": "a", "value": 1, "ttl_seconds": 10**7, "as_of": "1.1.a", "lease": "2.1.a.b"},
            {"/ttl_seconds", "/as_of"}),
        ("cache.put", {"key": "$a", "value": 1, "ttl_seconds": 0, "stale_seconds": -1, "tags": ["", "x" * 129],
            "if_etag": "?", "lease": "x", "as_of": "y"},
            {"/key", "/ttl_seconds", "/stale_seconds", "/tags/0", "/tags/1", "/if_etag", "/lease", "/as_of"}),
        ("cache.put", {"key": "a", "value": 1, "tags": ["ü" * 65]}, {"/tags/0"}),
        ("cache.put", {"key": "a", "value": 1, "tags": [f"t{n}" for n in range(33)]}, {"/tags"}),
        ("cache.put", {"key": "a", "value": 1, "fence": {"key": "l", "fencing_token": 1}}, {"/fence"}),
        ("cache.put_many", {"items": [{"key": "a"}, {"key": "b", "value": 1, "ttl_seconds": 10**7}]},
            {"/items/0/value", "/items/1/ttl_seconds"}),
        ("cache.get", {"key": "a", "lease_seconds": 61, "wait_seconds": 301}, {"/lease_seconds", "/wait_seconds"}),
        ("cache.get_many", {"keys": [f"k{n}" for n in range(501)]}, {"/keys"}),
        ("cache.invalidate", {"tags": [f"t{n}" for n in range(101)], "mode": "odd"}, {"/tags", "/mode"}),
        ("cache.incr", {"key": "a", "by": 2**53, "initial": -(2**53)}, {"/by", "/initial"}),
        ("cache.touch", {"key": "a", "ttl_seconds": 10**7}, {"/ttl_seconds"}),
        ("cache.find", {"limit": 0, "cursor": "e"}, {"/limit", "/cursor"}),
        ("cache.find", {"cursor": encode_cursor(f"{10**20 - 1}:0")}, {"/cursor"}),
        ("cache.find", {"cursor": encode_cursor(f"{2**64}:0")}, {"/cursor"}),
        ("cache.find", {"cursor": encode_cursor("٣:0")}, {"/cursor"}),
        ("caches.put", {"default_ttl_seconds": 0, "max_value_bytes": 2**40, "on_error": "x"},
            {"/default_ttl_seconds", "/max_value_bytes", "/on_error"}),
        ("caches.put", {"default_ttl_seconds": 20, "max_ttl_seconds": 10}, {"/default_ttl_seconds"}),
    ],
)  # fmt: skip
def test_every_bad_field_is_named(call: Door, operation: str, params: dict[str, Any], bad: set[str]) -> None:
    refused = refusal(call, operation, **params)
    assert refused.status == 422
    assert {error["pointer"] for error in refused.problem["errors"]} == bad


def test_an_idempotency_key_is_ignored(call: Door) -> None:
    about = {} if call.name == "graphql" else {"key": "k"}  # there it is not even offered
    for number in (1, 2):
        call("cache.put", key="a", value=number, _=about)
        call("cache.invalidate", tags=["red"], _=about)
    assert call("cache.get", key="a")["value"] == 2
    assert call("events.read_all", system=True)["next_position"] == 3


# -- Redis forgets -----------------------------------------------------------------------------------


def test_after_a_flush_nothing_old_is_served_or_stored(call: Door, flush: Callable[[], None]) -> None:
    call("cache.put", key="a", value=1)
    as_of = miss(call, "b")["as_of"]
    flush()
    miss(call, "a")
    assert refusal(call, "cache.put", key="b", value="old", as_of=as_of).problem["reason"] == "generation"
    call("cache.put", key="b", value="new", as_of=miss(call, "b")["as_of"])
    assert call("cache.get", key="b")["value"] == "new"


def empty(namespace: str, *tables: str) -> int:
    number = Namespace.objects.get(name=namespace).number
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"delete from {table} where namespace_id = %s", [number])
        return cursor.rowcount


def test_when_the_clocks_are_evicted_all_is_a_miss(call: Door, store: Any) -> None:
    call("cache.put", key="a", value=1, tags=["red"])
    call("cache.put", key="b", value=1)
    call("cache.invalidate", tags=["red"])
    clocks = [name for name in names(store, call.namespace) if name.endswith(b":clocks")]
    assert (store.delete(*clocks) if clocks else empty(call.namespace, "cache_clock")) >= 1
    miss(call, "a")
    miss(call, "b")


def test_what_ran_out_is_cleared_away(served: Served, lane: Lane) -> None:
    if not isinstance(relay.backend, PostgresCache):
        pytest.skip("Redis forgets by itself")
    as_of = miss(lane, "a")["as_of"]
    lane("cache.put", key="a", value=1, ttl_seconds=0.05, as_of=as_of)
    lane("cache.put", key="b", value=1)
    lane("cache.delete", key="c")
    miss(lane, "d", lease_seconds=0.1)
    time.sleep(0.15)
    served.do(relay.backend.clean())
    number = Namespace.objects.get(name=lane.namespace).number
    with connection.cursor() as cursor:
        cursor.execute("select key from cache_item where namespace_id = %s order by key", [number])
        assert cursor.fetchall() == [("b",), ("c",)]


def test_the_cache_in_postgresql_is_by_key_and_unlogged(postgres: PostgresCache, namespace: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "select relname, relpersistence from pg_class where relname in ('cache_item', 'cache_clock', 'cache_count')"
        )
        assert sorted(cursor.fetchall()) == [("cache_clock", "u"), ("cache_count", "u"), ("cache_item", "u")]
        cursor.execute("set enable_seqscan = off")
        about = {
            "space": 1,
            "key": "k",
            "keys": ["k"],
            "tags": ["t"],
            "limit": 9,
            "token": "t",
            "lease_ms": 9,
        }
        for statement in (sql.GET, sql.LEASE, sql.PEEK, sql.MANY, sql.CLEAN):
            cursor.execute(f"explain {statement}", {**about, "enough": 9})
            plan = "\n".join(line for (line,) in cursor.fetchall())
            assert "Seq Scan" not in plan, plan
        cursor.execute("reset enable_seqscan")


def test_nothing_stays_for_good_but_the_clocks(lane: Lane, store: Any) -> None:
    if isinstance(relay.backend, PostgresCache):
        pytest.skip("of Redis")
    lane("cache.put", key="a", value=1, ttl_seconds=10, stale_seconds=20)
    lane("cache.delete", key="b")
    miss(lane, "c", lease_seconds=5)
    lives = {name.partition(b"}:")[2].decode(): store.pttl(name) for name in names(store, lane.namespace)}
    assert lives.pop("clocks") == -1
    lives.pop("stats", None)
    assert lives.pop("writes") == -1
    assert {name: round(life / 1000) for name, life in lives.items()} == {"item:a": 30, "lease:c": 5}


# -- inside ------------------------------------------------------------------------------------------


def test_many_large_values_are_not_all_in_one_answer(lane: Lane) -> None:
    lane("caches.put", max_value_bytes=8 << 20)
    for n in range(4):
        data = base64.b64encode(random.randbytes(6 << 20)).decode()
        lane("cache.put", key=f"k{n}", value_base64=data)
    found = lane("cache.get_many", keys=["x", "k0", "k1", "k2", "k3"])
    assert ([each["key"] for each in found["items"]], missing(found), found["left_out"]) == (
        ["k0", "k1"], ["x"], ["k2", "k3"],
    )  # fmt: skip


def test_many_values_that_compress_well_are_not_all_in_one_answer(lane: Lane) -> None:
    keys = [f"k{n}" for n in range(40)]
    for key in keys:
        lane("cache.put", key=key, value="a" * 1_000_000)
    wanted, rounds = [*keys, "x"], []
    before = lane("cache.stats")["hits"]
    while wanted:
        found = lane("cache.get_many", keys=wanted)
        assert missing(found) == ["x"]
        rounds.append([each["key"] for each in found["items"]])
        wanted = found["left_out"] and [*found["left_out"], "x"]
    assert [len(each) for each in rounds] == [16, 16, 8]
    assert [key for each in rounds for key in each] == keys
    assert lane("cache.stats")["hits"] == before + 40


def test_large_values_are_compressed_where_that_pays(lane: Lane) -> None:
    for value in ({"text": "again and " * 50_000}, {"noise": noise(2000)}, {"text": "again and " * 150}):
        lane("cache.put", key="a", value=value)
        assert lane("cache.get", key="a")["value"] == value
    lane("cache.put", key="a", value="again and " * 50_000)
    (item,) = lane("cache.find")["items"]
    assert item["size"] < 5000


def space_of(served: Served, lane: Lane) -> Any:
    return served.do(namespaces.get(lane.namespace))


def test_tags_are_forgotten_when_nothing_older_is_left(served: Served, lane: Lane, store: Any) -> None:
    lane("cache.put", key="a", value=1, tags=["blue"])
    lane("cache.invalidate", tags=["red", "green"])
    time.sleep(0.05)
    lane("cache.invalidate", tags=["white"], mode="soft")
    space = space_of(served, lane)
    assert served.do(relay.backend.sweep(space, 60_000, 100, 10)) == 0
    assert served.do(relay.backend.sweep(space, 40, 100, 10)) == 2
    assert set(tags_in(store, lane.namespace)) == {"\2white"}
    assert lane("cache.get", key="a")["value"] == 1


def test_of_too_many_tags_the_oldest_are_forgotten_and_older_values_are_misses(
    served: Served, lane: Lane, store: Any
) -> None:
    for key, tags in (("old", ["t0"]), ("other", ["never"]), ("without", [])):
        lane("cache.put", key=key, value=1, tags=tags, as_of=miss(lane, key)["as_of"])
    for n in range(5):
        lane("cache.invalidate", tags=[f"t{n}"])
        time.sleep(0.002)
    lane("cache.put", key="new", value=1, tags=["t0"], as_of=miss(lane, "new")["as_of"])
    assert served.do(relay.backend.sweep(space_of(served, lane), 10**9, 2, 100)) == 3
    assert set(tags_in(store, lane.namespace)) == {"t3", "t4"}
    found = lane("cache.get_many", keys=["old", "other", "without", "new"])
    assert ([each["key"] for each in found["items"]], missing(found)) == (
        ["without", "new"],
        ["old", "other"],
    )


def tags_in(store: Any, namespace: str) -> list[str]:
    if isinstance(relay.backend, PostgresCache):
        number = Namespace.objects.get(name=namespace).number
        with connection.cursor() as cursor:
            cursor.execute(
                "select tag, soft from cache_clock where namespace_id = %s and tag <> ''", [number]
            )
            return [("\2" if soft else "") + tag for tag, soft in cursor.fetchall()]
    (clocks,) = [name for name in names(store, namespace) if name.endswith(b":clocks")]
    return [name.decode() for name in store.hkeys(clocks) if name[:1] not in {b"\1", b"\3"}]


def test_a_write_is_remembered_after_its_value_has_run_out(served: Served, lane: Lane) -> None:
    as_of = miss(lane, "a")["as_of"]
    lane("cache.put", key="a", value=1, ttl_seconds=0.05)
    time.sleep(0.1)
    served.do(relay.backend.clean())
    assert refusal(lane, "cache.put", key="a", value=0, as_of=as_of).problem["reason"] == "newer"
    lane("cache.put", key="a", value=0, as_of=miss(lane, "a")["as_of"])


@pytest.fixture
def in_redis(served: Served, namespace: str) -> Lane:
    return Lane(served, namespace)


def test_writes_are_forgotten_when_no_load_can_meet_them(served: Served, in_redis: Lane, store: Any) -> None:
    in_redis("cache.put", key="a", value=1)
    (writes,) = [name for name in names(store, in_redis.namespace) if name.endswith(b":writes")]
    store.zadd(writes, {b"\3a": 1})
    assert served.do(relay.backend.sweep(space_of(served, in_redis), 10**9, 100, 10)) == 1
    assert store.zcard(writes) == 0
    assert in_redis("cache.get", key="a")["value"] == 1


def test_of_too_many_writes_the_oldest_are_forgotten_and_older_loads_are_refused(
    served: Served, in_redis: Lane
) -> None:
    old = miss(in_redis, "a")["as_of"]
    in_redis("cache.put_many", items=[{"key": f"k{n}", "value": n} for n in range(10)])
    in_redis("cache.delete", key="k9")
    new = miss(in_redis, "a")["as_of"]
    assert served.do(relay.backend.sweep(space_of(served, in_redis), 10**9, 4, 100)) == 6
    assert refusal(in_redis, "cache.put", key="a", value=0, as_of=old).code == "stale_load"
    in_redis("cache.put", key="a", value=0, as_of=new)


def test_when_what_the_clocks_are_swept_by_is_evicted_all_begins_anew(
    served: Served, in_redis: Lane, store: Any
) -> None:
    in_redis("cache.put_many", items=[{"key": f"k{n}", "value": n} for n in range(10)])
    (writes,) = [name for name in names(store, in_redis.namespace) if name.endswith(b":writes")]
    store.delete(writes)
    served.do(relay.backend.sweep(space_of(served, in_redis), 10**9, 100, 100))
    miss(in_redis, "k1")


def test_a_refused_load_gives_its_lease_back(lane: Lane) -> None:
    lease = miss(lane, "a", lease_seconds=60)["lease"]
    lane("cache.invalidate", tags=["red"])
    assert refusal(lane, "cache.put", key="a", value=1, tags=["red"], lease=lease).code == "stale_load"
    assert miss(lane, "a", lease_seconds=60)["lease"]


def test_a_search_that_looked_at_enough_says_so(served: Served, lane: Lane, monkeypatch: Any) -> None:
    for module in (redis_backend, postgres_backend):
        monkeypatch.setattr(module, "LOOKS", 1)
        monkeypatch.setattr(module, "LOOK_AT", 1)
    items = [{"key": f"k{n}", "value": n, "tags": ["odd"] if n == 77 else []} for n in range(100)]
    lane("cache.put_many", items=items)
    first = lane("cache.find", tag="odd")
    assert first["partial"] or first["items"]
    assert pages(lane, tag="odd") == ["k77"]


def test_what_another_command_invalidates_is_invalid_once_it_is_committed(served: Served, lane: Lane) -> None:
    lane("cache.put", key="a", value=1, tags=["red"])
    lane("cache.put", key="b", value=1, tags=["blue"])

    def change(tx: Any, *, tag: str) -> int:
        return relay.record(tx, [tag]).version

    operation = Operation(change, None, kind="command", name="test.change")
    call = Call(DEVELOPER, space_of(served, lane))
    served.do(runtime.carry_out(operation, call, {"tag": "red"}))
    until(lambda: missing(lane("cache.get_many", keys=["a", "b"])) == ["a"])


def test_what_a_process_logged_before_it_died_is_applied(served: Served, lane: Lane) -> None:
    lane("cache.put", key="a", value=1, tags=["red"])
    lane("cache.put", key="b", value=1, tags=["blue"])
    call = Call(DEVELOPER, space_of(served, lane))
    served.do(runtime.carry_out(registry["cache.record"], call, {"tags": ["red"], "mode": "hard"}))
    until(lambda: missing(lane("cache.get_many", keys=["a", "b"])) == ["a"])
    lane("cache.invalidate", tags=["green"])  # what is logged is applied in order again, without a gap
    assert served.do(relay.backend.applied(call.namespace)) == 2


def test_where_the_log_has_forgotten_what_was_missed_all_is_a_miss(served: Served, lane: Lane) -> None:
    lane("cache.put", key="b", value=1, tags=["blue"])
    Cache.objects.create(id=f"{lane.namespace}/cache", version=3)
    until(lambda: missing(lane("cache.get_many", keys=["b"])) == ["b"])
    assert served.do(relay.backend.applied(space_of(served, lane))) == 3


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
