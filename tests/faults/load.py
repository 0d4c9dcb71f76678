"""Clients that go on through faults: each answer is one that the contract allows, and all are remembered."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from tests.faults.house import Couple
from tests.races.client import Client, Lost, Reply
from tests.races.histories import (
    Hold,
    Written,
    check_agreement,
    check_holds,
    check_lock_log,
    check_log,
    check_once,
    check_written,
    seconds,
)
from tests.races.processes import Syros

PAUSE = 0.05  # seconds before trying again


class Load:
    """Writers and lockers on both processes, from `running()` on until the block ends."""

    def __init__(self, couple: Couple, *, may_lose: bool = False) -> None:
        self.couple, self.may_lose = couple, may_lose
        self.keys = ["k0", "k1", "k2"]
        self.stopped = False
        self.holds: list[Hold] = []
        self.written: list[Written] = []
        self.outcomes: Counter[str] = Counter()
        self.answered_at: dict[str, list[float]] = {"a": [], "b": []}  # successes, by process

    @contextlib.asynccontextmanager
    async def running(self, lockers: int = 6, writers: int = 6) -> AsyncIterator["Load"]:
        tasks = []
        for process in self.couple.both:
            for n in range(lockers):
                tasks.append(asyncio.create_task(self.lock(process, f"{process.name}{n}")))
            for n in range(writers):
                tasks.append(asyncio.create_task(self.write(process, f"{process.name}{n}")))
        try:
            yield self
        finally:
            self.stopped = True
            await asyncio.gather(*tasks)

    def answers_since(self, process: Syros, moment: float) -> list[float]:
        return [at for at in self.answered_at[process.name] if at > moment]

    async def call(self, process: Syros, client: Client, *request: Any, **more: Any) -> Reply | None:
        """The answer; None where the connection was lost, if it may be."""
        try:
            reply = await client.call(*request, **more)
        except Lost:
            assert self.may_lose, f"{process.name} closed a connection"
            self.outcomes["lost"] += 1
            return None
        check_answer(reply)
        self.outcomes[reply.code or "done"] += 1
        if reply.status < 300:
            self.answered_at[process.name].append(time.monotonic())
        return reply

    async def insist(self, process: Syros, client: Client, *request: Any, **more: Any) -> Reply:
        """Try again until there is an answer that is one; only for what may be sent again."""
        while True:
            reply = await self.call(process, client, *request, **more)
            if reply is not None and reply.status != 503:
                return reply
            await asyncio.sleep(PAUSE)

    async def write(self, process: Syros, name: str) -> None:
        """Every event with an id of its own, sent until it is acknowledged: one effect each."""
        count = 0
        async with self.couple.client(process) as client:
            while not self.stopped:
                count += 1
                data, event_id = f"{name}/{count}", str(uuid4())
                body = {"event_type": "t", "data": data, "event_id": event_id}
                reply = await self.insist(process, client, "POST", f"events/s-{count % 3}", body)
                assert reply.status in {200, 201}, reply.value
                told = reply.value
                self.written.append(
                    Written(told["stream_id"], told["version"], told["position"], event_id, data)
                )

    async def lock(self, process: Syros, name: str) -> None:
        """Wait, hold, give back; the lock_id of a release that was not answered is given back again."""
        count = 0
        async with self.couple.client(process) as client:
            while not self.stopped:
                count += 1
                owner, key = f"{name}/{count}", self.keys[count % len(self.keys)]
                body = {"key": key, "owner": owner, "ttl_seconds": 3, "wait_seconds": 30}
                reply = await self.call(process, client, "POST", "locks", body)
                if reply is None or reply.status != 201:
                    await asyncio.sleep(PAUSE)
                    continue
                await self.hold_and_give_back(process, client, reply)

    async def hold_and_give_back(self, process: Syros, client: Client, grant: Reply) -> None:
        expires_at = seconds(grant["expires_at"])
        hold = Hold(
            grant["key"], grant["owner"], grant["fencing_token"], time.time(), expires_at,
            acquired_at=seconds(grant["acquired_at"]),
        )  # fmt: skip
        self.holds.append(hold)
        await asyncio.sleep(0.002)
        hold.given_back_at = time.time()
        path, body = f"locks/{hold.key}/release", {"lock_id": grant["lock_id"]}
        # Only who comes late, or was not answered before, may hear that it does not hold; after many other
        # holders even the reason is forgotten.
        reply = await self.call(process, client, "POST", path, body)
        excused = time.time() > hold.expires_at or reply is None or reply.status == 503
        if reply is None or reply.status == 503:
            reply = await self.insist(process, client, "POST", path, body)
        assert reply.status == 200 or excused, reply.value
        hold.released = reply.status == 200 or reply["reason"] == "released"

    async def check(self, but: str = "") -> list[dict[str, Any]]:
        """What everybody was told is in the log, and the log is what it promises to be. Returns it.

        Parameters: `but`, a stream and a key that others used at the same time.
        """
        async with self.couple.client(self.couple.b) as client:
            log = await whole_log(client)
        check_log(log)
        check_written(self.written, log)
        events = [event for event in log if not event["stream_id"].startswith(("$", but or "$"))]
        check_once([each.data for each in self.written], events)
        assert len(events) == len(self.written)
        check_holds(self.holds)
        locks = [event for event in log if event["stream_id"].startswith("$lock:")]
        check_agreement(self.holds, check_lock_log(locks))
        assert self.holds
        assert self.written
        return log


def check_answer(reply: Reply) -> None:
    """Done, refused for a reason of the caller's, or a 503 that says when to come again."""
    assert reply.status in {200, 201, 409, 503}, reply.value
    if reply.status == 503:
        assert reply.code in {"unavailable", "outcome_unknown"}, reply.value
        assert float(reply.headers["retry-after"]) > 0


async def whole_log(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    position, more = 1, True
    while more:
        query = {"from_position": position, "system": "true", "limit": 1000}
        page = await client.call("GET", "events", query=query)
        assert page.status == 200, page.value
        found += page["events"]
        position, more = page["next_position"], page["has_more"]
    return found
