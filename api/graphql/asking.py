"""Answering a document: read, weigh, validate, carry out; whichever way it came."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from inspect import isawaitable
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLList,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    Undefined,
    create_source_event_stream,
    execute,
    get_nullable_type,
    parse,
    validate,
    value_from_ast_untyped,
)
from orjson import Fragment
from pydantic import BaseModel, ConfigDict, Field

from api.graphql import types
from api.graphql.limits import MAX_TOKENS, Scale
from api.requests import check_idempotency_key
from core.callers import ANONYMOUS, Call
from core.encoding import decode, encode
from core.errors import Internal, Invalid, Malformed, SyrosError, TooLarge
from core.operations import MAX_BYTES, Nested, Operation, checked, registry
from core.runtime import runtime

logger = logging.getLogger("syros.graphql")

MAX_ERRORS = 30  # in one answer
KEPT_CHARACTERS = 64 << 10  # of documents that need not be read again; 200 bytes each
Json = dict[str, Any]


class Body(BaseModel):
    """A request as GraphQL over HTTP and graphql-transport-ws write it."""

    model_config = ConfigDict(extra="forbid")
    query: str = Field(min_length=1, max_length=MAX_BYTES)
    variables: dict[str, Any] | None = None
    operationName: str | None = None
    extensions: dict[str, Any] | None = None


@dataclass(slots=True)
class Question:
    """A document, which of its operations is meant, the variables, and the size of it all in bytes."""

    query: str
    variables: Json
    operation_name: str | None
    size: int

    @classmethod
    def read(cls, body: Json, size: int) -> "Question":
        """Raises: Invalid."""
        found = checked(Body, body)
        return cls(found["query"], found["variables"] or {}, found["operationName"] or None, size)


class Unanswerable(Exception):
    """The document or its variables are wrong, so that nothing was carried out."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        self.errors = errors
        super().__init__(errors[0].message)


# -- one answer ---------------------------------------------------------------------------------------


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
        key = check_idempotency_key(key) if key else None
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
            self._batches[place] = Batch(partial(nested.function, self.call, **params))
        return self._batches[place].load(parent)

    def result(self, data: Any, errors: list[GraphQLError] | None) -> Json:
        found: Json = {"data": data}
        if errors:
            found["errors"] = formatted(errors, self.call.request_id)
        if self.outcomes:
            found["extensions"] = {"syros": self.outcomes}
        return found


def formatted(errors: list[GraphQLError], identity: str) -> list[Json]:
    """Errors as GraphQL has them: the sentence, the places, and as extensions the problem that REST would answer."""
    return [one(error, identity) for error in errors[:MAX_ERRORS]]


