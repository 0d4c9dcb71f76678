"""What volatile locks promise: the same as durable ones where the promise is the same, through every door."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.conf import settings

from core.callers import DEVELOPER, Call, namespaces
from core.errors import Unavailable
from core.models import Cluster, Namespace
from core.operations import registry
from core.runtime import runtime
from core.valkey import Valkey
from tests.doors import Door, Lane, Python, Refused, Served
from tests.test_locks import (  # noqa: F401  the same behaviours, in the namespace below
    queue,
    test_a_free_lock_is_granted,
    test_a_held_lock_is_refused_and_says_who_holds_it,
    test_a_list_goes_on_with_its_cursor,
    test_a_released_lock_is_free_and_its_next_token_is_larger,
    test_a_renewal_extends_and_keeps_the_token,
    test_a_renewal_without_a_ttl_keeps_the_lock_s_own,
    test_a_token_can_be_checked,
    test_a_waiter_gets_the_lock_when_it_expires,
    test_a_waiter_gets_the_lock_when_it_is_released,
    test_an_expired_lock_is_free_without_anybody_asking_before,
    test_an_unknown_lock_is_free,
    test_keys_hold_slashes_and_look_like_verbs,
    test_locks_are_found_by_prefix_owner_and_state,
    test_locks_of_another_namespace_are_others,
    test_nobody_overtakes_the_queue,
    test_the_same_owner_is_refused_too,
    test_waiters_are_served_in_order,
    test_waiters_are_shown_with_their_tickets,
    test_who_does_not_hold_changes_nothing,
    test_who_does_not_hold_is_told_why,
    until,
)


@pytest.fixture
def namespace(namespace: str) -> str:
    """The test's own namespace, with volatile locks."""
    Namespace.objects.filter(name=namespace).update(locks="volatile")
    return namespace


@pytest.fixture
def store() -> Iterator[Any]:
    with redis.from_url(settings.REDIS_URL, decode_responses=True) as found:
        yield found


@pytest.fixture
def flush(store: Any, namespace: str) -> Callable[[], None]:
    """FLUSHALL, for the test's namespace: other tests are at the same server."""

    def delete() -> None:
        store.delete(*store.scan_iter(f"syros:*/{namespace}}}:*"))

    return delete


