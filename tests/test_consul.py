"""Beside a Consul: Syros is registered there, what is registered there is here, and nothing it answers breaks that."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError

from discovery import consul, consul_door
from tests.consul import Consul
from tests.doors import Lane, Served
from tests.participant import Participant


def wait(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def agent() -> Iterator[Consul]:
    found = Consul().start()
    yield found
    if found.is_up:
        found.stop()


class Beside:
    """The door, in the loop that serves."""

    def __init__(self, served: Served, port: int = 0, imports: bool = True) -> None:
        self._served, self._port, self._imports = served, port, imports

    def __enter__(self) -> "Beside":
        async def begin() -> tuple[asyncio.Event, "asyncio.Task[None]"]:
            stopping = asyncio.Event()
            door = consul_door.Consul(self._port, self._imports)
            return stopping, asyncio.create_task(door.serve(stopping))

        self._stopping, self.task = self._served.do(begin())
        return self

    def __exit__(self, *error: Any) -> None:
        async def end() -> None:
            self._stopping.set()
            await self.task

        self._served.do(end())


@pytest.fixture(autouse=True)
def quick(settings: Any, monkeypatch: pytest.MonkeyPatch, agent: Consul, namespace: str) -> None:
    settings.DISCOVERY_CONSUL_URL, settings.DISCOVERY_CONSUL_NAMESPACE = agent.url, namespace
    settings.DISCOVERY_CONSUL_KEEP_SECONDS = 300
    for name, value in {
        "PASS_SECONDS": 0.2, "RENEW_SECONDS": 0.3, "LOCK_SECONDS": 2.0, "TTL_SECONDS": 2.0, "BEAT_SECONDS": 0.3,
        "PAUSES": (0.1, 0.2, 0.3),
    }.items():  # fmt: skip
        monkeypatch.setattr(consul_door, name, value)


@pytest.fixture
def door(served: Served) -> Iterator[Beside]:
    with Beside(served) as found:
        yield found


def here(lane: Lane, service: str = "redis") -> dict[str, Any]:
    return {each["instance_id"]: each for each in lane("services.get", service=service)["instances"]}


def ids(lane: Lane, service: str = "redis") -> set[str]:
    return set(here(lane, service))


# -- what is imported --------------------------------------------------------------------------------


def test_what_consul_has_is_here_and_goes_when_it_says_so(agent: Consul, lane: Lane, door: Beside) -> None:
    agent.put(
        "redis", "redis-1", Tags=["primary"], Address="10.1.10.99", Port=6379, Meta={"scheme": "https", "v": "4"},
        Weights={"Passing": 10, "Warning": 1},
    )  # fmt: skip
    wait(lambda: ids(lane) == {"consul:node-a:redis-1"})
    found = here(lane)["consul:node-a:redis-1"]
    told = ("address", "port", "scheme", "tags", "weight", "metadata")
    assert {name: found[name] for name in told} == {
        "address": "10.1.10.99", "port": 6379, "scheme": "https", "tags": ["primary"], "weight": 10,
        "metadata": {"source": "consul", "node": "node-a", "id": "redis-1", "meta": {"scheme": "https", "v": "4"}},
    }  # fmt: skip
    agent.put("redis", "redis-1", node={"Node": "node-b", "Address": "10.1.10.13"})
    wait(lambda: len(ids(lane)) == 2)
    assert here(lane)["consul:node-b:redis-1"]["address"] == "10.1.10.13", (
        "the node's, where the service has none"
    )
    agent.turn("redis-1", "critical")
    wait(lambda: ids(lane) == {"consul:node-b:redis-1"})
    agent.turn("redis-1", "passing")
    wait(lambda: len(ids(lane)) == 2)
    agent.drop("redis-1")
    agent.drop("redis-1", "node-b")
    wait(lambda: ids(lane) == set())
    assert "consul" not in {each["service"] for each in lane("services.find")["items"]}


def test_what_changes_there_changes_here_and_what_does_not_is_no_event(
    agent: Consul, lane: Lane, door: Beside
) -> None:
    agent.put("redis", "redis-1")
    agent.put("other", "other-1")
    wait(lambda: bool(ids(lane)) and bool(ids(lane, "other")))
    agent.put("redis", "redis-1", Port=8001)
    wait(lambda: here(lane)["consul:node-a:redis-1"]["port"] == 8001)
    time.sleep(1)  # heartbeats

    def events(service: str) -> list[str]:
        return [each["event_type"] for each in lane("events.read", stream_id=f"$service:{service}")["events"]]

    assert events("redis") == ["service.registered", "service.changed"]
    assert events("other") == ["service.registered"]


def test_syros_s_own_instances_of_the_same_service_stay(agent: Consul, lane: Lane, door: Beside) -> None:
    lane("services.register", service="redis", instance_id="mine", address="10.0.0.1", port=1, ttl_seconds=60)
    agent.put("redis", "redis-1")
    wait(lambda: ids(lane) == {"mine", "consul:node-a:redis-1"})
    agent.drop("redis-1")
    wait(lambda: ids(lane) == {"mine"})


def test_only_what_has_the_prefix_and_the_tag_is_imported(
    agent: Consul, lane: Lane, served: Served, settings: Any
) -> None:
    settings.DISCOVERY_CONSUL_PREFIX, settings.DISCOVERY_CONSUL_TAG = "red", "saga"
    agent.put("redis", "a", Tags=["saga"])
    agent.put("redis", "b", Tags=["other"])
    agent.put("redmine", "c")
    agent.put("blue", "d", Tags=["saga"])
    with Beside(served):
        wait(lambda: ids(lane) == {"consul:node-a:a"})
        agent.put("red-last", "e", Tags=["saga"])
        wait(lambda: bool(ids(lane, "red-last")))
    assert {each["service"] for each in lane("services.find")["items"]} == {"redis", "red-last"}


def test_the_token_and_the_datacenter_are_told(
    agent: Consul, lane: Lane, served: Served, settings: Any
) -> None:
    agent.token = settings.DISCOVERY_CONSUL_TOKEN = "b1gs33cr3t"
    settings.DISCOVERY_CONSUL_DATACENTER = "dc2"
    agent.put("redis", "redis-1")
    with Beside(served):
        wait(lambda: bool(ids(lane)))
    assert {query["dc"] for _, query in agent.requests} == {"dc2"}


def test_what_syros_cannot_have_is_left_out_and_the_rest_is_not(
    agent: Consul, lane: Lane, door: Beside
) -> None:
    agent.put("no/name", "a")
    agent.put("redis", "socket", Port=0)
    agent.put("redis", "no weights", Weights=None, Tags=["x" * 300, "fine"], Meta=None)
    agent.put("redis", "/odd/id", Weights={"Passing": 65535})
    wait(lambda: len(ids(lane)) == 2)
    assert all(each.startswith("consul:") and len(each) == 39 for each in ids(lane)), "digests"
    assert sorted((each["weight"], tuple(each["tags"])) for each in here(lane).values()) == [
        (1, ("fine",)), (1000, ()),
    ]  # fmt: skip


def test_a_saga_calls_what_is_registered_in_consul(agent: Consul, lane: Lane, door: Beside) -> None:
    """On loopback: whoever set Consul's URL is an administrator, so its private addresses may be called."""
    with Participant() as participant:
        agent.put("shop", "shop-1", Address="127.0.0.1", Port=participant.port)
        wait(lambda: bool(ids(lane, "shop")))
        steps = [{"name": "pay", "service": "shop", "action": "/pay"}]
        saga = lane("sagas.start", name="order", steps=steps, wait_seconds=10)
    assert saga["status"] == "succeeded"


