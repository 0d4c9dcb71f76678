"""Schedules: sagas that are started by the clock."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from orjson import Fragment
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from core.batch import Transaction
from core.callers import Call
from core.database import Row, rows
from core.encoding import encode
from core.errors import Invalid, NotFound
from core.models import between
from core.operations import command, query
from core.runtime import carry_out_found, every
from core.types import Cursor, Json, Limit, Text, encode_cursor
from sagas.errors import DefinitionNotFound, NotPaused
from sagas.models import Saga, Schedule
from sagas.progress import FINAL
from sagas.services.courses import create, named
from sagas.types import SagaName
from sagas.worker import worker

MOST = 100  # missed times that are made up for at once
FIELDS = 5  # of cron
LATE = 60.0  # seconds after which a time counts as missed
BACK = [timedelta(hours=1), timedelta(days=1), timedelta(days=40), timedelta(days=36500)]


class ScheduleNotFound(NotFound):
    """There is no schedule of that name."""


def check_cron(text: str) -> str:
    try:
        if len(text.split()) != FIELDS:
            raise CronSimError(f"not {len(text.split())}")  # with one more it would be seconds
        next(CronSim(text, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise PydanticCustomError(
            "cron", "five fields as cron has them: {why}", {"why": str(error)}
        ) from None
    return text


def check_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ValueError, OSError, KeyError):
        raise PydanticCustomError(
            "time_zone", "a name of the IANA time zones, such as Europe/Vienna"
        ) from None
    return text


Cron = Annotated[str, AfterValidator(check_cron), Field(min_length=1, max_length=100)]
Zone = Annotated[str, AfterValidator(check_zone), Field(min_length=1, max_length=64)]
Interval = Annotated[float, Field(ge=1, le=366 * 86400)]
Overlap = Literal["skip", "allow"]
CatchUp = Literal["none", "last", "all"]


@dataclass(slots=True)
class ScheduleState:
    name: str
    definition: str
    definition_version: int | None
    cron: str | None
    interval_seconds: float | None
    time_zone: str
    input: Any
    overlap: Overlap
    catch_up: CatchUp
    paused: bool
    next_at: datetime | None
    last_at: datetime | None
    last_saga_id: str | None


@dataclass(slots=True)
class Schedules:
    items: list[ScheduleState]
    next_cursor: str | None


@dataclass(slots=True)
class Dropped:
    name: str
    dropped: bool


# -- when ----------------------------------------------------------------------------------------------


def times_after(schedule: Any, moment: datetime) -> Iterator[datetime]:
    """When a schedule is due after that: by cron in its time zone, as the clock on the wall says (a time that a change
    of the clock leaves out comes right after it), or in equal intervals since it was made."""
    if schedule.cron:
        yield from (
            found.astimezone(moment.tzinfo)
            for found in CronSim(schedule.cron, moment.astimezone(ZoneInfo(schedule.time_zone)))
        )
        return
    # In whole microseconds: a quotient of floats says of the very moment that is due that it is still to come.
    interval = timedelta(seconds=schedule.interval_seconds)
    count = (moment - schedule.created_at) // interval
    while True:
        count += 1
        yield schedule.created_at + count * interval


def due_times(schedule: Any, now: datetime) -> list[datetime]:
    """The times that have come and are to be acted upon."""
    just_before = schedule.next_at - timedelta(seconds=1)
    if schedule.catch_up == "all":
        return list(islice(times_between(schedule, just_before, now), MOST))
    last = last_due(schedule, just_before, now)
    return last if schedule.catch_up == "last" else [at for at in last if (now - at).total_seconds() <= LATE]


def times_between(schedule: Any, start: datetime, now: datetime) -> Iterator[datetime]:
    return takewhile(lambda each: each <= now, times_after(schedule, start))


def last_due(schedule: Any, start: datetime, now: datetime) -> list[datetime]:
    """The last time between, if there is one. Looked for from the end: every minute of a long pause would hold all
    others up."""
    for back in BACK:
        begin = max(start, now - back)
        found = list(deque(times_between(schedule, begin, now), maxlen=1))
        if found or begin == start:
            return found
    return []


# -- operations ----------------------------------------------------------------------------------------


def touches(params: dict[str, Any]) -> list[tuple[type[Any], str]]:
    return [(Schedule, params["name"])]


@command("PUT saga-schedules/{name}", name="schedules.put", returns=ScheduleState, touches=touches)
def put(
    tx: Transaction,
    *,
    name: SagaName,
    definition: SagaName,
    definition_version: Annotated[int, Field(ge=1)] | None = None,
    cron: Cron | None = None,
    interval_seconds: Interval | None = None,
    time_zone: Zone = "UTC",
    input: Json = None,
    overlap: Overlap = "skip",
    catch_up: CatchUp = "last",
    paused: bool = False,
) -> ScheduleState:
    """Start sagas of a definition by the clock: `cron` (five fields, in `time_zone`) or every `interval_seconds` (1 or
    more). While the last one is not over, `overlap` skip leaves a time out. `catch_up` says what becomes of times that
    passed while nobody served or it was `paused`: none, the last of them, or all (at most 100). Other times begin anew.

    Errors: `definition_not_found` (404).
    """
    if (cron is None) == (interval_seconds is None):
        raise Invalid([{"pointer": "/cron", "code": "one_of", "detail": "either cron or interval_seconds"}])
    named(tx, definition, definition_version)
    found = tx.get(Schedule, name) or tx.add(Schedule, name, created_at=tx.now)
    found.definition, found.definition_version = definition, definition_version
    is_other = (found.cron, found.interval_seconds, found.time_zone) != (cron, interval_seconds, time_zone)
    found.cron, found.interval_seconds, found.time_zone = cron, interval_seconds, time_zone
    found.input, found.overlap, found.catch_up, found.is_paused = input or "null", overlap, catch_up, paused
    if is_other or found.next_at is None:
        found.next_at = next(times_after(found, tx.now))
    tx.emit(found, "schedule.put", {"definition": definition, "cron": cron, "interval_seconds": interval_seconds,
                                    "time_zone": time_zone, "paused": paused})  # fmt: skip
    return state(found)


def state(found: Schedule) -> ScheduleState:
    overlap: Any = found.overlap
    catch_up: Any = found.catch_up
    next_at = None if found.is_paused else found.next_at
    return ScheduleState(
        found.name, found.definition, found.definition_version, found.cron, found.interval_seconds, found.time_zone,
        Fragment(found.input), overlap, catch_up, found.is_paused, next_at, found.last_at, found.last_saga,
    )  # fmt: skip


def schedule_of(tx: Transaction, name: str) -> Schedule:
    """Raises: ScheduleNotFound."""
    if (found := tx.get(Schedule, name)) is None:
        raise ScheduleNotFound(f"There is no schedule {name}.", name=name)
    return found


def because(reason: str | None) -> dict[str, str]:
    return {} if reason is None else {"reason": reason}


@command("POST saga-schedules/{name}/pause", name="schedules.pause", returns=ScheduleState, touches=touches)
def pause(tx: Transaction, *, name: SagaName, reason: Text | None = None) -> ScheduleState:
    """Start no more sagas by the clock until it is resumed. Those that are under way go on.

    Errors: `schedule_not_found` (404).
    """
    found = schedule_of(tx, name)
    found.is_paused = True
    tx.emit(found, "schedule.paused", because(reason))
    return state(found)


@command("POST saga-schedules/{name}/resume", name="schedules.resume", returns=ScheduleState, touches=touches)
def resume(tx: Transaction, *, name: SagaName, reason: Text | None = None) -> ScheduleState:
    """Go by the clock again. What becomes of the times that passed meanwhile `catch_up` says.

    Errors: `schedule_not_found` (404), `not_paused` (409).
    """
    found = schedule_of(tx, name)
    if not found.is_paused:
        raise NotPaused("The schedule is not paused.", name=name)
    found.is_paused = False
    # One that was made paused by an earlier version has none.
    found.next_at = found.next_at or next(times_after(found, tx.now))
    tx.emit(found, "schedule.resumed", because(reason))
    return state(found)


@command("POST saga-schedules/{name}/run", name="schedules.run", returns=ScheduleState, touches=touches)
def run(tx: Transaction, *, name: SagaName, reason: Text | None = None) -> ScheduleState:
    """Start a saga of it now, whatever the clock says, also beside the last one and while it is paused. Its times
    stay as they are. `last_saga_id` of the answer is the saga.

    Errors: `schedule_not_found`, `definition_not_found` (404).
    """
    found = schedule_of(tx, name)
    begin_one(tx, found, tx.now, **because(reason))
    return state(found)


@command("DELETE saga-schedules/{name}", name="schedules.drop", returns=Dropped, touches=touches)
def drop(tx: Transaction, *, name: SagaName, reason: Text | None = None) -> Dropped:
    """Forget a schedule. Sagas that it started go on.

    Errors: `schedule_not_found` (404).
    """
    found = schedule_of(tx, name)
    tx.emit(found, "schedule.dropped", because(reason))
    tx.remove(found)
    return Dropped(name, True)


COLUMNS = """id, definition, definition_version, cron, interval_seconds, time_zone, input::text, overlap, catch_up,
    is_paused, next_at, last_at, last_saga"""


@query("GET saga-schedules/{name}", name="schedules.get", returns=ScheduleState)
async def get(call: Call, *, name: SagaName) -> ScheduleState:
    """A schedule, and when it is due.

    Errors: `schedule_not_found` (404).
    """
    found = await rows(
        f"select {COLUMNS} from sagas_schedule where id = %s", [f"{call.namespace.name}/{name}"]
    )
    if not found:
        raise ScheduleNotFound(f"There is no schedule {name}.", name=name)
    return seen(found[0])


@query("GET saga-schedules", name="schedules.find", returns=Schedules)
async def find(call: Call, *, limit: Limit = 50, cursor: Cursor | None = None) -> Schedules:
    """Schedules by name."""
    start, end = between(call.namespace.name)
    found = await rows(
        f"select {COLUMNS} from sagas_schedule where id > %s and id < %s order by id limit %s",
        [max(start, cursor or start), end, limit + 1],
    )
    items = [seen(row) for row in found[:limit]]
    return Schedules(items, encode_cursor(start + items[-1].name) if len(found) > limit else None)


def seen(row: Row) -> ScheduleState:
    (address, definition, version, cron, interval, zone, given, overlap, catch_up, is_paused, next_at,
     *last) = row  # fmt: skip
    return ScheduleState(
        address.partition("/")[2], definition, version, cron, interval, zone, Fragment(given), overlap, catch_up,
        is_paused, None if is_paused else next_at, *last,
    )  # fmt: skip


# -- by the clock --------------------------------------------------------------------------------------

DUE = """select id from sagas_schedule where next_at <= statement_timestamp() and not is_paused
order by next_at limit 200"""


@every(0.5)
async def look_at_the_clock() -> None:
    if worker.is_here:
        await carry_out_found(fire, "names", DUE)


@command(touches=lambda params: [(Schedule, name) for name in params["names"]])
def fire(tx: Transaction, *, names: list[str]) -> int:
    """Start what schedules say is due. That several processes see it is due starts it once: the row tells."""
    for name in names:
        schedule = tx.get(Schedule, name)
        if schedule is None or schedule.is_paused or schedule.next_at is None or schedule.next_at > tx.now:
            continue
        times = due_times(schedule, tx.now)
        for moment in times:
            start_one(tx, schedule, moment)
        is_behind = schedule.catch_up == "all" and len(times) == MOST
        schedule.next_at = next(times_after(schedule, times[-1] if is_behind else tx.now))
    return len(names)


def start_one(tx: Transaction, schedule: Schedule, moment: datetime) -> None:
    last = tx.get(Saga, schedule.last_saga) if schedule.last_saga else None
    if schedule.overlap == "skip" and last is not None and last.status not in FINAL:
        tx.emit(
            schedule, "schedule.skipped", {"due_at": moment, "because": f"saga {last.name} is {last.status}"}
        )
        return
    try:
        begin_one(tx, schedule, moment)
    except DefinitionNotFound as refusal:
        tx.emit(schedule, "schedule.failed", {"due_at": moment, "because": str(refusal)})


def begin_one(tx: Transaction, schedule: Schedule, moment: datetime, **more: str) -> None:
    """Raises: DefinitionNotFound."""
    address, plan = named(tx, schedule.definition, schedule.definition_version)
    metadata = encode({"schedule": schedule.name, "due_at": moment}).decode()
    saga, _ = create(tx, schedule.definition, address, plan, schedule.input, metadata=metadata)
    schedule.last_at, schedule.last_saga = tx.now, saga.name
    tx.emit(schedule, "schedule.fired", {"due_at": moment, "saga_id": saga.name, **more})
