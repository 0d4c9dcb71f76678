"""The event operations."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from core import following, log
from core.batch import Transaction
from core.callers import Call
from core.database import rows
from core.encoding import decode
from core.errors import Invalid
from core.following import HeartbeatSeconds, grew, head_for, start_of, tail
from core.log import Entry, RecordedEvent, place_id
from core.models import Event, Stream, log_id
from core.operations import command, nested, query
from core.types import EventId, Instant, Json, Limit, Object, Position, Prefix, Text, Wait
from events import rules
from events.types import (
    Appended,
    AppendedBatch,
    AppendedMany,
    EventType,
    Expected,
    Followed,
    LogPage,
    NewEvent,
    ReadName,
    StreamAppend,
    StreamInfo,
    StreamName,
    StreamPage,
)  # fmt: skip

# -- appending ---------------------------------------------------------------------------------------


def touches(params: dict[str, Any]) -> list[tuple[type[Any], str]]:
    """The stream, and the events of the ids that the client chose: they may be there already."""
    ids = [params["event_id"]] if params["event_id"] else []
    ids += [event.event_id for event in params["events"] or () if event.event_id]
    return [(Stream, params["stream_id"]), *((Event, event_id) for event_id in ids)]


@command(
    "POST events/{stream_id}",
    returns=Appended | AppendedBatch,
    status=201,
    aliases=["POST events"],
    hot=True,
    touches=touches,
    max_bytes=16 << 20,
)
def append(
    tx: Transaction,
    *,
    stream_id: StreamName,
    event_type: Annotated[
        EventType | None, Field(validation_alias=AliasChoices("event_type", "type"))
    ] = None,
    data: Json = None,
    metadata: Object = "{}",
    event_id: EventId | None = None,
    events: Annotated[list[NewEvent] | None, Field(min_length=1, max_length=1000)] = None,
    expected_version: Expected = "any",
) -> Any:
    """Append one event, or up to 1,000 at once, to a stream.

    One: `event_type`, `data` (any JSON), optional `metadata` and `event_id` (a UUID). Several: `events`, each of
    that form. `expected_version` is a number, `any`, `no_stream` or `exists`. The same event ids again change
    nothing and give the first answer with status 200. Versions start at 1 and are dense.

    Errors: `wrong_expected_version` (409, with expected and actual), `event_id_conflict` (409).
    """
    if events is not None:
        entries = put(tx, stream_id, events, expected_version)
        return lambda: batch_answer(entries)
    entry = put(tx, stream_id, [one_event(event_type, data, metadata, event_id)], expected_version)[0]
    return lambda: Appended(
        entry.event_id or place_id(entry.namespace, entry.position),
        entry.stream, entry.type, entry.version, entry.position, entry.recorded_at,
    )  # fmt: skip


@command(
    "POST events/batch",
    returns=AppendedMany,
    status=201,
    max_bytes=16 << 20,
    touches=lambda params: [
        *((Stream, each.stream_id) for each in params["appends"]),
        *((Event, e.event_id) for each in params["appends"] for e in each.events if e.event_id),
    ],
)
def append_many(
    tx: Transaction, *, appends: Annotated[list[StreamAppend], Field(min_length=1, max_length=100)]
) -> Any:
    """Append to several streams in one transaction: all of it or nothing.

    Errors: as for events.append; the answer names the stream.
    """
    written = [put(tx, each.stream_id, each.events, each.expected_version) for each in appends]
    return lambda: AppendedMany([batch_answer(entries) for entries in written])


@dataclass(slots=True)
class OneEvent:
    """The event of a body that carries just one."""

    event_type: str
    data: str
    metadata: str
    event_id: str | None


def one_event(event_type: str | None, data: str | None, metadata: str, event_id: str | None) -> OneEvent:
    """Raises: Invalid, when what makes an event is not there."""
    if event_type is None or data is None:
        given = {"event_type": event_type, "data": data}
        missing = [name for name, value in given.items() if value is None]
        raise Invalid([{"pointer": f"/{n}", "code": "missing", "detail": "Field required"} for n in missing])
    return OneEvent(event_type, data, metadata, event_id)


def put(
    tx: Transaction, name: str, events: Sequence[NewEvent | OneEvent], expected: int | str
) -> list[Entry]:
    """Append to one stream, or find that this append was made before.

    Raises: WrongExpectedVersion, EventIdConflict, Invalid.
    """
    ids = [event.event_id for event in events]
    if any(ids):
        check_distinct(ids)
        found = [tx.event(event_id) if event_id else None for event_id in ids]
        if rules.already(name, ids, found):
            tx.job.status = 200
            return [entry for entry in found if entry]
    stream = tx.get(Stream, name)
    rules.check_version(name, expected, stream.version if stream else 0)
    stream = stream or tx.add(Stream, name, created_at=tx.now, changed_at=tx.now)
    stream.changed_at = tx.now
    return [emit(tx, stream, event) for event in events]


def check_distinct(ids: Sequence[str | None]) -> None:
    chosen = [event_id for event_id in ids if event_id]
    if len(set(chosen)) < len(chosen):
        raise Invalid([{"pointer": "/events", "code": "repeated", "detail": "event ids repeat"}])


def emit(tx: Transaction, stream: Stream, event: NewEvent | OneEvent) -> Entry:
    metadata = event.metadata if event.metadata != "{}" else None
    correlation = causation = None
    if metadata and ("correlation_id" in metadata or "causation_id" in metadata):
        about = decode(metadata)
        correlation, causation = label(about.get("correlation_id")), label(about.get("causation_id"))
    return tx.emit(
        stream, event.event_type, event.data, metadata=metadata, event_id=event.event_id,
        correlation_id=correlation, causation_id=causation,
    )  # fmt: skip


def label(value: Any) -> str | None:
    """A correlation or causation id, if it can be one; it stays in the metadata either way."""
    return value if isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable() else None


def batch_answer(entries: list[Entry]) -> AppendedBatch:
    first, last = entries[0], entries[-1]
    ids = [entry.event_id or place_id(entry.namespace, entry.position) for entry in entries]
    return AppendedBatch(first.stream, first.version, last.version, first.position, last.position, ids)


# -- reading -----------------------------------------------------------------------------------------

SEARCH = 100_000  # positions that one statement looks through for what is chosen
SEARCH_SECONDS = 2.0  # how long a reader that would not wait is kept while nothing is found


@query("GET events/{stream_id}", returns=StreamPage, hot=True)
async def read(
    call: Call,
    *,
    stream_id: ReadName,
    from_version: Position | None = None,
    to_version: Position | None = None,
    limit: Annotated[int, Field(ge=1, le=1000)] = 50,
    direction: Literal["forward", "backward"] = "forward",
    event_type: EventType | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
) -> StreamPage:
    """Events of one stream, from `from_version` on (backward: from there, or the end, down).

    `event_type`, `since` and `until` (RFC 3339; `until` is exclusive) filter. An unknown stream has none.
    """
    forward = direction == "forward"
    low, high = (from_version, to_version) if forward else (to_version, from_version)
    chosen = [
        ("version >= %s", low),
        ("version <= %s", high),
        ("type = %s", event_type),
        ("recorded_at >= %s", since),
        ("recorded_at < %s", until),
    ]
    order = "version" if forward else "version desc"
    found, has_more = await log.of_stream(call.namespace.number, stream_id, chosen, limit, order)
    version = await rows(
        "select coalesce(max(version), 0) from core_event where namespace_id = %s and stream = %s",
        [call.namespace.number, stream_id],
    )
    events: Any = [entry.public() for entry in found]
    return StreamPage(stream_id, events, version[0][0], has_more)


@query("GET events", returns=LogPage, hot=True)
async def read_all(
    call: Call,
    *,
    from_position: Position = 1,
    category: Text | None = None,
    prefix: Prefix = "",
    event_type: EventType | None = None,
    system: bool = False,
    limit: Annotated[int, Field(ge=1, le=1000)] = 50,
    wait_seconds: Wait = 0.0,
) -> LogPage:
    """The whole namespace in position order, starting at `from_position`.

    Positions are dense and in commit order: whoever goes on at `next_position` misses nothing. `wait_seconds`
    (at most 300) holds the request until something is there. System streams (`$…`) are left out unless
    `system` is true or `prefix` begins with `$`. `has_more` tells to go on at once, also after a page without
    events: in a long log a rare choice is searched for in steps.

    Errors: `position_pruned` (410), `position_ahead` (409).
    """
    choice = Choice(category, prefix, (event_type,) if event_type else (), system)
    position = max(from_position, 1)
    started = monotonic()
    # Listening before the first look, so that nothing comes between.
    with tail().listening(call.namespace.number) as grown:
        head = await head_for(call, position, choice.kind)
        while True:
            page = await log_page(call.namespace.number, position, head, choice, limit)
            took = monotonic() - started
            if page.events or (page.has_more and took > max(wait_seconds, SEARCH_SECONDS)):
                return page
            if not page.has_more:
                if took >= wait_seconds or not await grew(grown, wait_seconds - took):
                    return page
                grown.clear()
                _, head = await tail().bounds(call.namespace.number)
            position = page.next_position


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events of a log are wanted."""

    category: str | None = None
    prefix: str = ""
    event_types: tuple[str, ...] = ()
    system: bool = False

    @property
    def takes_system(self) -> bool:
        return self.system or self.prefix.startswith("$")

    @property
    def kind(self) -> str | None:
        """How the names of the system streams begin that are wanted, if any are."""
        return "" if self.takes_system else None

    def takes(self, entry: Entry) -> bool:
        stream = entry.stream
        return (
            (self.takes_system or not stream.startswith("$"))
            and stream.startswith(self.prefix)
            and (self.category is None or stream.partition("-")[0] == self.category)
            and (not self.event_types or entry.type in self.event_types)
        )

    def conditions(self) -> tuple[str, list[Any]]:
        found: list[str] = ["true"]
        values: list[Any] = []
        if not self.system and not self.prefix.startswith("$"):
            found.append("not starts_with(stream, '$')")
        if self.prefix:
            found.append("starts_with(stream, %s)")
            values.append(self.prefix)
        if self.category is not None:
            found.append("split_part(stream, '-', 1) = %s")
            values.append(self.category)
        if self.event_types:
            found.append("type = any(%s)")
            values.append(list(self.event_types))
        return " and ".join(found), values


