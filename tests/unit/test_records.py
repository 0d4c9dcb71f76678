"""What PostgreSQL reads from an array literal is what was put in."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.models import Answer, Process
from core.records import array, array_literal, columns_of, table
from locks.models import Claim, Lock

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\x1e\x1f"), max_size=20)
NASTY = st.text("\"\\{},NUL' \n", max_size=12)
VALUES = st.none() | TEXTS | NASTY | st.sampled_from(["NULL", "null", "", "{}", '"', "\\", '\\"', "\\\\"])


def elements(literal: str) -> list[str | None]:
    """The elements of a one-dimensional array literal, by the rules of PostgreSQL's manual (8.15.6)."""
    if literal[0] != "{" or literal[-1] != "}":
        raise ValueError("malformed: no braces")
    found: list[str | None] = []
    place, end = 1, len(literal) - 1
    while place < end or found:
        if place < end and literal[place] == '"':
            text, place = quoted(literal, place + 1)
            found.append(text)
        else:
            start = place
            while place < end and literal[place] != ",":
                if literal[place] in '{}"\\':
                    raise ValueError(f"malformed: {literal[place]} outside quotes")
                place += 1
            bare = literal[start:place].strip()
            if not bare:
                raise ValueError("malformed: an empty element")
            found.append(None if bare.upper() == "NULL" else bare)
        if place == end:
            return found
        if literal[place] != ",":
            raise ValueError("malformed: no comma after an element")
        place += 1
    return found


def quoted(literal: str, place: int) -> tuple[str, int]:
    """A quoted element from after its first quote, and the place after its last."""
    text = ""
    while literal[place] != '"':
        if literal[place] == "\\":
            place += 1
        text += literal[place]
        place += 1
        if place == len(literal) - 1:
            raise ValueError("malformed: a quote is not closed")
    return text, place + 1


@pytest.mark.parametrize(
    ("literal", "values"),
    [
        ("{}", []),
        ("{NULL}", [None]),
        ('{"NULL"}', ["NULL"]),
        ('{""}', [""]),
        ("{a,null,b}", ["a", None, "b"]),
        ('{"a\\"b","c\\\\d","e,f"}', ['a"b', "c\\d", "e,f"]),
    ],
)
def test_the_tests_own_parser_reads_the_manuals_forms(literal: str, values: list[str | None]) -> None:
    assert elements(literal) == values


@pytest.mark.parametrize("literal", ["a", '{"a}', '{"a"b}', "{a,}", '{"a\\"NULL}', "{{a}}"])
def test_the_tests_own_parser_refuses_what_is_malformed(literal: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        elements(literal)


@given(st.lists(VALUES, min_size=1, max_size=8))
@example([None, "NULL", "null", ""])
@example(['a","b', '"', '","', "{}", "\\", '\\"'])
@example(["żółć", "日本語", "🔒", "\u2028", "\x7f", "a\nb\tc"])
def test_values_survive_the_literal(values: list[str | None]) -> None:
    assert elements(array_literal(values, len(values))) == values


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=6))
def test_rows_survive_as_columns(rows: list[tuple[str | None, ...]]) -> None:
    columns = [elements(literal) for literal in columns_of(rows)]
    assert list(zip(*columns, strict=True)) == rows


def test_numbers_and_booleans_are_written_as_text() -> None:
    values = [1, -2, 2**62, 0.1, 1e300, True, None]
    texts = ["1", "-2", "4611686018427387904", "0.1", "1e+300", "True", None]
    assert elements(array_literal(values, 7)) == texts


def test_nothing_is_an_empty_array() -> None:
    assert array([]) == "{}"
    assert columns_of([]) == []


@pytest.mark.parametrize("text", ["\x1f", "a\x1fb", 'a"\x1f"b', "a\x1f"])
def test_unit_separator_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"U\+001F"):
        array_literal(["before", text], 2)
    with pytest.raises(ValueError, match=r"U\+001F"):
        columns_of([("before", text), ("after", "x")])


@pytest.mark.parametrize("text", ["\x1e", '"\x1e', 'a"\x1e', "a\x1eb", "\x1e\x1e"])
def test_record_separator_is_refused_because_it_stands_for_null(text: str) -> None:
    with pytest.raises(ValueError, match=r"U\+001E"):
        array_literal([text, None], 2)
    with pytest.raises(ValueError, match=r"U\+001E"):
        columns_of([(text, "x"), (None, "y")])


# -- aggregates --------------------------------------------------------------------------------------


def test_new_instance_has_the_models_defaults() -> None:
    made = dict(table(Lock).new("n/a", {"version": 3}).__dict__)
    usual = dict(Lock(id="n/a", version=3).__dict__)
    del made["_state"], usual["_state"]
    assert made == usual


def test_loaded_row_becomes_the_instance_it_was() -> None:
    kind = table(Lock)
    lock = Lock(id="n/a", version=3, last_token=9, queued=2, endings="1=released")
    assert kind.values(kind.instance(kind.values(lock))) == kind.values(lock)


def test_a_table_is_described_once() -> None:
    assert table(Lock) is table(Lock)


def test_rows_of_the_engine_are_locked_unless_another_row_guards_them() -> None:
    assert table(Lock).load.endswith(" order by id for no key update")
    for model in (Claim, Process, Answer):
        assert table(model).load.endswith(" order by id")


def test_json_is_loaded_as_text() -> None:
    assert ", metadata::text, " in table(Lock).select_list
