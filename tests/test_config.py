"""What configuration promises, through every door."""

from typing import Any

import pytest

from tests.doors import Door, Refused


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


def test_a_page_of_large_values_ends_early(lane: Door) -> None:
    for n in range(8):
        lane("config.put", key=f"k{n}", value=random_text(900_000))
    page = lane("config.find")
    assert 3 < len(page["items"]) < 8
    rest = lane("config.find", cursor=page["next_cursor"])
    assert [item["key"] for item in page["items"] + rest["items"]] == [f"k{n}" for n in range(8)]


def random_text(size: int) -> str:
    """A text that nothing compresses."""
    from secrets import token_urlsafe

    return token_urlsafe(size)[:size]


@pytest.mark.parametrize("key", ["watch/history", "a/b/rollback"])
def test_a_key_that_would_read_as_a_route_is_refused(call: Door, key: str) -> None:
    refused = refusal(call, "config.put", key=key, value=1)
    assert (refused.status, refused.code) == (422, "reserved_name")
