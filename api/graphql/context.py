"""What the fields of one answer share, and how their refusals are told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from graphql import GraphQLError
from orjson import Fragment

from api import requests
from core.callers import ANONYMOUS, Call
from core.encoding import decode, encode
from core.errors import Malformed, SyrosError, TooLarge
from core.operations import Nested, Operation
from core.runtime import runtime

MAX_ERRORS = 30  # in one answer
Json = dict[str, Any]


class Batch:
    """Asks a nested field once for all the parents that come up in one turn of the loop."""

    def __init__(self, ask: Callable[[list[Any]], Awaitable[list[Any]]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    def load(self, parent: Any) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._start)
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((parent, future))
        return future

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not all(future.cancelled() for _, future in waiting):
            self.task = asyncio.ensure_future(self._answer(waiting))

    async def _answer(self, waiting: "list[tuple[Any, asyncio.Future[Any]]]") -> None:
        found: list[Any]
        try:
            found = await self._ask([parent for parent, _ in waiting])
        except Exception as error:  # graphql-core raises it for each of the fields
            found = [error] * len(waiting)
        for (_, future), value in zip(waiting, found, strict=True):
            if not future.done():
                future.set_result(value)


@dataclass(slots=True)
class Context:
    """What the fields of one answer share: the call, what was answered, the batches of nested fields."""

    call: Call
    size: int
    outcomes: dict[str, Json] = field(default_factory=dict)
    _batches: dict[tuple[Nested, str], Batch] = field(default_factory=dict)

    async def carry_out(self, operation: Operation, name: str, arguments: Json, key: str | None) -> Any:
        """The answer of an operation for the root field of this name.

        Raises: TooLarge, Invalid, and what the operation raises.
        """
        if self.size > operation.max_bytes:
            raise TooLarge(f"A request for {operation.name} has at most {operation.max_bytes} bytes.")
        caller = ANONYMOUS if operation.anonymous else self.call.caller
        key = requests.check_idempotency_key(key) if key else None
        call = replace(self.call, caller=caller, idempotency_key=key, size=self.size)
        outcome = await runtime.run(operation, call, operation.parse(arguments))
        self.outcomes[name] = {"status": outcome.status, "replayed": outcome.replayed}
        return decode(encode(outcome.value)) if isinstance(outcome.value, Fragment) else outcome.value

    def stream(self, operation: Operation, arguments: Json) -> AsyncIterator[Any]:
        return runtime.stream(operation, self.call, operation.parse(arguments))

    def nested(self, nested: Nested, arguments: Json, parent: Any) -> "asyncio.Future[Any]":
        """Raises: Invalid."""
        params = nested.parse(arguments)
        place = nested, repr(params)
        if place not in self._batches:
            self._batches[place] = Batch(partial(nested.ask, self.call, params=params))
        return self._batches[place].load(parent)

    def result(self, data: Any, errors: list[GraphQLError] | None) -> Json:
        found: Json = {"data": data}
        if errors:
            found["errors"] = formatted(errors, self.call.request_id)
        if self.outcomes:
            found["extensions"] = {"syros": self.outcomes}
        return found


# -- refusals ----------------------------------------------------------------------------------------


class Unanswerable(Exception):
    """The document or its variables are wrong, so that nothing was carried out."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        self.errors = errors
        super().__init__(errors[0].message)


def refusal(error: "SyrosError | Unanswerable", identity: str) -> tuple[SyrosError, Json]:
    """A refusal of the whole request: the first problem, and the answer with all of them."""
    if isinstance(error, SyrosError):
        error = Unanswerable([GraphQLError(error.detail, original_error=error)])
    problems = [problem_of(each, identity) for each in error.errors[:MAX_ERRORS]]
    told = [told_as(*each, identity) for each in zip(error.errors, problems, strict=False)]
    return problems[0], {"errors": told}


def formatted(errors: list[GraphQLError], identity: str) -> list[Json]:
    return [told_as(error, problem_of(error, identity), identity) for error in errors[:MAX_ERRORS]]


def told_as(error: GraphQLError, problem: SyrosError, identity: str) -> Json:
    """An error as GraphQL has it: the sentence, the places, and as extensions the problem that REST would answer."""
    found: Json = {"message": problem.detail, "extensions": problem.problem(identity)}
    if error.locations:
        found["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path:
        found["path"] = error.path
    return found


def problem_of(error: GraphQLError, identity: str) -> SyrosError:
    cause: Exception | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    if cause is None:
        return Malformed(error.message[:500])
    return requests.refusal(cause, f"the field {error.path}", identity)
