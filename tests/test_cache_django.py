"""Django's cache in Syros: what Django's documentation promises of every backend, and what is more."""

import asyncio
import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from syros.cache.django import SyrosCache, cached
from syros.client import Refused, Unavailable
from tests.doors import Lane, Served, free_port
from tests.doors import Refused as DoorRefused

pytestmark = pytest.mark.usefixtures("database")


def configured(served: Served, namespace: str, **more: Any) -> dict[str, Any]:
    options = {"namespace": namespace, **more.pop("OPTIONS", {})}
    return {
        "BACKEND": "syros.cache.django.SyrosCache", "LOCATION": f"http://127.0.0.1:{served.port}", "OPTIONS": options,
        **more,
    }  # fmt: skip


@pytest.fixture
def project(served: Served, namespace: str) -> Iterator[None]:
    about = configured(served, namespace)
    away = {**about, "LOCATION": f"http://127.0.0.1:{free_port()}"}
    with override_settings(
        CACHES={
            "default": about,
            "prefixed": {**about, "KEY_PREFIX": "cacheprefix"},
            "v2": {**about, "VERSION": 2},
            "reversed": {
                **about,
                "KEY_FUNCTION": lambda key, prefix, version: f"{key}-{version}-{prefix}"[::-1],
            },
            "away": away,
            "strict": {**away, "OPTIONS": {**away["OPTIONS"], "on_error": "raise"}},
        }
    ):
        yield


@pytest.fixture
def cache(project: None) -> SyrosCache:
    found = caches["default"]
    assert isinstance(found, SyrosCache)
    return found


# -- what Django promises ------------------------------------------------------------------------------


def test_a_value_is_set_and_got(cache: SyrosCache) -> None:
    cache.set("key", "value")
    assert cache.get("key") == "value"
    assert cache.get("other") is None
    assert cache.get("other", "bang!") == "bang!"
    assert ("key" in cache, "other" in cache, cache.has_key("key")) == (True, False, True)
    assert cache.delete("key") is True
    assert cache.delete("key") is False
    assert cache.get("key") is None


@pytest.mark.parametrize(
    "value",
    [
        "text with é, \x00 and \U0001f600", "\ud800", "", 0, 1, -(2**53), 2**70, 1.5, 1e22, -0.0, float("inf"), True,
        False, None, b"", b"\x00\xff" * 5000, [1, [2.0, None]], {"a": [1], "b": {"c": None}}, {1: "a", (2, 3): "b"},
        (1, 2), {1, 2}, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), [], {}, [(1, 2)], "x" * 100_000,
    ],
)  # fmt: skip
def test_a_value_comes_back_as_it_is(cache: SyrosCache, value: Any) -> None:
    cache.set("key", value)
    found = cache.get("key", "default")
    assert (found, type(found), repr(found)) == (value, type(value), repr(value))
    assert cache.get_many(["key"]) == {"key": value}
    assert cache.get_or_set("key", "another") == value


@pytest.mark.parametrize(
    "key", ["a", "a/b", "/", "a//b", "..", "stats", "with space", "ascii2\nvalue", "é" * 300, "x" * 600, 7]
)
@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
def test_any_key_is_a_key(cache: SyrosCache, key: Any) -> None:
    for found in (cache, caches["reversed"]):
        found.set(key, "value")
        assert found.get(key) == "value"
        assert found.incr_version(key) == 2
        assert (found.get(key), found.get(key, version=2)) == (None, "value")
        assert found.delete(key, version=2) is True


def test_a_value_is_added_only_where_there_is_none(cache: SyrosCache) -> None:
    assert cache.add("key", "first") is True
    assert cache.add("key", "second") is False
    for timeout in (0, -1):
        assert cache.add("key", "third", timeout=timeout) is False
        assert cache.add("nothing", "value", timeout=timeout) is True
    assert (cache.get("key"), cache.get("nothing")) == ("first", None)


def test_a_value_has_a_time(cache: SyrosCache) -> None:
    cache.set("short", "value", 0.05)
    cache.set("none", "value", 0)
    cache.set("minus", "value", -1)
    cache.set("forever", "value", None)
    cache.set("touched", "value", 0.05)
    assert cache.touch("touched", 60) is True
    assert cache.touch("nothing", 60) is False
    assert cache.add("added", "value", timeout=0) is True
    time.sleep(0.1)
    assert [cache.get(key) for key in ("short", "none", "minus", "added")] == [None] * 4
    assert [cache.get(key) for key in ("forever", "touched")] == ["value"] * 2
    cache.set("forever", "value", 0)
    assert cache.touch("touched", 0) is True
    assert [cache.get(key) for key in ("forever", "touched")] == [None] * 2


def test_integers_are_counted(cache: SyrosCache) -> None:
    cache.set("answer", 41)
    assert (cache.incr("answer"), cache.incr("answer", 10), cache.decr("answer"), cache.incr("answer", -10)) == (
        42, 52, 51, 41,
    )  # fmt: skip
    assert cache.get("answer") == 41
    with pytest.raises(ValueError, match="not found"):
        cache.incr("nothing")
    with pytest.raises(ValueError, match="not found"):
        cache.decr("nothing")
    assert cache.get("nothing") is None
    cache.set("text", "1")
    with pytest.raises(ValueError, match="no integer"):
        cache.incr("text")


def test_many_at_once(cache: SyrosCache) -> None:
    values = {f"k{n}": {"n": n} if n % 2 else (n,) for n in range(600)}
    assert cache.set_many(values) == []
    assert cache.get_many([*values, "nothing"]) == values
    cache.delete_many(["k1", "k2", "nothing"])
    assert cache.get_many(["k1", "k2", "k3"]) == {"k3": {"n": 3}}
    assert cache.set_many({"a": 1}, 0.05) == []
    time.sleep(0.1)
    assert cache.get_many(["a"]) == {}
    large = {f"l{n}": "x" * 900_000 for n in range(20)}  # more than one request may hold
    assert cache.set_many({**large, "large": b"x" * (1 << 20) + b"x"}) == ["large"]
    assert cache.get_many(large) == large


def test_versions_and_prefixes_are_apart(cache: SyrosCache) -> None:
    prefixed, second = caches["prefixed"], caches["v2"]
    cache.set("key", 1)
    prefixed.set("key", 2)
    second.set("key", 3)
    assert (cache.get("key"), prefixed.get("key"), second.get("key")) == (1, 2, 3)
    assert (cache.get("key", version=2), second.get("key", version=1)) == (3, 1)
    assert cache.get_many(["key"], version=2) == {"key": 3}
    assert second.decr_version("key") == 1
    assert (cache.get("key"), second.get("key")) == (3, None)
    with pytest.raises(ValueError, match="not found"):
        cache.incr_version("nothing")
    prefixed.clear()
    assert (cache.get("key"), prefixed.get("key")) == (3, None)
    cache.clear()
    assert cache.get("key") is None


