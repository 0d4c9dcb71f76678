"""The pages of sagas, their definitions and tasks, and of services: what operators see there, and what they do."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.test import Client

from tests.doors import Lane, Served
from tests.participant import Participant
from tests.test_admin import (
    ODD,
    act,
    browser,
    figure,
    listing,
    page,
    panel,
    rows_of,
    shown,
    text,
    user,
    words,
)
from tests.test_locks import until

pytestmark = pytest.mark.usefixtures("few_to_choose")

RETRY = {"backoff_strategy": "fixed", "initial_delay_seconds": 0.05, "jitter": "none", "max_attempts": 2}
GATE = {"name": "gate", "kind": "signal", "timeout_seconds": 3600}
VERBS = ["sagas.cancel", "sagas.pause", "sagas.resume", "sagas.retry", "sagas.signal", "sagas.terminate",
         "steps.retry", "steps.skip", "steps.complete", "steps.compensate"]  # fmt: skip
SURE = {"confirmed": "yes", "reason": "because I say so"}


@pytest.fixture(scope="module")
def operator(served: Served) -> Client:
    return browser(user("operator", is_staff=True))


@pytest.fixture
def participant(lane: Lane) -> Iterator[Participant]:
    """Of the service `shop`. `bad` never knows, `declined` refuses."""
    with Participant() as found:
        found.script["bad"] = lambda asked: (500, {"code": "boom", "detail": "It broke."}, {})
        found.script["declined"] = lambda asked: (409, {"code": "declined", "detail": "No money."}, {})
        about = {"service": "shop", "instance_id": "one", "address": "127.0.0.1", "port": found.port}
        lane("services.register", **about, ttl_seconds=600)
        yield found


def step(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "service": "shop", "action": name, "compensation": f"undo_{name}", "retry_policy": RETRY,
            **more}  # fmt: skip


def start(lane: Lane, *steps: dict[str, Any], name: str = "order", **more: Any) -> str:
    return str(lane("sagas.start", name=name, steps=list(steps), **more)["saga_id"])


def status(lane: Lane, saga_id: str) -> str:
    return str(lane("sagas.get", saga_id=saga_id)["status"])


def is_so(lane: Lane, saga_id: str, *statuses: str) -> str:
    """The address of a saga, once it is so."""
    until(lambda: status(lane, saga_id) in statuses)
    return f"{lane.namespace}/{saga_id}"


def stuck(lane: Lane, **more: Any) -> str:
    """The address of a saga whose last step is stuck, its pivot passed."""
    return is_so(lane, start(lane, step("a"), step("p", pivot=True), step("bad"), **more), "attention")


def stuck_behind(lane: Lane, participant: Participant) -> str:
    """The address of one of which a compensation is stuck."""
    participant.script["undo_a"] = lambda asked: (500, {"code": "down", "detail": "Later."}, {})
    bad = step("a", compensation_retry_policy=RETRY)
    return is_so(lane, start(lane, bad, step("declined")), "attention")


def buttons(client: Client, address: str) -> set[str]:
    return set(re.findall(r'name="action" value="([a-z_]+)"', text(client, page("sagas.Saga", address))))


def lanes(client: Client, address: str) -> dict[str, list[str]]:
    """What the bars of each lane of the timeline are, in order."""
    found = text(client, page("sagas.Saga", address)).split("data-lane=")[1:]
    return {
        lane.partition('"')[2].partition('"')[0]: re.findall(
            r'class="bar ([a-z ]*)"', lane.partition("</div>")[0]
        )
        for lane in found
    }


def facts(lane: Lane, address: str, kind: str) -> list[Any]:
    events = lane("sagas.history", saga_id=address.partition("/")[2])["events"]
    return [event for event in events if event["type"] == kind]


def line(client: Client, label: str, key: str) -> dict[str, str]:
    """What a record's line in its list says, by column, also where nothing can be chosen."""
    found = text(client, listing(label, namespace=key.partition("/")[0]))
    url = page("sagas.Saga" if label == "sagas.Attention" else label, key)
    (row,) = [row for row in re.findall(r"<tr.*?</tr>", found, re.DOTALL) if f'"{url}' in row]
    columns = re.findall(r'<t[hd][^>]*class="[^"]*field-([a-z_]+)[^>]*>(.*?)</t[hd]>', row, re.DOTALL)
    return {column: words(cell) for column, cell in columns}


# -- the list ----------------------------------------------------------------------------------------


