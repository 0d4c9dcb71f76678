"""What an operation is. One declaration, and every transport, document and permission follows from it."""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticCustomError

from core.errors import Invalid, NotFound, NotInVolatileNamespace, ReservedName
from core.types import PAIRS, Text, Token

if TYPE_CHECKING:
    from core.batch import Transaction

MAX_PROBLEMS = 1000  # that a refusal names; naming takes some 6 µs each, and bad input can have millions
MAX_BYTES = 1 << 20  # of a body, unless an operation takes more
Touch = tuple[type[Any], str]
Touches = Callable[[Any], Sequence[Touch]]
Volatile = Callable[..., Awaitable[Any]]
Until = Callable[[Any, Any, float], Awaitable[Any]]  # call, answer, seconds


@dataclass(slots=True)
class Outcome:
    """What an operation answered, and what a transport says beside it."""

    value: Any
    status: int = 200
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a command answers whose caller has to wait: an event with this ticket, in this stream, ends it.

    `facts` is what the caller alone knows of its place; the operation's `Waits` makes the answer from it.
    """

    stream: str
    ticket: int
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waits:
    """How an operation waits: what an event means for a waiter, and how a waiter gives up its place.

    `withdraw` names the internal command `(tx, *, reason, keep, **facts)` for a waiter that timed out or went
    away: with `keep` it answers the grant if there is one by now, else it gives back what was granted.
    `granted(facts, type, data)` gives the answer, raises a SyrosError, or says None: not for this waiter.
    `timed_out(facts, value)` makes the answer, or raises, from what a withdrawal with keep answered.
    `facts(value)` names the place of a grant whose caller went away before it heard of it.
    """

    withdraw: str
    granted: Callable[[dict[str, Any], str, dict[str, Any]], Any]
    timed_out: Callable[[dict[str, Any], Any], Any]
    facts: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """`POST locks/{key}/renew`: a name in braces takes the rest of the path up to what follows it."""

    method: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Route":
        method, path = text.split(" ", 1)
        return cls(method, path)

    @property
    def names(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


class Operation:
    """A function with a route, a schema and a name. core.runtime carries it out, for every transport."""

    def __init__(
        self,
        function: Callable[..., Any],
        route: str | None,
        *,
        kind: str,
        returns: Any = None,
        status: int = 200,
        name: str | None = None,
        aliases: Sequence[str] = (),
        hot: bool = False,
        waits: "Waits | None" = None,
        touches: Touches | None = None,
        admin: bool = False,
        anonymous: bool = False,
        fenced: bool = True,
        secret: Sequence[str] = (),
        max_bytes: int = MAX_BYTES,
        changes: bool | None = None,
        volatile: "Volatile | None" = None,
        patience: float = 0.0,
        until: "Until | None" = None,
        location: str | None = None,
        etag: str | None = None,
    ) -> None:
        app = function.__module__.partition(".")[0]
        self.name = name or f"{app}.{function.__name__}"
        self.function, self.kind, self.returns, self.status = function, kind, returns, status
        self.route = Route.parse(route) if route else None
        self.aliases = [Route.parse(alias) for alias in aliases]
        self.hot, self.waits, self.admin, self.anonymous = hot, waits, admin, anonymous
        self.touches, self.secret, self.max_bytes = touches, tuple(secret), max_bytes
        self.volatile, self.until = volatile, until
        self.location = Route.parse(location) if location else None
        self.changes = kind == "command" if changes is None else changes
        self.patience, self.etag = patience, etag
        self.streams = inspect.isasyncgenfunction(function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.fenced = fenced and kind == "command" and route is not None
        more = {"fence": (Fence | None, None)} if self.fenced else {}
        self.params = parameters(function, self.name, more)
        # Parameters that a query string gives as `name=a&name=b`.
        self.lists = {
            name for name, field in self.params.model_fields.items() if get_origin(field.annotation) is list
        }
        # Those of them whose items it may give as `name.key=value` as well.
        self.pairs = {name for name in self.lists if PAIRS in self.params.model_fields[name].metadata}

    def __repr__(self) -> str:
        return f"<Operation {self.name}>"

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")

    @cached_property
    def takes(self) -> dict[str, Any]:
        """The parameters as a JSON Schema, its definitions under `$defs`."""
        return self.params.model_json_schema()

    @cached_property
    def gives(self) -> dict[str, Any]:
        """The answer as a JSON Schema: of a stream, one item's. Any object, where no type was declared."""
        if self.returns is None:
            return {"type": "object"}
        adapter: TypeAdapter[Any] = TypeAdapter(self.returns)
        return adapter.json_schema(mode="serialization")

    def parse(self, values: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
        """Checked parameters. `strict` for JSON, where types are told; not for query strings.

        Raises: Invalid, naming every bad field.
        """
        return checked(self.params, values, strict)


def parameters(function: Callable[..., Any], name: str, more: Mapping[str, Any] = {}) -> type[BaseModel]:
    """A function's keyword-only parameters, and more, as a pydantic model that refuses what it does not know."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    fields = {**fields, **{name: field for name, field in more.items() if name not in fields}}
    title = "".join(part.capitalize() for part in re.split(r"[._]", name))
    return create_model(title, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def checked(params: type[BaseModel], values: Mapping[str, Any], strict: bool = True) -> dict[str, Any]:
    """Raises: Invalid, naming every bad field."""
    try:
        found: dict[str, Any] = params.__pydantic_validator__.validate_python(values, strict=strict).__dict__
        return found
    except ValidationError as error:
        problems = problems_of(error)
        only_reserved = {problem["code"] for problem in problems} == {ReservedName.code}
        raise (ReservedName if only_reserved else Invalid)(problems) from None


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Every bad field, as long as they are not too many to name."""
    count = error.error_count()
    if count > MAX_PROBLEMS:
        return [{"pointer": "/", "code": "too_many", "detail": f"{count} fields are wrong, too many to name"}]
    return [named(problem) for problem in error.errors(include_url=False)]


def named(problem: Mapping[str, Any]) -> dict[str, str]:
    """One of pydantic's complaints in the form of the contract: a JSON pointer, a code, a sentence."""
    pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in problem["loc"])
    return {"pointer": pointer or "/", "code": problem["type"], "detail": problem["msg"][:300]}


