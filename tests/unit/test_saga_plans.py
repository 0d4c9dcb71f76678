"""Definitions of sagas: each fault is named where it is, and what is left unsaid has its default."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.errors import Invalid
from sagas.plans import BACKWARD, FORWARD, Plan, Policy, ancestors, compile_plan, plan_of, policy
from sagas.types import MAX_STEPS, RetryPolicy, Step

FEW = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def call(name: str, **said: Any) -> Step:
    return Step(**{"name": name, "service": "shop", "action": "do", **said})


def faults(*steps: Step, output: str | None = None) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as refusal:
        compile_plan(steps, output)
    return [(each["pointer"], each["code"]) for each in refusal.value.extra["errors"]]


def detail(*steps: Step) -> str:
    with pytest.raises(Invalid) as refusal:
        compile_plan(steps)
    (found,) = refusal.value.extra["errors"]
    return str(found["detail"])


# -- the graph ---------------------------------------------------------------------------------------


def test_step_that_says_nothing_depends_on_the_one_before_it() -> None:
    plan = compile_plan([call("a"), call("b"), call("c")])
    assert {name: step.after for name, step in plan.steps.items()} == {"a": (), "b": ("a",), "c": ("b",)}
    assert plan.before == {"a": ("b",), "b": ("c",), "c": ()}


def test_step_that_depends_on_nothing_says_so() -> None:
    plan = compile_plan([call("a"), call("b", depends_on=[]), call("c", depends_on=["a", "b"])])
    assert [step.after for step in plan.steps.values()] == [(), (), ("a", "b")]
    assert plan.before == {"a": ("c",), "b": ("c",), "c": ()}


def test_step_may_depend_on_a_later_one() -> None:
    plan = compile_plan([call("a", depends_on=["b"]), call("b", depends_on=[])])
    assert plan.before == {"a": (), "b": ("a",)}


def test_ancestors_are_all_that_come_before() -> None:
    parents = {"d": ("b", "c"), "b": ("a",), "c": ("a",), "a": (), "e": ()}
    assert ancestors(parents) == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}, "e": set()}


@pytest.mark.parametrize("order", ["reverse", "sequential", "parallel"])
def test_order_of_compensations_is_kept(order: str) -> None:
    assert compile_plan([call("a")], order=order).order == order


def test_stored_definition_means_the_same() -> None:
    body = {
        "steps": [{"name": "a", "service": "shop", "action": "do", "input": {"n": "${input.n}"}}],
        "output": "${steps.a.output}", "order": "parallel",
    }  # fmt: skip
    plan = plan_of(body)
    scope = {"input": {"n": 1}, "steps": {"a": {"output": 2}}, "saga": {}, "metadata": {}}
    assert plan.steps["a"].input
    assert plan.output
    assert (plan.steps["a"].input.render(scope), plan.output.render(scope), plan.order) == (
        {"n": 1},
        2,
        "parallel",
    )


def ladder(count: int) -> list[Step]:
    """Each depends on the two before it."""
    return [call(f"s{n}", depends_on=[f"s{each}" for each in range(max(0, n - 2), n)]) for n in range(count)]


def crowd(count: int) -> list[Step]:
    """The last depends on all others."""
    free = [call(f"s{n}", depends_on=[]) for n in range(count - 1)]
    return [*free, call("last", depends_on=[step.name for step in free])]


def upside_down(count: int) -> list[Step]:
    """Each depends on the one after it."""
    return [call(f"s{n}", depends_on=[f"s{n + 1}"] if n + 1 < count else []) for n in range(count)]


@pytest.mark.parametrize("steps", [ladder, crowd, upside_down])
def test_as_many_steps_as_there_may_be_compile_in_a_moment(steps: Callable[[int], list[Step]]) -> None:
    found = steps(MAX_STEPS)
    start = perf_counter()
    assert len(compile_plan(found).steps) == MAX_STEPS
    assert perf_counter() - start < 1.0


# -- what can be wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name"),
    [({"kind": "call", "action": "do"}, "service"), ({"kind": "call", "service": "shop"}, "action"),
     ({"kind": "sleep"}, "seconds"), ({"kind": "saga"}, "definition")],
)  # fmt: skip
def test_what_a_kind_needs_and_has_not(said: dict[str, Any], name: str) -> None:
    assert faults(Step(name="a", **said)) == [(f"/steps/0/{name}", "missing")]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("sleep", "service", "shop"), ("sleep", "action", "do"), ("sleep", "compensation", "undo"),
     ("sleep", "verify", "look"), ("call", "seconds", 1), ("call", "signal", "go"), ("call", "definition", "d"),
     ("signal", "seconds", 1), ("saga", "definition_version", None)],
)  # fmt: skip
def test_what_a_kind_has_nothing_to_do_with(kind: str, name: str, value: Any) -> None:
    needs: dict[str, dict[str, Any]] = {
        "sleep": {"seconds": 1}, "call": {"service": "shop", "action": "do"}, "signal": {},
        "saga": {"definition": "d"},
    }  # fmt: skip
    needed = needs[kind]
    compile_plan([Step(**{"name": "a", "kind": kind, **needed})])
    if value is not None:
        said = Step(**{"name": "a", "kind": kind, **needed, name: value})
        assert faults(said) == [(f"/steps/0/{name}", "not_for_kind")]


def test_signal_is_called_as_its_step_unless_said() -> None:
    plan = compile_plan([Step(name="paid", kind="signal"), Step(name="b", kind="signal", signal="sent")])
    assert [step.signal for step in plan.steps.values()] == ["paid", "sent"]


def test_name_that_is_given_twice() -> None:
    assert faults(call("a"), call("b"), call("a")) == [("/steps/2/name", "duplicate")]
    assert detail(call("a"), call("a")) == "a is the name of step 0 already"


def test_parent_that_is_unknown() -> None:
    assert faults(call("a"), call("b", depends_on=["a", "z"])) == [("/steps/1/depends_on/1", "unknown_step")]


def test_circle_is_named() -> None:
    steps = call("a", depends_on=[]), call("b", depends_on=["a", "d"]), call("c", depends_on=["b"]), call("d")
    assert faults(*steps) == [("/steps/1/depends_on", "cycle")]
    assert detail(*steps) == "b depends on d depends on c depends on b"


def test_step_that_depends_on_itself() -> None:
    assert detail(call("a", depends_on=["a"])) == "a depends on a"


def test_who_only_comes_after_a_circle_is_not_named() -> None:
    steps = call("a", depends_on=["c"]), call("b", depends_on=["c"]), call("c", depends_on=["b"])
    assert faults(*steps) == [("/steps/2/depends_on", "cycle")]
    assert detail(*steps) == "c depends on b depends on c"


@pytest.mark.parametrize(
    ("said", "pointer", "code"),
    [
        ({"input": {"a": ["${input.x", 1]}}, "/steps/0/input/a/0", "bad_mapping"),
        ({"compensation_input": "${nobody.x}"}, "/steps/0/compensation_input", "bad_mapping"),
        ({"when": "1 +"}, "/steps/0/when", "bad_condition"),
        ({"when": "nobody.x"}, "/steps/0/when", "bad_condition"),
        ({"locks": [{"key": "a"}, {"key": "${}"}]}, "/steps/0/locks/1/key", "bad_mapping"),
        ({"events": [{"stream": "${}", "type": "t", "data": 1}]}, "/steps/0/events/0/stream", "bad_mapping"),
        ({"events": [{"stream": "s", "type": "t", "data": {"x": "${}"}}]}, "/steps/0/events/0/data/x", "bad_mapping"),
    ],
)  # fmt: skip
def test_template_that_is_none(said: dict[str, Any], pointer: str, code: str) -> None:
    assert faults(call("a", **said)) == [(pointer, code)]


def test_seconds_and_output_are_templates_too() -> None:
    assert faults(Step(name="a", kind="sleep", seconds="${x.y}"), output='{"b": "${}"}') == [
        ("/steps/0/seconds", "bad_mapping"), ("/output/b", "bad_mapping"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "pointer"),
    [
        ({"input": "${steps.b.output}"}, "/steps/0/input"),
        ({"input": "${steps.a.output}"}, "/steps/0/input"),
        ({"input": "${= steps.b.output }"}, "/steps/0/input"),
        ({"when": "steps.b.output > 1"}, "/steps/0/when"),
        ({"compensation": "undo", "compensation_input": "${steps.z.output}"}, "/steps/0/compensation_input"),
        ({"locks": [{"key": "${steps.b.output}"}]}, "/steps/0/locks/0/key"),
        ({"events": [{"stream": "${steps.b.output}", "type": "t", "data": 1}]}, "/steps/0/events/0/stream"),
        ({"events": [{"stream": "s", "type": "t", "data": "${steps.b.output}"}]}, "/steps/0/events/0/data"),
    ],
)  # fmt: skip
def test_step_that_is_not_over_by_then(said: dict[str, Any], pointer: str) -> None:
    assert faults(call("a", **said), call("b")) == [(pointer, "unknown_step")]


def test_what_is_over_by_then_may_be_looked_at() -> None:
    event = {"stream": "${steps.c.output}", "type": "t", "data": 1}
    compile_plan(
        [
            call("a", compensation="undo", compensation_input="${steps.c.output}"), call("b"),
            call("c", input="${steps.a.output}", when="steps.a.output.ok && steps.b.output.ok", events=[event]),
        ],
        '"${steps.c.output}"',
    )  # fmt: skip


def test_output_of_a_step_that_there_is_not() -> None:
    assert faults(call("a"), output='"${steps.z.output}"') == [("/output", "unknown_step")]


@pytest.mark.parametrize("when", ["input.steps.count > 1", 'input.text == "steps.count"'])
def test_what_only_looks_like_a_step_is_none(when: str) -> None:
    compile_plan([call("a", when=when)])


@pytest.mark.parametrize(
    ("said", "pointer"),
    [
        ({"when": "'abc'"}, "when"), ({"when": "1"}, "when"), ({"when": "nosuch(input.x)"}, "when"),
        ({"when": "steps['nope'].output"}, "when"), ({"when": 'steps["a"].output'}, "when"),
        ({"when": "saga.nope == 1"}, "when"), ({"input": "${saga.nope}"}, "input"),
        ({"compensation_input": 1}, "compensation_input"), ({"locks": [{"key": "$x"}]}, "locks/0/key"),
        ({"locks": [{"key": "x", "permits": 3, "capacity": 2}]}, "locks/0/permits"),
        ({"events": [{"stream": "$saga:x", "type": "t", "data": 1}]}, "events/0/stream"),
        *(({"seconds": seconds}, "seconds") for seconds in ("abc", -5, True, 1e12, None, [])),
        ({"seconds": 1, "input": 1}, "input"), ({"seconds": 1, "timeout_seconds": 9}, "timeout_seconds"),
        ({"seconds": 1, "retry_policy": {"max_attempts": 2}}, "retry_policy"),
        ({"kind": "signal", "compensation_input": 1}, "compensation_input"),
    ],
)  # fmt: skip
def test_what_would_never_do_is_refused(said: dict[str, Any], pointer: str) -> None:
    step = Step(**{"name": "a", "kind": "sleep" if "seconds" in said else "call", **said})
    if step.kind == "call":
        step = call("a", **said)
    assert [where for where, _ in faults(step)] == [f"/steps/0/{pointer}"]


def test_what_was_let_in_once_still_means_something() -> None:
    body = {"steps": [{"name": "a", "kind": "sleep", "seconds": 1, "input": 1, "when": "nosuch(1)"}], "output": None,
            "order": "reverse"}  # fmt: skip
    assert plan_of(body).steps.keys() == {"a"}


def test_what_only_looks_as_if_it_would_never_do() -> None:
    compile_plan([
        call("a", locks=[{"key": "${input.k}", "permits": 2, "capacity": 2}], when="saga.name == 'x' && has(input.y)"),
        Step(name="b", kind="sleep", seconds="${input.s}", timeout_seconds=9, locks=[{"key": "k"}]),
        Step(name="c", kind="signal", when="steps['a'].status == 'succeeded' && input.l.all(x, x.startsWith('a'))"),
    ])  # fmt: skip


@pytest.mark.parametrize("retries", [True, -1, 1000])
def test_retries_that_are_none_are_named(retries: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        RetryPolicy.model_validate({"max_retries": retries})
    assert [error["loc"] for error in refusal.value.errors()] == [("max_retries",)]


def test_all_faults_are_told_at_once() -> None:
    steps = (
        call("a", input="${}"), Step(name="a", kind="sleep", service="shop"),
        call("c", depends_on=["z"], when="1 +"),
    )  # fmt: skip
    assert sorted(faults(*steps, output='"${"')) == [
        ("/output", "bad_mapping"), ("/steps/0/input", "bad_mapping"), ("/steps/1/name", "duplicate"),
        ("/steps/1/seconds", "missing"), ("/steps/1/service", "not_for_kind"),
        ("/steps/2/depends_on/0", "unknown_step"), ("/steps/2/when", "bad_condition"),
    ]  # fmt: skip


# -- policies ----------------------------------------------------------------------------------------


def said(**values: Any) -> Policy:
    return policy(RetryPolicy(**values), FORWARD)


def delays(**values: Any) -> list[float]:
    found = said(**{"jitter": "none", **values})
    return [found.delay(failures, 0.5) for failures in range(1, 6)]


def test_delays_of_each_strategy() -> None:
    assert delays(backoff_strategy="fixed", initial_delay_seconds=3) == [3, 3, 3, 3, 3]
    assert delays(backoff_strategy="linear", initial_delay_seconds=3) == [3, 6, 9, 12, 15]
    assert delays(backoff_strategy="exponential", initial_delay_seconds=3) == [3, 6, 12, 24, 30]
    assert delays(initial_delay_seconds=1, factor=3) == [1, 3, 9, 27, 30]


def test_delays_are_capped() -> None:
    assert delays(backoff_strategy="linear", initial_delay_seconds=3, max_delay_seconds=7) == [3, 6, 7, 7, 7]
    assert said(jitter="none", initial_delay_seconds=1, factor=100).delay(10**6, 0.5) == 30.0


@given(
    st.sampled_from(["fixed", "linear", "exponential"]), st.floats(0, 86400), st.floats(1, 100),
    st.floats(0, 86400), st.integers(1, 2000), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
@FEW
def test_jitter_stays_within_its_bounds(
    strategy: str, initial: float, factor: float, longest: float, failures: int, chance: float
) -> None:
    values = {"backoff_strategy": strategy, "initial_delay_seconds": initial, "factor": factor,
              "max_delay_seconds": longest}  # fmt: skip
    none, equal, full = (
        said(jitter=jitter, **values).delay(failures, chance) for jitter in ("none", "equal", "full")
    )
    assert 0 <= none <= longest
    assert none / 2 <= equal <= none
    assert 0 <= full <= none
    assert said(jitter="none", **values).delay(failures, 0.0) == none


def test_defaults_there_and_back() -> None:
    there, back = policy(None, FORWARD), policy(None, BACKWARD)
    assert (there.attempts, there.patience, there.longest) == (5, None, 30.0)
    assert (back.attempts, back.patience, back.longest) == (None, 86400.0, 300.0)


def test_who_limits_the_one_has_no_limit_of_the_other() -> None:
    assert (said(max_elapsed_seconds=9).attempts, said(max_elapsed_seconds=9).patience) == (None, 9)
    found = policy(RetryPolicy(max_attempts=2), BACKWARD)
    assert (found.attempts, found.patience, found.longest) == (2, None, 300.0)


def test_policy_that_limits_nothing_has_the_usual_limit() -> None:
    assert (said(factor=3).attempts, policy(RetryPolicy(factor=3), BACKWARD).patience) == (5, 86400.0)


def test_when_it_is_enough() -> None:
    assert [said(max_attempts=3).is_spent(failures, 1e9) for failures in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]
    patient = said(max_elapsed_seconds=10)
    assert [patient.is_spent(99, elapsed) for elapsed in (0, 9.9, 10, 11)] == [False, False, True, True]
    final = said(max_attempts=9, non_retryable=["fatal"])
    assert [final.is_spent(1, 0, code) for code in (None, "other", "fatal")] == [False, False, True]


def test_retries_are_attempts_but_for_the_first() -> None:
    assert RetryPolicy.model_validate({"max_retries": 0}).max_attempts == 1
    assert RetryPolicy.model_validate({"max_retries": 4}).max_attempts == 5


@pytest.mark.parametrize(
    "values", [{"max_retries": -1}, {"max_retries": 1000}, {"max_retries": 1, "max_attempts": 2}, {"max_retries": "1"},
               {"max_attempts": 0}, {"initial_delay_seconds": float("inf")}, {"factor": 0.5}, {"jitter": "some"}],
)  # fmt: skip
def test_policy_that_is_none(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(values)


def test_step_has_a_policy_for_each_direction() -> None:
    plan: Plan = compile_plan([call("a", retry_policy={"max_attempts": 2})])
    assert (plan.steps["a"].policy.attempts, plan.steps["a"].undo_policy.attempts) == (2, None)