def test_a_default_is_set_once(cache: SyrosCache) -> None:
    assert cache.get_or_set("key", "value") == "value"
    assert cache.get_or_set("key", lambda: pytest.fail("it is there")) == "value"
    assert cache.get_or_set("none", lambda: None) is None
    assert cache.get_or_set("none", lambda: pytest.fail("it is known")) is None
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("error", lambda: 1 // 0)
    assert cache.get_or_set("error", 2, lease=0.1) == 2
    with pytest.raises(Unavailable):
        cache.get_or_set("raises", raise_unavailable)
    cache.close()
    assert cache.get("key") == "value"


def raise_unavailable() -> None:
    raise Unavailable("another server")


def test_what_cannot_be_pickled_is_an_error(cache: SyrosCache) -> None:
    with pytest.raises((AttributeError, TypeError)):
        cache.set("key", threading.Lock())


def test_what_is_too_large_takes_the_old_value_along(
    cache: SyrosCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.set("key", "old")
    cache.set("key", b"x" * (1 << 20) + b"x")
    assert cache.get("key") is None
    assert "value_too_large" in caplog.text


def test_of_many_what_is_too_large_takes_the_old_value_along(cache: SyrosCache) -> None:
    for size in (1 << 20, 16 << 20):  # more than a value may have, more than a request may
        cache.set_many({"small": "old", "large": "old"})
        assert cache.set_many({"small": "new", "large": b"x" * size + b"x"}) == ["large"]
        assert cache.get_many(["small", "large"]) == {"small": "new"}


def test_it_is_all_there_asynchronously(cache: SyrosCache) -> None:
    async def story() -> None:
        await cache.aset("key", (1, 2))
        assert await cache.aget("key") == (1, 2)
        assert await cache.aget("other", 3) == 3
        assert (await cache.aadd("key", 2), await cache.aadd("new", 2)) == (False, True)
        assert (await cache.aincr("new"), await cache.adecr("new", 3)) == (3, 0)
        with pytest.raises(ValueError, match="not found"):
            await cache.aincr("nothing")
        assert (await cache.atouch("new", 60), await cache.atouch("nothing")) == (True, False)
        assert await cache.aset_many({"a": 1, "b": {2}}) == []
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": {2}}
        await cache.adelete_many(["a"])
        assert (await cache.ahas_key("a"), await cache.ahas_key("b")) == (False, True)
        assert (await cache.adelete("b"), await cache.adelete("b")) == (True, False)
        assert await cache.aget_or_set("made", make) == "made"
        assert await cache.aget_or_set("made", lambda: pytest.fail("it is there")) == "made"
        assert await cache.aincr_version("made") == 2
        await cache.tagged("red").aset("tagged", 1)
        await cache.ainvalidate_tags("red")
        assert await cache.aget("tagged") is None
        await cache.aclear()
        assert await cache.aget("key") is None
        await cache.aclose()

    async def make() -> str:
        await asyncio.sleep(0)
        return "made"

    asyncio.run(story())
    asyncio.run(story())  # another loop


def test_an_unknown_option_is_named(served: Served, namespace: str) -> None:
    about = configured(served, namespace, OPTIONS={"apikey": "x"})
    with override_settings(CACHES={"default": about}), pytest.raises(ImproperlyConfigured, match="apikey"):
        caches["default"].get("key")
    with pytest.raises(InvalidCacheBackendError):
        caches["nothing"]


# -- what is more --------------------------------------------------------------------------------------


def test_values_have_tags(cache: SyrosCache) -> None:
    cache.set("a", 1, tags=["red", "round"])
    cache.tagged("red").tagged("round").set_many({"b": 2})
    cache.tagged("blue").add("c", 3, tags=["red"])
    cache.tagged("blue").get_or_set("d", lambda: 4)
    cache.get_or_set("e", lambda: 5, tags=lambda value: [f"five{value}"])
    cache.invalidate_tags("red")
    assert cache.get_many("abcde") == {"d": 4, "e": 5}
    cache.invalidate_tags("blue", "five5")
    assert cache.get_many("abcde") == {}


def test_tags_are_invalidated_with_the_commit(cache: SyrosCache) -> None:
    cache.set("a", 1, tags=["red"])
    with transaction.atomic():
        cache.invalidate_tags("red")
        assert cache.get("a") == 1
    assert cache.get("a") is None
    cache.set("a", 2, tags=["red"])
    with transaction.atomic():
        cache.invalidate_tags("red")
        transaction.set_rollback(True)
    assert cache.get("a") == 2


def test_one_loads_for_all(project: None, later: Callable[..., "Future[Any]"]) -> None:
    made = []

    def make() -> int:
        made.append(1)
        time.sleep(0.3)
        return len(made)

    found = [later(lambda: caches["default"].get_or_set("key", make)) for _ in range(12)]
    assert [each.result() for each in found] == [1] * 12


def test_what_changed_while_it_was_loaded_is_not_kept(cache: SyrosCache) -> None:
    def make() -> str:
        cache.invalidate_tags("red")
        return "old"

    assert cache.get_or_set("key", make, tags=["red"]) == "old"
    assert cache.get("key") is None
    assert cache.get_or_set("key", "new", tags=["red"]) == "new"
    assert cache.get("key") == "new"


def test_a_stale_value_is_served_while_one_loads_it(
    cache: SyrosCache, later: Callable[..., "Future[Any]"]
) -> None:
    began, goes_on = threading.Event(), threading.Event()

    def make() -> str:
        began.set()
        assert goes_on.wait(20)
        return "new"

    cache.set("key", "old", 60, tags=["red"])
    cache.invalidate_tags("red", soft=True)
    loading = later(lambda: caches["default"].get_or_set("key", make, tags=["red"]))
    assert began.wait(20)
    assert cache.get_or_set("key", lambda: pytest.fail("one does it"), tags=["red"]) == "old"
    goes_on.set()
    assert loading.result() == "new"
    assert cache.get("key") == "new"


def test_the_result_of_a_function_is_cached(cache: SyrosCache) -> None:
    calls = []

    @cached(60, tags=lambda pk, **_: [f"product:{pk}", "catalogue"], stale=10)
    def product(pk: int, *, lang: str = "en") -> tuple[int, str]:
        """One."""
        calls.append(pk)
        return pk, lang

    assert (product.__name__, product.__doc__) == ("product", "One.")
    assert [product(1), product(pk=1), product(1, lang="en"), product(1, lang="de"), product("1")] == [
        (1, "en"), (1, "en"), (1, "en"), (1, "de"), ("1", "en"),
    ]  # fmt: skip
    assert calls == [1, 1, "1"]
    cache.invalidate_tags("product:1")
    product(1)
    assert len(calls) == 4
    assert product.invalidate(1) is True
    product(1)
    assert len(calls) == 5
    with pytest.raises(TypeError, match="give `key`"):
        product(object())


def test_functions_may_be_named_and_asynchronous(cache: SyrosCache) -> None:
    calls = []

    @cached(60, key="double/{number}", tags=["numbers"])
    async def double(number: int) -> int:
        calls.append(number)
        return 2 * number

    async def story() -> None:
        assert [await double(2), await double(number=2)] == [4, 4]
        assert await cache.aget("double/2") == 4
        assert await double.invalidate(2) is True
        assert await double(2) == 4

    asyncio.run(story())
    assert calls == [2, 2]


def test_a_pickle_that_another_wrote_is_not_read(
    cache: SyrosCache, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    cache.set("key", {1, 2})
    cache.set("other", {3})
    about = lane("cache.get", key=":1:key").value
    lane("cache.put", key=":1:other", value_base64=about["value_base64"], content_type=about["content_type"])
    assert cache.get("other", "miss") == "miss"
    assert cache.get_many(["key", "other"]) == {"key": {1, 2}}
    assert "not signed by this project" in caplog.text
    assert cache.get_or_set("other", {4}) == {4}
    assert cache.get("other") == {4}
    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[]):
        assert cache.get("key") is None


def test_an_old_secret_still_reads(cache: SyrosCache) -> None:
    with override_settings(SECRET_KEY="old"):
        cache.set("key", {1, 2})
    with override_settings(SECRET_KEY_FALLBACKS=["older", "old"]):
        assert cache.get("key") == {1, 2}


def test_others_read_what_json_can_say(cache: SyrosCache, lane: Lane) -> None:
    cache.set("key", {"a": [1, None]}, 60, tags=["red"])
    found = lane("cache.get", key=":1:key").value
    assert (found["value"], set(found["tags"])) == ({"a": [1, None]}, {"red", "django:default"})
    lane("cache.put", key=":1:other", value="theirs")
    assert cache.get("other") == "theirs"
    cache.delete("key")
    with pytest.raises(DoorRefused):
        lane("cache.get", key=":1:key")


def test_without_syros_it_is_as_if_nothing_were_cached(
    project: None, caplog: pytest.LogCaptureFixture
) -> None:
    away = caches["away"]
    away.set("key", 1)
    assert (away.get("key"), away.get("key", 2), away.has_key("key")) == (None, 2, False)
    assert (away.add("key", 1), away.delete("key"), away.touch("key")) == (False, False, False)
    assert (away.get_many(["key"]), away.set_many({"key": 1})) == ({}, ["key"])
    assert away.get_or_set("key", lambda: 3) == 3
    away.clear()
    away.invalidate_tags("red")
    with pytest.raises(ValueError, match="not found"):
        away.incr("key")
    assert asyncio.run(away.aget("key", 4)) == 4
    assert {record.levelno for record in caplog.records if record.name == "syros.cache"} == {logging.WARNING}


def test_a_project_may_want_to_hear_of_it(project: None) -> None:
    strict = caches["strict"]
    for call in (
        lambda: strict.get("key"),
        lambda: strict.set("key", 1),
        lambda: strict.get_or_set("key", 1),
        lambda: strict.invalidate_tags("red"),
    ):
        with pytest.raises(Unavailable):
            call()


def test_a_wrong_credential_is_heard_of(
    project: None, served: Served, namespace: str, production: None
) -> None:
    about = configured(served, namespace, OPTIONS={"api_key": "sk_no", "on_error": "raise"})
    with override_settings(CACHES={"default": about}), pytest.raises(Refused) as refused:
        caches["default"].get("key")
    assert refused.value.status == 401


def test_connections_are_kept(cache: SyrosCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get("key")
    client = cache._client()
    made: list[Any] = []
    monkeypatch.setattr(httpx, "Client", made.append)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(caches["default"]._client() is client))
    thread.start()
    thread.join()
    assert (results, made) == ([True], [])
