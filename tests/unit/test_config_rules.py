"""The rules of configuration, without a database."""

from typing import Any

import pytest

from config import fitting, rules
from core.encoding import encode


def text(value: Any) -> str:
    return encode(value).decode()


def test_the_longest_prefix_comes_first() -> None:
    assert rules.prefixes("a/b/c") == ["a/b/c", "a/b", "a"]
    assert rules.schema_of("a/b/c", ["a", "a/b", "b"]) == "a/b"
    assert rules.schema_of("ab", ["a"]) is None


def test_every_place_that_does_not_fit_is_named() -> None:
    schema = text({"properties": {"n": {"type": "integer"}, "s/t": {"enum": ["x"]}}, "required": ["z"]})
    problems = fitting.problems_of(schema, text({"n": "hunter2", "s/t": "y"}), "/value")
    assert {(each["pointer"], each["code"]) for each in problems} == {
        ("/value", "required"), ("/value/n", "type"), ("/value/s~1t", "enum"),
    }  # fmt: skip
    assert "hunter2" in text(problems)
    hidden = fitting.problems_of(schema, text({"n": "hunter2", "s/t": "y"}), "/value", hidden=True)
    assert [each["pointer"] for each in hidden] == [each["pointer"] for each in problems]
    assert "hunter2" not in text(hidden)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "objekt"}, "/s/type"),
        ({"properties": {"a": {"minimum": "x"}}}, "/s/properties/a/minimum"),
        ({"pattern": "("}, "/s/pattern"),
        ({"pattern": "(?=a)b"}, "/s/pattern"),  # takes more than linear time
        ({"$ref": "https://example.com/schema"}, "/s"),
        ({"$ref": "file:///etc/passwd"}, "/s"),
        ({"$ref": "#/nowhere"}, "/s"),
        ({"$schema": "https://json-schema.org/draft-07/schema", "type": 3}, "/s"),
        ({"$schema": "https://example.com/own"}, "/s"),
    ],
)
def test_what_is_no_schema_is_told_where(schema: dict[str, Any], pointer: str) -> None:
    faults = fitting.faults_of(text(schema), "/s")
    assert faults
    assert all(fault["pointer"].startswith(pointer) for fault in faults)


def test_schemas_of_older_drafts_and_endless_ones_are_taken() -> None:
    for schema in (
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}},
        {"properties": {"a": {"$ref": "#"}}, "type": "object"},
    ):
        assert fitting.faults_of(text(schema), "/s") == []
    assert not fitting.fits(text(schema), text({"a": {"a": 3}}))


def test_a_pattern_takes_linear_time() -> None:
    assert not fitting.fits(text({"pattern": "^(a+)+$"}), text("a" * 50_000 + "b"))
