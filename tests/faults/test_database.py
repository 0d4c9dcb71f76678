"""PostgreSQL away, restarted, frozen: callers get an answer, never a wrong one, and work goes on by itself."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any, LiteralString

import pytest

from tests.faults.house import Couple, House
from tests.faults.load import PAUSE, Load, check_answer
from tests.races.client import Client, Reply
from tests.races.processes import Syros, eventually, run

BACK = 5.0  # seconds after the database's return in which everything works again
BUSY = 1.5  # seconds that a busy machine may take on top
RESTARTS = {"fast": signal.SIGINT, "killed": signal.SIGKILL}

# One of each kind of operation there is: in the engine and beside it, through the lane and through Django.
PROBES: dict[str, tuple[str, str, Any]] = {
    "acquire": ("POST", "locks", {"key": "probe", "owner": "me", "ttl_seconds": 0.1}),
    "lock": ("GET", "locks/probe", None),
    "locks": ("GET", "locks", None),
    "append": ("POST", "events/probe", {"event_type": "t", "data": 1}),
    "append_many": (
        "POST",
        "events/batch",
        {"appends": [{"stream_id": "probe", "events": [{"event_type": "t", "data": 1}]}]},
    ),
    "read": ("GET", "events/probe", None),
    "read_all": ("GET", "events", None),
    "login": ("POST", "auth/login", {"username": "nobody", "password": "wrong"}),
    "whoami": ("GET", "auth/whoami", None),
}
FINE = {"login": 401}  # where not 2xx or 409


async def probe(client: Client, name: str, **more: Any) -> Reply:
    method, path, body = PROBES[name]
    return await client.call(method, path, body, seconds=30, **more)


def is_fine(name: str, reply: Reply) -> bool:
    return reply.status == FINE.get(name, reply.status) and reply.status < 500


class Prober:
    """Asks for one thing again and again; notes every answer and when it came."""

    def __init__(self, name: str, process: Syros, client: Client) -> None:
        self.name, self.process, self.client = name, process, client
        self.answers: list[tuple[float, Reply]] = []
        self.stopped = False

    async def ask(self) -> None:
        while not self.stopped:
            reply = await probe(self.client, self.name)
            self.answers.append((time.monotonic(), reply))
            await asyncio.sleep(PAUSE)
        self.client.hang_up()

    def check(self, back_at: float) -> None:
        who = f"{self.name} in {self.process.name}"
        for _, reply in self.answers:
            if not is_fine(self.name, reply):
                assert reply.status == 503, f"{who}: {reply.value}"
                check_answer(reply)
        late = [
            reply.value for at, reply in self.answers if at > back_at + BACK + BUSY and reply.status == 503
        ]
        assert not late, f"{who}: still refused {BACK} s after the database's return: {late[0]}"
        assert is_fine(self.name, self.answers[-1][1])


@pytest.mark.parametrize("how", RESTARTS)
def test_the_database_is_restarted_under_load(couple: Couple, how: str) -> None:
    house = couple.house

    async def story() -> None:
        load = Load(couple)
        probers = [Prober(name, each, couple.client(each)) for name in PROBES for each in couple.both]
        async with load.running(lockers=4, writers=4):
            asking = [asyncio.create_task(prober.ask()) for prober in probers]
            await asyncio.sleep(0.7)
            await asyncio.to_thread(house.hit, house.postgres, RESTARTS[how])
            await asyncio.sleep(0.3)  # the watch sees it and starts it again
            back_at = await asyncio.to_thread(house.wait_for, house.postgres)
            for process in couple.both:
                await serves_again(load, process, back_at)
            await asyncio.sleep(back_at + BACK + BUSY + 0.5 - time.monotonic())
            for prober in probers:
                prober.stopped = True
            await asyncio.gather(*asking)
        for prober in probers:
            prober.check(back_at)
        assert load.outcomes["unavailable"] + load.outcomes["outcome_unknown"], load.outcomes
        await load.check(but="probe")

    run(story())


async def serves_again(load: Load, process: Syros, back_at: float) -> None:
    async def served() -> bool:
        return bool(load.answers_since(process, back_at))

    await eventually(served, back_at + BACK + BUSY - time.monotonic())


def test_who_comes_after_a_restart_notices_nothing(couple: Couple) -> None:
    """Every pooled connection has died; callers do not pay for that."""
    house, crowd = couple.house, 10

    async def ask_all(clients: list[Client]) -> None:
        for name in PROBES:
            replies = await asyncio.gather(*(probe(client, name) for client in clients))
            assert all(is_fine(name, reply) for reply in replies), (name, [r.value for r in replies])

    async def story() -> None:
        clients = [couple.client(couple.a) for _ in range(crowd)]
        await ask_all(clients)
        await asyncio.to_thread(house.hit, house.postgres, signal.SIGINT)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(house.wait_for, house.postgres)
        await asyncio.sleep(BACK)
        await ask_all(clients)
        for client in clients:
            client.hang_up()

    run(story())


# -- an outcome that nobody knows --------------------------------------------------------------------


class Hanging:
    """Commits that are written and then wait for a standby that never comes."""

    def __init__(self, house: House) -> None:
        self.house = house

    def begin(self) -> None:
        self._alter("alter system set synchronous_standby_names = 'nobody'")

    def end(self) -> None:
        """Break the connections whose commits hang; from then on commits end again."""
        with self.house.connect() as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event = 'SyncRep'"
            )
        self._alter("alter system reset synchronous_standby_names")

    def _alter(self, statement: LiteralString) -> None:
        with self.house.connect() as connection:
            connection.execute("set synchronous_commit = local")
            connection.execute(statement)
            connection.execute("select pg_reload_conf()")

    async def wait(self) -> None:
        """Until a batch's commit hangs. A process's beat that hangs before it, and would hold it up, is let go."""
        hanging = "from pg_stat_activity where wait_event = 'SyncRep' and query"

        async def commit_hangs() -> bool:
            await asyncio.to_thread(self.house.query, f"select pg_cancel_backend(pid) {hanging} <> 'commit'")
            return bool(await asyncio.to_thread(self.house.query, f"select {hanging} = 'commit'"))

        await eventually(commit_hangs)


@pytest.fixture
def commits(house: House) -> Iterator[Hanging]:
    found = Hanging(house)
    yield found
    found.end()


async def retry_until_answered(call: Callable[[], Awaitable[Reply]]) -> Reply:
    while (reply := await call()).status == 503:  # noqa: ASYNC110
        await asyncio.sleep(PAUSE)
    return reply


@pytest.mark.parametrize("by", ["key", "event_id"])
def test_a_retry_after_an_unknown_outcome_has_one_effect(couple: Couple, commits: Hanging, by: str) -> None:
    """The connection breaks after the commit was written and before it was answered."""
    key = "once" if by == "key" else None
    body = {"event_type": "t", "data": 1}
    if by == "event_id":
        body["event_id"] = "00000000-0000-4000-8000-000000000001"

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            await asyncio.to_thread(commits.begin)
            first = asyncio.create_task(a.call("POST", "events/s", body, key=key))
            await commits.wait()
            await asyncio.to_thread(commits.end)
            unknown = await first
            assert (unknown.status, unknown.code) == (503, "outcome_unknown")
            assert unknown["retryable"] is False
            again = await retry_until_answered(lambda: b.call("POST", "events/s", body, key=key))
            assert (again.status, again["version"]) == (200 if by == "event_id" else 201, 1)
            page = await b.call("GET", "events/s")
            assert [event["data"] for event in page["events"]] == [1]

    run(story())


def test_a_lock_whose_outcome_is_unknown_is_had_by_a_retry(couple: Couple, commits: Hanging) -> None:
    body = {"key": "k", "owner": "me", "ttl_seconds": 30}

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            await asyncio.to_thread(commits.begin)
            first = asyncio.create_task(a.call("POST", "locks", body, key="once"))
            await commits.wait()
            await asyncio.to_thread(commits.end)
            assert (await first).code == "outcome_unknown"
            grant = await retry_until_answered(lambda: b.call("POST", "locks", body, key="once"))
            assert (grant.status, grant.headers["idempotency-replayed"]) == (201, "true")
            released = await b.call("POST", "locks/k/release", {"lock_id": grant["lock_id"]})
            assert released.status == 200

    run(story())


def test_a_client_that_went_while_the_outcome_was_unknown_leaves_the_queue(
    couple: Couple, commits: Hanging
) -> None:
    """The commit of its withdrawal broke off: it is withdrawn again, until that is known."""

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            held = await b.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            body = {"key": "k", "owner": "gone", "wait_seconds": 60, "ttl_seconds": 60}
            gone = asyncio.create_task(a.call("POST", "locks", body))
            await queued(b, ["gone"])
            await asyncio.to_thread(commits.begin)
            gone.cancel()
            await commits.wait()
            await asyncio.to_thread(commits.end)
            await queued(b, [])
            released = await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
            assert released.status == 200

    run(story())


@pytest.mark.parametrize("wait_seconds", [0, 60])
def test_a_lock_whose_outcome_is_unknown_is_not_lost_to_all(
    couple: Couple, commits: Hanging, wait_seconds: float
) -> None:
    """Without a key nobody can come back for it: taken or queued for, it is given back."""

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            taken = await b.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            if not wait_seconds:
                await b.call("POST", "locks/k/release", {"lock_id": taken["lock_id"]})
            await asyncio.to_thread(commits.begin)
            body = {"key": "k", "owner": "lost", "ttl_seconds": 60, "wait_seconds": wait_seconds}
            lost = asyncio.create_task(a.call("POST", "locks", body))
            await commits.wait()
            await asyncio.to_thread(commits.end)
            assert (await lost).code == "outcome_unknown"

            async def free_of_it() -> bool:
                state = await b.call("GET", "locks/k")
                return state.status == 200 and "lost" not in str(state.value)

            await eventually(free_of_it, 10)
            log = (await b.call("GET", "events/$lock:k"))["events"]
            assert "lost" in str(log), "it was not committed: nothing to give back"

    run(story())


def test_a_client_that_goes_while_the_database_is_away_leaves_the_queue(couple: Couple) -> None:
    house = couple.house

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            held = await b.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": 60})
            body = {"key": "k", "owner": "gone", "wait_seconds": 60, "ttl_seconds": 60}
            gone = asyncio.create_task(a.call("POST", "locks", body))
            await queued(b, ["gone"])
            with house.away(house.postgres, signal.SIGINT):
                gone.cancel()
                await asyncio.sleep(1)
            await queued(b, [])
            released = await b.call("POST", "locks/k/release", {"lock_id": held["lock_id"]})
            assert released.status == 200

    run(story())


async def queued(client: Client, owners: list[str]) -> None:
    async def found() -> bool:
        state = await client.call("GET", "locks/k")
        return state.status == 200 and [waiter["owner"] for waiter in state["waiters"]] == owners

    await eventually(found)


# -- a longer absence --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["away", "frozen"])
def test_leases_are_extended_by_an_absence(couple: Couple, how: str) -> None:
    house, ttl, absence = couple.house, 3.0, 4.5
    away = house.away(house.postgres, signal.SIGINT) if how == "away" else house.frozen(house.postgres)

    async def story() -> None:
        async with couple.client(couple.a) as a, couple.client(couple.b) as b:
            held = await a.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": ttl})
            body = {"key": "k", "owner": "waiter", "ttl_seconds": 30, "wait_seconds": 30}
            waiting = asyncio.create_task(b.call("POST", "locks", body))
            await queued(a, ["waiter"])
            with away:
                await asyncio.sleep(absence)
            async with couple.client(couple.b) as other:
                try_lock = {"key": "k", "owner": "other"}
                refused = await retry_until_answered(lambda: other.call("POST", "locks", try_lock))
            assert (refused.status, refused.code) == (409, "lock_held")
            assert [holder["owner"] for holder in refused["holders"]] == ["holder"]
            assert not waiting.done()
            renew = {"lock_id": held["lock_id"]}
            renewed = await retry_until_answered(lambda: a.call("POST", "locks/k/renew", renew))
            assert renewed.status == 200, renewed.value
            released = await a.call("POST", "locks/k/release", renew)
            assert released.status == 200
            grant = await waiting
            assert (grant.status, grant["owner"]) == (201, "waiter")
            log = (await a.call("GET", "events/$lock:k"))["events"]
            kinds = [event["event_type"].removeprefix("lock.") for event in log]
            assert kinds == ["acquired", "queued", "released", "acquired"]

    run(story())


def test_leases_are_extended_once(couple: Couple) -> None:
    """By the first process that is back; a holder that is gone does not hold for twice the absence."""
    house, ttl, absence = couple.house, 3.0, 4.5

    async def story() -> None:
        async with couple.client(couple.a) as a:
            held = await a.call("POST", "locks", {"key": "k", "owner": "holder", "ttl_seconds": ttl})
            with house.away(house.postgres, signal.SIGINT):
                await asyncio.sleep(absence)
            back_at = time.time()
            await retry_until_answered(lambda: a.call("POST", "locks", {"key": "other", "owner": "me"}))
            async with couple.client(couple.b) as b:
                await retry_until_answered(lambda: b.call("POST", "locks", {"key": "more", "owner": "me"}))
            state = await a.call("GET", "locks/k")
            (holder,) = state["holders"]
            ends_at = datetime.fromisoformat(holder["expires_at"]).timestamp()
            assert held["expires_at"] < holder["expires_at"]
            assert ends_at < back_at + ttl + BUSY + 1

    run(story())


def test_without_the_database_nothing_is_ready_and_everything_says_so(couple: Couple) -> None:
    house = couple.house

    async def story() -> None:
        async with couple.client(couple.a) as a:
            for name in PROBES:
                assert is_fine(name, await probe(a, name))
            with house.away(house.postgres, signal.SIGINT):
                assert (await a.call("GET", "/live")).status == 200
                ready, health = await a.call("GET", "/ready"), await a.call("GET", "/health")
                assert (ready.status, ready["ready"]) == (503, False)
                assert (health.status, health["status"]) == (503, "unhealthy")
                assert health["parts"]["postgresql"]["status"] == "down"
                assert health["parts"]["valkey"]["status"] == "up"
                for name in PROBES:
                    reply = await probe(a, name)
                    if name != "whoami":
                        assert (reply.status, reply.code) == (503, "unavailable"), (name, reply.value)
                        assert reply["retryable"] is True
                        assert float(reply.headers["retry-after"]) > 0

            async def ready_again() -> bool:
                return (await a.call("GET", "/ready")).status == 200

            await eventually(ready_again, BACK + BUSY)
            assert (await a.call("GET", "/health"))["status"] == "healthy"

    run(story())