def one(error: GraphQLError, identity: str) -> Json:
    problem = problem_of(error, identity)
    found: Json = {"message": problem.detail, "extensions": problem.problem(identity)}
    if error.locations:
        found["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path:
        found["path"] = error.path
    return found


def problem_of(error: GraphQLError, identity: str = "") -> SyrosError:
    cause: BaseException | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    if isinstance(cause, SyrosError):
        return cause
    if cause is None:
        return Malformed(error.message[:500])
    logger.error("a field broke: %s", error.path, exc_info=cause, extra={"request_id": identity})
    return Internal()


# -- documents ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Document:
    """A document that was read; `is_valid` once it was found to be so."""

    node: DocumentNode
    is_valid: bool = False

    def operation(self, name: str | None) -> OperationDefinitionNode:
        """Raises: Malformed, when it is not clear which one is meant."""
        found = [
            each
            for each in self.node.definitions
            if isinstance(each, OperationDefinitionNode)
            and (name is None or (each.name and each.name.value == name))
        ]
        if len(found) != 1:
            named = f"named {name}" if name else "or operationName"
            raise Malformed(f"The document must have one operation {named}.")
        return found[0]

    def roots(self, selection: SelectionSetNode, seen: set[str] | None = None) -> Iterator[FieldNode]:
        """The fields of an operation, also those that it has by fragments."""
        seen = set() if seen is None else seen
        for node in selection.selections:
            if isinstance(node, FieldNode):
                yield node
            elif isinstance(node, InlineFragmentNode):
                yield from self.roots(node.selection_set, seen)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                for each in self.node.definitions:
                    if isinstance(each, FragmentDefinitionNode) and each.name.value == node.name.value:
                        yield from self.roots(each.selection_set, seen)


class Documents:
    """The documents that were read last: clients ask the same ones again and again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Document] = OrderedDict()
        self._characters = 0

    def read(self, text: str) -> Document:
        """Raises: Malformed."""
        if known := self._kept.get(text):
            self._kept.move_to_end(text)
            return known
        try:
            return Document(parse(text, max_lexical_tokens=MAX_TOKENS, max_comments=MAX_TOKENS))
        except GraphQLError as error:
            raise Unanswerable([error]) from None

    def keep(self, text: str, document: Document) -> None:
        if len(text) > KEPT_CHARACTERS // 4 or text in self._kept:
            return
        self._kept[text] = document
        self._characters += len(text)
        while self._characters > KEPT_CHARACTERS:
            oldest, _ = self._kept.popitem(last=False)
            self._characters -= len(oldest)


# -- asking -------------------------------------------------------------------------------------------


class Graph:
    """The schema, and how it is asked."""

    def __init__(self) -> None:
        operations = [each for each in registry if each.route]
        self.schema = types.made(registry, operations)
        self._operations = {types.field_name(each): each for each in operations}
        self._documents = Documents()

    def open(self, question: Question) -> "Asked":
        """Raises: Unanswerable, Malformed."""
        document = self._documents.read(question.query)
        return Asked(self, question, document, document.operation(question.operation_name))

    def is_anonymous(self, fields: list[FieldNode]) -> bool:
        return all(self._is_anonymous(node.name.value) for node in fields)

    def _is_anonymous(self, name: str) -> bool:
        found = self._operations.get(name)
        return found.anonymous if found else name == "__typename"

    def validate(self, asked: "Asked") -> None:
        """Raises: TooComplex, Unanswerable."""
        document, question = asked.document, asked.question
        Scale(self.schema, document.node, asked.variables).check(asked.operation)
        if not document.is_valid:
            if errors := validate(self.schema, document.node, max_errors=MAX_ERRORS):
                raise Unanswerable(self.explained(asked) or errors)
            document.is_valid = True
            self._documents.keep(question.query, document)

    def explained(self, asked: "Asked") -> list[GraphQLError]:
        """What the operations say of the arguments that GraphQL's own types have refused: they name every bad field,
        as over REST, where GraphQL has sentences only."""
        return [
            GraphQLError(error.detail, node, original_error=error)
            for node in asked.fields
            if (error := self._refusal(node, asked)) is not None
        ]

    def _refusal(self, node: FieldNode, asked: "Asked") -> Invalid | None:
        operation = self._operations.get(node.name.value)
        root = self.schema.get_root_type(asked.operation.operation)
        defined = root.fields.get(node.name.value) if root else None
        if operation is None or defined is None:
            return None
        values = {}
        for argument in node.arguments:
            known = defined.args.get(argument.name.value)
            value = untyped(argument.value, asked.variables)
            if value is not Undefined:
                name = str(known.out_name) if known else snake_case(argument.name.value)
                values[name] = renamed(value, known.type if known else None)
        values.pop("idempotency_key", None)
        try:
            operation.parse(values)
        except Invalid as error:
            return error
        return None


@cache
def graph() -> Graph:
    return Graph()


def untyped(node: Any, variables: Json) -> Any:
    try:
        return value_from_ast_untyped(node, variables)
    except ValueError:  # thousands of digits
        return Undefined


def snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def renamed(value: Any, kind: Any) -> Any:
    """A value as the operation knows it: the fields of input objects by their own names, JSON untouched."""
    kind = kind and get_nullable_type(kind)
    if isinstance(kind, GraphQLList) and isinstance(value, list):
        return [renamed(each, kind.of_type) for each in value]
    if not isinstance(kind, GraphQLInputObjectType) or not isinstance(value, dict):
        return value
    fields = {name: kind.fields.get(name) for name in value}
    return {
        str(known.out_name) if known else snake_case(name): renamed(
            value[name], known.type if known else None
        )
        for name, known in fields.items()
    }


class Asked:
    """A question whose document was read."""

    def __init__(
        self, graph: Graph, question: Question, document: Document, operation: OperationDefinitionNode
    ) -> None:
        self._graph, self.question, self.document, self.operation = graph, question, document, operation
        self.fields = list(document.roots(operation.selection_set))
        self.is_anonymous = graph.is_anonymous(self.fields)
        self.kind: OperationType = operation.operation

    @property
    def variables(self) -> Json:
        """The variables' values, as they came, and the defaults of the others."""
        defaults = {
            each.variable.name.value: untyped(each.default_value, {})
            for each in self.operation.variable_definitions
            if each.default_value
        }
        return {**defaults, **self.question.variables}

    async def answer(self, call: Call) -> Json:
        """The answer to a query or a mutation.

        Raises: TooComplex, Unanswerable.
        """
        context = self._begin(call)
        result = execute(*self._how(context))
        if isawaitable(result):
            result = await result
        return self._result(context, result)

    async def answers(self, call: Call) -> AsyncGenerator[Json]:
        """The answers to a subscription, as they come.

        Raises: TooComplex, Unanswerable, and what the stream raises.
        """
        context = self._begin(call)
        stream: Any = await create_source_event_stream(*self._how(context))
        if isinstance(stream, ExecutionResult):
            raise Unanswerable(self._graph.explained(self) or stream.errors or [])
        try:
            async for item in stream:
                result = execute(*self._how(context, item))
                yield self._result(context, await result if isawaitable(result) else result)
        finally:
            await stream.aclose()

    def _begin(self, call: Call) -> Context:
        self._graph.validate(self)
        return Context(call, self.question.size)

    def _how(self, context: Context, item: Any = None) -> tuple[Any, ...]:
        question = self.question
        return (
            self._graph.schema, self.document.node, item, context, question.variables, question.operation_name,
        )  # fmt: skip

    def _result(self, context: Context, result: ExecutionResult) -> Json:
        if result.data is None and result.errors:
            raise Unanswerable(self._graph.explained(self) or result.errors)
        return context.result(result.data, result.errors)


def refusal(error: SyrosError | Unanswerable, identity: str) -> tuple[SyrosError, Json]:
    """A refusal of the whole request: the first problem, and the answer with all of them."""
    if isinstance(error, SyrosError):
        error = Unanswerable([GraphQLError(error.detail, original_error=error)])
    return problem_of(error.errors[0]), {"errors": formatted(error.errors, identity)}