def test_sagas_are_listed_newest_first(operator: Client, lane: Lane, participant: Participant) -> None:
    first = start(lane, step("a"), name="pay", tags={"shop": "rome"})
    second = start(lane, GATE, name="approve", tags={"shop": "bern"})
    third = start(lane, step("declined"), name="pay")
    for saga_id, state in ((first, "succeeded"), (second, "running"), (third, "failed")):
        is_so(lane, saga_id, state)
    here, ids = {"namespace": lane.namespace}, [f"{each[:16]}…" for each in (third, second, first)]
    assert shown(operator, "sagas.Saga", **here) == ids
    assert shown(operator, "sagas.Saga", **here, status="running") == [ids[1]]
    assert shown(operator, "sagas.Saga", **here, name="pay") == [ids[0], ids[2]]
    assert shown(operator, "sagas.Saga", **here, name="pay", status="failed") == [ids[0]]
    assert shown(operator, "sagas.Saga", **here, q="ap") == [ids[1]]
    assert shown(operator, "sagas.Saga", **here, q=first) == [ids[2]]
    assert shown(operator, "sagas.Saga", q=f"{lane.namespace}/{first}") == [ids[2]]
    assert shown(operator, "sagas.Saga", **here, q="tag:shop:rome") == [ids[2]]
    assert shown(operator, "sagas.Saga", **here, q="tag:shop:r") == []
    said = line(operator, "sagas.Saga", f"{lane.namespace}/{third}")
    assert (said["title_of"], said["state"], said["failure"]) == ("pay", "failed", "declined: No money.")
    said = line(operator, "sagas.Saga", f"{lane.namespace}/{second}")
    assert (said["state"], said["step"], said["tag_list"], said["took"]) == (
        "running",
        "gate",
        "shop:bern",
        "-",
    )


def test_a_list_of_sagas_is_of_one_namespace(operator: Client, lane: Lane) -> None:
    saga_id = start(lane, GATE)
    assert saga_id not in text(operator, listing("sagas.Saga"))
    assert saga_id in text(operator, listing("sagas.Saga", namespace=lane.namespace))
    assert saga_id in text(operator, f"/admin/search/?extended=1&s={saga_id}")


# -- the page of one ---------------------------------------------------------------------------------


def test_a_saga_s_page_tells_what_it_did(operator: Client, lane: Lane, participant: Participant) -> None:
    answers = iter([503, 200])
    participant.script["a"] = lambda asked: (next(answers), {"code": "busy", "detail": "Soon."}, {})
    participant.script["b"] = lambda asked: (200, {"lines": ["<b>bold</b>"] * 20}, {})
    saga_id = start(lane, step("a"), step("b"), step("declined"), input={"sku": "€"}, metadata={"m": 1})
    address = is_so(lane, saga_id, "compensated")
    steps = panel(operator, "sagas.Saga", address, "Steps")
    assert [(row[0], row[1], row[2], row[3]) for row in steps] == [
        ("a", "shop/a", "succeeded", "2"), ("b", "shop/b", "succeeded", "1"),
        ("declined", "shop/declined", "failed", "1"),
    ]  # fmt: skip
    assert [row[-1] for row in steps] == ["compensated 1 attempt", "compensated 1 attempt", "-"]
    assert "declined No money." in steps[2][-2]
    history = panel(operator, "sagas.Saga", address, "History")
    assert [row[3] for row in history[::-1]] == [
        event["type"] for event in lane("sagas.history", saga_id=saga_id)["events"]
    ]
    found = text(operator, page("sagas.Saga", address))
    assert "<b>bold</b>" not in found
    assert "&lt;b&gt;bold&lt;/b&gt;" in found
    assert "€" in found
    assert "given with the start" in found


def test_a_timeline_has_a_lane_for_each_step_and_compensation(
    operator: Client, lane: Lane, participant: Participant
) -> None:
    answers = iter([503, 200])
    participant.script["a"] = lambda asked: (next(answers), {"code": "busy", "detail": "Soon."}, {})
    nap = {"name": "nap", "kind": "sleep", "seconds": 0.1}
    saga_id = start(lane, step("a"), nap, step("declined"), step("never"))
    address = is_so(lane, saga_id, "compensated")
    assert lanes(operator, address) == {
        "saga saga": ["running", "compensating"],
        "step a": ["unknown", "backoff", "succeeded"],
        "step nap": ["waiting", "succeeded"],
        "step declined": ["failed"],
        "step never": [],
        "compensation a": ["succeeded"],
    }


def test_a_timeline_goes_to_now_and_draws_long_pauses_shorter(
    operator: Client, lane: Lane, participant: Participant, monkeypatch: Any
) -> None:
    address = stuck(lane)
    until(lambda: "drawn shorter" in text(operator, page("sagas.Saga", address)))
    assert lanes(operator, address)["saga saga"] == ["running", "attention"]
    assert lanes(operator, address)["step bad"] == ["unknown", "backoff", "unknown"]
    waits = is_so(lane, start(lane, GATE), "running")
    assert lanes(operator, waits) == {"saga saga": ["running"], "step gate": ["waiting"]}
    from sagas.admin import facts as told

    monkeypatch.setattr(told, "TOLD", 3)
    assert "Only what the last 3 events tell." in text(operator, page("sagas.Saga", address))


def test_where_an_instant_stands() -> None:
    from sagas.admin.timeline import Scale

    even = Scale([0.0, 1.0, 2.0])
    assert [even.place(at) for at in (0.0, 0.5, 2.0, 3.0)] == [0.0, 25.0, 100.0, 100.0]
    assert even.breaks() == []
    month = Scale([0.0, 1.0, 2.0, 86400.0 * 30])
    assert [round(month.place(at)) for at in (0.0, 1.0, 2.0, 86400.0 * 30)] == [0, 33, 67, 100]
    assert [tick["text"] for tick in month.ticks()][0::4] == ["0\u00a0ms", "30\u00a0d"]
    assert len(month.breaks()) == 1
    for single in ([5.0], [5.0, 5.0], [5.0, 9.0]):
        assert 0.0 <= Scale(single).place(5.0) <= Scale(single).place(9.0) <= 100.0
        assert len(Scale(single).ticks()) == 5


