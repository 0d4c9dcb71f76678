"""Authors of sagas: each is started once whatever happens to the servers, and in the end all are looked at."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import cycle
from typing import Any

from tests.faults.ledger import BARRIER, SERVICE, TIMEOUT, Ledger
from tests.faults.tales import FINAL, Written, check_saga
from tests.races.client import Client, Lost, Reply
from tests.races.histories import Violation, require

AGAIN = 0.1  # seconds before trying again
UNANSWERED = 2.0  # seconds after which another process is asked
BACKOFF = {"initial_delay_seconds": 0.1, "max_delay_seconds": 0.5}
FOR_LONG = 10.0  # seconds that a step may wait until a process knows that there is a participant


class Servers:
    """The processes, as one who asks the next one when one does not answer."""

    def __init__(self, namespace: str, ports: Sequence[int]) -> None:
        self.clients = [Client(port, namespace) for port in ports]
        self.outcomes: Counter[str] = Counter()

    async def __aenter__(self) -> "Servers":
        return self

    async def __aexit__(self, *error: Any) -> None:
        for client in self.clients:
            client.hang_up()

    async def insist(self, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        """Only for what may be sent again."""
        while True:
            try:
                reply = await self.clients[0].call(method, path, body, seconds=UNANSWERED, **more)
            except (Lost, TimeoutError) as error:
                self.outcomes[type(error).__name__] += 1
            else:
                self.outcomes[reply.code or "done"] += 1
                if reply.status != 503:
                    return reply
            self.clients.append(self.clients.pop(0))
            await asyncio.sleep(AGAIN)

    async def find(self, **query: Any) -> AsyncIterator[dict[str, Any]]:
        while True:
            page = await self.insist("GET", "sagas", query={"limit": 200, **query})
            assert page.status == 200, page.value
            for item in page["items"]:
                yield item
            if not page["next_cursor"]:
                return
            query["cursor"] = page["next_cursor"]

    async def history(self, saga_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            query = {"from_version": len(found) + 1, "limit": 200}
            page = await self.insist("GET", f"sagas/{saga_id}/history", query=query)
            assert page.status == 200, page.value
            found += page["events"]
            if not page["has_more"]:
                return found


class Authors:
    """Some who start sagas until there are enough. Parameters: `wanted`, how many; `pace`, how many a second."""

    def __init__(
        self,
        namespace: str,
        ports: Sequence[int],
        wanted: int,
        pace: float,
        seed: int = 0,
        name: str = "saga",
    ) -> None:
        self.namespace, self.ports, self.seed, self.name = namespace, list(ports), seed, name
        self.wanted, self.pace = wanted, pace
        self.written: dict[str, Written] = {}  # by the id of the saga
        self.begun = 0
        self.outcomes: Counter[str] = Counter()  # of requests, and how sagas ended
        self.facts: Counter[str] = Counter()  # types of events

    @property
    def is_done(self) -> bool:
        return len(self.written) >= self.wanted

    def servers(self, first: int = 0) -> Servers:
        return Servers(self.namespace, [*self.ports[first:], *self.ports[:first]])

    async def work(self, authors: int = 6) -> None:
        await asyncio.gather(*(self.write(number, authors / self.pace) for number in range(authors)))

    async def write(self, author: int, pause: float) -> None:
        async with self.servers(author % len(self.ports)) as servers:
            while self.begun < self.wanted:
                self.begun += 1
                await self.start(servers, self.begun)
                await asyncio.sleep(pause)
            self.outcomes += servers.outcomes

    async def start(self, servers: Servers, number: int) -> None:
        written, body = invent(self.name, random.Random(f"{self.seed}/{self.name}/{number}"))
        await self.begin(servers, written, body, f"{self.name}-{number}")

    async def begin(self, servers: Servers, written: Written, body: dict[str, Any], key: str) -> str:
        """Start this one; its id."""
        reply = await servers.insist("POST", "sagas", body, key=key)
        assert reply.status == 201, reply.value
        saga_id: str = reply["saga_id"]
        require(saga_id not in self.written, f"{key} is another saga's")
        self.written[saga_id] = written
        return saga_id

    # -- the end -------------------------------------------------------------------------------------

    async def check(self, ledger: Ledger, patience: float) -> None:
        """Raises: Violation."""
        async with self.servers() as servers:
            await self.rest(servers, patience)
            for saga_id, written in self.written.items():
                await self.look_at(servers, ledger, saga_id, written)
            if ledger.trouble:
                raise Violation(f"the participant did not expect: {ledger.trouble}")

    async def rest(self, servers: Servers, patience: float) -> None:
        """Until all are over; and there are no others."""
        deadline = time.monotonic() + patience
        while True:
            found = {each["saga_id"]: each["status"] async for each in servers.find(name=self.name)}
            left = {saga_id: status for saga_id, status in found.items() if status not in FINAL}
            if not left:
                break
            require(time.monotonic() < deadline, f"{len(left)} are not over after {patience} s: {left}")
            await asyncio.sleep(0.5)
        require(found.keys() == self.written.keys(), "there are other sagas than were started")

    async def look_at(self, servers: Servers, ledger: Ledger, saga_id: str, written: Written) -> None:
        state = await servers.insist("GET", f"sagas/{saga_id}")
        events = await servers.history(saga_id)
        self.outcomes[state["status"]] += 1
        self.facts.update(event["type"] for event in events)
        effects, visits = ledger.books.effects.get(saga_id, []), ledger.visits.get(saga_id, [])
        tale = check_saga(written, state.value, events, effects, visits, ledger.told)
        self.facts += Counter(unheard=tale.unheard)


async def register(namespace: str, ports: Sequence[int], port: int) -> None:
    """Where the participant is."""
    body = {"address": "127.0.0.1", "port": port, "ttl_seconds": 86400}
    async with Servers(namespace, ports) as servers:
        reply = await servers.insist("PUT", f"services/{SERVICE}/instances/one", body)
        assert reply.status == 200, reply.value


def invent(name: str, chance: random.Random) -> tuple[Written, dict[str, Any]]:
    """A saga of three to five steps, and what is sent to start it. Of three, one is declined somewhere."""
    names = [f"s{number}" for number in range(chance.randint(3, 5))]
    after = {each: parents(names[:place], chance) for place, each in enumerate(names)}
    written = Written(name, after, chance.choice(names) if chance.random() < 0.35 else None)
    order = chance.choices(["reverse", "sequential"], [4, 1])[0]
    return written, saga(written, TIMEOUT, chance, compensation_order=order)


def parents(before: Sequence[str], chance: random.Random) -> list[str]:
    """Mostly the step before it; else one or two of those, or none: a branch."""
    if not before or chance.random() < 0.1:
        return []
    if chance.random() < 0.6:
        return [before[-1]]
    return chance.sample(before, chance.randint(1, min(2, len(before))))


def saga(written: Written, timeout: float, chance: random.Random, **more: Any) -> dict[str, Any]:
    """What is sent to start it. Some steps are tried less often than others: of those, more remain in doubt."""
    steps = [
        {
            "name": name, "service": SERVICE, "action": f"{way}/{name}", "compensation": f"{way}/undo/{name}",
            "depends_on": list(after), "timeout_seconds": timeout, "schedule_to_start_seconds": FOR_LONG,
            "retry_policy": {**BACKOFF, "max_attempts": chance.choice([1, 2, 5, 5])},
            "compensation_retry_policy": BACKOFF,
        } for way, (name, after) in zip(cycle(("key", BARRIER)), written.after.items())
    ]  # fmt: skip
    return {"name": written.name, "steps": steps, "input": {"doomed": written.doomed}, **more}
