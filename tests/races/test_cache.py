"""Nothing is served that was acknowledged to be old: whoever reads, loads and invalidates at once, and whatever becomes
of Redis meanwhile."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from core.cluster import slot_of
from tests.faults.house import House
from tests.faults.link import Link
from tests.races.cache_bugs import BUGS
from tests.races.cachers import Board
from tests.races.client import Client
from tests.races.nodes import Node, Nodes
from tests.races.processes import ROOT, Syros, eventually, new_namespace, run, serving, until

SECONDS = 9.0
ROUNDS = 5  # in which a bug has to be found
LONG = 5_000_000  # reads
OFTEN = 30  # that servers are emptied, and killed, while these go on


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    var = Path(tempfile.mkdtemp(prefix="syros-cache-"))
    found = House(var).start()
    yield found
    found.stop()
    shutil.rmtree(var)


@pytest.fixture(scope="module")
def syros(house: House) -> Iterator[list[Syros]]:
    """Two processes."""
    found = [Syros(house.environ, name) for name in ("a", "b")]
    try:
        for process in found:
            process.spawn()
        for process in found:
            process.wait_ready()
        yield found
    finally:
        for process in found:
            process.end()


class Race:
    """Processes that read and change for a while."""

    def __init__(
        self, house: House, syros: Sequence[Syros], namespace: str, seconds: float, reads: int = 10**9
    ) -> None:
        self.board = house.var / f"{namespace}.board"
        self.until = time.time() + seconds
        about = {
            "board": str(self.board), "ports": [process.port for process in syros], "namespace": namespace,
            "until": self.until, "pause": 0.02,
        }  # fmt: skip
        Board(self.board)
        roles = [("read", 12, reads // 2), ("read", 12, reads // 2), ("change", 3, 10**9)]
        self.processes = [
            self.spawn({**about, "role": role, "workers": workers, "reads": most, "seed": number})
            for number, (role, workers, most) in enumerate(roles)
        ]

    @staticmethod
    def spawn(about: dict[str, Any]) -> "subprocess.Popen[str]":
        line = [sys.executable, "-m", "tests.races.cachers", json.dumps(about)]
        return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    @property
    def is_on(self) -> bool:
        return any(process.poll() is None for process in self.processes[:2])

    def results(self) -> dict[str, Any]:
        """All that was seen, added up."""
        for process in self.processes[:2]:
            process.wait()
        found: dict[str, Any] = {}
        for process in self.processes:
            if process is self.processes[2] and process.poll() is None and time.time() < self.until:
                process.terminate()
                process.wait()
                continue
            out, _ = process.communicate(timeout=60)
            for name, value in json.loads(out).items():
                found[name] = found.get(name, type(value)()) + value
        return {**found, "changes": sum(Board(self.board).acknowledged())}


def torment(house: House, race: Race) -> tuple[int, int]:
    """FLUSHALL and kill -9 of Redis, again and again while the race is on."""
    flushed = killed = 0
    chance = random.Random(7)
    with redis.from_url(house.valkey.url) as store:
        while race.is_on:
            time.sleep(0.3 + chance.random())
            try:
                if chance.random() < 0.7:
                    store.flushall()
                    flushed += 1
                else:
                    with house.away(house.valkey, signal.SIGKILL):
                        time.sleep(chance.random() * 0.5)
                    killed += 1
            except redis.RedisError:
                continue
    return flushed, killed


@pytest.fixture(scope="module")
def nodes(house: House) -> Iterator[Nodes]:
    found = Nodes(Path(tempfile.mkdtemp(prefix="syros-nodes-", dir=house.var))).start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def clustered(house: House, nodes: Nodes) -> Iterator[list[Syros]]:
    """Two processes that know one node of a cluster."""
    with serving({**house.environ, "REDIS_URL": nodes.url}, "c1", "c2") as found:
        yield found


def torment_nodes(nodes: Sequence[Node], races: Sequence[Race]) -> tuple[int, int]:
    flushed = killed = 0
    chance = random.Random(7)
    while any(race.is_on for race in races):
        time.sleep(0.5 + chance.random())
        node = chance.choice(nodes)
        if chance.random() < 0.6:
            node.ask("FLUSHALL")
            flushed += 1
        else:
            node.kill()
            time.sleep(chance.random() * 0.5)
            node.start()
            killed += 1
    return flushed, killed


def check(found: dict[str, Any]) -> None:
    assert found["stale"] == []
    assert min(found["hits"], found["loads"], found["refused"]) > 20, found


def test_nothing_old_is_served_while_all_is_well(house: House, syros: list[Syros]) -> None:
    check(Race(house, syros, new_namespace(house.postgres.url), SECONDS / 2).results())


def test_nothing_old_is_served_whatever_becomes_of_redis(house: House, syros: list[Syros]) -> None:
    race = Race(house, syros, new_namespace(house.postgres.url), SECONDS)
    flushed, killed = torment(house, race)
    found = race.results()
    check(found)
    assert min(flushed, killed, found["changes"], found["unavailable"]) > 0, found


@pytest.mark.parametrize("number", [0, 2])
def test_nothing_old_is_served_by_a_cluster(
    house: House, clustered: list[Syros], nodes: Nodes, number: int
) -> None:
    """The node that is killed has the namespace; once it is also the one that the processes were told of."""
    node = nodes.nodes[number]
    race = Race(house, clustered, namespace_of(house, nodes, node), SECONDS)
    flushed, killed = torment_nodes([node], [race])
    found = race.results()
    check(found)
    assert min(flushed, killed, found["changes"], found["unavailable"]) > 0, found


@pytest.mark.long
def test_nothing_old_is_served_by_a_cluster_in_millions_of_reads(
    house: House, clustered: list[Syros], nodes: Nodes
) -> None:
    """A namespace on each node, and each node is killed now and then."""
    namespaces = [namespace_of(house, nodes, node) for node in nodes.nodes]
    races = [Race(house, clustered, name, 3600, LONG // len(namespaces) + 100) for name in namespaces]
    flushed, killed = torment_nodes(nodes.nodes, races)
    found = [race.results() for race in races]
    for each in found:
        check(each)
        assert min(each["changes"], each["unavailable"]) > 0, each
    assert min(flushed, killed) > OFTEN
    assert sum(each["reads"] for each in found) >= LONG


def namespace_of(house: House, nodes: Nodes, node: Node) -> str:
    """A new one, whose values this node has."""
    return next(
        name
        for name in (new_namespace(house.postgres.url) for _ in range(100))
        if nodes.owner(slot_of(f"{{{identity(house)}/{name}/0}}")) is node
    )


def identity(house: House) -> str:
    ((found,),) = house.query("select identity from syros.core_cluster")
    return str(found.hex[:12])


def test_a_slot_that_moved_to_another_node_is_followed(
    house: House, clustered: list[Syros], nodes: Nodes
) -> None:
    namespace = new_namespace(house.postgres.url)
    slot = slot_of(f"{{{identity(house)}/{namespace}/0}}")
    until(nodes.are_whole, what="the cluster whole")
    source = nodes.owner(slot)
    target = next(node for node in nodes.nodes if node is not source)

    async def story() -> None:
        async with Client(clustered[0].port, namespace) as a, Client(clustered[1].port, namespace) as b:
            assert (await a.call("PUT", "cache/k", {"value": "old", "tags": ["red"]})).status == 200
            assert (await b.call("GET", "cache/k"))["value"] == "old"
            source_id, target_id = (node.ask("CLUSTER", "MYID") for node in (source, target))
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            names = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *names)
            assert (await b.call("POST", "cache/invalidate", {"tags": ["red"]})).status == 503
            for node in (target, source):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

            async def works() -> bool:
                reply = await a.call("PUT", "cache/j", {"value": 1})
                assert (await b.call("GET", "cache/k")).code == "cache_miss"
                return bool(reply["stored"])

            await eventually(works, 10)
            assert (await b.call("GET", "cache/j"))["value"] == 1

    run(story())


@pytest.mark.long
def test_nothing_old_is_served_in_millions_of_reads(house: House, syros: list[Syros]) -> None:
    race = Race(house, syros, new_namespace(house.postgres.url), 3600, LONG)
    flushed, killed = torment(house, race)
    found = race.results()
    check(found)
    assert min(flushed, killed) > OFTEN
    assert found["reads"] >= LONG


def hunt(house: House, syros: Syros, bug: str) -> list[str]:
    """What is found of a bug: a slow machine gets through few loads in one race."""
    for _ in range(ROUNDS):
        race = Race(house, [syros], new_namespace(house.postgres.url, bug), SECONDS / 2)
        if found := race.results()["stale"]:
            return list(found)
    return []


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(house: House, bug: str) -> None:
    syros = Syros(house.environ, "buggy", manage=[sys.executable, "-m", "tests.races.cache_bugs"])
    try:
        syros.start()
        found = hunt(house, syros, bug)
        healthy = Race(house, [syros], new_namespace(house.postgres.url, "none"), SECONDS / 2).results()
    finally:
        syros.end()
    assert found, "nobody noticed"
    assert healthy["stale"] == []


def test_what_redis_had_on_its_disk_is_not_served(house: House, syros: list[Syros]) -> None:
    """The dump is from before the invalidation; so are the value and the clocks in it."""

    async def story() -> None:
        namespace = new_namespace(house.postgres.url)
        async with Client(syros[0].port, namespace) as a, Client(syros[1].port, namespace) as b:
            await a.call("PUT", "cache/k", {"value": "old", "tags": ["red"]})
            with redis.from_url(house.valkey.url) as store:
                store.save()
            assert (await b.call("POST", "cache/invalidate", {"tags": ["red"]})).status == 200
            with house.away(house.valkey, signal.SIGKILL):
                pass
            with redis.from_url(house.valkey.url) as store:
                assert list(store.scan_iter(f"*{namespace}*:item:k")), "the dump was not loaded"

            async def answers() -> bool:
                reply = await a.call("GET", "cache/k")
                assert reply.code == "cache_miss", reply.value
                return reply["as_of"] is not None

            await eventually(answers)
            assert (await b.call("GET", "cache/k")).code == "cache_miss"

    run(story())
    (house.valkey.folder / "dump.rdb").unlink()


def test_a_put_that_came_too_late_replaces_nothing(house: House, syros: list[Syros]) -> None:
    """The way to Redis is cut; what was on it arrives when its sender has given it up and others have gone on."""
    namespace = new_namespace(house.postgres.url)

    async def story(link: Link, far: Syros) -> None:
        async with Client(far.port, namespace) as lost, Client(syros[0].port, namespace) as other:

            async def is_back() -> bool:
                return bool((await lost.call("PUT", "cache/j", {"value": 1}))["stored"])

            assert await is_back()
            with link.cut():
                assert not (await lost.call("PUT", "cache/k", {"value": "late"}))["stored"]
                assert (await other.call("PUT", "cache/k", {"value": "new"}))["stored"]
            await eventually(is_back)
            await asyncio.sleep(0.5)  # that came by another connection
            assert (await lost.call("GET", "cache/k"))["value"] == "new"

    with Link(house.valkey.socket) as link:
        redis_url = f"redis://127.0.0.1:{link.port}"
        with serving({**house.environ, "REDIS_URL": redis_url}, "far") as (far,):
            run(story(link, far))


def test_an_invalidation_that_redis_missed_is_applied_when_it_is_back(
    house: House, syros: list[Syros]
) -> None:
    """Redis keeps what it has, because it only stands still; who asked was told 503."""

    async def story() -> None:
        namespace = new_namespace(house.postgres.url)
        async with Client(syros[0].port, namespace) as a, Client(syros[1].port, namespace) as b:
            await a.call("PUT", "cache/k", {"value": "old", "tags": ["red"]})
            await a.call("PUT", "cache/other", {"value": "old", "tags": ["blue"]})
            with house.frozen(house.valkey):
                reply = await a.call("POST", "cache/invalidate", {"tags": ["red"]})
                assert (reply.status, reply.code, reply["retryable"]) == (503, "unavailable", True)
                assert reply.headers["retry-after"] == "1"
                assert (await b.call("GET", "cache/k"))["as_of"] is None
                put = await b.call("PUT", "cache/k", {"value": "new"})
                assert (put.status, put["stored"], put["expires_at"]) == (200, False, None)
            (event,) = (await a.call("GET", "events", query={"system": "true"}))["events"]
            assert event["data"] == {"tags": ["red"], "mode": "hard"}

            async def is_gone() -> bool:
                return (await b.call("GET", "cache/k")).code == "cache_miss"

            await eventually(is_gone, 10)

            async def is_there() -> bool:
                return (await b.call("GET", "cache/other")).status == 200

            await eventually(is_there, 10)

    run(story())


def test_a_namespace_may_want_to_hear_that_redis_is_away(house: House, syros: list[Syros]) -> None:
    async def story() -> None:
        namespace = new_namespace(house.postgres.url)
        async with Client(syros[0].port, namespace) as a:
            await a.call("PUT", "caches", {"on_error": "error"})
            with house.frozen(house.valkey):
                for method, path, body in (
                    ("GET", "cache/k", None),
                    ("PUT", "cache/k", {"value": 1}),
                    ("POST", "cache/get-many", {"keys": ["k"]}),
                    ("POST", "cache/put-many", {"items": [{"key": "k", "value": 1}]}),
                    ("DELETE", "cache/k", None),
                    ("POST", "cache/k/incr", {}),
                ):
                    reply = await a.call(method, path, body)
                    assert (reply.status, reply.code) == (503, "unavailable"), path

            async def heals() -> bool:
                return (await a.call("PUT", "cache/k", {"value": 1})).status == 200

            await eventually(heals, 10)
            errors = (await a.call("GET", "cache/stats"))["errors"]
            assert errors >= 4

    run(story())