def test_a_saga_within_a_saga_and_its_definition_are_links(operator: Client, lane: Lane) -> None:
    lane("definitions.put", name="inner", steps=[GATE])
    saga_id = start(lane, {"name": "sub", "kind": "saga", "definition": "inner"})
    address = is_so(lane, saga_id, "running")
    child = apps.get_model("sagas.Saga").objects.get(parent=f"{saga_id}.sub", id__startswith=lane.namespace)
    assert page("sagas.Saga", child.pk) in text(operator, page("sagas.Saga", address))
    found = text(operator, page("sagas.Saga", child.pk))
    assert page("sagas.Saga", address) in found
    assert page("sagas.Definition", f"{lane.namespace}/inner#000001") in found
    assert "inner version 1" in found


def test_a_saga_whose_log_is_gone_is_still_shown(operator: Client, namespace: str) -> None:
    from sagas.models import Definition, Saga

    rows_of("sagas.Saga", namespace, 1)
    (saga,) = Saga.objects.filter(id__startswith=namespace)
    assert "None that the log still tells of" in text(operator, page("sagas.Saga", saga.pk))
    Definition.objects.create(
        id=f"{namespace}/$x",
        body='{"steps": [], "output": null, "order": "reverse"}',
        created_at=datetime.now(UTC),
    )
    Saga.objects.filter(pk=saga.pk).update(definition=f"{namespace}/$x")
    assert "None that the log still tells of" in text(operator, page("sagas.Saga", saga.pk))


# -- what an operator says ---------------------------------------------------------------------------


@pytest.mark.parametrize("operation", VERBS)
def test_a_verb_wants_a_reason_and_says_of_how_many(operator: Client, lane: Lane, operation: str) -> None:
    ids = [start(lane, GATE) for _ in range(2)]
    addresses = [is_so(lane, each, "running") for each in ids]
    asked = act(operator, "sagas.Saga", operation, addresses).content.decode()
    assert "2 sagas:" in asked
    assert all(f"{address} (order): running at gate" in asked for address in addresses)
    assert re.search(r'name="reason"[^>]*required', asked)
    for reason in ("", "  "):
        said = {"confirmed": "yes", "step": "gate", "signal": "gate", "reason": reason}
        unsaid = act(operator, "sagas.Saga", operation, addresses, **said).content.decode()
        assert "This field is required" in unsaid
    assert [status(lane, each) for each in ids] == ["running", "running"]


def test_a_saga_is_paused_resumed_signalled(operator: Client, lane: Lane) -> None:
    saga_id = start(lane, GATE)
    address = is_so(lane, saga_id, "running")
    assert buttons(operator, address) == {"sagas_cancel", "sagas_pause", "sagas_signal", "sagas_terminate"}
    done = act(operator, "sagas.Saga", "sagas.pause", [address], **SURE, from_page="1")
    assert done.redirect_chain == [(page("sagas.Saga", address), 302)]
    assert "sagas.pause: 1 done" in done.content.decode()
    assert buttons(operator, address) == {"sagas_resume", "sagas_cancel", "sagas_signal", "sagas_terminate"}
    (paused,) = facts(lane, address, "saga.paused")
    assert paused["data"]["reason"] == "because I say so"
    assert paused["actor"].startswith("user:operator-")
    assert lanes(operator, address)["saga saga"] == ["running", "paused"]
    act(operator, "sagas.Saga", "sagas.resume", [address], **SURE)
    assert lanes(operator, address)["saga saga"] == ["running", "paused", "running"]
    for wrong in ("{", "[" * 100_000, "x"):
        said = {"confirmed": "yes", "signal": "gate", "payload": wrong}
        answer = act(operator, "sagas.Saga", "sagas.signal", [address], **said)
        assert answer.status_code == 200
        assert "Enter a valid JSON" in answer.content.decode()
    said = {**SURE, "signal": "gate", "payload": '{"ok": [1, null]}'}
    act(operator, "sagas.Saga", "sagas.signal", [address], **said)
    (signalled,) = facts(lane, address, "saga.signalled")
    assert signalled["data"]["reason"] == "because I say so"
    assert lane("sagas.get", saga_id=saga_id)["steps"][0]["output"] == {"ok": [1, None]}
    assert is_so(lane, saga_id, "succeeded")
    assert buttons(operator, address) == set()


def test_many_sagas_are_cancelled_at_once(operator: Client, lane: Lane, participant: Participant) -> None:
    ids = [start(lane, step("a"), GATE) for _ in range(3)]
    addresses = [is_so(lane, each, "running") for each in ids]
    until(lambda: participant.paths().count("a") == 3)
    over = is_so(lane, start(lane, step("a")), "succeeded")
    done = act(operator, "sagas.Saga", "sagas.cancel", [*addresses, over], **SURE).content.decode()
    assert "sagas.cancel: 3 done" in done
    assert "The saga is succeeded. (saga_over)" in done
    for each in ids:
        is_so(lane, each, "compensated")
    assert sorted(participant.paths()) == ["a"] * 4 + ["undo_a"] * 3
    ended = act(
        operator, "sagas.Saga", "sagas.terminate", [is_so(lane, start(lane, GATE), "running")], **SURE
    )
    assert "sagas.terminate: 1 done" in ended.content.decode()


