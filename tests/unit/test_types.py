"""Scalars and their limits."""

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from core import types
from core.errors import Invalid
from core.operations import MAX_PROBLEMS, registry
from core.types import encode_cursor

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@/+=-"
ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def read(kind: Any, value: Any) -> Any:
    if kind not in ADAPTERS:
        ADAPTERS[kind] = TypeAdapter(kind)
    return ADAPTERS[kind].validate_python(value, strict=True)


def refusal(kind: Any, value: Any) -> str:
    """The code with which a value is refused."""
    with pytest.raises(ValidationError) as refused:
        read(kind, value)
    return str(refused.value.errors()[0]["type"])


# -- names -------------------------------------------------------------------------------------------


@given(st.characters(exclude_categories=["Cs"]))
def test_name_takes_exactly_the_characters_of_the_contract(character: str) -> None:
    name = f"a{character}b"
    if character in CHARACTERS:
        assert read(types.Name, name) == name
    else:
        assert refusal(types.Name, name) == "bad_name"


@pytest.mark.parametrize("character", CHARACTERS)
def test_every_character_of_the_contract_is_allowed(character: str) -> None:
    assert read(types.Name, f"a{character}b") == f"a{character}b"


@pytest.mark.parametrize(
    "name", ["a", "order-42", "a/b/c", "...", "a..b", "..a/b", ".hidden", "=", "-", "a" * 255]
)
def test_name_is_taken(name: str) -> None:
    assert read(types.Name, name) == name


@pytest.mark.parametrize("name", ["$lock:a", "a b", "a\n", "ä", "a%2Fb", "a#1", "a\\b", "a?", "a\x00"])
def test_name_with_another_character_is_refused(name: str) -> None:
    assert refusal(types.Name, name) == "bad_name"


@pytest.mark.parametrize(
    "name", ["/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a", "a/b/.."]
)
def test_name_with_an_empty_or_dotted_segment_is_refused(name: str) -> None:
    assert refusal(types.Name, name) == "bad_segment"


def test_name_has_1_to_255_characters() -> None:
    with pytest.raises(ValidationError):
        read(types.Name, "")
    with pytest.raises(ValidationError):
        read(types.Name, "a" * 256)


@pytest.mark.parametrize("value", [1, None, True, b"a", ["a"], {"a": 1}])
def test_name_is_a_string(value: Any) -> None:
    assert refusal(types.Name, value) == "string_type"


@pytest.mark.parametrize("name", ["order-42", "$lock:a", "$lock:$a", "$", "$" + "a" * 299])
def test_system_name_can_be_read(name: str) -> None:
    if name == "$":
        assert refusal(types.AnyName, name) == "bad_name"
    else:
        assert read(types.AnyName, name) == name


@pytest.mark.parametrize("name", ["$lock a", "a$b", "a" * 256, "$" + "a" * 300, "a//b", ".."])
def test_name_that_is_neither_is_refused(name: str) -> None:
    assert refusal(types.AnyName, name) in {"bad_name", "bad_segment", "too_long"}


# -- text --------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=255))
def test_text_is_anything_printable(text: str) -> None:
    assert read(types.Text, text) == text


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_text_and_prefix_have_no_control_characters(code: int) -> None:
    assert refusal(types.Text, f"a{chr(code)}b") == "control_characters"
    assert refusal(types.Prefix, f"a{chr(code)}b") == "control_characters"


def test_text_has_1_to_255_characters_and_a_prefix_0_to_300() -> None:
    assert [read(types.Text, "é" * 255), read(types.Prefix, ""), read(types.Prefix, "é" * 300)]
    for kind, value in ((types.Text, ""), (types.Text, "a" * 256), (types.Prefix, "a" * 301)):
        with pytest.raises(ValidationError):
            read(kind, value)


# -- JSON --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("é", '"é"'),
        ([1, 2.5, "x"], '[1,2.5,"x"]'),
        ({"b": 1, "a": {"c": []}}, '{"b":1,"a":{"c":[]}}'),
        (2**64 - 1, "18446744073709551615"),
        ("\x1e\x1f", '"\\u001e\\u001f"'),
        ("\\u0000", '"\\\\u0000"'),
        ({"\\u0000": ["\\\\u0000"]}, '{"\\\\u0000":["\\\\\\\\u0000"]}'),
    ],
)
def test_json_is_kept_as_text(value: Any, text: str) -> None:
    assert read(types.Json, value) == text


@pytest.mark.parametrize(
    "value", ["\x00", "a\x00b", {"\x00": 1}, {"a": "\x00"}, [1, ["\x00"]], {"a": [{"b\x00": 1}]}]
)
def test_json_with_nul_is_refused(value: Any) -> None:
    assert refusal(types.Json, value) == "nul_character"
    if isinstance(value, dict):
        assert refusal(types.Object, value) == "nul_character"


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [object()], "\ud800", {1, 2}])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    assert refusal(types.Json, value) == "not_json"


