"""What a document may ask for at once: weighed before anything in it is looked at more closely."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
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
    type_from_ast,
)

from core.encoding import MAX_DEPTH as MAX_VALUE_DEPTH
from core.encoding import encode, nesting
from core.errors import TooComplex, TooLarge

MAX_TOKENS = 1_000  # a query for the whole schema has 300
MAX_DEPTH = 12  # of fields in fields
MAX_NAMES = 30  # root fields, aliases, fields written twice, fragments used: they make a small document large
MAX_COST = 15_000  # fields of the answer, 5 µs each: a page of 1,000 events with all that belongs to it fits
MAX_LIST = 1_000  # the longest page that an operation gives
USUAL_LIST = 5  # the items that a list without a limit is reckoned to have
INTROSPECTION = 1_000  # the cost of `__schema` or `__type`
MAX_ITEMS = 100_000  # in lists of arguments, 10 µs each: as many events as one command appends


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
    """Weighs the operations of one document; every fragment once, however often it is used.

    Parameters: the variables' values; how many bytes all values may have, once variables stand in their places.
    """

    def __init__(
        self, schema: GraphQLSchema, document: DocumentNode, variables: Mapping[str, Any], limit: int
    ) -> None:
        self._schema, self._variables, self._limit = schema, variables, limit
        self._uses: list[tuple[str, int]] = []  # of variables: the name, and how deep in a value
        self._fragments = {
            each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._operations = [
            each for each in document.definitions if isinstance(each, OperationDefinitionNode)
        ]
        self._weighed: dict[tuple[str, bool], Weight] = {}

    def check(self) -> None:
        """Weigh all that validation will look at: what is asked for, and what only stands there.

        Raises: TooComplex, TooLarge.
        """
        try:
            for operation in self._operations:
                judge(self._operation(operation))
            for name in self._fragments:
                judge(Weight(names=self._fragment(name, False).names))
        except RecursionError:
            raise TooComplex from None
        self._check_uses()
        self._check_items()

    def _check_uses(self) -> None:
        """Variables in values, and values that come several times: together no deeper and no larger than a body."""
        if len(self._uses) == 1 and self._uses[0][1] == 1:  # is in the body as it is
            return
        texts = {name: text_of(self._variables.get(name)) for name, _ in self._uses}
        if sum(len(texts[name]) for name, _ in self._uses) > self._limit:
            raise TooLarge(f"With its variables it has more than {self._limit} bytes.", limit=self._limit)
        depths = {name: depth_in(texts[name]) for name, place in self._uses if place > 1}
        if any(place + depths[name] > MAX_VALUE_DEPTH + 1 for name, place in self._uses if place > 1):
            raise too_deep()

    def _check_items(self) -> None:
        """Each is looked at by graphql-core, which knows no limit, before the operation is asked."""
        kinds = {
            each.variable.name.value: type_from_ast(self._schema, cast(Any, each.type))
            for operation in self._operations
            for each in operation.variable_definitions
        }
        count = 0
        for name, _ in self._uses:
            for length in lengths(self._variables.get(name), kinds.get(name)):
                count += length
                if count > MAX_ITEMS:
                    raise TooComplex(f"More than {MAX_ITEMS} items.", limit=MAX_ITEMS)

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
            self._uses += check_depth(argument.value)
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


def too_deep() -> TooComplex:
    return TooComplex(f"A value nests deeper than {MAX_VALUE_DEPTH}.", limit=MAX_VALUE_DEPTH)


def check_depth(value: ValueNode, depth: int = 1) -> list[tuple[str, int]]:
    """The variables in a value, and how deep each is.

    Raises: TooComplex, for JSON in a document that nests deeper than it may in a body.
    """
    if depth > MAX_VALUE_DEPTH + 1:
        raise too_deep()
    if isinstance(value, VariableNode):
        return [(value.name.value, depth)]
    inside: list[ValueNode] = []
    if isinstance(value, ListValueNode):
        inside = list(value.values)
    elif isinstance(value, ObjectValueNode):
        inside = [field.value for field in value.fields]
    return [use for each in inside for use in check_depth(each, depth + 1)]


def check_defaults(document: DocumentNode) -> None:
    """Raises: TooComplex, for a variable's default that nests too deep."""
    for each in document.definitions:
        for variable in each.variable_definitions if isinstance(each, OperationDefinitionNode) else ():
            if variable.default_value:
                check_depth(variable.default_value, 2)


def text_of(value: Any) -> bytes:
    """Raises: TooComplex, for a number in a default that JSON has no room for."""
    try:
        return encode(value)
    except TypeError:
        raise TooComplex("A number is too large.") from None


def depth_in(text: bytes) -> int:
    """How deep a value nests; one without brackets not at all."""
    return nesting(text) if text[:1] in (b"{", b"[") else 0


def lengths(value: Any, kind: Any) -> Iterator[int]:
    """Of the lists in a value, as far as its type has them: each before what is in it."""
    kind = kind and get_nullable_type(kind)
    if isinstance(kind, GraphQLList) and isinstance(value, list):
        yield len(value)
        for each in value:
            yield from lengths(each, kind.of_type)
    elif isinstance(kind, GraphQLInputObjectType) and isinstance(value, dict):
        for name, field in kind.fields.items():
            yield from lengths(value.get(name), field.type)