# -- what needs attention ----------------------------------------------------------------------------


def test_what_needs_attention_is_in_one_place(operator: Client, lane: Lane, participant: Participant) -> None:
    forward, back = stuck(lane, tags={"shop": "rome"}), stuck_behind(lane, participant)
    quiet = is_so(lane, start(lane, GATE), "running")
    found = text(operator, listing("sagas.Attention", namespace=lane.namespace))
    assert page("sagas.Saga", forward) in found
    assert page("sagas.Saga", quiet) not in found
    said = line(operator, "sagas.Attention", forward)
    assert (said["stuck"], said["failure"], said["tag_list"]) == ("bad", "boom: It broke.", "shop:rome")
    said = line(operator, "sagas.Attention", back)
    assert (said["stuck"], said["failure"]) == ("compensation of a", "down: Later.")
    chosen = text(operator, listing("sagas.Attention", namespace=lane.namespace, error="down"))
    assert (page("sagas.Saga", back) in chosen, page("sagas.Saga", forward) in chosen) == (True, False)
    assert "error=boom" in chosen
    assert text(operator, listing("sagas.Attention")).count("data-row") >= 2  # whatever their namespaces
    assert int(figure(operator, "Sagas that need attention").replace(",", "")) >= 2
    assert listing("sagas.Attention") in text(operator, "/admin/")


def test_selected_sagas_are_tried_again(operator: Client, lane: Lane, participant: Participant) -> None:
    addresses = [stuck(lane) for _ in range(2)]
    asked = act(operator, "sagas.Attention", "sagas.retry", addresses).content.decode()
    assert "2 sagas that need attention:" in asked
    participant.script["bad"] = lambda asked: (200, {}, {})
    done = act(operator, "sagas.Attention", "sagas.retry", addresses, **SURE).content.decode()
    assert "sagas.retry: 2 done" in done
    for address in addresses:
        is_so(lane, address.partition("/")[2], "succeeded")
        (retried,) = facts(lane, address, "saga.retried")
        assert retried["data"]["reason"] == "because I say so"
    act(operator, "sagas.Attention", "sagas.retry", addresses, **SURE)  # they are there no more
    assert [len(facts(lane, address, "saga.retried")) for address in addresses] == [1, 1]


@pytest.mark.parametrize(
    ("operation", "more", "ends"),
    [
        ("steps.retry", {}, "succeeded"),
        ("steps.skip", {}, "succeeded"),
        ("steps.complete", {"output": '{"by": "hand"}'}, "succeeded"),
        ("steps.compensate", {}, "compensated"),
    ],
)
def test_a_stuck_step_is_helped(
    operator: Client, lane: Lane, participant: Participant, operation: str, more: dict[str, str], ends: str
) -> None:
    address = stuck(lane)
    found = text(operator, page("sagas.Saga", address))
    assert 'data-stuck="bad"' in found
    assert {"sagas_retry", "sagas_terminate", operation.replace(".", "_")} <= buttons(operator, address)
    asked = act(operator, "sagas.Saga", operation, [address], step="bad", from_page="1").content.decode()
    assert re.search(r'name="step"[^>]*value="bad"|value="bad"[^>]*name="step"', asked)
    participant.script["bad"] = lambda asked: (200, {}, {})
    done = act(operator, "sagas.Saga", operation, [address], **SURE, **more, step="bad", from_page="1")
    assert f"{operation}: 1 done" in done.content.decode()
    saga_id = address.partition("/")[2]
    is_so(lane, saga_id, ends)
    if "output" in more:
        assert lane("sagas.get", saga_id=saga_id)["steps"][2]["output"] == {"by": "hand"}
    assert 'data-stuck="bad"' not in text(operator, page("sagas.Saga", address))


def test_a_stuck_compensation_is_helped(operator: Client, lane: Lane, participant: Participant) -> None:
    address = stuck_behind(lane, participant)
    assert "its compensation failed, after 2 attempts" in text(operator, page("sagas.Saga", address))
    assert "steps_compensate" not in buttons(operator, address)
    refused = act(operator, "sagas.Saga", "steps.skip", [address], **SURE, step="declined").content.decode()
    assert "(not_stuck)" in refused
    refused = act(operator, "sagas.Saga", "steps.skip", [address], **SURE, step="no_such").content.decode()
    assert "(step_not_found)" in refused
    act(operator, "sagas.Saga", "steps.skip", [address], **SURE, step="a")
    is_so(lane, address.partition("/")[2], "failed", "compensated")
    assert "dirty" in words(text(operator, page("sagas.Saga", address)))


@pytest.mark.parametrize(("answered", "given"), [("", {"sku": 1}), ('{"sku": 2}', {"sku": 2})])
def test_an_input_that_is_left_empty_stays_as_it_was(
    operator: Client, lane: Lane, participant: Participant, answered: str, given: Any
) -> None:
    address = stuck(lane, input={"sku": 1})
    asked = act(operator, "sagas.Saga", "steps.retry", [address], step="bad").content.decode()
    (field,) = re.findall(r'<textarea[^>]*name="input"[^>]*>\s*(.*?)</textarea>', asked, re.DOTALL)
    assert field == ""
    participant.script["bad"] = lambda asked: (200, {}, {})
    act(operator, "sagas.Saga", "steps.retry", [address], **SURE, step="bad", input=answered)
    is_so(lane, address.partition("/")[2], "succeeded")
    assert participant.asked[-1].body["input"] == given