@dataclass(frozen=True)
class Nested:
    """A field that a type of answers has where a transport reads graphs: see `nested`."""

    parent: type[Any]
    name: str
    function: Callable[..., Any]
    volatile: Volatile | None = None

    def ask(self, call: Any, parents: Sequence[Any], params: Mapping[str, Any]) -> Awaitable[Any]:
        """The field of each parent."""
        form = self.volatile if self.volatile and call.namespace.volatile else self.function
        return cast(Awaitable[Any], form(call, parents, **params))

    @cached_property
    def params(self) -> type[BaseModel]:
        return parameters(self.function, f"{self.parent.__name__}.{self.name}")

    @cached_property
    def takes(self) -> dict[str, Any]:
        """The parameters as a JSON Schema."""
        return self.params.model_json_schema()

    @cached_property
    def gives(self) -> dict[str, Any]:
        """The field of one parent, as a JSON Schema."""
        adapter: TypeAdapter[Any] = TypeAdapter(get_args(get_type_hints(self.function)["return"])[0])
        return adapter.json_schema(mode="serialization")

    @property
    def parents(self) -> set[str]:
        """The names of the types that have the field: the parent's and, where they have none of that name, its
        subclasses'."""
        return {kind.__name__ for kind in subclasses(self.parent)}

    def parse(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Raises: Invalid, naming every bad field."""
        return checked(self.params, values)

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


class Registry:
    """All operations, by name."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}
        self.nested: list[Nested] = []
        self._reserved: dict[str, frozenset[str]] = {}

    def add(self, operation: Operation) -> None:
        if operation.name in self._operations:
            raise ValueError(f"{operation.name} is declared twice")
        self._operations[operation.name] = operation
        self._reserved.clear()

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations.values())

    def __getitem__(self, name: str) -> Operation:
        if name not in self._operations:
            raise NotFound("There is no such operation.", operation=name)
        return self._operations[name]

    def reserved(self, collection: str) -> frozenset[str]:
        """Names that a member of `/{collection}/…` may not have, because a route is called so."""
        if collection not in self._reserved:
            routes = (route for each in self for route in (each.route, *each.aliases) if route)
            parts = [route.path.split("/") for route in routes if "/" in route.path]
            found = {path[1] for path in parts if path[0] == collection and not path[1].startswith("{")}
            self._reserved[collection] = frozenset(found)
        return self._reserved[collection]


