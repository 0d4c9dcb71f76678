"""The admin's pages of caches: what was counted, what is there, and what operators change by operations."""

from typing import Any

import pytest
from django.test import Client

from tests.doors import Lane
from tests.test_admin import browser, listing, page, text, user


@pytest.fixture
def operator() -> Client:
    return browser(user("cacher", is_staff=True))


@pytest.fixture
def known(lane: Lane) -> Lane:
    """A cache with values, settings and something counted."""
    lane("caches.put", max_ttl_seconds=7200, quota_bytes=1 << 20)
    lane("cache.put", key="products/17", value={"name": "<lamp>"}, ttl_seconds=600, tags=["red", "catalogue"])
    lane("cache.put", key="products/18", negative=True)
    lane("cache.put", key="other", value_base64="AAE=", content_type="image/png")
    lane("cache.get", key="products/17")
    return lane


def address(lane: Lane) -> str:
    return f"{lane.namespace}/cache"


def act(client: Client, lane: Lane, name: str, **answers: Any) -> Any:
    data = {"action": name, "index": "0", "_selected_action": address(lane), "from_page": "1", **answers}
    return client.post(listing("cache.Cache"), data, follow=True)


def test_a_cache_is_shown_with_what_is_set_and_counted(operator: Client, known: Lane) -> None:
    assert known.namespace in text(operator, listing("cache.Cache", q=known.namespace))
    shown = text(operator, page("cache.Cache", address(known)))
    for part in ("Statistics", "hit ratio", "100.0%", "2\xa0h", "1 MiB", "cache.configured", "Settings…"):
        assert part in shown, part


def test_a_key_is_looked_at(operator: Client, known: Lane) -> None:
    url = page("cache.Cache", address(known))
    shown = text(operator, f"{url}?key=products/17")
    for part in ("&lt;lamp&gt;", "red, catalogue", "application/json", "fresh"):
        assert part in shown, part
    assert "<lamp>" not in shown
    begins = text(operator, f"{url}?key=products/")
    assert "products/17" in begins
    assert "products/18" in begins
    assert "bad_name" in begins or "invalid" in begins
    assert "AAE=" in text(operator, f"{url}?key=other")
    assert "cache_miss" in text(operator, f"{url}?key=nothing")


def test_tags_are_invalidated_once_that_is_confirmed(operator: Client, known: Lane) -> None:
    asked = act(operator, known, "cache_invalidate")
    assert 'name="tags"' in asked.content.decode()
    assert known("cache.get", key="products/17")["value"]
    bad = act(operator, known, "cache_invalidate", confirmed="yes", tags="x" * 200, mode="hard")
    assert "128" in bad.content.decode()
    done = act(operator, known, "cache_invalidate", confirmed="yes", tags="blue, red", mode="hard")
    assert "cache.invalidate: 1 done." in done.content.decode()
    assert [each["key"] for each in known("cache.get_many", keys=["products/17"])["missing"]] == [
        "products/17"
    ]
    event = known("events.read", stream_id="$cache")["events"][-1]
    assert event["data"] == {"tags": ["blue", "red"], "mode": "hard"}


def test_a_key_is_deleted(operator: Client, known: Lane) -> None:
    assert 'value="other"' in act(operator, known, "cache_delete", key="other").content.decode()
    act(operator, known, "cache_delete", confirmed="yes", key="other")
    assert known("cache.get_many", keys=["other"])["items"] == []


def test_settings_begin_with_what_is_set(operator: Client, known: Lane) -> None:
    shown = text(operator, page("cache.Cache", address(known)))
    assert '<input type="hidden" form="actions" name="max_ttl_seconds" value="7200.0">' in shown
    answers = {"max_ttl_seconds": "7200.0", "quota_bytes": "1048576", "on_error": "error"}
    assert 'value="7200.0"' in act(operator, known, "caches_put", **answers).content.decode()
    act(operator, known, "caches_put", confirmed="yes", **answers)
    found = known("caches.get").value
    assert (found["max_ttl_seconds"], found["quota_bytes"], found["on_error"]) == (7200, 1 << 20, "error")


def test_a_key_of_any_kind_breaks_nothing(operator: Client, known: Lane) -> None:
    url = page("cache.Cache", address(known))
    for odd in (
        "%00",
        "%25",
        "..",
        "a//b",
        "'; drop table x; --",
        "x" * 5000,
        "stats",
        "%F0%9F%98%80",
        "$clocks",
    ):
        assert operator.get(f"{url}?key={odd}").status_code == 200, odd
