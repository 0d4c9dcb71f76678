"""Would the ledger tell? Bugs are planted in the sagas of two processes, and each has to be found."""

import asyncio
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.authors import Authors, Servers, register, saga
from tests.faults.ledger import DECLINED, Ledger, Visit
from tests.faults.saga_bugs import BUGS
from tests.faults.tales import Written
from tests.races.histories import Violation
from tests.races.processes import PATIENCE, Syros, environment, eventually, migrate, new_namespace, run
from tests.servers import WORKER, database

SAGAS, PACE = 15, 15
ROUNDS = 4  # with other sagas and other answers each time
LONG = 60.0  # seconds that a call may take which a process makes that stands still
# What is said of each: another finding would be another bug's, or a false alarm.
WORDS = {
    "forward_order": "came after",
    "doubt_forgotten": "was not taken back|something was done",
    "attempt_in_key": "twice|has keys",
    "not_fenced": "but it was told",
}
STILL = "not_fenced"  # needs a process that stands still


class Pair:
    """Two processes with bugs, on a database of their own."""

    def __init__(self, url: str, var: Path) -> None:
        self.url = url
        environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], var, SYROS_WORKS="1")
        migrate(environ)
        manage = [sys.executable, "-m", "tests.faults.saga_bugs"]
        self.a, self.b = (Syros(environ, name, manage=manage) for name in ("a", "b"))
        self.ports = [self.a.port, self.b.port]

    @contextmanager
    def serving(self) -> Iterator["Pair"]:
        try:
            for process in (self.a, self.b):
                process.spawn()
            for process in (self.a, self.b):
                process.wait_ready()
            yield self
        finally:
            for process in (self.a, self.b):
                process.end()


async def search(pair: Pair, name: str) -> str:
    """What is wrong with sagas of this name; empty if nothing is found."""
    for seed in range(ROUNDS):
        if found := await attempt(pair, name, seed):
            return found
    return ""


async def attempt(pair: Pair, name: str, seed: int) -> str:
    authors = Authors(new_namespace(pair.url, name), pair.ports, SAGAS, PACE, seed, name)
    with Ledger(authors.namespace, pair.ports, seed) as ledger:
        await register(authors.namespace, pair.ports, ledger.port)
        await authors.work()
        return await verdict(authors, ledger)


async def verdict(authors: Authors, ledger: Ledger) -> str:
    try:
        await authors.check(ledger, PATIENCE)
    except Violation as violation:
        return str(violation)
    return ""


class Stopper(Ledger):
    """Has the process that calls it stand still, and declines then: the answer waits there until another process has
    taken the saga over, and called again. Only when that is released is the second call answered."""

    def __init__(self, namespace: str, pair: Pair) -> None:
        super().__init__(namespace, [pair.b.port], 0)
        self.process = pair.a
        self.released = threading.Event()

    async def visited(self, visit: Visit, transport: Any) -> None:
        self.visits[visit.saga].append(visit)
        if (visit.step, visit.op, visit.attempt) == ("s0", "action", 1):
            self.process.signal(signal.SIGSTOP)
            self.tell(visit, transport, 409, DECLINED, {})
            return
        if (visit.step, visit.op, visit.attempt) == ("s0", "action", 2):
            self.process.signal(signal.SIGCONT)
            while not self.released.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await self.prompt(visit, transport)


async def stand_still(pair: Pair, name: str) -> str:
    """The same for a saga whose process loses it, and hears afterwards what came of its call."""
    authors = Authors(new_namespace(pair.url, name), pair.ports[1:], 1, 1, name=name)
    written = Written(name, {"s0": [], "s1": ["s0"]}, None)
    with Stopper(authors.namespace, pair) as ledger:
        await register(authors.namespace, pair.ports, ledger.port)
        async with Servers(authors.namespace, [pair.a.port]) as servers:
            saga_id = await authors.begin(servers, written, saga(written, LONG, random.Random(0)), name)

        async def heard_too_late() -> bool:
            async with authors.servers() as servers:
                types = [event["type"] for event in await servers.history(saga_id)]
            return "step.late_result" in types or "step.failed" in types

        await eventually(heard_too_late)
        ledger.released.set()
        return await verdict(authors, ledger)


def test_each_bug_is_found_and_where_there_is_none_nothing(tmp_path: Path) -> None:
    async def story(pair: Pair) -> dict[str, str]:
        names = [bug for bug in BUGS if bug != STILL]
        found = await asyncio.gather(*(search(pair, name) for name in names), attempt(pair, "none", 0))
        by_name = dict(zip([*names, "none"], found, strict=True))
        by_name["none"] += await stand_still(pair, "none")
        return {**by_name, STILL: await stand_still(pair, STILL)}

    with Pair(database(f"syros_saga_bugs_{WORKER}"), tmp_path).serving() as pair:
        found = run(story(pair))
    assert found.pop("none") == ""
    assert found.keys() == set(BUGS)
    assert {bug: what for bug, what in found.items() if not re.search(WORDS[bug], what)} == {}
