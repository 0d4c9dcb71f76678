"""The admin's pages of configuration: looked at, and changed by operations."""

import re
from typing import Any

import pytest
from django.test import Client

from tests.doors import Lane, Served
from tests.test_admin import act, browser, page, panel, shown, text, user
from tests.test_config import HIDDEN, refusal

SURE = {"confirmed": "yes", "reason": "because I say so"}
ENTRY = "config.Entry"


@pytest.fixture(scope="module")
def operator(served: Served) -> Client:
    return browser(user("operator", is_staff=True))


def offered(client: Client, label: str, address: str) -> set[str]:
    return set(re.findall(r'name="action" value="([a-z_]+)"', text(client, page(label, address))))


def test_a_key_is_set_rolled_back_and_deleted(operator: Client, lane: Lane) -> None:
    lane("config.put", key="shop/limit", value={"most": 1})
    address = f"{lane.namespace}/shop/limit"
    asked = act(operator, ENTRY, "config.put", [address]).content.decode()
    assert re.search(r'name="reason"[^>]*required', asked)
    act(operator, ENTRY, "config.put", [address], **SURE, value='{"most": 2}')
    assert lane("config.get", key="shop/limit").value["value"] == {"most": 2}
    act(operator, ENTRY, "config.rollback", [address], **SURE, revision="1")
    assert lane("config.get", key="shop/limit").value["value"] == {"most": 1}
    act(operator, ENTRY, "config.delete", [address], **SURE)
    assert refusal(lane, "config.get", key="shop/limit").code == "config_not_found"
    act(operator, ENTRY, "config.rollback", [address], **SURE, revision="2")
    items = lane("config.history", key="shop/limit")["items"]
    assert [(each["change"], each["reason"]) for each in items] == [
        ("rolled_back", SURE["reason"]), ("deleted", SURE["reason"]), ("rolled_back", SURE["reason"]),
        ("put", SURE["reason"]), ("put", None),
    ]  # fmt: skip
    assert items[0]["changed_by"].startswith("user:operator")


def test_a_rollout_is_begun_and_finished(operator: Client, lane: Lane) -> None:
    lane("config.put", key="a", value=1)
    address = f"{lane.namespace}/a"
    assert offered(operator, ENTRY, address) == {"config_put", "config_rollback", "config_delete"}
    act(operator, ENTRY, "config.put", [address], **SURE, value="2", rollout='{"percentage": 10}')
    assert {"config_widen", "config_finish", "config_abort"} < offered(operator, ENTRY, address)
    assert shown(operator, ENTRY, namespace=lane.namespace, state="rollout") == ["a"]
    act(operator, ENTRY, "config.widen", [address], **SURE, percentage="50")
    act(operator, ENTRY, "config.finish", [address], **SURE)
    assert lane("config.get", key="a").value["value"] == 2


def test_a_key_s_page_has_its_revisions_with_what_each_changed(operator: Client, lane: Lane) -> None:
    lane("config.put", key="a", value={"x": 1, "y": 1})
    lane("config.put", key="a", value={"x": 1, "y": "<2>"}, reason="more")
    rows = panel(operator, ENTRY, f"{lane.namespace}/a", "Revisions")
    assert [row[0] for row in rows] == ["2", "1"]
    assert rows[0][1:3] == ["put", "developer"]
    assert rows[0][4] == "more"
    assert "+  &quot;y&quot;: &quot;&lt;2&gt;&quot;" in text(operator, page(ENTRY, f"{lane.namespace}/a"))


def test_a_secret_is_on_no_page(operator: Client, lane: Lane) -> None:
    lane("config.put", key="a", value=HIDDEN, secret=True)
    lane("config.put", key="a", value=f"{HIDDEN}2", rollout={"percentage": 50})
    address = f"{lane.namespace}/a"
    for url in (page(ENTRY, address), f"/admin/config/entry/?namespace={lane.namespace}"):
        found = text(operator, url)
        assert HIDDEN not in found
        assert "(secret)" in found
    assert shown(operator, ENTRY, namespace=lane.namespace, state="secret") == ["a"]


def test_a_schema_is_set_and_deleted(operator: Client, lane: Lane) -> None:
    lane("config.put_schema", prefix="app", json_schema={"type": "object"})
    address, label = f"{lane.namespace}/app", "config.Schema"
    assert "&quot;object&quot;" in text(operator, page(label, address))
    act(operator, label, "config.put_schema", [address], **SURE, json_schema='{"type": "array"}')
    assert lane("config.get_schema", prefix="app").value["json_schema"] == {"type": "array"}
    act(operator, label, "config.delete_schema", [address], **SURE)
    assert refusal(lane, "config.get_schema", prefix="app").code == "schema_not_found"
    assert offered(operator, label, address) == {"config_put_schema"}


def test_what_follows_another_store_is_only_adopted(operator: Client, lane: Lane) -> None:
    from config.models import Entry

    lane("config.put", key="a", value=1)
    address = f"{lane.namespace}/a"
    Entry.objects.filter(pk=address).update(source="etcd")
    assert offered(operator, ENTRY, address) == {"config_adopt"}
    done: Any = act(operator, ENTRY, "config.put", [address], **SURE, value="2")
    assert "read_only_config" in done.content.decode()
    act(operator, ENTRY, "config.adopt", [address], **SURE)
    assert lane("config.put", key="a", value=2)["revision"] == 3
