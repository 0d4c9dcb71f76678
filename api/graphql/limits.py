"""What a document may ask for at once: weighed before anything in it is looked at more closely."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_list_type,
)

from core.encoding import MAX_DEPTH as MAX_VALUE_DEPTH
from core.errors import TooComplex

MAX_TOKENS = 1_000  # some 50 ms to read and to validate, at worst; a query for the whole schema has 300
MAX_DEPTH = 12  # of fields in fields
MAX_NAMES = 30  # root fields, aliases, fields written twice, fragments used: they make a small document large
MAX_COST = 15_000  # fields of the answer, 5 µs each: a page of 1,000 events with all that belongs to it fits
MAX_LIST = 1_000  # the longest page that an operation gives
USUAL_LIST = 5  # the items that a list without a limit is reckoned to have
INTROSPECTION = 1_000  # the cost of `__schema` or `__type`


@dataclass(slots=True)
class Weight:
    """How deep a selection is, how many names it brings, how many fields its answer may have."""

    depth: int = 0
    names: int = 0
    cost: int = 0

    def add(self, other: "Weight", times: int = 1) -> None:
        self.depth = max(self.depth, other.depth)
        self.names += other.names
        self.cost += other.cost * times


class Scale:
    """Weighs the operations of one document; every fragment once, however often it is used."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self._schema, self._variables = schema, variables
        self._fragments = {
            each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._operations = [
            each for each in document.definitions if isinstance(each, OperationDefinitionNode)
        ]
        self._weighed: dict[tuple[str, bool], Weight] = {}

    def check(self) -> None:
        """Weigh all that validation will look at: what is asked for, and what only stands there.

        Raises: TooComplex.
        """
        try:
            for operation in self._operations:
                judge(self._operation(operation))
            for name in self._fragments:
                judge(Weight(names=self._fragment(name, False).names))
        except RecursionError:
            raise TooComplex from None

    def _operation(self, operation: OperationDefinitionNode) -> Weight:
        roots = operation.selection_set
        total = self._selection(roots, self._schema.get_root_type(operation.operation), False)
        total.names += sum(isinstance(node, FieldNode) and not node.alias for node in roots.selections)
        return total

    def _selection(self, selection: SelectionSetNode, parent: Any, is_page: bool) -> Weight:
        total, seen = Weight(), set()
        for node in selection.selections:
            if isinstance(node, FieldNode):
                key = (node.alias or node.name).value
                total.names += bool(node.alias) or key in seen
                seen.add(key)
                total.add(self._field(node, parent, is_page))
            elif isinstance(node, FragmentSpreadNode):
                total.names += 1
                total.add(self._fragment(node.name.value, is_page))
            elif isinstance(node, InlineFragmentNode):
                total.names += 1
                kind = node.type_condition and self._schema.get_type(node.type_condition.name.value)
                total.add(self._selection(node.selection_set, kind or parent, is_page))
        return total

    def _fragment(self, name: str, is_page: bool) -> Weight:
        """An unknown fragment, or one in itself, weighs nothing: validation refuses it."""
        if (name, is_page) not in self._weighed:
            self._weighed[name, is_page] = Weight()
            if found := self._fragments.get(name):
                kind = self._schema.get_type(found.type_condition.name.value)
                self._weighed[name, is_page] = self._selection(found.selection_set, kind, is_page)
        return self._weighed[name, is_page]

    def _field(self, node: FieldNode, parent: Any, is_page: bool) -> Weight:
        for argument in node.arguments:
            check_depth(argument.value)
        if node.name.value.startswith("__"):
            return self._introspection(node)
        if node.selection_set is None:
            return Weight(1, 0, 1)
        field: GraphQLField | None = getattr(parent, "fields", {}).get(node.name.value)
        kind = field and get_named_type(field.type)
        times, is_page = self._times(node, field, is_page) if field else (1, False)
        inside = self._selection(node.selection_set, kind, is_page)
        return Weight(inside.depth + 1, inside.names, 1 + inside.cost * times)

    def _times(self, node: FieldNode, field: GraphQLField, is_page: bool) -> tuple[int, bool]:
        """How often what is inside a field is answered, and whether a list that is still to come is counted by that."""
        kind = get_nullable_type(cast(Any, field.type))
        for name, argument in field.args.items():
            if argument.out_name == "limit":
                given = next((each for each in node.arguments if each.name.value == name), None)
                return self._size(given, argument.default_value), not is_list_type(kind)
        if is_list_type(kind):
            return (1 if is_page else USUAL_LIST), False
        return 1, is_page

    def _size(self, given: ArgumentNode | None, usual: Any) -> int:
        """A page's size, as far as it can be one; what is no size, the operation refuses."""
        value: Any = usual
        if given and isinstance(given.value, IntValueNode):
            value = int(given.value.value[:9])
        elif given and isinstance(given.value, VariableNode):
            value = self._variables.get(given.value.name.value, usual)
        return min(max(value, 1), MAX_LIST) if isinstance(value, int) else 1

    def _introspection(self, node: FieldNode) -> Weight:
        """Without aliases the answer is bounded by the schema, and graphql-core limits how deep it goes."""
        if node.selection_set is None:
            return Weight(1, 0, 1)
        self._refuse_aliases(node.selection_set, set())
        return Weight(1, self._selection(node.selection_set, None, False).names, INTROSPECTION)

    def _refuse_aliases(self, selection: SelectionSetNode, seen: set[str]) -> None:
        for node in selection.selections:
            if isinstance(node, FieldNode) and node.alias:
                raise TooComplex("No aliases inside of introspection.")
            inside = getattr(node, "selection_set", None)
            if isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                found = self._fragments.get(node.name.value)
                inside = found and found.selection_set
            if inside:
                self._refuse_aliases(inside, seen)


def judge(weight: Weight) -> None:
    """Raises: TooComplex."""
    for name, limit in (("depth", MAX_DEPTH), ("names", MAX_NAMES), ("cost", MAX_COST)):
        if (value := getattr(weight, name)) > limit:
            said = min(value, 10**9)  # fragments in fragments make it astronomic
            raise TooComplex(f"{name.capitalize()} {said}; at most {limit}.", limit=limit)


def check_depth(value: ValueNode, depth: int = 1) -> None:
    """Raises: TooComplex, for JSON in a document that nests deeper than it may in a body."""
    if depth > MAX_VALUE_DEPTH + 1:
        raise TooComplex(f"A value nests deeper than {MAX_VALUE_DEPTH}.", limit=MAX_VALUE_DEPTH)
    if isinstance(value, ListValueNode):
        for each in value.values:
            check_depth(each, depth + 1)
    elif isinstance(value, ObjectValueNode):
        for field in value.fields:
            check_depth(field.value, depth + 1)
