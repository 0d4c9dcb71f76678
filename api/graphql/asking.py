"""Answering a document: read, weigh, validate, carry out; whichever way it came."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from inspect import isawaitable
from typing import Any

from graphql import (
    ExecutionResult,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    Undefined,
    create_source_event_stream,
    execute,
    validate,
)
from pydantic import BaseModel, ConfigDict, Field

from api.graphql import types
from api.graphql.context import MAX_ERRORS, Context, Json, Unanswerable
from api.graphql.limits import Scale, check_defaults
from api.graphql.parsing import Document, Documents, renamed, snake_case, untyped
from core.callers import Call
from core.errors import Invalid, TooComplex, TooLarge
from core.operations import MAX_BYTES, checked, registry

MAX_QUERY = 100_000  # characters of a document


class Body(BaseModel):
    """A request as GraphQL over HTTP and graphql-transport-ws write it."""

    model_config = ConfigDict(extra="forbid")
    query: str = Field(min_length=1, max_length=MAX_QUERY)
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


class Graph:
    """The schema, and how it is asked."""

    def __init__(self) -> None:
        operations = [each for each in registry if each.route]
        self.schema = types.made(registry, operations)
        self._operations = {types.field_name(each): each for each in operations}
        self._documents = Documents()

    async def open(self, question: Question) -> "Asked":
        """Of the question it keeps what the document needs.

        Raises: Unanswerable, Malformed, TooComplex; TooLarge, for more bytes than any of its operations takes.
        """
        document = await self._documents.read(question.query)
        check_defaults(document.node)
        asked = Asked(self, question, document, document.operation(question.operation_name))
        names = [node.name.value for node in asked.fields]
        operations = [self._operations[name] for name in names if name in self._operations]
        if sum(each.anonymous for each in operations) > 1:  # each may be a guess at a password
            raise TooComplex("In a document, one field that needs no credentials.", limit=1)
        asked.limit = max((each.max_bytes for each in operations), default=MAX_BYTES)
        if question.size > asked.limit:
            raise TooLarge(f"The request is larger than {asked.limit} bytes.", limit=asked.limit)
        declared = {each.variable.name.value for each in asked.operation.variable_definitions}
        question.variables = {name: question.variables[name] for name in declared & question.variables.keys()}
        return asked

    def is_anonymous(self, fields: list[FieldNode]) -> bool:
        return all(self._is_anonymous(node.name.value) for node in fields)

    def _is_anonymous(self, name: str) -> bool:
        found = self._operations.get(name)
        return found.anonymous if found else name == "__typename"

    def validate(self, asked: "Asked") -> None:
        """Raises: TooComplex, TooLarge, Unanswerable."""
        document, question = asked.document, asked.question
        Scale(self.schema, document.node, asked.variables, asked.limit).check()
        if not document.is_valid:
            if errors := validate(self.schema, document.node, max_errors=MAX_ERRORS):
                raise Unanswerable(self.explained(asked) or errors)
            document.is_valid = True
            self._documents.keep(question.query, document)

    def explained(self, asked: "Asked") -> list[GraphQLError]:
        """What the first operation that refuses them says of arguments that GraphQL's own types have refused: it names
        every bad field, as over REST, where GraphQL has sentences only."""
        for node in asked.fields:
            if error := self._refusal(node, asked):
                return [GraphQLError(error.detail, node, original_error=error)]
        return []

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


class Asked:
    """A question whose document was read."""

    limit: int  # bytes of the request

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

        Raises: TooComplex, TooLarge, Unanswerable.
        """
        context = self._begin(call)
        result = execute(*self._how(context))
        if isawaitable(result):
            result = await result
        return self._result(context, result)

    async def answers(self, call: Call) -> AsyncGenerator[Json]:
        """The answers to a subscription, as they come.

        Raises: TooComplex, TooLarge, Unanswerable, and what the stream raises.
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