async def log_page(number: int, position: int, head: int, choice: Choice, limit: int) -> LogPage:
    """A page of what is chosen up to `head`, which was read before: what is committed since is not skipped.

    It looks through SEARCH positions at most; a page may be empty and yet have more after it.
    """
    where, values = choice.conditions()
    last = min(head, position + SEARCH - 1)
    found = await rows(
        log.page(f"id >= %s and id <= %s and {where}", "id", log.READ_BYTES),
        [log_id(number, position), log_id(number, last), *values, limit + 1],
    )
    entries = [log.entry(number, row) for row in found[:limit]]
    more = log.has_more(found, limit)
    next_position = entries[-1].position + 1 if more else last + 1
    events: Any = [entry.public() for entry in entries]
    return LogPage(events, next_position, head, more or last < head)


@query("GET events/follow", returns=Followed)
async def follow(
    call: Call,
    *,
    from_position: Position | None = None,
    streams: Annotated[list[ReadName], Field(max_length=100)] = [],  # noqa: B006
    category: Text | None = None,
    prefix: Prefix = "",
    event_types: Annotated[list[EventType], Field(max_length=100)] = [],  # noqa: B006
    system: bool = False,
    heartbeat_seconds: HeartbeatSeconds = 15.0,
) -> AsyncIterator[dict[str, Any]]:
    """Follow the log live: first what is there from `from_position` (absent: only what comes), then each new
    event in order. A heartbeat carries the position reached, also where nothing matched.

    Errors: `position_pruned` (410), `position_ahead` (409).
    """
    wanted = frozenset(streams)
    choice = Choice(category, prefix, tuple(event_types), system or any(s.startswith("$") for s in streams))

    def item(entry: Entry) -> dict[str, Any] | None:
        is_wanted = choice.takes(entry) and (not wanted or entry.stream in wanted)
        return {"event": entry.shared()} if is_wanted else None

    position = await start_of(call, from_position, choice.kind)
    items = following.follow(call.namespace.number, position, item, heartbeat_seconds)
    async with aclosing(items):
        async for found in items:
            yield found


@query("GET events/{stream_id}/info", name="streams.get", returns=StreamInfo, hot=True)
async def stream_info(call: Call, *, stream_id: ReadName) -> StreamInfo:
    """The version of a stream, when it was made and when it last changed. An unknown stream has version 0."""
    found = await rows(
        "select max(version), min(recorded_at), max(recorded_at) from core_event "
        "where namespace_id = %s and stream = %s",
        [call.namespace.number, stream_id],
    )
    version, created_at, changed_at = found[0]
    return StreamInfo(stream_id, version or 0, created_at, changed_at)


@nested(StreamInfo)
async def events(
    call: Call, parents: Sequence[StreamInfo], *, limit: Limit = 20
) -> list[list[RecordedEvent]]:
    """The last events of the stream, newest first."""
    return await log.last(call.namespace.number, [stream.stream_id for stream in parents], limit)