# -- who may not -------------------------------------------------------------------------------------


def test_who_may_not_do_it_has_no_button_and_is_refused(
    lane: Lane, participant: Participant, monkeypatch: Any
) -> None:
    from core import runtime
    from core.console import rights
    from core.errors import Forbidden

    address = stuck(lane)

    def authorize(caller: Any, operation: Any, params: Any) -> None:
        if operation.name in VERBS:
            raise Forbidden("Not you.")

    client = browser(user("reader", is_staff=True))
    monkeypatch.setattr(runtime, "authorize", authorize)  # the right goes while the page is open
    assert (
        "Not you. (forbidden)"
        in act(client, "sagas.Saga", "sagas.terminate", [address], **SURE).content.decode()
    )
    monkeypatch.setattr(rights, "authorize", authorize)
    assert buttons(client, address) == set()
    assert 'data-stuck="bad"' in text(client, page("sagas.Saga", address))
    for operation in VERBS:
        act(client, "sagas.Saga", operation, [address], **SURE, step="bad", signal="x")
        act(client, "sagas.Attention", operation, [address], **SURE, step="bad", signal="x")
    assert status(lane, address.partition("/")[2]) == "attention"


def test_who_may_not_look_sees_nothing_of_sagas(lane: Lane, monkeypatch: Any) -> None:
    from core.console import rights
    from core.errors import Forbidden

    address = is_so(lane, start(lane, GATE), "running")

    def authorize(caller: Any, operation: Any, params: Any) -> None:
        if operation.name.startswith(("sagas.", "definitions.", "schedules.", "services.")):
            raise Forbidden

    monkeypatch.setattr(rights, "authorize", authorize)
    client = browser(user("other", is_staff=True))
    hidden = ["sagas.Saga", "sagas.Attention", "sagas.Task", "sagas.DefinitionName", "sagas.Schedule",
              "discovery.Service", "discovery.Instance"]  # fmt: skip
    front = text(client, "/admin/")
    for label in hidden:
        assert client.get(listing(label)).status_code == 403
        assert listing(label) not in front
    assert client.get(page("sagas.Saga", address)).status_code == 403
    assert "Sagas under way" not in front
    assert "Instances healthy" not in front
    stranger = browser(user("alice"))
    assert (
        act(stranger, "sagas.Saga", "sagas.terminate", [address], **SURE)
        .redirect_chain[0][0]
        .startswith("/admin/login/")
    )
    assert status(lane, address.partition("/")[2]) == "running"


def test_no_verb_without_the_token_of_the_page(lane: Lane) -> None:
    strict = browser(user("boss", is_staff=True), enforce_csrf_checks=True)
    address = is_so(lane, start(lane, GATE), "running")
    assert act(strict, "sagas.Saga", "sagas.terminate", [address], **SURE).status_code == 403
    assert status(lane, address.partition("/")[2]) == "running"


@pytest.mark.parametrize("odd", ODD)
def test_odd_answers_break_nothing(operator: Client, lane: Lane, few_to_search: None, odd: str) -> None:
    address = is_so(lane, start(lane, GATE), "running")
    for operation in VERBS:
        said = {"confirmed": "yes", "reason": odd, "step": odd, "signal": odd, "payload": odd, "output": odd}
        if operation not in ("sagas.cancel", "sagas.pause", "sagas.terminate"):  # to which any reason is one
            assert act(operator, "sagas.Saga", operation, [address], **said).status_code in {200, 400}
        assert act(operator, "sagas.Saga", operation, [odd], **said).status_code in {200, 400}
    for query in (f"tag:{odd}", f"tag:{odd}:{odd}", f"service:{odd}", odd):
        for label in ("sagas.Saga", "sagas.Task"):
            assert operator.get(listing(label, q=query)).status_code in {200, 302, 400}
    for name in ("status", "name", "state"):
        for label in ("sagas.Saga", "sagas.Attention", "sagas.Task", "discovery.Instance"):
            assert operator.get(listing(label, **{name: odd})).status_code in {200, 302, 400}
    assert status(lane, address.partition("/")[2]) == "running"


# -- definitions and tasks ---------------------------------------------------------------------------


