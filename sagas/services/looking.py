"""Looking at sagas."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Annotated, Any

from orjson import Fragment
from pydantic import Field

from core import log
from core.callers import Call
from core.database import Row, rows
from core.encoding import encode
from core.log import RecordedEvent
from core.models import between
from core.operations import nested, query
from core.runtime import runtime
from core.types import Cursor, Instant, Limit, Wait, encode_cursor
from locks.services.looking import held_in
from locks.types import HeldLock
from sagas import progress as stored_progress
from sagas import timeline as told
from sagas.errors import SagaNotFound
from sagas.facts import FACTS, FETCHED, TOLD, Fact
from sagas.plans import Plan
from sagas.progress import LIVE, RESTING
from sagas.services.courses import known_plan, plan_at, session_id
from sagas.states import at, steps_of
from sagas.types import (
    ChosenTags,
    ErrorCode,
    FailedSide,
    FailureGroup,
    Failures,
    History,
    HistoryEvent,
    SagaId,
    SagaName,
    Sagas,
    SagaState,
    SagaSummary,
    Status,
    StepState,
    Timeline,
)
from sagas.worker import worker

# Seconds until who waits looks whether another process did something: soon, then less often.
LOOK_AGAIN = (0.25, 1.0)
SUMMARY = "id, title, status, reason, current_step, error::text, tags::text, created_at, finished_at"
COLUMNS = f"""{SUMMARY}, definition, progress::text, input::text, output::text, metadata::text, dirty, deadline_at"""
ONE = f"select {COLUMNS} from sagas_saga where id = %s"
STANDING = "select id, definition, progress::text from sagas_saga where id = any(%s)"
BODIES = "select id, body::text from sagas_definition where id = any(%s)"


@query("GET sagas/{saga_id}", returns=SagaState, aliases=["GET sagas/{saga_id}/status"], hot=True)
async def get(call: Call, *, saga_id: SagaId, wait_seconds: Wait = 0.0) -> SagaState:
    """A saga and its steps: what each did, how often it was tried, what it answered. `wait_seconds` (at most 300) holds
    the request until the saga is over, or needs a human.

    Errors: `saga_not_found` (404).
    """
    found = await look_up(call, saga_id)
    if not wait_seconds or found.status in RESTING:
        return found
    return await at_rest(call, saga_id, wait_seconds)


async def at_rest(call: Call, saga_id: str, wait_seconds: float) -> SagaState:
    """A saga once it is over or needs attention, or as it is after so many seconds. This process tells what it ends
    itself; what others end is seen by looking again.

    Raises: SagaNotFound.
    """
    until, (pause, longest) = monotonic() + wait_seconds, LOOK_AGAIN
    with worker.rest_of(f"{call.namespace.name}/{saga_id}") as resting:
        while True:
            left = until - monotonic()
            if await heard_of(resting, min(left, pause)):
                state: SagaState = resting.result()
                return state
            found = await look_up(call, saga_id)
            if found.status in RESTING or left <= pause or runtime.stopping:
                return found
            pause = min(2 * pause, longest)


async def heard_of(news: asyncio.Future[Any], seconds: float) -> bool:
    """Wait for news, not longer than that."""
    done, _ = await asyncio.wait([news], timeout=max(0.0, seconds))
    return bool(done)


async def look_up(call: Call, saga_id: str) -> SagaState:
    """Raises: SagaNotFound."""
    found = await rows(ONE, [f"{call.namespace.name}/{saga_id}"])
    if not found:
        raise SagaNotFound(f"There is no saga {saga_id}.", saga_id=saga_id)
    return await seen(found[0])


async def seen(row: Row) -> SagaState:
    (address, title, status, reason, step, error, tags, created, finished, definition, progress, given, output,
     metadata, dirty, deadline) = row  # fmt: skip
    plan = (await stored_plans([definition]))[definition]
    stands = stored_progress.from_text(progress)
    return SagaState(
        address.partition("/")[2], title, status, reason, step, Fragment(given), json(output), json(error),
        json(metadata) or {}, json(tags) or {}, dirty, steps_of(plan, stands), created,
        at(stands.start_at), deadline, finished,
    )  # fmt: skip


def json(text: str | None) -> Any:
    return Fragment(text) if text else None


async def stored_plans(addresses: Collection[str]) -> dict[str, Plan]:
    """What definitions mean, by their addresses: one statement for all that this process has not read yet.

    Raises: Unavailable.
    """
    known = {address: plan for address in addresses if (plan := known_plan(address))}
    if unknown := [address for address in addresses if address not in known]:
        known |= {address: plan_at(address, body) for address, body in await rows(BODIES, [unknown])}
    return known


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sagas are wanted. `tag`, each as `key:value`; `until` is exclusive; `is_live`, only what is not over."""

    status: str | None = None
    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tag: Sequence[str] = ()
    error_code: str | None = None
    is_live: bool = False

    def conditions(self) -> tuple[str, list[Any]]:
        """Only those that are asked for: so that each finds its index."""
        found = [
            ("status = %s", self.status),
            ("title = %s", self.name),
            ("created_at >= %s", self.since),
            ("created_at < %s", self.until),
            *(("tags @> %s::jsonb", as_object(each)) for each in self.tag),
            ("failed_code = %s", self.error_code),
            ("status = any(%s)", list(LIVE) if self.is_live else None),
        ]
        return (
            "".join(f" and {condition}" for condition, value in found if value is not None),
            [value for _, value in found if value is not None],
        )