@pytest.mark.parametrize("value", [[], "{}", 1, None, True])
def test_object_is_an_object(value: Any) -> None:
    assert refusal(types.Object, value) == "object_type"


def test_object_is_kept_as_text() -> None:
    assert read(types.Object, {"a": [1, None]}) == '{"a":[1,null]}'


@pytest.mark.parametrize("value", [float("inf"), [float("-inf")], {"a": float("nan")}])
def test_json_without_a_number_for_it_is_refused(value: Any) -> None:
    assert refusal(types.Json, value) == "not_json"


# -- instants ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678901Z", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05-23:59", datetime(2026, 1, 3, 3, 3, 5, tzinfo=UTC)),
    ],
)
def test_instant_has_an_offset(text: str, at: datetime) -> None:
    assert read(types.Instant, text) == at


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02", "2026-01-02T03:04"])
def test_instant_without_offset_is_refused(text: str) -> None:
    assert refusal(types.Instant, text) == "instant_without_offset"


@pytest.mark.parametrize(
    "text", ["", "now", "yesterday", "2026-13-01T00:00:00Z", "2026-01-02T25:00:00Z", "1e9", "Z"]
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    assert refusal(types.Instant, text) == "instant"


@pytest.mark.parametrize("value", [0, 1767322800.5, True, [], {}])
def test_number_is_no_instant(value: Any) -> None:
    assert refusal(types.Instant, value) == "datetime_type"


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))])))
def test_instant_that_was_written_is_read(at: datetime) -> None:
    assert read(types.Instant, at.isoformat()) == at


# -- event ids, cursors, numbers ---------------------------------------------------------------------


@given(st.uuids())
def test_event_id_is_a_uuid_in_any_of_its_forms(value: UUID) -> None:
    for form in (str(value), str(value).upper(), value.hex, value.urn, f"{{{value}}}"):
        assert read(types.EventId, form) == str(value)


@pytest.mark.parametrize(
    "text", ["", "1", "g" * 32, "0" * 31, "0" * 33, "00000000-0000-4000-8000-00000000000 "]
)
def test_what_is_no_uuid_is_refused(text: str) -> None:
    assert refusal(types.EventId, text) == "uuid"


@pytest.mark.parametrize("value", [1, None, UUID(int=1), b"0" * 32])
def test_event_id_is_a_string(value: Any) -> None:
    assert refusal(types.EventId, value) == "string_type"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=300))
def test_cursor_leads_back_to_its_place(place: str) -> None:
    cursor = encode_cursor(place)
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert read(types.Cursor, cursor) == place


@pytest.mark.parametrize(
    "cursor",
    ["é", "a", "_w", urlsafe_b64encode(b"\xff\xfe").decode(), encode_cursor("a\x00b"), encode_cursor("a\n")],
)
def test_what_was_never_given_as_a_cursor_is_refused(cursor: str) -> None:
    assert refusal(types.Cursor, cursor) == "cursor"


@pytest.mark.parametrize("kind", [types.Position, types.Token])
def test_large_numbers_stay_within_what_every_client_can_hold(kind: Any) -> None:
    assert read(kind, 0) == 0
    assert read(kind, 2**53 - 1) == 9007199254740991
    assert refusal(kind, 2**53) == "less_than_equal"
    assert refusal(kind, -1) == "greater_than_equal"
    assert refusal(kind, 1.0) == refusal(kind, "1") == refusal(kind, True) == "int_type"


def test_limit_is_1_to_200() -> None:
    assert [read(types.Limit, 1), read(types.Limit, 200)] == [1, 200]
    assert [refusal(types.Limit, 0), refusal(types.Limit, 201)] == ["greater_than_equal", "less_than_equal"]


def test_wait_is_0_to_300_seconds() -> None:
    assert [read(types.Wait, 0), read(types.Wait, 300.0)] == [0, 300]
    assert [refusal(types.Wait, -0.1), refusal(types.Wait, 300.1)] == [
        "greater_than_equal",
        "less_than_equal",
    ]


def test_fields_beyond_number_are_counted_and_not_named() -> None:
    many = {f"x{number}": 0 for number in range(MAX_PROBLEMS + 1)}
    with pytest.raises(Invalid) as refused:
        registry["locks.get"].parse({"key": "a", **many})
    (problem,) = refused.value.extra["errors"]
    assert (problem["pointer"], problem["code"]) == ("/", "too_many")
    assert problem["detail"].startswith(f"{MAX_PROBLEMS + 1} fields")
    many.popitem()
    with pytest.raises(Invalid) as refused:
        registry["locks.get"].parse({"key": "a", **many})
    assert len(refused.value.extra["errors"]) == MAX_PROBLEMS
