"""Following an etcd: Debian's, in a process of its own."""

import asyncio
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers import Etcd
from config.errors import MirrorMoved
from config.mirror import Mirror, below, follow_etcd
from config.models import Mirror as Row
from tests.doors import Lane, Refused, Served, free_port
from tests.test_config import refusal
from tests.test_locks import until

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")


class Followed(Etcd):
    """On ports that nobody is given while it is away."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.url, self._peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Followed(tmp_path_factory.mktemp("etcd")) as found:
        yield found


def encoded(text: str | bytes) -> str:
    return b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def ask(etcd: Etcd, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{etcd.url}/v3/{path}", json=body, timeout=10)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


class House:
    """A prefix of etcd of this test's own, and who follows it."""

    def __init__(self, etcd: Etcd, lane: Lane) -> None:
        self.etcd, self.lane, self.prefix, self.into = etcd, lane, f"/{lane.namespace}/", "etcd/"

    def put(self, key: str, value: str | bytes) -> None:
        ask(self.etcd, "kv/put", key=encoded(self.prefix + key), value=encoded(value))

    def delete(self, key: str) -> None:
        ask(self.etcd, "kv/deleterange", key=encoded(self.prefix + key))

    def compact(self) -> None:
        now = ask(self.etcd, "kv/range", key=encoded("x"))["header"]["revision"]
        ask(self.etcd, "kv/compaction", revision=now, physical=True)

    @contextmanager
    def followed(self) -> Iterator["Future[None]"]:
        """While this lasts, somebody follows, through outages."""

        async def follow() -> None:
            while True:
                try:
                    await Mirror(self.etcd.url, self.prefix, self.into, self.lane.namespace).follow()
                except Exception as error:
                    if isinstance(error, MirrorMoved):
                        raise
                await asyncio.sleep(0.1)

        task = asyncio.run_coroutine_threadsafe(follow(), self.lane.served.loop)
        try:
            yield task
        finally:
            task.cancel()
            time.sleep(0.1)

    def values(self) -> dict[str, Any]:
        return {item["key"]: item["value"] for item in self.lane("config.find")["items"]}


@pytest.fixture
def house(etcd: Etcd, lane: Lane) -> House:
    return House(etcd, lane)


def test_what_is_there_and_what_comes_is_followed(house: House) -> None:
    house.put("db", '{"url": "x"}')
    house.put("limits/a", "7")
    house.put("name", "no json")
    house.put("odd", b"\xff\xfe")
    house.put("no name", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/db": {"url": "x"}, "etcd/limits/a": 7, "etcd/name": "no json"})
        state = house.lane("config.get", key="etcd/db").value
        assert (state["source"], state["changed_by"]) == ("etcd", "system")
        house.put("db", '{"url": "y"}')
        house.delete("name")
        until(lambda: house.values() == {"etcd/db": {"url": "y"}, "etcd/limits/a": 7})
    items = house.lane("config.history", key="etcd/db")["items"]
    assert [(item["change"], item["value"]) for item in items] == [
        ("put", {"url": "y"}),
        ("put", {"url": "x"}),
    ]


def test_etcd_alone_changes_what_follows_it_until_it_is_adopted(house: House) -> None:
    lane = house.lane
    lane("config.put", key="etcd/a", value="ours")
    house.put("a", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 1})
    for operation, params in (
        ("config.put", {"value": 2}), ("config.delete", {}), ("config.rollback", {"revision": 1}),
    ):  # fmt: skip
        refused = refusal(lane, operation, key="etcd/a", **params)
        assert (refused.status, refused.code, refused.problem["source"]) == (409, "read_only_config", "etcd")
    lane("config.adopt", key="etcd/a", reason="etcd is gone")
    lane("config.rollback", key="etcd/a", revision=1)
    assert house.values() == {"etcd/a": "ours"}


def test_who_was_away_goes_on_where_it_was(house: House) -> None:
    house.put("a", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 1})
    house.put("a", "2")
    house.put("a", "3")
    house.put("b", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 3, "etcd/b": 1})
    items = house.lane("config.history", key="etcd/a")["items"]
    assert [item["value"] for item in items] == [3, 2, 1]


def test_what_was_compacted_meanwhile_is_read_anew(house: House) -> None:
    for key in "abc":
        house.put(key, "1")
    with house.followed():
        until(lambda: len(house.values()) == 3)
    house.put("a", "2")
    house.delete("b")
    house.put("d", "1")
    house.compact()
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 2, "etcd/c": 1, "etcd/d": 1})
        house.put("a", "3")
        until(lambda: house.values()["etcd/a"] == 3)
    assert house.lane("config.get", key="etcd/c")["revision"] == 1  # what is the same is left alone


def test_etcd_goes_away_and_comes_back(house: House) -> None:
    house.put("a", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 1})
        house.etcd._stop()
        time.sleep(0.3)
        house.etcd._start()
        house.put("a", "2")
        until(lambda: house.values() == {"etcd/a": 2}, 20)


