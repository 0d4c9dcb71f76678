"""A participant that keeps a ledger of what it did and of what it answered, and is as unreliable as the worst of them.

What it does it does once, however often it is asked; an action that comes after its compensation it refuses. That is
all that sagas need of a participant, so what stands in the ledger in the end is their doing.
"""

import asyncio
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syros import barrier
from tests.participant import Asked, Participant, response
from tests.races.client import Client, Lost

SERVICE = "ledger"
TIMEOUT = 0.5  # seconds that a call of a step may take
TOO_LONG = TIMEOUT * 2
BRIEFLY = 0.3  # seconds at most that it takes before it does anything
TRIES = 40  # to say that something accepted is done, PAUSE apart
PAUSE = 0.25
# What becomes of a call, and how often, in percent.
MOODS = {
    "prompt": 60,
    "silent": 10,  # does it, and answers nobody in time
    "slow": 4,  # nothing in time, but it does it in the end, be it that it was compensated meanwhile
    "broken": 4,  # does it, and breaks the connection
    "reset": 2,  # only breaks the connection
    "failing": 4,  # does it, and answers 500
    "down": 3,  # only answers 500
    "busy": 3,  # 429
    "early": 3,  # 425
    "later": 7,  # 202, and says later what came of it
}
SOON = {"retry-after": "0.05"}
BARRIER = "barrier"  # how paths begin behind which the barrier is
DONE, DECLINED, HANGING = "done", "declined", "hanging"


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of the ledger."""

    step: str
    op: str

    def __str__(self) -> str:
        return f"{self.op} {self.step}"


@dataclass(frozen=True, slots=True)
class Visit:
    """An attempt, as the participant saw it. It is doomed if the saga's author wants it to be declined."""

    saga: str
    step: str
    op: str
    attempt: int
    key: str
    token: str
    outcome: str | None  # of the action, as a compensation is told it
    is_doomed: bool
    asked: Asked

    @classmethod
    def of(cls, asked: Asked) -> "Visit":
        saga, step, op, attempt, token = (
            asked.headers[f"syros-{name}"] for name in ("saga-id", "step", "op", "attempt", "task-token")
        )
        key, outcome = asked.headers["idempotency-key"], asked.headers.get("syros-outcome")
        is_doomed = op == "action" and asked.body["input"]["doomed"] == step
        return cls(saga, step, op, int(attempt), key, token, outcome, is_doomed, asked)


class Declined(Exception):
    """It will not be done."""


class Books:
    """The ledger itself, and two ways to keep it: by Idempotency-Keys, and with the barrier of the SDK, in a database.
    The path that is called says which."""

    def __init__(self) -> None:
        self.effects: dict[str, list[Effect]] = defaultdict(list)  # by saga, in the order of time
        self.counts: Counter[str] = Counter()  # what it was asked that it need not do
        self._answers: dict[str, str] = {}  # by key
        self._undone: set[tuple[str, str]] = set()  # steps whose compensation came
        self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        barrier.install(self._database.cursor())

    def __str__(self) -> str:
        return f"{sum(map(len, self.effects.values()))} lines in the ledger, {dict(self.counts)}"

    def carry_out(self, visit: Visit) -> str:
        """Do it, unless it was done or must not be; what to answer."""
        by = self._by_barrier if visit.asked.path.startswith(BARRIER) else self._by_key
        lines = len(self.effects[visit.saga])
        answer = by(visit)
        is_new = len(self.effects[visit.saga]) > lines
        is_empty = visit.op == "compensate" and Effect(visit.step, "action") not in self.effects[visit.saga]
        self.counts["done" if is_new else "empty" if is_empty else answer if answer != DONE else "again"] += 1
        return answer

    def write(self, visit: Visit) -> str:
        """Raises: Declined."""
        if visit.is_doomed:
            raise Declined
        self.effects[visit.saga].append(Effect(visit.step, visit.op))
        return DONE

    # -- by keys -------------------------------------------------------------------------------------

    def _by_key(self, visit: Visit) -> str:
        if visit.key not in self._answers:
            does = self._act if visit.op == "action" else self._undo
            self._answers[visit.key] = does(visit)
        return self._answers[visit.key]

    def _act(self, visit: Visit) -> str:
        if (visit.saga, visit.step) in self._undone:
            return HANGING
        try:
            return self.write(visit)
        except Declined:
            return DECLINED

    def _undo(self, visit: Visit) -> str:
        self._undone.add((visit.saga, visit.step))
        is_empty = Effect(visit.step, "action") not in self.effects[visit.saga]
        return DONE if is_empty else self.write(visit)

    # -- by the barrier ------------------------------------------------------------------------------

    def _by_barrier(self, visit: Visit) -> str:
        cursor = self._database.cursor()
        cursor.execute("begin")
        try:
            barrier.once(cursor, visit.asked.headers, lambda: self.write(visit))
        except (barrier.Hanging, Declined) as refusal:
            cursor.execute("rollback")
            return DECLINED if isinstance(refusal, Declined) else HANGING
        cursor.execute("commit")
        return DONE


