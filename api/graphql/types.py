"""The schema, made from the registry: operations are fields, their JSON Schemas are arguments and types."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import graphene
from graphene.utils.str_converters import to_camel_case
from graphql import GraphQLSchema, Undefined, value_from_ast_untyped

from api.schemas import options, present, referred
from core.operations import Nested, Operation, Registry

Json = dict[str, Any]


def as_it_is(value: Any) -> Any:
    """Scalars go through as they came: in, the operation checks them with all its limits and names every bad field;
    out, the encoder that all transports share writes them."""
    return value


class BigInt(graphene.Scalar):
    """A whole number of up to 53 bits: all that JSON's readers can hold."""

    serialize = parse_value = staticmethod(as_it_is)
    parse_literal = staticmethod(value_from_ast_untyped)


class DateTime(graphene.Scalar):
    """An RFC 3339 instant; answers are in UTC with microseconds."""

    serialize = parse_value = staticmethod(as_it_is)
    parse_literal = staticmethod(value_from_ast_untyped)


class JSON(graphene.Scalar):
    """Any JSON value. In a document, objects are written without quotes around their names."""

    serialize = parse_value = staticmethod(as_it_is)
    parse_literal = staticmethod(value_from_ast_untyped)


class PageInfo(graphene.ObjectType):
    """Where a list goes on. Cursors are of pages, not of items: hence nodes, and no edges."""

    has_next_page = graphene.Boolean(required=True)
    end_cursor = graphene.String(description="`after` of the next page")


SCALARS: dict[str, Any] = {
    "string": graphene.String,
    "integer": BigInt,
    "number": graphene.Float,
    "boolean": graphene.Boolean,
}
LIMITS = {
    "enum": "one of {}",
    "const": "always {}",
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "maxLength": "at most {} characters",
    "minItems": "items: at least {}",
    "maxItems": "items: at most {}",
}


def field_name(operation: Operation) -> str:
    """`locks.acquire` is `locksAcquire`."""
    return str(to_camel_case(operation.name.replace(".", "_")))


def is_list(operation: Operation) -> bool:
    """Does it answer pages of items? Then it is a connection."""
    paged = {"limit", "cursor"} <= operation.takes["properties"].keys()
    return bool(paged and operation.gives.get("properties", {}).keys() == {"items", "next_cursor"})


def without_null(schema: Json) -> tuple[Json, bool]:
    """What a schema says of a value that is there, and whether it may be null."""
    if "anyOf" not in schema:
        return schema, False
    kinds = present(schema)
    about = {name: value for name, value in schema.items() if name != "anyOf"}
    found = {**about, **kinds[0]} if len(kinds) == 1 else {**about, "anyOf": kinds}
    return found, len(kinds) < len(schema["anyOf"])


def described(schema: Json) -> str | None:
    """A sentence about an argument: its description and its limits."""
    found, _ = without_null(schema)
    values = {name: found[name] for name in LIMITS if name in found}
    if "enum" in values:
        values["enum"] = ", ".join(map(str, values["enum"]))
    limits = ", ".join(LIMITS[name].format(value) for name, value in values.items())
    return "; ".join(filter(None, (schema.get("description"), limits))) or None


def default(schema: Json) -> Any:
    """A default that the schema can show: GraphQL prints no objects."""
    value = schema.get("default")
    return value if isinstance(value, str | int | float) else Undefined


def read(name: str, default_value: Any, parent: Any, info: Any, **arguments: Any) -> Any:
    """A field of what an operation answered, an object or, from the log or a kept answer, a dict."""
    if isinstance(parent, dict):
        return parent.get(name, default_value)
    return getattr(parent, name, default_value)  # of several objects in one type, this one has other fields