def test_another_etcd_is_read_anew_wherever_its_revisions_are(house: House, tmp_path: Path) -> None:
    first = house.etcd
    for n in range(5):
        house.put("a", str(n))
    house.put("gone", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 4, "etcd/gone": 1})
    with Followed(tmp_path) as house.etcd:
        house.put("a", "7")
        house.put("b", "7")
        with house.followed():
            until(lambda: house.values() == {"etcd/a": 7, "etcd/b": 7})
        house.etcd._stop()  # and comes back without its data: the same cluster by its id
        shutil.rmtree(tmp_path / "etcd")
        house.etcd._start()
        with house.followed():
            until(lambda: house.values() == {})
            house.put("c", "8")
            until(lambda: house.values() == {"etcd/c": 8})
    house.etcd = first  # which is further
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 4, "etcd/gone": 1})


def test_another_prefix_and_another_place_for_it_begin_anew(house: House) -> None:
    first, second = house.prefix, f"/{house.lane.namespace}-other/"
    house.put("a", "1")
    house.put("b", "1")
    house.prefix = second
    house.put("a", "2")
    house.prefix = first
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 1, "etcd/b": 1})
    house.prefix = second
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 2})
    house.into = "from/"
    with house.followed():
        until(lambda: house.values() == {"from/a": 2})


def test_a_key_that_differs_by_a_slash_is_not_taken_for_another(house: House) -> None:
    house.put("x", "1")
    house.put("/x", "2")  # which no key here can be called
    with house.followed():
        until(lambda: house.values() == {"etcd/x": 1})
        house.delete("/x")
        house.put("last", "1")
        until(lambda: house.values() == {"etcd/x": 1, "etcd/last": 1})
    assert [below(b"p", key) for key in (b"p/x", b"p//x", b"px")] == ["x", "/x", "x"]


def test_a_thousand_keys_come_page_by_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.etcd.PAGE", 7)
    monkeypatch.setattr("config.mirror.AT_ONCE", 10)
    for n in range(50):
        house.put(f"k{n:03}", str(n))
    with house.followed():
        until(lambda: house.values() == {f"etcd/k{n:03}": n for n in range(50)})


def test_one_process_at_a_time_follows(house: House) -> None:
    from core.runtime import runtime

    address = f"{house.lane.namespace}/etcd"
    house.put("a", "1")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 1})
        assert runtime.engine
        assert Row.objects.get(id=address).owner == runtime.engine.process_id
    Row.objects.filter(id=address).update(owner="a process that is gone")
    house.put("a", "2")
    with house.followed():
        until(lambda: house.values() == {"etcd/a": 2})


def test_a_process_does_not_take_over_from_one_that_lives(house: House) -> None:
    from core.models import Process

    address = f"{house.lane.namespace}/etcd"
    house.lane("config.put", key="b", value=1)
    house.lane("config.delete", key="b")
    until(Process.objects.exists)  # a process says that it lives when it has something to do
    mine = Process.objects.order_by("-expires_at").first()
    assert mine
    other = Process.objects.create(
        id=f"{mine.id}-twin",
        host="x",
        pid=1,
        started_at=mine.started_at,
        beat_at=mine.beat_at,
        expires_at="2100-01-01T00:00:00Z",
    )
    try:
        Row.objects.create(id=address, revision=0, owner=other.id)
        house.put("a", "1")
        with house.followed() as task, pytest.raises(MirrorMoved):
            task.result(10)
        assert house.values() == {}
    finally:
        other.delete()


def test_a_serving_process_follows_by_its_settings(house: House, settings: Any, served: Served) -> None:
    house.put("a", "1")
    settings.CONFIG_ETCD_PREFIX, settings.CONFIG_ETCD_INTO = house.prefix, "from/"
    settings.CONFIG_ETCD_NAMESPACE = house.lane.namespace
    settings.CONFIG_ETCD_URL = house.etcd.url
    task = asyncio.run_coroutine_threadsafe(follow_etcd(), served.loop)
    until(lambda: house.values() == {"from/a": 1})
    settings.CONFIG_ETCD_URL = ""
    task.cancel()


def test_a_silent_etcd_is_not_away_and_each_outage_is_told_of_once(
    house: House,
    settings: Any,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def follow(url: str) -> list[str]:
        caplog.clear()
        settings.CONFIG_ETCD_URL = url
        asyncio.run_coroutine_threadsafe(follow_etcd(), served.loop).result(20)
        return [record.message for record in caplog.records if record.name == "syros.etcd"]

    monkeypatch.setattr("config.etcd.SILENCE_SECONDS", 0.2)
    settings.CONFIG_ETCD_PREFIX, settings.CONFIG_ETCD_NAMESPACE = house.prefix, house.lane.namespace
    for _ in range(2):
        assert [len(follow("http://127.0.0.1:1")) for _ in range(2)] == [1, 0]
        assert follow(house.etcd.url) == follow(house.etcd.url) == []
    house.put("a", "1")
    assert follow(house.etcd.url) == []
    assert house.values() == {"etcd/a": 1}


def test_an_etcd_that_is_not_there_hurts_nobody(lane: Lane, settings: Any, served: Served) -> None:
    settings.CONFIG_ETCD_NAMESPACE, settings.CONFIG_ETCD_URL = lane.namespace, "http://127.0.0.1:1"
    asyncio.run_coroutine_threadsafe(follow_etcd(), served.loop).result(20)
    with pytest.raises(Refused, match="config_not_found"):
        lane("config.get", key="a")