class Ledger(Participant):
    """The participant. Parameters: where it says what came of what it accepted; `moods`, and how often each."""

    def __init__(
        self, namespace: str, ports: Sequence[int], seed: int, moods: dict[str, int] = MOODS
    ) -> None:
        super().__init__()
        self.namespace, self.ports, self.seed = namespace, list(ports), seed
        self._moods, self._weights = list(moods), list(moods.values())
        self.books = Books()
        self.visits: dict[str, list[Visit]] = defaultdict(list)  # by saga
        # What it said about each attempt, by key and number: of one that it accepted, more than once.
        self.told: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.moods: Counter[str] = Counter()
        self.trouble: list[str] = []  # what it did not expect

    async def answer(self, asked: Asked, transport: Any) -> None:
        try:
            await self.visited(Visit.of(asked), transport)
        except Exception as error:
            self.trouble.append(f"{type(error).__name__}: {error}")
            transport.abort()

    async def visited(self, visit: Visit, transport: Any) -> None:
        self.visits[visit.saga].append(visit)
        chance = random.Random(f"{self.seed}/{visit.key}/{visit.attempt}")
        (mood,) = chance.choices(self._moods, self._weights)
        self.moods[mood] += 1
        await asyncio.sleep(chance.uniform(0, BRIEFLY))
        await getattr(self, mood)(visit, transport)

    def tell(self, visit: Visit, transport: Any, status: int, code: str, headers: dict[str, str]) -> None:
        self.told[visit.key, visit.attempt].add(code)
        transport.write(response(status, {"code": code}, headers))

    # -- moods ---------------------------------------------------------------------------------------

    async def prompt(self, visit: Visit, transport: Any) -> None:
        code = self.books.carry_out(visit)
        self.tell(visit, transport, 200 if code == DONE else 409, code, {})

    async def silent(self, visit: Visit, transport: Any) -> None:
        self.books.carry_out(visit)
        await asyncio.sleep(TOO_LONG)
        transport.abort()

    async def slow(self, visit: Visit, transport: Any) -> None:
        await asyncio.sleep(TOO_LONG)
        self.books.carry_out(visit)
        transport.abort()

    async def broken(self, visit: Visit, transport: Any) -> None:
        self.books.carry_out(visit)
        transport.abort()

    async def reset(self, visit: Visit, transport: Any) -> None:
        transport.abort()

    async def failing(self, visit: Visit, transport: Any) -> None:
        self.books.carry_out(visit)
        self.tell(visit, transport, 500, "failing", {})

    async def down(self, visit: Visit, transport: Any) -> None:
        self.tell(visit, transport, 500, "down", {})

    async def busy(self, visit: Visit, transport: Any) -> None:
        self.tell(visit, transport, 429, "too_many_requests", SOON)

    async def early(self, visit: Visit, transport: Any) -> None:
        self.tell(visit, transport, 425, "ongoing", SOON)

    async def later(self, visit: Visit, transport: Any) -> None:
        self.tell(visit, transport, 202, "accepted", {})
        chance = random.Random(visit.token)
        await asyncio.sleep(chance.uniform(0, TOO_LONG))
        if chance.random() < 0.1:
            code, body = "gave_up", {"code": "gave_up", "retryable": True}
        else:
            code = self.books.carry_out(visit)
            body = {"output": code} if code == DONE else {"code": code}
        self.told[visit.key, visit.attempt].add(code)
        verb = "complete" if code == DONE else "fail"
        path = f"tasks/{visit.saga}.{visit.step}.{visit.op}/{verb}"
        await self.insist(path, {"lease_token": visit.token, **body})

    async def insist(self, path: str, body: Any) -> None:
        """Say it until it was heard. Who comes too late is told so."""
        for number in range(TRIES):
            async with Client(self.ports[number % len(self.ports)], self.namespace) as client:
                try:
                    reply = await client.call("POST", path, body, seconds=5)
                except (Lost, TimeoutError):
                    reply = None
            if reply and reply.status != 503:
                if not (reply.status == 200 or reply.code in {"task_not_found", "lease_lost"}):
                    self.trouble.append(f"{path}: {reply.value}")
                return
            await asyncio.sleep(PAUSE)