registry = Registry()


def command(route: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Operation]:
    """Declare an operation that changes state: `function(tx, *, …)`, run inside the engine.

    Parameters: the route (none: internal, callable from Python only); `returns`, the type of the answer;
    `touches`, which aggregates to load with the batch; `hot`, also served by the fast lane; `waits`, how
    it waits when it answers `Waiting`; `admin`, for administrators only; `anonymous`, for
    everybody; `secret`, fields of the answer that are not kept
    for replays; `changes`, whether anything is another afterwards (of commands yes, of queries no, unless it is said);
    `aliases`, further routes; `fenced=False`, takes no `fence`; `volatile`, the `async function(call, *, …)` that
    carries it out where locks are volatile (`refused`: nothing does); without it, it is the same everywhere.
    `patience`: the seconds that it may wait for others to share its transaction, which costs the same for one and for
    ten; `until`, the `async function(call, answer, seconds)` that, where `wait_seconds` asks for it, gives a later
    answer: how something ended that was begun.
    `location`: the route of what was made, its names being fields of the answer. `etag`: the field of the answer that
    names its content; who has that already (`If-None-Match`) is told so by 304, where a transport can.
    """
    return _declare("command", route, options)


def query(route: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Operation]:
    """Declare a read: `function(call, *, …)`. Plain: Django's ORM in a thread; `async def`: the small async
    pool, or a wait that holds neither thread nor connection; an async generator: a stream."""
    return _declare("query", route, options)


def nested(
    parent: type[Any], *, volatile: Volatile | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a field that answers of a type have where a transport reads graphs (GraphQL), named as the function:
    `async function(call, parents, *, …) -> list[T]`, one T for each parent, in their order; what stands after the
    asterisk are the field's parameters, as an operation's.

    It is asked once for all parents that an answer holds: so that many do not become many statements. `volatile` is
    what is asked where locks are volatile.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        registry.nested.append(Nested(parent, function.__name__, function, volatile))
        return function

    return register


def _declare(kind: str, route: str | None, options: Any) -> Callable[[Callable[..., Any]], Operation]:
    def register(function: Callable[..., Any]) -> Operation:
        operation = Operation(function, route, kind=kind, **options)
        registry.add(operation)
        return operation

    return register


async def refused(call: Any, **params: Any) -> Any:
    """The volatile form of what there is for durable locks only.

    Raises: NotInVolatileNamespace.
    """
    raise NotInVolatileNamespace


def not_reserved(collection: str) -> AfterValidator:
    """Refuse a name that a route of this collection already has."""

    def check(name: str) -> str:
        if name in registry.reserved(collection):
            raise PydanticCustomError("reserved_name", "{name} is a reserved name", {"name": name})
        return name

    return AfterValidator(check)


class Fence(BaseModel):
    """Carry the write out only while this token is the lock's current one and the lock is held."""

    model_config = ConfigDict(extra="forbid")
    key: Text
    fencing_token: Token


class Guard:
    """How a fence is checked; the app that owns locks says so, core only asks."""

    touches: Callable[[Fence], Sequence[Touch]] = staticmethod(lambda fence: ())
    check: Callable[["Transaction", Fence], None] = staticmethod(lambda tx, fence: None)


guard = Guard()