# -- through what goes wrong ---------------------------------------------------------------------------


def test_while_consul_is_away_what_was_imported_stays_and_is_right_again_afterwards(
    agent: Consul, lane: Lane, door: Beside
) -> None:
    agent.put("redis", "redis-1")
    agent.put("redis", "redis-2")
    wait(lambda: len(ids(lane)) == 2)
    agent.stop()
    time.sleep(2.5)  # longer than its time to live
    assert len(ids(lane)) == 2
    agent.drop("redis-1")
    agent.index = 3  # restored from an old state: lower than what was seen
    agent.start()
    wait(lambda: ids(lane) == {"consul:node-a:redis-2"})
    agent.put("redis", "redis-3")
    wait(lambda: ids(lane) == {"consul:node-a:redis-2", "consul:node-a:redis-3"})


def test_what_was_imported_goes_when_consul_stays_away(
    agent: Consul, lane: Lane, served: Served, settings: Any
) -> None:
    settings.DISCOVERY_CONSUL_KEEP_SECONDS = 2
    agent.put("redis", "redis-1")
    with Beside(served):
        wait(lambda: bool(ids(lane)))
        agent.stop()
        wait(lambda: not ids(lane))
        agent.start()
        wait(lambda: bool(ids(lane)))


def test_an_index_that_goes_back_begins_anew(agent: Consul, lane: Lane, door: Beside) -> None:
    agent.change(5000)
    agent.put("redis", "redis-1")
    wait(lambda: bool(ids(lane)))
    agent.services.clear()
    agent.put("redis", "redis-2")
    agent.change(7)
    agent.requests.clear()
    agent.fault = lambda path: b""  # hangs up: the next question is without an index
    agent.change(6000)
    wait(lambda: len(agent.requests) > 3)
    agent.change(7)
    agent.fault = lambda path: None
    wait(lambda: ids(lane) == {"consul:node-a:redis-2"})
    agent.put("redis", "redis-3")
    wait(lambda: len(ids(lane)) == 2)


