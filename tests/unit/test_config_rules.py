"""The rules of configuration, without a database."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import files, fitting, rules
from config.models import Entry
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


def entry_at(percentage: float, salt: str) -> Entry:
    return Entry(id="n/a", is_set=True, value='"old"', next_value='"new"', percentage=percentage, salt=salt)


@given(st.text(), st.text(), st.floats(0.01, 100), st.floats(0.01, 100))
def test_widening_never_takes_the_new_value_away(salt: str, instance: str, one: float, other: float) -> None:
    entry = entry_at(min(one, other), salt)
    had = rules.takes_next(entry, instance)
    rules.widen(entry, max(one, other))
    assert rules.takes_next(entry, instance) or not had


@given(st.text(), st.text())
def test_everybody_has_it_at_100_and_nobody_who_is_not_named(salt: str, instance: str) -> None:
    entry = entry_at(100, salt)
    assert rules.takes_next(entry, instance)
    assert not rules.takes_next(entry, None)
    rules.abort(entry)
    assert (rules.choice(entry, instance), entry.next_value) == (('"old"', None), None)


def test_a_share_is_about_as_large_as_it_says() -> None:
    counts = [sum(rules.takes_next(entry_at(p, "s"), f"i{n}") for n in range(10_000)) for p in (1, 10, 50)]
    assert 60 < counts[0] < 140
    assert 900 < counts[1] < 1100
    assert 4800 < counts[2] < 5200


def test_another_salt_takes_others() -> None:
    one, two = ({n for n in range(1000) if rules.takes_next(entry_at(20, s), str(n))} for s in ("a", "b"))
    assert len(one & two) < 100 < len(one)


# -- files -------------------------------------------------------------------------------------------

KEYS = st.text("abcXYZ09_./-", min_size=1, max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    PLAIN, lambda of: st.lists(of) | st.dictionaries(st.text("ab c", max_size=3), of), max_leaves=5
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_yaml_says_again_what_it_was_told(values: dict[str, Any]) -> None:
    values = {key: value for key, value in values.items() if "\x85" not in text(value)}
    assert files.read(files.write(values, "yaml"), "yaml") == values


@given(st.dictionaries(KEYS, VALUES.filter(lambda value: not files.has_null(value)), max_size=4))
def test_toml_says_again_what_it_was_told(values: dict[str, Any]) -> None:
    assert files.read(files.write(values, "toml"), "toml") == values


@given(st.dictionaries(st.text("ABC_", min_size=1), VALUES, max_size=4))
def test_lines_say_again_what_they_were_told(values: dict[str, Any]) -> None:
    assert files.read(files.write(values, "env"), "env") == values


def test_lines_of_others_are_read() -> None:
    lines = "# why\n\nexport URL=db://x?a=b\nPORT=8080\nNAME='a b'\nLIST=[1, \"x\"]\nEMPTY=\nMODE=NaN\nLIMIT=-Infinity"
    assert files.read(lines, "env") == {
        "URL": "db://x?a=b", "PORT": 8080, "NAME": "a b", "LIST": [1, "x"], "EMPTY": "", "MODE": "NaN",
        "LIMIT": "-Infinity",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "form"),
    [("- a\n", "yaml"), ("a: [", "yaml"), ("a =", "toml"), ("no line", "env"), ("a: !!set {b}", "yaml")],
)
def test_what_is_no_such_file_is_refused(content: str, form: str) -> None:
    with pytest.raises(files.BadFile):
        files.read(content, form)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a: 1\nb: .nan\n", "b: JSON has no nan."),
        ("a: &x [*x]\n", "a value holds itself"),
        (f"a: {'[' * 2000}", "nested too deep"),
        ("a: 1\nb: {c: 18446744073709551616}\n", "b: a number has more than 64 bits"),
        (f"a: 1{'0' * 5000}\n", "Exceeds the limit"),
        ("a: 2026-13-01\n", "month must be in 1..12"),
        ("a: 1\na: 2\n", "a is there twice."),
        ("a: {1: x}\n", "A key is a text; put quotes around 1."),
    ],
)
def test_what_json_has_no_form_for_is_refused(content: str, why: str) -> None:
    with pytest.raises(files.BadFile, match=re.escape(why)):
        files.read(content, "yaml")


def test_what_a_format_cannot_say_is_refused() -> None:
    with pytest.raises(files.BadFile, match="a/b"):
        files.write({"a/b": {"x": [None]}}, "toml")
    with pytest.raises(files.BadFile, match="a_b"):
        files.write({"a/b": 1, "a.b": 2}, "env")
    with pytest.raises(files.BadFile, match="the prefix itself"):
        files.write({"": 1, "a": 2}, "env")


def test_only_what_differs_is_changed() -> None:
    present = {"a": files.Present(1, 3), "b": files.Present({"x": 1, "y": 2}, 4), "c": files.Present(1, 5)}
    wanted = {"a": 2, "b": {"y": 2, "x": 1}, "d": True}
    assert [step.line(False) for step in files.steps(present, wanted, False)] == ["~ a: 1 -> 2", "+ d: true"]
    assert [step.line(True) for step in files.steps(present, wanted, True)] == [
        "~ a: (secret)", "+ d: (secret)", "- c",
    ]  # fmt: skip
    assert [step.sign for step in files.steps({"a": files.Present(1, 1)}, {"a": True}, False)] == ["~"]