def test_a_definition_s_page_shows_its_graph_and_its_versions(operator: Client, lane: Lane) -> None:
    steps = [step("a"), step("b", depends_on=["a"], pivot=True), step("c", depends_on=["a"]),
             step("d", depends_on=["b", "c"], locks=[{"key": "dock"}])]  # fmt: skip
    lane("definitions.put", name="graph", steps=steps[:1])
    lane("definitions.put", name="graph", steps=steps, output={"x": 1})
    address = f"{lane.namespace}/graph"
    saga_id = lane("sagas.start", name="graph", definition="graph")["saga_id"]
    said = line(operator, "sagas.DefinitionName", address)
    assert (said["name"], said["version"], said["step_count"]) == ("graph", "2", "4")
    graph = panel(operator, "sagas.DefinitionName", address, "Steps")
    assert [(row[0], row[1], row[4], row[8], row[9]) for row in graph] == [
        ("1", "a", "-", "-", "-"), ("2", "b", "a", "pivot", "-"), ("2", "c", "a", "-", "-"),
        ("3", "d", "b, c", "-", "a lock"),
    ]  # fmt: skip
    assert [row[0] for row in panel(operator, "sagas.DefinitionName", address, "Versions")] == ["2", "1"]
    found = text(operator, page("sagas.DefinitionName", address))
    assert page("sagas.Saga", f"{lane.namespace}/{saga_id}") in found
    assert "&quot;depends_on&quot;" in found
    old = page("sagas.Definition", f"{address}#000001")
    assert old in found
    assert "&quot;undo_a&quot;" in text(operator, old)
    assert len(panel(operator, "sagas.Definition", f"{address}#000001", "Steps")) == 1


# -- schedules ---------------------------------------------------------------------------------------


def scheduled(lane: Lane, **more: Any) -> str:
    """The address of a schedule that is due once a year."""
    lane("definitions.put", name="report", steps=[GATE])
    lane(
        "schedules.put",
        name="yearly",
        definition="report",
        **{"cron": "0 12 1 1 *", "time_zone": "Asia/Tokyo", **more},
    )
    return f"{lane.namespace}/yearly"


def test_a_schedule_s_page_tells_when_it_runs_and_what_it_did(operator: Client, lane: Lane) -> None:
    address = scheduled(lane, input={"deep": [1]})
    said = line(operator, "sagas.Schedule", address)
    assert (said["name"], said["definition_link"], said["timing"], said["state"], said["last_saga_link"]) == (
        "yearly", "report", "0 12 1 1 *", "active", "-",
    )  # fmt: skip
    assert said["due"].startswith("in ")
    saga_id = lane("schedules.run", name="yearly", reason="to see it")["last_saga_id"]
    runs = panel(operator, "sagas.Schedule", address, "Next runs")
    assert len(runs) == 10
    assert re.fullmatch(r"\d{4}-01-01 03:00:00.000", runs[0][0])
    assert runs[0][1].endswith("-01-01 12:00:00")
    (did,) = panel(operator, "sagas.Schedule", address, "Last runs")
    assert (did[2], did[3], did[4], did[5]) == ("fired", f"{saga_id[:16]}…", "running", "to see it")
    found = text(operator, page("sagas.Schedule", address))
    assert page("sagas.Saga", f"{lane.namespace}/{saga_id}") in found
    assert page("sagas.DefinitionName", f"{lane.namespace}/report") in found
    assert "&quot;deep&quot;" in found
    assert line(operator, "sagas.Schedule", address)["last_saga_link"] == f"{saga_id[:16]}… running"


def test_schedules_are_found_by_name_and_state(operator: Client, lane: Lane) -> None:
    scheduled(lane)
    lane("schedules.put", name="hourly", definition="report", interval_seconds=3600, paused=True)
    here = {"namespace": lane.namespace}
    assert shown(operator, "sagas.Schedule", **here) == ["hourly", "yearly"]
    assert shown(operator, "sagas.Schedule", **here, q="ye") == ["yearly"]
    assert shown(operator, "sagas.Schedule", **here, state="paused") == ["hourly"]
    said = line(operator, "sagas.Schedule", f"{lane.namespace}/hourly")
    assert (said["timing"], said["due"], said["state"]) == ("every 1 h", "-", "paused")
    assert "It is paused" in text(operator, page("sagas.Schedule", f"{lane.namespace}/hourly"))


def test_a_schedule_is_run_paused_resumed_and_deleted(operator: Client, lane: Lane) -> None:
    address = scheduled(lane)

    def offered() -> set[str]:
        return set(
            re.findall(r'name="action" value="([a-z_]+)"', text(operator, page("sagas.Schedule", address)))
        )

    assert offered() == {"schedules_run", "schedules_pause", "schedules_drop"}
    asked = act(operator, "sagas.Schedule", "schedules.pause", [address]).content.decode()
    assert f"{address} (0 12 1 1 *, of report): active" in asked
    assert re.search(r'name="reason"[^>]*required', asked)
    assert lane("schedules.get", name="yearly")["paused"] is False
    for verb in ("pause", "run"):
        done = act(operator, "sagas.Schedule", f"schedules.{verb}", [address], **SURE, from_page="1")
        assert f"schedules.{verb}: 1 done" in done.content.decode()
    found = lane("schedules.get", name="yearly")
    assert found["paused"] is True
    assert status(lane, found["last_saga_id"]) == "running"
    assert offered() == {"schedules_run", "schedules_resume", "schedules_drop"}
    act(operator, "sagas.Schedule", "schedules.resume", [address], **SURE)
    act(operator, "sagas.Schedule", "schedules.drop", [address], **SURE)
    events = lane("events.read", stream_id="$schedule:yearly")["events"][1:]
    assert [each["event_type"] for each in events] == [
        "schedule.paused", "schedule.fired", "schedule.resumed", "schedule.dropped",
    ]  # fmt: skip
    assert {each["data"]["reason"] for each in events} == {SURE["reason"]}
    assert shown(operator, "sagas.Schedule", namespace=lane.namespace) == []


