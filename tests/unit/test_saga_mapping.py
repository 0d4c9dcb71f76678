"""What a step is given: what templates and conditions find, and where nothing; and that nobody can hurt with them."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagas.expressions import MAX_EXPRESSION, MappingError
from sagas.mapping import compile_condition, compile_template

FEW = settings(max_examples=300, derandomize=True, deadline=None, database=None)
SCOPE: dict[str, Any] = {
    "input": {"n": 7, "x": 1.5, "text": "ab", "yes": True, "none": None, "list": [1, [2, {"deep": 3}]], "0": "zero",
              "a-b": "dash", "object": {"k": "v"}},
    "steps": {"pay": {"output": {"id": 42}, "status": "succeeded"}},
    "saga": {"id": "s1", "name": "order"},
    "metadata": {},
}  # fmt: skip


def rendered(value: Any) -> Any:
    return compile_template(value).render(SCOPE)


def fault(value: Any) -> MappingError:
    with pytest.raises(MappingError) as refusal:
        rendered(value)
    return refusal.value


def judged(text: str) -> Any:
    return compile_condition(text).render(SCOPE)


# -- paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${input.n}", 7), ("${input.x}", 1.5), ("${input.text}", "ab"), ("${input.yes}", True),
        ("${input.none}", None),
        ("${input.object}", {"k": "v"}), ("${input.list}", [1, [2, {"deep": 3}]]), ("${ input.n }", 7),
        ("${steps.pay.output.id}", 42), ("${saga.id}", "s1"), ("${metadata}", {}), ("${input.a-b}", "dash"),
    ],
)  # fmt: skip
def test_path_that_is_the_whole_string_gives_the_value_as_it_is(text: str, value: Any) -> None:
    assert rendered(text) == value
    assert type(rendered(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=${input.n}", "n=7"), ("${input.text}${input.n}", "ab7"), ("<${input.yes}>", "<true>"),
        ("${input.none}!", "null!"), ("${input.object}.", '{"k":"v"}.'), (" ${input.n}", " 7"),
        ("${saga.name}/${steps.pay.output.id}", "order/42"),
    ],
)  # fmt: skip
def test_path_inside_a_longer_string_gives_its_text(text: str, value: str) -> None:
    assert rendered(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("${input.list[0]}", 1), ("${input.list[1][0]}", 2), ("${input.list[1][1].deep}", 3), ("${input.list.0}", 1),
     ("${input.0}", "zero")],
)  # fmt: skip
def test_items_of_arrays(text: str, value: Any) -> None:
    assert rendered(text) == value


@pytest.mark.parametrize(
    "text", ["${input.nothing}", "${input.nothing.more}", "${input.n.more}", "${input.text[0]}", "${input.list[2]}",
             "${input.list.first}", "${steps.ship.output}", "${metadata.tenant}", "n=${input.nothing}"],
)  # fmt: skip
def test_path_that_leads_nowhere(text: str) -> None:
    path = text.partition("{")[2].rstrip("}")
    assert fault(text).detail == f"there is no {path}"


def test_item_with_a_number_of_many_digits_is_nowhere() -> None:
    fault(f"${{input.list[{'9' * 5000}]}}")


@pytest.mark.parametrize(
    "text", ["${}", "${ }", "${input.}", "${.input}", "${input..n}", "${input n}", "${input.n[}", "${input.list[x]}",
             "${input.list[-1]}", "${input.list[]}", "${input.ä}", "${input.n + 1}", "${input.n", "${", "a ${ b",
             "${input.n}${"],
)  # fmt: skip
def test_text_that_is_no_template(text: str) -> None:
    with pytest.raises(MappingError):
        compile_template(text)


@pytest.mark.parametrize(
    "text", ["${inputs.n}", "${output}", "${env.SECRET}", "${= env.SECRET }", "${__class__}"]
)
def test_root_that_is_unknown(text: str) -> None:
    with pytest.raises(MappingError, match="is none of input, steps, saga, metadata"):
        compile_template(text)


def test_attributes_are_no_members() -> None:
    for name in ("__class__", "keys", "__len__"):
        assert fault(f"${{input.{name}}}").detail == f"there is no input.{name}"


def test_fault_says_where_it_is() -> None:
    assert fault({"a": [0, {"b": "${input.n"}]}).pointer == "/a/1/b"
    assert fault({"a": [0, {"b": "${input.nothing}"}]}).pointer == "/a/1/b"
    assert fault({"a": ["${= 1 + }"]}).pointer == "/a/0"
    assert fault({"a": ["${= input.nothing }"]}).pointer == "/a/0"
    assert fault("${}").pointer == ""


def test_paths_that_are_looked_at_are_told() -> None:
    found = compile_template(
        {"a": "${input.list[1].deep} ${saga.id}", "b": "${= steps.pay.output.id + input.n }"}
    )
    assert found.paths == {
        ("input", "list", "1", "deep"), ("saga", "id"), ("steps",), ("steps", "pay"), ("input",),
    }  # fmt: skip


# -- defaults and escapes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${input.nothing ?? 1}", 1), ("${input.nothing ?? null}", None), ('${input.nothing ?? "a"}', "a"),
        ("${input.nothing ?? [1, 2]}", [1, 2]), ('${input.nothing ?? {"k": 1}}', {"k": 1}),
        ('${input.nothing ?? "}"}', "}"), ('${input.nothing ?? "{"}', "{"), ('${input.nothing ?? "}${"}', "}${"),
        ('${input.nothing ?? "a\\"}b"}', 'a"}b'), ('${input.nothing ?? "??"}', "??"), ("${input.nothing??1}", 1),
        ("${input.none ?? 1}", 1), ("${input.n ?? 1}", 7), ("<${input.nothing ?? {}}>", "<{}>"),
    ],
)  # fmt: skip
def test_default_stands_for_what_is_not_there_or_null(text: str, value: Any) -> None:
    assert rendered(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [('${input.nothing ?? {"a": {"b": 1}}}', {"a": {"b": 1}}), ('${input.nothing ?? {"a": "}"}}', {"a": "}"}),
     ('${= {"a": {"b": 1}} }', {"a": {"b": 1}}), ("${= '}' }", "}")],
)  # fmt: skip
def test_braces_within_braces(text: str, value: Any) -> None:
    assert rendered(text) == value


@pytest.mark.parametrize(
    "text", ["${input.n ??}", "${input.n ?? }", "${input.n ?? a}", "${input.n ?? 'a'}", "${?? 1}"]
)
def test_default_that_is_no_json(text: str) -> None:
    with pytest.raises(MappingError):
        compile_template(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("$${", "${"), ("$${input.n}", "${input.n}"), ("$$${input.n}", "$${input.n}"), ("$${${input.n}}", "${7}"),
     ("a $${ b ${input.n}", "a ${ b 7"), ("$", "$"), ("$$", "$$"), ("{}", "{}"), ("$ {input.n}", "$ {input.n}"),
     ("}", "}"), ("", "")],
)  # fmt: skip
def test_plain_text_is_plain(text: str, value: str) -> None:
    assert rendered(text) == value
    assert compile_template(text).paths == ({("input", "n")} if "7" in value else set())


# -- expressions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${= input.n + 1 }", 8), ("${= input.n > 5 && saga.name == 'order' }", True), ("a${= input.n * 2 }b", "a14b"),
        ("${= size(input.list) }", 2), ('${= {"n": input.n} }', {"n": 7}), ("${= [input.n, 1] }", [7, 1]),
        ("${= input.text + '!' }", "ab!"), ("${= has(input.nothing) ? 1 : 2 }", 2), ("${= steps.pay.output.id }", 42),
    ],
)  # fmt: skip
def test_expressions(text: str, value: Any) -> None:
    assert rendered(text) == value


@pytest.mark.parametrize(
    "text", ["${= }", "${= 1 + }", "${= input.n + }", "${=1 2}", f"${{= {'1+' * MAX_EXPRESSION}1 }}"]
)
def test_expression_that_is_none(text: str) -> None:
    with pytest.raises(MappingError):
        compile_template(text)


@pytest.mark.parametrize(
    "text", ["${= input.nothing }", "${= 1 / 0 }", "${= input.text + 1 }", "${= input.list[5] }", "${= nothing(1) }",
             "${= 9223372036854775807 + 1 }"],
)  # fmt: skip
def test_expression_that_cannot_be_evaluated(text: str) -> None:
    with pytest.raises(MappingError):
        rendered(text)


@pytest.mark.parametrize(
    "text", ["${= b'abc' }", "${= duration('1s') }", "${= 1.0 / 0.0 }", "a ${= b'abc' }"]
)
def test_what_an_expression_gives_is_json_or_a_fault(text: str) -> None:
    fault(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("input.n == 7", True), ("input.yes && false", False), ("'a' in ['a']", True),
     ("has(steps.pay)", True), ("has(steps.ship)", False), ("steps.pay.status == 'succeeded'", True)],
)  # fmt: skip
def test_conditions(text: str, value: bool) -> None:
    assert judged(text) is value


@pytest.mark.parametrize("text", ["1", "'yes'", "input.none", "input.list", "input.n", "[true]"])
def test_condition_that_is_neither_true_nor_false(text: str) -> None:
    with pytest.raises(MappingError, match="neither true nor false"):
        judged(text)


@pytest.mark.parametrize(
    "text", ["input.nothing", "input.nothing == 1", "1 / 0 == 1", "steps.ship.status == 'x'"]
)
def test_condition_that_nobody_can_judge(text: str) -> None:
    with pytest.raises(MappingError):
        judged(text)


@pytest.mark.parametrize("text", ["", "1 +", "nobody == 1", "true }", "${input.yes}"])
def test_condition_that_is_none(text: str) -> None:
    with pytest.raises(MappingError):
        compile_condition(text)


# -- any text ----------------------------------------------------------------------------------------

PLAIN = st.text(max_size=20).filter(lambda text: "${" not in text)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | PLAIN
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(JSON)
@FEW
def test_what_has_no_template_is_given_as_it_is(value: Any) -> None:
    template = compile_template(value)
    assert template.render({}) == value
    assert template.paths == frozenset()


@given(JSON)
@FEW
def test_any_value_is_handed_over_as_it_is(value: Any) -> None:
    scope = {"input": {"a": value}}
    assert compile_template("${input.a}").render(scope) == value
    assert isinstance(compile_template("a ${input.a}").render(scope), str)


@given(
    st.lists(
        st.sampled_from(["${", "$${", "$", "{", "}", '"', "\\", "??", "=", "input.n", "[", "]", " ", "1"])
    )
)
@FEW
def test_odd_texts_are_templates_or_faults(parts: list[str]) -> None:
    with suppress(MappingError):
        compile_template("".join(parts)).render(SCOPE)


def seconds_for(text: str) -> float:
    start = perf_counter()
    try:
        compile_template(text)
    except MappingError:
        pass
    return perf_counter() - start


@pytest.mark.parametrize(
    "unit",
    [
        "${",
        '${"',
        "${{",
        "$${",
        "${a",
        "${ ",
        '"',
        "\\",
        '\\"',
        "{",
        "${input.n}",
        "${a??",
        "${= ",
        "${{}",
        "$",
    ],
)
@pytest.mark.parametrize("head", ["", "${", '${"', "${input.n ?? "])
def test_hostile_texts_take_no_time(head: str, unit: str) -> None:
    assert seconds_for(head + unit * 10_000) < 0.5


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    assert seconds_for('${\\"' * 2_500) < 0.2


@pytest.mark.parametrize(
    "text", ["(" * 1000 + "1" + ")" * 1000, "[" * 2000, "!" * 2000 + "true", "-" * 2000 + "1", "true?1:" * 290 + "1",
             "1+" * 1000 + "1", "input" + "[0]" * 600, "input" + ".a" * 1000, '"' * 2001,
             '"' + "a" * 40 + 'b".matches("(a+)+$")'],
)  # fmt: skip
def test_hostile_expressions_take_no_time(text: str) -> None:
    start = perf_counter()
    try:
        rendered(f"${{= {text} }}")
    except MappingError:
        pass
    assert perf_counter() - start < 0.5


def loops(depth: int) -> str:
    """Over ten items each, one within the other."""
    text = "true"
    for n in range(depth):
        text = f"[1,2,3,4,5,6,7,8,9,10].all(v{n}, {text})"
    return text


def test_loops_within_loops_are_refused() -> None:
    with pytest.raises(MappingError):
        compile_condition(loops(18))


NUMBERS = list(range(500))
ROWS = [{"sku": f"s{n}", "price": n} for n in range(2000)]


@pytest.mark.parametrize(
    "text", ["size(input.l.map(x, input.l)) > 0", "input.l.map(x, x + x).map(y, y) == []",
             "size(input.rows.map(x, x)) > 0",
             "input.l.exists(x, x in input.l && false)", "input.l.existsOne(x, input.l.exists(y, x in input.l))",
             "size(r'\\') == 1 && input.l.map(x, input.l) == [] && size('a') == 1",
             "1 == 1 // '\n && [] == input.l.map(x, input.l)",
             f"[{','.join('1' * 600)}].map(x, [{','.join('1' * 300)}]) == []",
             f"size({'+'.join(['input.l'] * 200)}) > 0",
             "input.l.exists(x, 'a'.matches('(\\\\w{100}){2}'))", " || ".join(["'a'.matches('(\\\\w{99}){2}')"] * 60)],
)  # fmt: skip
def test_expression_that_would_take_long_is_not_begun(text: str) -> None:
    condition = compile_condition(text)
    start = perf_counter()
    with pytest.raises(MappingError, match="too much for an expression"):
        condition.render({"input": {"l": NUMBERS, "rows": ROWS}})
    assert perf_counter() - start < 0.05


@pytest.mark.parametrize(
    "text", ["input.rows.exists(i, i.price > 1000)", "size(input.rows) == 2000", "input.few.map(i, i.sku) != []",
             "input.few.all(i, input.few.exists(j, j.sku == i.sku))", "input.few.filter(i, i.price > 3).size() > 0",
             "'s1' in input.few.map(i, i.sku)", "input.text.matches('^[a-z]+$')"],
)  # fmt: skip
def test_expressions_over_lists_of_a_usual_length(text: str) -> None:
    assert compile_condition(text).render({"input": {"rows": ROWS, "few": ROWS[:50], "text": "abc"}})


def test_what_an_expression_does_not_look_at_costs_nothing() -> None:
    scope = {"input": {"big": list(range(100_000)), "yes": True, "size": 3}}
    assert compile_condition("input.yes && !has(input.no) && input . size == 3").render(scope)
    with pytest.raises(MappingError):
        compile_condition("size(input) > 0").render(scope)


@pytest.mark.parametrize(
    "value", [["${input.big}"] * 60, {str(n): "${input}" for n in range(60_000)}, "${input.big}" * 6,
              "${input.quotes}!", ["${= input.big }"] * 6, ["x" * 900_000, "${input.big}"]],
)  # fmt: skip
def test_what_a_template_gives_is_bounded_before_it_is_put_together(value: Any) -> None:
    template = compile_template(value)
    start = perf_counter()
    with pytest.raises(MappingError, match="larger than 1048576 bytes"):
        template.render({"input": {"big": "x" * 200_000, "quotes": '"' * 600_000}})
    assert perf_counter() - start < 0.2


def test_what_is_as_large_as_it_may_be_is_given() -> None:
    text = "x" * ((1 << 20) - 2)
    assert compile_template("${input}").render({"input": text}) == text
    assert compile_template(["${input}"] * 5).render({"input": "x" * 200_000}) == ["x" * 200_000] * 5


def test_the_command_line_of_cel_is_not_loaded_along() -> None:
    asked = "import sys, sagas.mapping; sys.exit('typer' in sys.modules or 'cel' not in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", asked], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )
