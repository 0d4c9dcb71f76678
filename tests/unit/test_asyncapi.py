"""The AsyncAPI document: every public operation, every reference; what is said and heard is what it shows."""

import json
import re
from typing import Any

import pytest
from django.test import Client
from jsonschema import Draft7Validator

from api.asyncapi import PATH, Document, document, documents
from core.operations import registry
from tests.documents import walk

PUBLIC = [operation for operation in registry if operation.route]


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(documents()[PATH])
    return found


def look_up(contract: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        contract = contract[part]
    return contract


def payload(contract: dict[str, Any], message: str) -> dict[str, Any]:
    """A schema that stands for itself."""
    return {**contract["components"]["messages"][message]["payload"], "components": contract["components"]}


def test_the_text_is_the_document(contract: dict[str, Any]) -> None:
    assert contract == json.loads(json.dumps(document()))
    assert documents()[PATH].endswith("}\n")


def test_it_has_the_parts_of_version_3(contract: dict[str, Any]) -> None:
    assert contract["asyncapi"] == "3.0.0"
    assert set(contract["info"]) >= {"title", "version"}
    assert {server["protocol"] for server in contract["servers"].values()} == {"ws"}
    for operation in contract["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert operation["channel"] == {"$ref": "#/channels/socket"}
        assert ("reply" in operation) == (operation["action"] == "receive")
    for name in (*contract["operations"], *contract["channels"]["socket"]["messages"]):
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)


def test_every_public_operation_is_there_once_and_nothing_else(contract: dict[str, Any]) -> None:
    asked = {name for name, found in contract["operations"].items() if found["action"] == "receive"}
    names = {operation.name.replace(".", "_") for operation in PUBLIC}
    assert asked == names | {"subscribe", "auth", "cancel", "unsubscribe"}


def test_every_reference_leads_somewhere(contract: dict[str, Any]) -> None:
    references = [each["$ref"] for each in walk(contract) if isinstance(each.get("$ref"), str)]
    assert len(references) > 100
    for reference in references:
        assert look_up(contract, reference)


def test_what_is_asked_and_answered_is_a_message_of_the_channel(contract: dict[str, Any]) -> None:
    for operation in contract["operations"].values():
        for message in (*operation["messages"], *operation.get("reply", {}).get("messages", [])):
            assert message["$ref"].startswith("#/channels/socket/messages/")


def test_every_payload_is_a_json_schema(contract: dict[str, Any]) -> None:
    for name in contract["components"]["messages"]:
        Draft7Validator.check_schema(payload(contract, name))


def test_the_parameters_are_the_operation_s(contract: dict[str, Any]) -> None:
    for operation in PUBLIC:
        frame = payload(contract, operation.name.replace(".", "_"))["properties"]
        assert frame["op"] == {"const": operation.name}
        assert set(frame["params"]["properties"]) == set(operation.params.model_json_schema()["properties"])
        assert ("idempotency_key" in frame) == (operation.kind == "command")


@pytest.mark.parametrize(
    ("message", "frame", "fits"),
    [
        ("locks_acquire", {"id": "1", "op": "locks.acquire", "params": {"key": "a", "owner": "b"}}, True),
        ("locks_acquire", {"id": "1", "op": "locks.acquire", "params": {"key": "a"}}, False),
        ("locks_acquire", {"id": "1", "op": "locks.acquire"}, False),
        ("locks_acquire", {"op": "locks.acquire", "params": {"key": "a", "owner": "b"}}, False),
        ("auth_whoami", {"id": "1", "op": "auth.whoami"}, True),
        (
            "subscribe",
            {"id": "1", "op": "subscribe", "params": {"category": "order", "from_position": 0}},
            True,
        ),
        ("subscribe", {"id": "1", "op": "subscribe", "params": {"streams": "order-1"}}, False),
        ("subscribe_heartbeat", {"id": "1", "heartbeat": {"position": 4}}, True),
        ("subscribe_heartbeat", {"id": "1", "heartbeat": None}, False),
        ("subscribe_event", {"id": "1", "event": {"position": 4}}, False),
        ("error", {"id": None, "error": {"code": "x"}}, False),
        ("auth", {"op": "auth", "token": "x"}, True),
        ("auth", {"op": "auth"}, False),
        ("cancel", {"id": "1", "op": "unsubscribe"}, False),
    ],
)
def test_frames_fit_or_do_not(contract: dict[str, Any], message: str, frame: Any, fits: bool) -> None:
    assert Draft7Validator(payload(contract, message)).is_valid(frame) is fits


def test_two_schemas_of_one_name_are_noticed() -> None:
    found = Document()
    found._hoist({"$defs": {"A": {"type": "string"}}})
    with pytest.raises(ValueError, match="two schemas are called A"):
        found._hoist({"$defs": {"A": {"type": "number"}}})


def test_it_is_served(contract: dict[str, Any]) -> None:
    answer = Client(headers={"host": "localhost"}).get("/api/v1/asyncapi")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == contract