class Types:
    """GraphQL types by name, each made once from a JSON Schema."""

    def __init__(self, registry: Registry) -> None:
        self._made: dict[str, tuple[list[Json], Any]] = {}
        self._nested: list[Nested] = registry.nested
        # A replayed answer comes without them.
        self._secrets = {(each.gives["title"], name) for each in registry for name in each.secret}

    def of(self, schema: Json, definitions: Json, is_input: bool = False, optional: bool = False) -> Any:
        """The type of what a schema describes: not null, unless it may be."""
        found, may_be_null = without_null(schema)
        kind = self.kind(found, definitions, is_input)
        return kind if kind is JSON or optional or may_be_null else graphene.NonNull(kind)

    def kind(self, schema: Json, definitions: Json, is_input: bool = False) -> Any:
        """The same, regardless of null. Several objects are one with the fields of all; several scalars are JSON."""
        names = [referred(each) for each in options(schema)]
        if all(names) and not (is_input and len(names) > 1):
            return self._object(
                "Or".join(names), [definitions[name] for name in names], definitions, is_input
            )
        if schema.get("type") == "array":
            return graphene.List(self.of(schema.get("items", {}), definitions, is_input))
        if schema.get("type") == "object" and "properties" in schema:
            return self._object(schema["title"], [schema], definitions, is_input)
        if schema.get("format") == "date-time":
            return DateTime
        return SCALARS.get(schema.get("type", ""), JSON)

    def _object(self, name: str, schemas: list[Json], definitions: Json, is_input: bool) -> Any:
        """Raises: ValueError, for two types of one name."""
        name = f"{name}Input" if is_input else name
        plain = [{key: value for key, value in schema.items() if key != "$defs"} for schema in schemas]
        known, made = self._made.get(name, (plain, None))
        if known != plain:
            raise ValueError(f"Two types are called {name}: GraphQL has one space of names.")
        if made is None:
            make = self._input if is_input else self._output
            made = make(name, plain, definitions)
            self._made[name] = plain, made
        return made

    def _input(self, name: str, schemas: list[Json], definitions: Json) -> Any:
        about = {"Meta": meta(schemas, container=dict)}
        return type(name, (graphene.InputObjectType,), {**self.inputs(schemas[0], definitions), **about})

    def inputs(self, schema: Json, definitions: Json, made: Callable[..., Any] = graphene.InputField) -> Json:
        """The fields of an input object; or, made by graphene.Argument, the arguments of a field.

        What has a default may be left out, and null too: then the operation says what is wrong with that.
        """
        required = set(schema.get("required", ()))
        return {
            name: made(
                partial(self.of, each, definitions, True, name not in required),
                description=described(each),
                default_value=Undefined if name in required else default(each),
            )
            for name, each in schema["properties"].items()
        }

    def _output(self, name: str, schemas: list[Json], definitions: Json) -> Any:
        everywhere = set.intersection(*(set(schema["properties"]) for schema in schemas))
        fields: Json = {"Meta": meta(schemas, default_resolver=read)}
        for schema in schemas:
            for field, each in schema["properties"].items():
                optional = field not in everywhere or (name, field) in self._secrets
                kind = partial(self.of, each, definitions, optional=optional)
                fields[field] = graphene.Field(kind, description=described(each))
        for nested in self._nested:
            if name in nested.parents and nested.name not in fields:
                fields[nested.name] = self._nested_field(nested)
        return type(name, (graphene.ObjectType,), fields)

    def _nested_field(self, nested: Nested) -> Any:
        """A field that is asked for all parents together; if that fails, it is null and the parents are not."""

        def resolve(parent: Any, info: Any, **arguments: Any) -> Any:
            return info.context.nested(nested, arguments, parent)

        takes = nested.takes
        return graphene.Field(
            partial(self.of, nested.gives, nested.gives.get("$defs", {}), optional=True),
            args=self.inputs(takes, takes.get("$defs", {}), graphene.Argument),
            resolver=resolve,
            description=nested.doc,
        )

    def connection(self, operation: Operation) -> Any:
        """Pages of items: the nodes, and where they go on."""
        gives = operation.gives
        kind = partial(self.of, gives["properties"]["items"], gives["$defs"])

        def page_info(parent: Any, info: Any) -> PageInfo:
            cursor = parent.next_cursor
            return PageInfo(has_next_page=cursor is not None, end_cursor=cursor)

        fields = {
            "nodes": graphene.Field(kind, resolver=lambda parent, info: parent.items),
            "page_info": graphene.Field(graphene.NonNull(PageInfo), resolver=page_info),
        }
        return type(f"{gives['title']}Connection", (graphene.ObjectType,), fields)

    def arguments(self, operation: Operation) -> Json:
        takes = operation.takes
        found = self.inputs(takes, takes.get("$defs", {}), graphene.Argument)
        if is_list(operation):
            found["limit"].name, found["cursor"].name = "first", "after"
        if operation.kind == "command":
            about = "the same key and arguments again: the first successful answer again"
            found["idempotency_key"] = graphene.Argument(graphene.String, description=about)
        return found

    def field(self, operation: Operation) -> Any:
        gives = operation.gives
        kind = self.connection(operation) if is_list(operation) else self.kind(gives, gives.get("$defs", {}))
        resolver = None if operation.streams else answer(operation)
        return graphene.Field(
            kind, args=self.arguments(operation), resolver=resolver, description=operation.doc
        )


def meta(schemas: list[Json], **options: Any) -> type[Any]:
    return type("Meta", (), {"description": schemas[0].get("description"), **options})


def answer(operation: Operation) -> Callable[..., Any]:
    async def resolve(parent: Any, info: Any, *, idempotency_key: str | None = None, **arguments: Any) -> Any:
        return await info.context.carry_out(operation, info.path.key, arguments, idempotency_key)

    return resolve


def follow(operation: Operation) -> Callable[..., Any]:
    async def subscribe(parent: Any, info: Any, **arguments: Any) -> Any:
        return info.context.stream(operation, arguments)

    return subscribe


ROOTS: Mapping[str, str] = {
    "Query": "Reads.",
    "Mutation": "What changes something. Several in one document are carried out one after another.",
    "Subscription": "Streams, over graphql-transport-ws.",
}


def root(operation: Operation) -> str:
    """Where its field is: streams are subscriptions, what changes something are mutations."""
    return "Subscription" if operation.streams else "Mutation" if operation.changes else "Query"


def made(registry: Registry, operations: Iterable[Operation]) -> GraphQLSchema:
    """The schema of these operations.

    Raises: ValueError, when two types would have one name.
    """
    types = Types(registry)
    fields: dict[str, Json] = {
        name: {"Meta": meta([{"description": about}])} for name, about in ROOTS.items()
    }
    for operation in operations:
        name = operation.name.replace(".", "_")
        fields[root(operation)][name] = types.field(operation)
        if operation.streams:
            fields["Subscription"][f"subscribe_{name}"] = staticmethod(follow(operation))
    roots = {
        name.lower(): type(name, (graphene.ObjectType,), each)
        for name, each in fields.items()
        if len(each) > 1
    }
    found: GraphQLSchema = graphene.Schema(**roots).graphql_schema
    return found