def as_object(tag: str) -> str:
    key, _, value = tag.partition(":")
    return encode({key: value}).decode()


@query("GET sagas", returns=Sagas)
async def find(
    call: Call,
    *,
    status: Status | None = None,
    name: SagaName | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    tag: ChosenTags = [],  # noqa: B006
    error_code: ErrorCode | None = None,
    limit: Limit = 50,
    cursor: Cursor | None = None,
) -> Sagas:
    """Sagas, the newest first: of one status, name, begun since then and before `until`, with every `tag`, each as
    `key:value`; `error_code` is of what failed, or of what is stuck."""
    items = await matching(call, Choice(status, name, since, until, tag, error_code), limit + 1, cursor)
    place = f"{call.namespace.name}/{items[limit - 1].saga_id}" if len(items) > limit else None
    return Sagas(items[:limit], encode_cursor(place) if place else None)


async def matching(call: Call, choice: Choice, limit: int, cursor: str | None = None) -> list[SagaSummary]:
    """Sagas, the newest first."""
    start, end = between(call.namespace.name)
    where, values = choice.conditions()
    statement = f"select {SUMMARY} from sagas_saga where id > %s and id < %s{where} order by id desc limit %s"
    found = await rows(statement, [start, min(cursor or end, end), *values, limit])
    return [summary(row) for row in found]


SIDES: dict[str, FailedSide] = {"action": "action", "compensate": "compensation"}
SCANNED = 100_000  # failures that are grouped, the newest ones
HOURS = 24  # of which, unless it is said
# What may have been failures and is none any more is not among them.
FAILURES = """with recent as (
    select id, title, failed_side, failed_code, status, failed_at from sagas_saga
    where split_part(id, '/', 1) = %s and failed_at >= coalesce(%s, now() - %s * interval '1 hour')
        and status in ('attention', 'compensating', 'compensated', 'failed', 'terminated'){where}
    order by failed_at desc limit %s)
select title, failed_side, failed_code, count(*), count(*) filter (where status = 'attention'),
    (array_agg(id order by failed_at desc))[1], min(failed_at), max(failed_at), sum(count(*)) over ()
from recent group by title, failed_side, failed_code order by count(*) desc, max(failed_at) desc limit %s"""


@query("GET sagas/failures", returns=Failures)
async def failures(
    call: Call,
    *,
    status: Status | None = None,
    name: SagaName | None = None,
    since: Instant | None = None,
    limit: Limit = 50,
) -> Failures:
    """What goes wrong, the most frequent first: sagas that failed, turned back, were terminated or need attention, in
    groups by name, the side of the step and the code of what failed. Since 24 hours ago unless said; the last 100,000
    failures are looked at, and `is_partial` says so if there were more.
    """
    where, values = Choice(status, name).conditions()
    found = await rows(
        FAILURES.format(where=where), [call.namespace.name, since, HOURS, *values, SCANNED + 1, limit]
    )
    return Failures([failure(row) for row in found], bool(found) and found[0][-1] > SCANNED)