# -- trying out --------------------------------------------------------------------------------------


def parcel(lane: Lane) -> str:
    steps = [step("reserve"), {"name": "nap", "kind": "sleep", "seconds": 60}, step("charge")]
    lane("definitions.put", name="parcel", steps=steps, output={"paid": "${steps.charge.output}"})
    return f"{lane.namespace}/parcel"


def simulated(client: Client, address: str, label: str = "sagas.DefinitionName", **said: Any) -> str:
    found = act(client, label, "definitions.simulate", [address], confirmed="yes", **said)
    assert found.status_code == 200
    return str(found.content.decode())


def outcome(found: str) -> list[str]:
    """The line that says how it would end."""
    section = found.partition("How it would end")[2].partition("</section>")[0]
    return [words(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", section, re.DOTALL)]


def test_a_definition_is_tried_out(operator: Client, lane: Lane) -> None:
    address = parcel(lane)
    assert 'value="definitions_simulate"' in text(operator, page("sagas.DefinitionName", address))
    asked = act(operator, "sagas.DefinitionName", "definitions.simulate", [address]).content.decode()
    assert re.findall(r'data-step="([^"]+)"', asked) == ["reserve", "charge"]
    assert "How it would end" not in asked
    for label, key in (("sagas.DefinitionName", address), ("sagas.Definition", f"{address}#000001")):
        found = simulated(operator, key, label, **{"answers/charge/output": '{"n": 7}'})
        assert outcome(found)[:2] == ["succeeded", "1 min"]
        assert "{&quot;paid&quot;:{&quot;n&quot;:7}}" in found
    said = {"answers/charge/outcome": "failed", "answers/charge/code": "declined"}
    found = simulated(operator, address, **said)
    assert outcome(found)[:4] == ["compensated", "1 min", "step failed", "declined"]
    assert "compensation.succeeded" in found
    assert 'value="declined"' in found
    found = simulated(operator, address, **said, **{"compensations/reserve/outcome": "refused"})
    assert outcome(found)[0] == "attention"
    found = simulated(operator, address, **{"answers/charge/outcome": "unknown", "answers/charge/times": "1"})
    assert outcome(found)[0] == "succeeded"
    assert outcome(simulated(operator, address, deadline_seconds="5"))[2] == "deadline"
    assert lane("sagas.find")["items"] == []


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"answers/charge/times": "0"}, "greater than or equal to 1"),
        ({"answers/charge/times": "x"}, "valid integer"),
        ({"answers/charge/output": "{"}, "Enter a valid JSON"),
        ({"answers/charge/outcome": "perhaps"}, "Select a valid choice"),
        ({"input": "["}, "Enter a valid JSON"),
        ({"deadline_seconds": "-1"}, "greater than 0"),
    ],
)
def test_what_cannot_be_answered_stands_beside_its_field(
    operator: Client, lane: Lane, said: dict[str, str], complaint: str
) -> None:
    found = simulated(operator, parcel(lane), **said)
    assert complaint in found
    assert "How it would end" not in found


def test_who_may_not_simulate_or_say_something_to_schedules_has_no_button(
    lane: Lane, monkeypatch: Any
) -> None:
    from core.console import rights
    from core.errors import Forbidden

    def authorize(caller: Any, operation: Any, params: Any) -> None:
        if operation.changes or operation.name == "definitions.simulate":
            raise Forbidden

    address, yearly, client = parcel(lane), scheduled(lane), browser(user("looker", is_staff=True))
    monkeypatch.setattr(rights, "authorize", authorize)
    assert 'id="actions"' not in text(client, page("sagas.Schedule", yearly))
    for verb in ("pause", "run", "drop"):
        act(client, "sagas.Schedule", f"schedules.{verb}", [yearly], **SURE)
    found = lane("schedules.get", name="yearly")
    assert (found["paused"], found["last_saga_id"]) == (False, None)
    assert "definitions_simulate" not in text(client, page("sagas.DefinitionName", address))
    found = act(client, "sagas.DefinitionName", "definitions.simulate", [address], confirmed="yes")
    assert "How it would end" not in found.content.decode()


def test_one_definition_is_tried_out_at_a_time(operator: Client, lane: Lane) -> None:
    address = parcel(lane)
    lane("definitions.put", name="other", steps=[GATE])
    keys = [address, f"{lane.namespace}/other"]
    found = act(operator, "sagas.DefinitionName", "definitions.simulate", keys).content.decode()
    assert "One definition at a time." in found


def test_tasks_say_who_has_them(operator: Client, lane: Lane) -> None:
    ids = [start(lane, step("print", service="printer", timeout_seconds=3600)) for _ in range(2)]
    until(lambda: len(shown(operator, "sagas.Task", namespace=lane.namespace)) == 2)
    (task,) = lane("workers.poll", service="printer", worker_id="w-7", max=1, lease_seconds=600)["tasks"]
    mine, others = (
        f"{lane.namespace}/{each}.print.action"
        for each in sorted(ids, key=lambda each: each != task["saga_id"])
    )
    said = line(operator, "sagas.Task", mine)
    assert (said["service"], said["state"], said["worker"]) == ("printer", "leased", "w-7")
    assert line(operator, "sagas.Task", others)["state"] == "queued"
    here = {"namespace": lane.namespace}
    assert [
        len(shown(operator, "sagas.Task", **here, state=each)) for each in ("queued", "leased", "overdue")
    ] == [1, 1, 0]
    assert len(shown(operator, "sagas.Task", **here, q="service:printer")) == 2
    assert shown(operator, "sagas.Task", **here, q="service:print") == []
    for url in (listing("sagas.Task", **here), page("sagas.Task", mine)):
        assert task["lease_token"] not in text(operator, url)  # the worker's secret


