"""JSON in and out."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orjson import Fragment, JSONDecodeError
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel

from core.database import conninfo
from core.encoding import MAX_DEPTH, Shared, decode, depth, encode
from core.log import SHARED_BYTES, Entry

LEAVES = st.none() | st.booleans() | st.integers() | st.text('[]{}"\\/a', max_size=6)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[{]}"\\k', max_size=3), inner),
)


def naive(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(naive, inner), default=0)


def nested(value: Any, shape: str) -> Any:
    """The value in as many arrays (`[`) and objects (`{`) as the shape says."""
    for kind in shape:
        value = [value, "]"] if kind == "[" else {"}": "{", "k": value}
    return value


def brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


@given(VALUES, st.text("[{", min_size=MAX_DEPTH - 4, max_size=MAX_DEPTH + 30))
def test_depth_is_that_of_a_naive_count_where_it_could_matter(value: Any, shape: str) -> None:
    found = nested(value, shape)
    body = json.dumps(found, ensure_ascii=False).encode()
    expected = naive(found)
    assert (depth(body) > MAX_DEPTH) == (expected > MAX_DEPTH)
    if brackets(body) > MAX_DEPTH:
        assert depth(body) == expected


@given(VALUES)
def test_depth_never_refuses_what_is_not_deep(value: Any) -> None:
    assert depth(json.dumps([value] * 40).encode()) <= MAX_DEPTH


@pytest.mark.parametrize(("levels", "found"), [(63, 1), (64, 1), (65, 65), (1000, 1000), (100_000, 100_000)])
def test_depth_of_nested_arrays_is_exact_beyond_the_limit(levels: int, found: int) -> None:
    assert depth(b"[" * levels + b"]" * levels) == found


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b"[" * 200 + b'"',
        b'["\\"' + b"[{" * 100 + b'"]',
        b'["\\\\","' + b"[" * 100 + b'"]',
        b'{"' + b"{" * 100 + b'":1}',
    ],
)
def test_brackets_in_strings_do_not_count(body: bytes) -> None:
    assert depth(body) == naive(json.loads(body))


def test_siblings_do_not_nest() -> None:
    assert depth(b"[" + b",".join([b"{}"] * 500) + b"]") == 2


@pytest.mark.parametrize("body", [b"", b"1", b"]" * 100, b'"' + b"[" * 100, b"[" * 100 + b'"\\'])
def test_depth_of_what_is_not_json_is_a_number_all_the_same(body: bytes) -> None:
    assert depth(body) == min(body.count(b"["), depth(body)) or depth(body) == 1


# -- values ------------------------------------------------------------------------------------------


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False,
       allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner)
       | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner), max_leaves=10))  # fmt: skip
def test_values_survive(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "2026-01-02T03:04:05.000678Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC), "2026-01-02T03:04:05.999999Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta())), "2026-01-02T00:00:00Z"),
    ],
)
def test_instant_is_rfc_3339_with_z(at: datetime, text: str) -> None:
    assert encode({"at": at}) == b'{"at":"%s"}' % text.encode()
    assert datetime.fromisoformat(text) == at


def test_database_gives_instants_in_utc_whatever_the_servers_zone() -> None:
    assert "timezone=utc" in str(conninfo_to_dict(conninfo()).get("options")).lower()


def test_large_integers_are_exact_up_to_64_bits() -> None:
    assert (
        encode([2**53 + 1, 2**64 - 1, -(2**63)])
        == b"[9007199254740993,18446744073709551615,-9223372036854775808]"
    )
    assert decode(b"[9007199254740993,18446744073709551615]") == [2**53 + 1, 2**64 - 1]


def test_larger_integers_are_not_written() -> None:
    with pytest.raises(TypeError, match="64-bit"):
        encode(2**64)


def test_larger_integers_are_read_as_the_nearest_float() -> None:
    assert decode(b"18446744073709551616") == 1.8446744073709552e19


@pytest.mark.parametrize(
    "body", [b"NaN", b"Infinity", b"1e999", b'"\\ud800"', b'"\xff"', b"{'a':1}", b"[1,]", b""]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(JSONDecodeError):
        decode(body)


@dataclass
class Point:
    x: int
    at: datetime | None


class Model(BaseModel):
    x: int


def test_dataclasses_models_and_fragments_have_a_form() -> None:
    value = [Point(1, None), Model(x=2), Fragment(b'{"as":  "it was"}'), {3: "three"}]
    assert encode(value) == b'[{"x":1,"at":null},{"x":2},{"as":  "it was"},{"3":"three"}]'


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})


def test_what_is_shared_is_encoded_once_and_like_all_else() -> None:
    value = {"a": [1, None], "b": {"c": "ü"}}
    shared = Shared(value)
    assert encode(shared) == encode(value)
    assert encode(shared) is encode(shared)
    assert encode({"event": shared}) == encode({"event": value})


@pytest.mark.parametrize(("size", "kept"), [(10, True), (SHARED_BYTES + 1, False)])
def test_a_small_event_is_kept_as_it_was_sent(size: int, kept: bool) -> None:
    entry = Entry(1, "s", 1, "t", encode("x" * (size - 2)).decode(), "me", position=1)
    assert encode(entry.shared()) == encode(entry.public())
    assert (entry.shared() is entry.shared()) is kept