def refusal(call: Door, operation: str, **params: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        call(operation, **params)
    return refused.value


# -- what is the same, but for the log ---------------------------------------------------------------


def test_a_wait_that_ends_in_time_leaves_the_queue(waiting: Door) -> None:
    waiting("locks.acquire", key="a", owner="alice")
    started = time.monotonic()
    refused = refusal(waiting, "locks.acquire", key="a", owner="bob", wait_seconds=0.4)
    assert (refused.status, refused.code) == (409, "lock_wait_timeout")
    assert (refused.problem["key"], refused.problem["owner"], refused.problem["queue_length"]) == (
        "a",
        "alice",
        0,
    )
    assert time.monotonic() - started >= 0.4
    assert queue(waiting, "a") == []


def test_a_lock_leaves_nothing_in_the_log(call: Door) -> None:
    grant = call("locks.acquire", key="a", owner="alice")
    call("locks.release", key="a", lock_id=grant["lock_id"])
    assert call("events.read_all", system=True)["events"] == []


def test_an_idempotency_key_is_ignored(call: Door) -> None:
    first = call("locks.acquire", key="a", owner="alice", _={"key": "k"})
    refused = refusal(call, "locks.acquire", key="a", owner="alice", _={"key": "k"})
    assert (first.status, refused.code) == (201, "lock_held")


def test_nothing_of_a_lock_stays_for_good(lane: Lane, store: Any) -> None:
    grant = lane("locks.acquire", key="a", owner="alice", ttl_seconds=10)
    names = {name.partition("}:")[2]: name for name in store.scan_iter(f"syros:*/{lane.namespace}}}:*")}
    assert 69 < store.pttl(names["lock:a"]) / 1000 <= 70
    lane("locks.release", key="a", lock_id=grant["lock_id"])
    assert 59 < store.pttl(names["lock:a"]) / 1000 <= 60


# -- what is refused ---------------------------------------------------------------------------------


def test_a_fence_is_refused(call: Door) -> None:
    token = call("locks.acquire", key="a", owner="alice")["fencing_token"]
    fence = {"key": "a", "fencing_token": token}
    for operation, params in (
        ("locks.acquire", {"key": "b", "owner": "alice"}),
        ("events.append", {"stream_id": "s", "event_type": "t", "data": 1}),
    ):
        refused = refusal(call, operation, **params, fence=fence)
        assert (refused.status, refused.code) == (409, "not_in_volatile_namespace")
    assert call("locks.get", key="b")["is_locked"] is False
    assert call("events.read", stream_id="s")["version"] == 0


def test_events_are_the_same_without_a_fence(call: Door) -> None:
    assert call("events.append", stream_id="s", event_type="t", data=1)["position"] == 1


@pytest.mark.parametrize(
    "more", [{"mode": "shared"}, {"permits": 2}, {"capacity": 2}, {"session_id": "s"}, {"waits_for": ["k"]}]
)
def test_what_is_durable_only_is_refused(served: Served, namespace: str, more: dict[str, Any]) -> None:
    """As the operation's volatile form is asked: which of it the doors know already does not matter."""
    call = Call(DEVELOPER, served.do(namespaces.get(namespace)))
    form = registry["locks.acquire"].volatile
    assert form
    with pytest.raises(Exception, match="one holder") as refused:
        served.do(form(call, key="a", owner="alice", **more))
    assert refused.value.code == "not_in_volatile_namespace"  # type: ignore[attr-defined]


def test_an_operation_without_a_volatile_form_is_refused(served: Served, namespace: str) -> None:
    from core.errors import NotInVolatileNamespace
    from core.operations import Operation, refused

    async def elect(call: Call) -> str:
        return "elected"

    call = Call(DEVELOPER, served.do(namespaces.get(namespace)))
    durable_only = Operation(elect, None, kind="query", volatile=refused)
    with pytest.raises(NotInVolatileNamespace):
        served.do(runtime.run(durable_only, call, {}))
    assert served.do(runtime.run(Operation(elect, None, kind="query"), call, {})).value == "elected"


# -- tokens ------------------------------------------------------------------------------------------


def test_tokens_rise_over_a_flush(lane: Lane, flush: Any) -> None:
    tokens = []
    for _ in range(3):
        tokens += [lane("locks.acquire", key=f"k{n}", owner="alice")["fencing_token"] for n in range(3)]
        flush()
    epoch = Cluster.objects.get().epoch
    assert tokens == sorted(set(tokens))
    assert all(token >> 40 == epoch for token in tokens)
    assert tokens[-1] < (epoch + 1) << 40


def test_tokens_rise_over_a_raised_epoch_and_a_flush(lane: Lane, flush: Any) -> None:
    first = lane("locks.acquire", key="a", owner="alice")["fencing_token"]
    Cluster.objects.update(epoch=Cluster.objects.get().epoch + 1)
    flush()
    assert lane("locks.acquire", key="a", owner="alice")["fencing_token"] >> 40 == (first >> 40) + 1


def test_tokens_rise_from_block_to_block(lane: Lane, store: Any) -> None:
    first = lane("locks.acquire", key="a", owner="alice")
    (counter,) = store.scan_iter(f"syros:*/{lane.namespace}}}:tokens:*")
    store.set(counter, (first["fencing_token"] | ((1 << 20) - 1)) - 1)  # all but one of the block are used up
    tokens = [lane("locks.acquire", key=f"k{n}", owner="alice")["fencing_token"] for n in range(3)]
    assert tokens == sorted(set(tokens))
    assert tokens[0] & ((1 << 20) - 1) == (1 << 20) - 1
    assert tokens[1] == tokens[0] + 2


def test_a_waiter_gets_a_token_of_the_next_block(lane: Lane, store: Any, later: Any) -> None:
    first = lane("locks.acquire", key="a", owner="alice")
    second = later(lane, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(lane, "a") == ["bob"])
    (counter,) = store.scan_iter(f"syros:*/{lane.namespace}}}:tokens:*")
    store.delete(counter)
    lane("locks.release", key="a", lock_id=first["lock_id"])
    assert second.result(5)["fencing_token"] > first["fencing_token"]


# -- waiting -----------------------------------------------------------------------------------------


def test_a_thousand_waiters_are_served_in_order(served: Served, namespace: str) -> None:
    call = Call(DEVELOPER, served.do(namespaces.get(namespace)))
    order: list[int] = []

    async def run(name: str, **params: Any) -> Any:
        operation = registry[name]
        return (await runtime.run(operation, call, operation.parse(params))).value

    async def take_and_give_back(number: int) -> None:
        grant = await run("locks.acquire", key="a", owner=f"w{number}", wait_seconds=60.0)
        order.append(number)
        await run("locks.release", key="a", lock_id=grant.lock_id)

    async def story() -> None:
        first = await run("locks.acquire", key="a", owner="first")
        tasks = []
        for number in range(1000):
            tasks.append(asyncio.create_task(take_and_give_back(number)))
            await asyncio.sleep(0)
        while (state := await run("locks.get", key="a")).queue_length < 1000:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert [waiter.owner for waiter in state.waiters] == [f"w{number}" for number in range(200)]
        await asyncio.sleep(1.2)  # the patrol looks at them, and leaves them in peace
        await run("locks.release", key="a", lock_id=first.lock_id)
        await asyncio.gather(*tasks)

    served.do(story())
    assert order == list(range(1000))


def test_a_waiter_whose_client_is_gone_leaves_the_queue(served: Served, lane: Lane) -> None:
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)))
    operation = registry["locks.acquire"]
    held = lane("locks.acquire", key="a", owner="alice")

    async def start(owner: str) -> "asyncio.Task[Any]":
        params = operation.parse({"key": "a", "owner": owner, "wait_seconds": 20.0})
        return asyncio.create_task(runtime.run(operation, call, params))

    async def cancel(task: "asyncio.Task[Any]") -> None:
        task.cancel()

    first = served.do(start("bob"))
    until(lambda: queue(lane, "a") == ["bob"])
    second = served.do(start("carol"))
    until(lambda: queue(lane, "a") == ["bob", "carol"])
    served.do(cancel(first))
    until(lambda: queue(lane, "a") == ["carol"])
    lane("locks.release", key="a", lock_id=held["lock_id"])
    until(second.done)
    assert second.result().value.owner == "carol"


