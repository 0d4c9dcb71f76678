"""Leader election, through every door."""

from typing import Any

from core.types import encode_cursor
from tests.doors import Door
from tests.test_lock_kinds import refused
from tests.test_locks import until


def standing(call: Door, name: str) -> list[str]:
    return [each["candidate"] for each in call("elections.candidates", name=name)["items"]]


def test_a_candidate_leads_at_once_where_nobody_does(call: Door) -> None:
    led = call("elections.campaign", name="db/primary", candidate="n1", value={"url": "x"}, ttl_seconds=60)
    assert led.status == 201
    assert (led["election"], led["leader"], led["value"]) == ("db/primary", "n1", {"url": "x"})
    found = call("elections.get", name="db/primary")
    assert (found["leader"], found["value"], found["candidates"]) == ("n1", {"url": "x"}, [])
    assert found["fencing_token"] == led["fencing_token"]
    assert led["lock_id"] not in str(found.value)
    assert call("elections.leader", name="db/primary")["leader"] == "n1"
    assert [e["election"] for e in call("elections.find", prefix="db/")["items"]] == ["db/primary"]
    assert call("locks.find")["items"] == []  # no lock of anybody's
    problem = refused(call, "elections.campaign", name="db/primary", candidate="n2")
    assert (problem["code"], problem["leader"], problem["value"]) == ("election_held", "n1", {"url": "x"})


def test_what_a_leader_says_is_kept_as_it_is(call: Door) -> None:
    for number, value in enumerate(({}, None, [], "", 0)):
        assert call("elections.campaign", name=f"e{number}", candidate="n", value=value)["value"] == value
        assert call("elections.leader", name=f"e{number}")["value"] == value


def test_an_unknown_election_has_no_leader(call: Door) -> None:
    found = call("elections.get", name="x")
    assert (found["leader"], found["fencing_token"], found["candidates"]) == (None, 0, [])


def test_the_leader_speaks_renews_and_resigns(call: Door) -> None:
    led = call("elections.campaign", name="e", candidate="n1", value=1)
    said = call("elections.proclaim", name="e", lock_id=led["lock_id"], value={"b": 2})
    assert (said["value"], said["fencing_token"]) == ({"b": 2}, led["fencing_token"])
    assert call("elections.renew", name="e", lock_id=led["lock_id"], ttl_seconds=90)["ttl_seconds"] == 90
    assert call("elections.resign", name="e", lock_id=led["lock_id"])["resigned"] is True
    for operation, more in (
        ("proclaim", {"value": 1}),
        ("renew", {}),
        ("resign", {}),
        ("transfer", {"to": "x"}),
    ):
        problem = refused(call, f"elections.{operation}", name="e", lock_id=led["lock_id"], **more)
        assert (problem["code"], problem["reason"]) == ("not_leader", "released")
    events = call("events.read", stream_id="$election:e")["events"]
    assert [(event["event_type"], event["data"].get("value")) for event in events] == [
        ("election.elected", 1), ("election.proclaimed", {"b": 2}), ("election.resigned", None),
    ]  # fmt: skip


def test_candidates_lead_in_the_order_in_which_they_came(waiting: Door, later: Any) -> None:
    first = waiting("elections.campaign", name="e", candidate="n1")
    others = []
    for count, name in enumerate(("n2", "n3"), 1):
        others.append(
            later(waiting, "elections.campaign", name="e", candidate=name, value=name, wait_seconds=20)
        )
        until(lambda count=count: len(standing(waiting, "e")) == count)
    waiting("elections.resign", name="e", lock_id=first["lock_id"])
    second = others[0].result(5)
    assert (second.status, second["leader"], second["value"]) == (201, "n2", "n2")
    assert second["fencing_token"] > first["fencing_token"]
    assert second["waited_seconds"] > 0
    assert standing(waiting, "e") == ["n3"]
    waiting("elections.depose", name="e", reason="test")
    assert others[1].result(5)["leader"] == "n3"
    assert (
        refused(waiting, "elections.resign", name="e", lock_id=second["lock_id"])["reason"]
        == "force_released"
    )


def test_leadership_is_handed_to_a_chosen_candidate(waiting: Door, later: Any) -> None:
    first = waiting("elections.campaign", name="e", candidate="n1")
    passed_over = later(waiting, "elections.campaign", name="e", candidate="n2", wait_seconds=20)
    until(lambda: standing(waiting, "e") == ["n2"])
    chosen = later(waiting, "elections.campaign", name="e", candidate="n3", wait_seconds=20)
    until(lambda: standing(waiting, "e") == ["n2", "n3"])
    problem = refused(waiting, "elections.transfer", name="e", lock_id=first["lock_id"], to="n9")
    assert (problem["status"], problem["code"]) == (404, "not_candidate")
    moved = waiting("elections.transfer", name="e", lock_id=first["lock_id"], to="n3")
    assert moved["leader"] == "n3"
    assert chosen.result(5)["fencing_token"] == moved["fencing_token"]
    assert standing(waiting, "e") == ["n2"]
    waiting("elections.depose", name="e", reason="test")
    assert passed_over.result(5)["leader"] == "n2"


def test_no_cursor_leads_to_the_candidates_of_another_election(waiting: Door, later: Any) -> None:
    waiting("elections.campaign", name="e", candidate="n1")
    second = later(waiting, "elections.campaign", name="e", candidate="n2", wait_seconds=20)
    until(lambda: standing(waiting, "e") == ["n2"])
    for name, found in (("e", ["n2"]), ("f", [])):
        answer = waiting("elections.candidates", name=name, cursor=encode_cursor("!"))
        assert [candidate["candidate"] for candidate in answer["items"]] == found
    waiting("elections.depose", name="e", reason="test")
    assert second.result(5)["leader"] == "n2"


def test_a_candidacy_ends_with_its_session(waiting: Door, later: Any) -> None:
    session = waiting("sessions.open", owner="n1", ttl_seconds=0.5)["session_id"]
    led = waiting("elections.campaign", name="e", candidate="n1", session_id=session)
    assert led["session_id"] == session
    following = waiting("elections.campaign", name="e", candidate="n2", wait_seconds=20)
    assert following["leader"] == "n2"
    assert following["waited_seconds"] < 0.5 + 1


def test_a_write_is_fenced_by_the_term(call: Door) -> None:
    led = call("elections.campaign", name="e", candidate="n1")
    fence = {"key": "$election:e", "fencing_token": led["fencing_token"]}
    assert call("events.append", stream_id="s", event_type="t", data=1, fence=fence)["version"] == 1
    call("elections.resign", name="e", lock_id=led["lock_id"])
    problem = refused(call, "events.append", stream_id="s", event_type="t", data=2, fence=fence)
    assert problem["code"] == "fence_stale"