def failure(row: Row) -> FailureGroup:
    title, failed, code, count, stuck, newest, first, last, _ = row
    step, op = failed.split(".") if failed else (None, "")
    side = SIDES.get(op)
    return FailureGroup(title, step, side, code, count, stuck, newest.partition("/")[2], first, last)


def summary(row: Row) -> SagaSummary:
    address, title, status, reason, step, error, tags, created, finished = row
    return SagaSummary(
        address.partition("/")[2],
        title,
        status,
        reason,
        step,
        json(error),
        json(tags) or {},
        created,
        finished,
    )


@query("GET sagas/{saga_id}/history", returns=History)
async def history(
    call: Call, *, saga_id: SagaId, from_version: Annotated[int, Field(ge=1)] = 1, limit: Limit = 200
) -> History:
    """Everything that happened to a saga, in order: its stream in the log.

    Errors: `saga_not_found` (404).
    """
    chosen = [("version >= %s", from_version)]
    found, has_more = await log.of_stream(call.namespace.number, f"$saga:{saga_id}", chosen, limit)
    if not found and not await rows(ONE, [f"{call.namespace.name}/{saga_id}"]):
        raise SagaNotFound(f"There is no saga {saga_id}.", saga_id=saga_id)
    events = [
        HistoryEvent(
            each.version, each.position, each.type, Fragment(each.data), each.actor, each.recorded_at
        )
        for each in found
    ]
    return History(saga_id, events, events[-1].version if events else 0, has_more)


STANDS = """select title, status, created_at, finished_at, progress::text, clock_timestamp() from sagas_saga
    where id = %s"""


@query("GET sagas/{saga_id}/timeline", returns=Timeline)
async def timeline(call: Call, *, saga_id: SagaId) -> Timeline:
    """What a saga did and when: the states it was in, and a lane for each side of a step, with its attempts and with
    what it waited for. It is told from the last 2,000 events of the saga; `is_cut` says that there were more.

    Errors: `saga_not_found` (404).
    """
    address = f"{call.namespace.name}/{saga_id}"
    found = await rows(STANDS, [address])
    if not found:
        raise SagaNotFound(f"There is no saga {saga_id}.", saga_id=saga_id)
    title, status, created, finished, progress, now = found[0]
    facts = [Fact(*row) for row in await rows(FACTS, [call.namespace.number, f"$saga:{saga_id}", TOLD])][::-1]
    fetched = {(step, op): at for step, op, at in await rows(FETCHED, [address, address])}
    seen = told.told(stored_progress.from_text(progress).steps, status, facts, fetched)
    first = facts[0].version if facts else 1
    return Timeline(
        saga_id, title, status, created, finished, now, seen.states, seen.lanes, first, first > 1
    )  # fmt: skip


# -- what lies beside a saga, where graphs are read -----------------------------------------------------

Seen = Sequence[SagaSummary | SagaState | dict[str, Any]]  # a dict, where an answer was kept


def ids_of(parents: Seen) -> list[str]:
    return [saga["saga_id"] if isinstance(saga, dict) else saga.saga_id for saga in parents]


@nested(SagaSummary)
async def steps(call: Call, parents: Seen, *, limit: Limit = 50) -> list[list[StepState]]:
    """The steps of the saga, in their order."""
    addresses = [f"{call.namespace.name}/{saga_id}" for saga_id in ids_of(parents)]
    found = await rows(STANDING, [addresses])
    plans = await stored_plans({definition for _, definition, _ in found})
    stands = {
        address: steps_of(plans[definition], stored_progress.from_text(progress))[:limit]
        for address, definition, progress in found
    }
    return [stands.get(address, []) for address in addresses]


@nested(SagaState)
@nested(SagaSummary)
async def locks(call: Call, parents: Seen, *, limit: Limit = 20) -> list[list[HeldLock]]:
    """The locks that the saga holds for its steps, in key order."""
    return await held_in(call.namespace.name, [session_id(saga_id) for saga_id in ids_of(parents)], limit)


@nested(SagaState)
@nested(SagaSummary)
async def events(call: Call, parents: Seen, *, limit: Limit = 20) -> list[list[RecordedEvent]]:
    """What happened to the saga last, newest first: its stream's events."""
    return await log.last(call.namespace.number, [f"$saga:{saga_id}" for saga_id in ids_of(parents)], limit)