def test_what_was_granted_to_a_client_that_left_is_given_back(served: Served, lane: Lane) -> None:
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)))
    operation = registry["locks.acquire"]
    lane("locks.acquire", key="before", owner="alice")  # connected, with tokens

    async def leave_at_once() -> None:
        task = asyncio.create_task(
            runtime.run(operation, call, operation.parse({"key": "a", "owner": "alice"}))
        )
        await asyncio.sleep(0)  # the question is on its way
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    served.do(leave_at_once())
    until(lambda: lane("locks.get", key="a")["last_token"] > 0)
    until(lambda: lane("locks.get", key="a")["is_locked"] is False)


def test_a_waiter_whose_place_is_flushed_away_is_told(waiting: Door, flush: Any, later: Any) -> None:
    waiting("locks.acquire", key="a", owner="alice")
    second = later(refusal, waiting, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(waiting, "a") == ["bob"])
    flush()
    assert (second.result(5).status, second.result().code) == (503, "unavailable")


def test_a_waiter_hears_late_what_was_said_while_nobody_listened(
    lane: Lane, later: Any, monkeypatch: Any
) -> None:
    from locks import volatile

    first = lane("locks.acquire", key="a", owner="alice")
    second = later(lane, "locks.acquire", key="a", owner="bob", wait_seconds=20)
    until(lambda: queue(lane, "a") == ["bob"])
    monkeypatch.setattr(volatile.valkey.connection, "_heard", lambda message: None)
    lane("locks.release", key="a", lock_id=first["lock_id"])
    assert second.result(2)["owner"] == "bob"


def test_scripts_that_were_forgotten_are_sent_again(lane: Lane, store: Any) -> None:
    lane("locks.acquire", key="a", owner="alice")
    store.script_flush()
    assert lane("locks.acquire", key="b", owner="alice").status == 201


# -- the list ----------------------------------------------------------------------------------------


def test_vanished_locks_are_not_listed_and_their_names_forgotten(
    served: Served, lane: Lane, store: Any
) -> None:
    from locks import volatile

    for number in range(30):
        lane("locks.acquire", key=f"k{number:02}", owner="alice")
    for name in store.scan_iter(f"syros:*/{lane.namespace}}}:lock:k0*"):
        store.delete(name)
    (index,) = store.scan_iter(f"syros:*/{lane.namespace}}}:index")
    assert lane("locks.find", limit=200)["items"][0]["key"] == "k10"
    assert store.zcard(index) == 20
    for name in store.scan_iter(f"syros:*/{lane.namespace}}}:lock:k1*"):
        store.delete(name)
    until(lambda: store.zcard(index) == 10 or served.do(volatile.sweep()), 20)


