"""Documents: read once, kept for the next time; and the values in them, as operations know them."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLList,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    Undefined,
    get_nullable_type,
    parse,
    value_from_ast_untyped,
)

from api.graphql.context import Unanswerable
from api.graphql.limits import MAX_LIST, MAX_TOKENS
from core.errors import Malformed, TooComplex

KEPT_CHARACTERS = 64 << 10  # of documents that need not be read again; each is some 200 bytes of memory
LONG = 16 << 10  # characters, from which on a document is read in a thread: escapes cost 0.5 µs each
Json = dict[str, Any]


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

    async def read(self, text: str) -> Document:
        """Raises: Unanswerable, TooComplex."""
        if known := self._kept.get(text):
            self._kept.move_to_end(text)
            return known
        return await asyncio.to_thread(parsed, text) if len(text) > LONG else parsed(text)

    def keep(self, text: str, document: Document) -> None:
        if len(text) > KEPT_CHARACTERS // 4 or text in self._kept:
            return
        self._kept[text] = document
        self._characters += len(text)
        while self._characters > KEPT_CHARACTERS:
            oldest, _ = self._kept.popitem(last=False)
            self._characters -= len(oldest)


def parsed(text: str) -> Document:
    """Raises: Unanswerable, TooComplex."""
    try:
        return Document(parse(text, max_lexical_tokens=MAX_TOKENS, max_comments=MAX_TOKENS))
    except GraphQLError as error:
        raise Unanswerable([error]) from None
    except RecursionError:
        raise TooComplex from None


# -- values -------------------------------------------------------------------------------------------


def untyped(node: Any, variables: Json) -> Any:
    try:
        return value_from_ast_untyped(node, variables)
    except ValueError:  # thousands of digits
        return Undefined


def snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def renamed(value: Any, kind: Any) -> Any:
    """A value as the operation knows it: the fields of input objects by their own names, JSON untouched. Of a list
    only as much as it takes to see that it is too long."""
    kind = kind and get_nullable_type(kind)
    if isinstance(kind, GraphQLList) and isinstance(value, list):
        return [renamed(each, kind.of_type) for each in value[: MAX_LIST + 1]]
    if not isinstance(kind, GraphQLInputObjectType) or not isinstance(value, dict):
        return value
    fields = {name: kind.fields.get(name) for name in value}
    return {
        str(known.out_name) if known else snake_case(name): renamed(
            value[name], known.type if known else None
        )
        for name, known in fields.items()
    }
