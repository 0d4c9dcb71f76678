"""The log's own form: what an entry is, how it is written in bulk and read by position."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orjson import Fragment

from core.database import Row, rows
from core.encoding import Shared
from core.models import log_id, position_of

SHARED_BYTES = 4096  # of a payload; a larger one is encoded for each who follows rather than kept once more

COLUMNS = (
    "id, stream, version, type, event_id::text, data::text, metadata::text, actor, "
    "correlation_id, causation_id, recorded_at"
)
SELECT = f"select {COLUMNS} from core_event"


def page(conditions: str, order: str, limit_bytes: int) -> str:
    """The statement for a page of events: it ends at the limit, the last parameter, or where its payloads, as they are
    stored, reach so many bytes; the first event is always in it. Each row ends with how many there are up to the
    limit, which tells a page that ended before it."""
    # The limit stands innermost: a window is looked through before it is cut.
    return f"""select {COLUMNS}, there from (
        select *, count(*) over () as there, sum(size) over (order by {order}) - size as before
        from (select *, pg_column_size(data) as size from core_event where {conditions} order by {order} limit %s) near
    ) page where before < {limit_bytes} order by {order}"""


FOLLOWED_BYTES = 1 << 20
READ_BYTES = 16 << 20
AFTER = page("id > %s and id <= %s", "id", FOLLOWED_BYTES)
NAMED = f"""{SELECT} where namespace_id = $1 and event_id = any($2::uuid[])
union all {SELECT} where namespace_id = $1 and event_id is null and id = any($3::bigint[])"""
OF_STREAM = f"{SELECT} where namespace_id = $1::int and stream = $2 and version = $3::bigint"
LAST = f"""select s.place, e.* from unnest(%s::text[]) with ordinality s(name, place) cross join lateral (
    {SELECT} where namespace_id = %s and stream = s.name order by version desc limit %s) e
order by s.place, e.version desc"""
# The lock orders commits; the heads are read in a statement of its own, whose snapshot sees them all.
# max() over the primary key, not a counter row: that gets ten times slower while any old snapshot is open.
TAKE_HEAD = "select pg_advisory_xact_lock(7305, $1)"
WRITE = """with head as materialized (
    select n.number, greatest(n.floor, (
        select coalesce(max(e.id), 0) & ((1::bigint << 40) - 1) from core_event e
        where e.id > n.number::bigint << 40 and e.id < (n.number::bigint + 1) << 40)) as position
    from core_namespace n where n.number = any($1::int[])
), time as materialized (select clock_timestamp() as now
), written as (
    insert into core_event (id, namespace_id, stream, version, type, event_id, data, metadata, actor,
        correlation_id, causation_id, recorded_at)
    select head.number::bigint << 40 | (head.position + place), head.number, stream, version, type, event_id, data,
        metadata, actor, correlation_id, causation_id, time.now
    from unnest($2::int[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::uuid[], $8::json[], $9::json[],
        $10::text[], $11::text[], $12::text[]) new(number, place, stream, version, type, event_id, data, metadata,
        actor, correlation_id, causation_id)
    join head using (number) cross join time
) select head.number, head.position, time.now from head cross join time"""

_PLACE = "00000000-0000-8000-"  # a version 8 UUID (RFC 9562) that says where the event stands


def place_id(namespace: int, position: int) -> str:
    """The event id of an event whose client gave none: its address in the log, as a UUID."""
    address = log_id(namespace, position)
    return f"{_PLACE}{0x8000 | address >> 48:04x}-{address & 0xFFFFFFFFFFFF:012x}"


def place_of(event_id: str) -> int | None:
    """The log address that such an event id names, or None if a client chose the id."""
    if not event_id.startswith(_PLACE):
        return None
    return (int(event_id[19:23], 16) & 0x3FFF) << 48 | int(event_id[24:], 16)


@dataclass(slots=True)
class Entry:
    """An event on its way into the log, or out of it. `data` and `metadata` are JSON text."""

    namespace: int
    stream: str
    version: int
    type: str
    data: str
    actor: str
    metadata: str | None = None
    event_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    position: int = 0
    recorded_at: Any = None  # a datetime once it is in the log
    _shared: Shared | None = None

    def row(self, place: int) -> tuple[Any, ...]:
        """What `WRITE` takes: the entry as the place-th of those that come after the head of its log."""
        return (
            self.namespace, place, self.stream, self.version, self.type, self.event_id, self.data, self.metadata,
            self.actor, self.correlation_id, self.causation_id,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Characters of the payload."""
        return len(self.data) + len(self.metadata or "")

    def public(self) -> dict[str, Any]:
        """The event as clients see it, its payload passed through unparsed."""
        return {
            "event_id": self.event_id or place_id(self.namespace, self.position),
            "stream_id": self.stream,
            "event_type": self.type,
            "version": self.version,
            "position": self.position,
            "data": Fragment(self.data),
            "metadata": Fragment(self.metadata or "{}"),
            "correlation_id": self.correlation_id,
            "causation_id": self.causation_id,
            "recorded_at": self.recorded_at,
        }

    def shared(self) -> dict[str, Any]:
        """The same, for the many who follow the log."""
        if len(self.data) > SHARED_BYTES:
            return self.public()
        if self._shared is None:
            self._shared = Shared(self.public())
        return self._shared


def entry(namespace: int, row: tuple[Any, ...]) -> Entry:
    """The entry of a row selected with COLUMNS, and perhaps more after them."""
    log_address, stream, version, kind, event_id, data, metadata, actor, correlation, causation, at, *_ = row
    return Entry(
        namespace, stream, version, kind, data, actor, metadata, event_id, correlation, causation,
        position_of(log_address), at,
    )  # fmt: skip


@dataclass(slots=True)
class RecordedEvent:
    """An event as it was recorded."""

    event_id: str
    stream_id: str
    event_type: str
    version: int
    position: int
    data: Any
    metadata: dict[str, Any]
    correlation_id: str | None
    causation_id: str | None
    recorded_at: datetime


async def of_stream(
    namespace: int, stream: str, chosen: Iterable[tuple[str, Any]], limit: int, order: str = "version"
) -> tuple[list[Entry], bool]:
    """A page of one stream's events, and whether there are more. `chosen`: conditions, each with its value; of
    those without one nothing is asked."""
    given = [("namespace_id = %s", namespace), ("stream = %s", stream), *chosen]
    wanted = [(condition, value) for condition, value in given if value is not None]
    where = " and ".join(condition for condition, _ in wanted)
    found = await rows(page(where, order, READ_BYTES), [*(value for _, value in wanted), limit + 1])
    return [entry(namespace, row) for row in found[:limit]], has_more(found, limit)


def has_more(found: Sequence[Row], limit: int) -> bool:
    """Was there more than a page took, by number or by size?"""
    return bool(found) and found[0][-1] > min(len(found), limit)


async def last(namespace: int, streams: Sequence[str], limit: int) -> list[list[RecordedEvent]]:
    """The last events of each of several streams, newest first: one statement for all."""
    found: list[list[Any]] = [[] for _ in streams]
    for place, *row in await rows(LAST, [list(streams), namespace, limit]):
        found[place - 1].append(entry(namespace, tuple(row)).public())
    return found