def test_a_search_without_luck_looks_at_so_many_at_a_time(lane: Lane, monkeypatch: Any) -> None:
    from locks import volatile

    monkeypatch.setattr(volatile, "LOOK_AT", 2)
    monkeypatch.setattr(volatile, "LOOKS", 3)
    for number in range(9):
        lane("locks.acquire", key=f"k{number}", owner="alice" if number < 8 else "bob")
    page = lane("locks.find", owner="bob")
    assert page["items"] == []
    page = lane("locks.find", owner="bob", cursor=page["next_cursor"])
    assert ([item["key"] for item in page["items"]], page["next_cursor"]) == (["k8"], None)


# -- the setting -------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> str:
    return f"s{uuid4().hex[:12]}"


def test_a_namespace_in_which_somebody_leads_is_not_switched(call: Door, served: Served, fresh: str) -> None:
    call("namespaces.put", name=fresh)
    there = {"namespace": fresh}
    led = call("elections.campaign", name="e", candidate="alice", ttl_seconds=60, _=there)
    refused = refusal(call, "namespaces.put", name=fresh, locks="volatile")
    assert (refused.status, refused.code, refused.problem["key"]) == (409, "locks_are_held", "$election:e")
    call("elections.resign", name="e", lock_id=led["lock_id"], _=there)
    assert call("namespaces.put", name=fresh, locks="volatile")["locks"] == "volatile"


def test_a_namespace_is_made_and_switched(call: Door, served: Served, fresh: str) -> None:
    made = call("namespaces.put", name=fresh, locks="volatile")
    assert set(made.value) == {"name", "locks", "created_at"}
    assert (made["name"], made["locks"]) == (fresh, "volatile")
    assert call("namespaces.get", name=fresh).value == made.value
    (found,) = call("namespaces.find", prefix=fresh)["items"]
    assert found == made.value
    there = {"namespace": fresh}
    held = call("locks.acquire", key="a", owner="alice", _=there)
    for locks in ("durable", "volatile"):
        if locks == "durable":
            refused = refusal(call, "namespaces.put", name=fresh, locks="durable")
            assert (refused.status, refused.code, refused.problem["key"]) == (409, "locks_are_held", "a")
            call("locks.release", key="a", lock_id=held["lock_id"], _=there)
        assert call("namespaces.put", name=fresh, locks=locks)["locks"] == locks
        assert served.do(namespaces.get(fresh)).volatile == (locks == "volatile")
        token = held["fencing_token"]
        held = call("locks.acquire", key="a", owner="alice", _=there)
        assert held["fencing_token"] > token
        call("locks.release", key="a", lock_id=held["lock_id"], _=there)
    kinds = [event["data"]["locks"] for event in call("events.read", stream_id="$access", _=there)["events"]]
    assert kinds == ["volatile", "durable", "volatile"]


def test_an_unknown_namespace_is_not_found(call: Door, fresh: str) -> None:
    refused = refusal(call, "namespaces.get", name=fresh)
    assert (refused.status, refused.code) == (404, "not_found")


def test_namespaces_are_listed_page_by_page(served: Served, namespace: str, fresh: str) -> None:
    call = Python(served, namespace)
    for letter in "cab":
        call("namespaces.put", name=f"{fresh}{letter}")
    page = call("namespaces.find", prefix=fresh, limit=2)
    assert [item["name"] for item in page["items"]] == [f"{fresh}a", f"{fresh}b"]
    page = call("namespaces.find", prefix=fresh, limit=2, cursor=page["next_cursor"])
    assert ([item["name"] for item in page["items"]], page["next_cursor"]) == ([f"{fresh}c"], None)


def test_a_setting_is_noticed_without_being_told(served: Served, lane: Lane) -> None:
    Namespace.objects.filter(name=lane.namespace).update(locks="durable")
    lane("locks.acquire", key="a", owner="alice")
    Namespace.objects.filter(name=lane.namespace).update(locks="volatile")
    until(lambda: served.do(namespaces.get(lane.namespace)).volatile, 5)


def test_a_user_who_may_not_subscribe_is_not_let_in(settings: Any) -> None:
    """The refusal is an answer, and would be taken for that of the next question, and so on."""
    with redis.from_url(settings.REDIS_URL) as store:
        store.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels")
    settings.REDIS_URL = settings.REDIS_URL.replace("://", "://mute:secret@")

    async def story() -> None:
        valkey = Valkey("channel", lambda message: None, lambda: None)
        valkey.identity = "test"
        with pytest.raises(Unavailable):
            await valkey.ready()

    asyncio.run(story())