# -- services ----------------------------------------------------------------------------------------


def test_services_say_how_many_instances_are_healthy(operator: Client, lane: Lane) -> None:
    from discovery.models import Instance

    for name in ("one", "two"):
        lane("services.register", service="bank", instance_id=name, address="::1", port=80, tags=["eu"],
             ttl_seconds=600)  # fmt: skip
    assert line(operator, "discovery.Service", f"{lane.namespace}/bank")["health"] == "2 healthy"
    late = datetime.now(UTC) - timedelta(seconds=90)
    Instance.objects.filter(id=f"{lane.namespace}/bank#two").update(expires_at=late)
    assert line(operator, "discovery.Service", f"{lane.namespace}/bank")["health"] == "1 healthy"
    rows = panel(operator, "discovery.Service", f"{lane.namespace}/bank", "Instances")
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("one", "healthy", "http://[::1]:80"), ("two", "gone for 1 min 30 s", "http://[::1]:80"),
    ]  # fmt: skip
    here = {"namespace": lane.namespace}
    assert shown(operator, "discovery.Instance", **here, state="healthy") == ["one"]
    assert shown(operator, "discovery.Instance", **here, state="gone") == ["two"]
    assert shown(operator, "discovery.Instance", **here, q="bank#t") == ["two"]


def test_an_instance_is_deregistered_once_confirmed(operator: Client, lane: Lane) -> None:
    lane("services.register", service="bank", instance_id="one", address="10.0.0.7", port=80, ttl_seconds=600)
    address = f"{lane.namespace}/bank#one"
    asked = act(operator, "discovery.Instance", "services.deregister", [address]).content.decode()
    assert "1 instance:" in asked
    assert f"{address} at http://10.0.0.7:80: healthy" in asked
    assert len(lane("services.get", service="bank")["instances"]) == 1
    done = act(operator, "discovery.Instance", "services.deregister", [address], **SURE)
    assert "services.deregister: 1 done" in done.content.decode()
    assert lane("services.get", service="bank")["instances"] == []
    said = lane("events.read", stream_id="$service:bank", direction="backward", limit=1)["events"][0]
    assert said["data"] == {"instance_id": "one", "reason": SURE["reason"]}
    again = act(operator, "discovery.Instance", "services.deregister", [address]).content.decode()
    assert "Nothing is selected any more" in again
    assert line(operator, "discovery.Service", f"{lane.namespace}/bank")["health"] == "none healthy"


def test_instances_and_services_are_taken_out_for_maintenance(operator: Client, lane: Lane) -> None:
    for name in ("one", "two"):
        lane(
            "services.register",
            service="bank",
            instance_id=name,
            address="10.0.0.7",
            port=80,
            ttl_seconds=600,
        )
    address, service = f"{lane.namespace}/bank#one", f"{lane.namespace}/bank"

    def maintain(label: str, row: str, **more: str) -> None:
        done = act(operator, label, "services.maintenance", [row], **{**SURE, **more})
        assert "services.maintenance: 1 done" in done.content.decode()

    maintain("discovery.Instance", address, enabled="true")
    shown_as = line(operator, "discovery.Instance", address)
    assert (shown_as["state"], shown_as["why"]) == ("maintenance", SURE["reason"])
    assert line(operator, "discovery.Service", service)["health"] == "1 healthy"
    assert shown(operator, "discovery.Instance", namespace=lane.namespace, state="maintenance") == ["one"]
    maintain("discovery.Instance", address, enabled="false")
    assert line(operator, "discovery.Service", service)["health"] == "2 healthy"
    maintain("discovery.Service", service, enabled="true")
    shown_as = line(operator, "discovery.Service", service)
    assert (shown_as["health"], shown_as["upkeep"]) == ("maintenance", SURE["reason"])
    assert lane("services.get", service="bank")["instances"] == []


def test_an_instance_s_page_says_what_was_checked(operator: Client, lane: Lane) -> None:
    check = {"kind": "http", "path": "/health", "interval_seconds": 3600}
    lane("services.register", service="bank", instance_id="one", address="192.0.2.7", port=80, ttl_seconds=600,
         checks=[check, {"kind": "tcp", "interval_seconds": 3600}])  # fmt: skip
    address = f"{lane.namespace}/bank#one"
    rows = panel(operator, "discovery.Instance", address, "Checks")
    assert [row[:3] for row in rows] == [["http", "/health", "pending"], ["tcp", "-", "pending"]]
    assert line(operator, "discovery.Instance", address)["why"] == "not_checked"
    assert shown(operator, "discovery.Instance", namespace=lane.namespace, state="failing") == ["one"]