GARBAGE: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "nothing": b"",
    "no JSON": b"HTTP/1.1 200 OK\r\nX-Consul-Index: 99\r\nContent-Length: 3\r\n\r\n[[[",
    "another form": b"HTTP/1.1 200 OK\r\nX-Consul-Index: 99\r\nContent-Length: 4\r\n\r\nnull",
    "half": b"HTTP/1.1 200 OK\r\nX-Consul-Index: 99\r\nContent-Length: 900\r\n\r\n[]",
    "a failure": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 17\r\n\r\nNo cluster leader",
    "no leader": (
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 99\r\nX-Consul-KnownLeader: false\r\nContent-Length: 2\r\n\r\n{}"
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_drops_nothing(agent: Consul, lane: Lane, door: Beside, kind: str) -> None:
    agent.put("redis", "redis-1")
    wait(lambda: bool(ids(lane)))
    agent.fault = lambda path: GARBAGE[kind]
    agent.change()
    agent.requests.clear()
    wait(lambda: len(agent.requests) > 5)
    assert ids(lane) == {"consul:node-a:redis-1"}
    agent.fault = lambda path: None
    agent.put("redis", "redis-2")
    wait(lambda: len(ids(lane)) == 2)


def test_answers_that_do_not_come_drop_nothing(
    agent: Consul, lane: Lane, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_door, "WAIT_SECONDS", 1)
    monkeypatch.setattr(consul_door, "LATE_SECONDS", 0.2)

    def slow(path: str) -> bytes | None:
        if path.startswith("health/"):
            time.sleep(3)
        return None

    agent.put("redis", "redis-1")
    with Beside(served):
        wait(lambda: bool(ids(lane)))
        agent.fault = slow
        agent.requests.clear()
        wait(lambda: any("health/" in path for path, _ in agent.requests))
        agent.put("redis", "redis-2")
        time.sleep(2)
        assert ids(lane) == {"consul:node-a:redis-1"}
        agent.fault = lambda path: None
        wait(lambda: len(ids(lane)) == 2)


def test_more_services_than_queries_take_turns(
    agent: Consul, lane: Lane, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_door, "AT_ONCE", 2)
    monkeypatch.setattr(consul_door, "SHORT_WAIT_SECONDS", 1)
    for n in range(6):
        agent.put(f"service-{n}", f"one-{n}")
    with Beside(served):
        wait(lambda: all(ids(lane, f"service-{n}") for n in range(6)))
        for n in range(6):
            agent.turn(f"one-{n}", "critical")
        wait(lambda: not any(ids(lane, f"service-{n}") for n in range(6)), 30)


def test_entries_that_are_none_are_left_out() -> None:
    good = {"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": {"ID": "a", "Port": 1}}
    odd: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        {"Node": None, "Service": {}},
        {"Node": {"Node": 1}, "Service": 2},
    ]
    odd += [{**good, "Service": {"ID": "a", "Port": port}} for port in (None, "80", 1.5, -1, 70_000, True)]
    odd += [
        {**good, "Service": {"ID": "a", "Port": 1, key: 7}} for key in ("Meta", "Tags", "Weights", "Address")
    ]
    found = consul.instances("redis", [*odd, good], 30.0)
    assert list(found) == ["consul:n:a"]
    assert found["consul:n:a"]["port"] == 1


@pytest.mark.parametrize(
    ("answers", "values"), [([5, 9, 4, 6], [5, 9, 0, 6]), ([0, 3, 0, 3], [1, 3, 0, 3]), ([7, 7], [7, 7])]
)
def test_where_a_blocking_query_goes_on(answers: list[int], values: list[int]) -> None:
    index, seen = consul.Index(), []
    for each in answers:
        index.follow(each)
        seen.append(index.value)
    assert seen == values


def test_a_catalogue_that_changes_all_the_time_is_not_asked_all_the_time(
    agent: Consul, lane: Lane, door: Beside
) -> None:
    agent.put("redis", "redis-1")
    wait(lambda: bool(ids(lane)))
    agent.requests.clear()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        agent.change()
        time.sleep(0.01)
    assert len(agent.requests) < 20  # of two queries, each five at once and then one in two seconds


# -- one process imports -----------------------------------------------------------------------------


def test_one_imports_and_when_it_stops_another_does(agent: Consul, lane: Lane, served: Served) -> None:
    agent.put("redis", "redis-1")
    first = Beside(served).__enter__()
    wait(lambda: bool(ids(lane)))
    agent.requests.clear()
    with Beside(served):
        time.sleep(1)
        assert agent.requests == [], "the second looks on"
        first.__exit__()
        agent.put("redis", "redis-2")
        agent.drop("redis-1")
        wait(lambda: ids(lane) == {"consul:node-a:redis-2"})


def test_who_has_lost_the_lock_imports_no_more(agent: Consul, lane: Lane, served: Served) -> None:
    agent.put("redis", "redis-1")
    with Beside(served):
        wait(lambda: bool(ids(lane)))
        lane("locks.force_release", key="syros.consul", reason="somebody else is to import")
        lane("locks.acquire", key="syros.consul", owner="somebody else", ttl_seconds=60)
        agent.put("redis", "redis-2")
        wait(lambda: not ids(lane))  # nobody keeps it
        asked = len(agent.requests)
        time.sleep(1)
        assert len(agent.requests) == asked


def test_what_left_consul_while_nobody_imported_goes(agent: Consul, lane: Lane, served: Served) -> None:
    agent.put("redis", "redis-1")
    agent.put("gone", "gone-1")
    with Beside(served):
        wait(lambda: bool(ids(lane)) and bool(ids(lane, "gone")))
    agent.drop("gone-1")
    with Beside(served):
        wait(lambda: not ids(lane, "gone"), 1.5)  # not because its time was over
    assert ids(lane) == {"consul:node-a:redis-1"}


def test_without_a_namespace_to_import_into_nothing_is_asked(
    agent: Consul, served: Served, settings: Any
) -> None:
    for name in ("", "not-there"):
        settings.DISCOVERY_CONSUL_NAMESPACE = name
        with Beside(served):
            time.sleep(0.5)
    with Beside(served, imports=False):
        time.sleep(0.2)
    assert agent.requests == []


# -- Syros in Consul ---------------------------------------------------------------------------------


def own(agent: Consul) -> list[Any]:
    return [each for each in agent.services.values() if each.about["Service"] == "syros"]


def test_syros_is_registered_kept_and_taken_out(agent: Consul, served: Served, settings: Any) -> None:
    settings.DISCOVERY_CONSUL_ADDRESS = "10.9.9.9"
    with Beside(served, port=8080, imports=False):
        wait(lambda: len(own(agent)) == 1)
        (found,) = own(agent)
        assert (found.about["Port"], found.about["Address"], found.ttl) == (8080, "10.9.9.9", 30.0)
        passed_at = found.passed_at
        wait(lambda: found.passed_at > passed_at)
        assert found.health == "passing"
    assert own(agent) == []


def test_syros_is_registered_again_when_consul_forgot_it_or_comes_back(agent: Consul, served: Served) -> None:
    with Beside(served, port=8080, imports=False):
        wait(lambda: bool(own(agent)))
        agent.services.clear()
        wait(lambda: bool(own(agent)))
        agent.stop()
        agent.services.clear()
        time.sleep(0.5)
        agent.start()
        wait(lambda: bool(own(agent)))


def test_syros_is_critical_while_its_database_is_away(
    agent: Consul, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.errors import Unavailable

    async def away(*args: Any) -> Any:
        raise Unavailable

    with Beside(served, port=8080, imports=False):
        wait(lambda: [each.health for each in own(agent)] == ["passing"])
        monkeypatch.setattr(consul_door, "rows", away)
        wait(lambda: [each.health for each in own(agent)] == ["critical"])


def test_a_consul_that_refuses_or_is_not_there_stops_nothing(agent: Consul, served: Served) -> None:
    agent.token = "another"
    with Beside(served, port=8080) as beside:
        wait(lambda: len(agent.requests) > 4)
        agent.stop()
        time.sleep(0.5)
        assert not beside.task.done()


@pytest.mark.parametrize(
    "url", ["consul", "127.0.0.1:8500", "ftp://consul", "http://", "http://consul:port", "http://a?b"]
)
def test_a_url_that_is_none_is_named(url: str, settings: Any) -> None:
    from core.management.commands.serve import open_doors

    settings.DISCOVERY_CONSUL_URL = url
    options = {"role": "worker", "host": "127.0.0.1", "port": 1, "grpc_port": 0, "dns_port": 0}
    with pytest.raises(CommandError, match=r"DISCOVERY_CONSUL_URL|[Pp]ort"):
        open_doors([], options)
