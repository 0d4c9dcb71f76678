"""Sessions: one lease for everything that a client holds and waits for, kept alive by one call.

What a session can hold is the business of other apps: each registers what ends with it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Annotated, Any

from orjson import Fragment
from pydantic import Field

from core.batch import Transaction
from core.callers import SYSTEM, Call, namespaces
from core.database import Row, rows
from core.engine import outages, promotions
from core.errors import Conflict, NotFound
from core.models import Session, between
from core.operations import command, query, refused
from core.runtime import every, runtime
from core.types import Cursor, Limit, Object, Text, encode_cursor

AT_ONCE = 200  # expired sessions that are ended together
Ending = Callable[[Transaction, Session, str], None]
_endings: list[Ending] = []

outages.append(
    "update core_session set expires_at = expires_at + %(away)s * interval '1 second' "
    "where ended_at is null and expires_at > %(since)s"
)
# A keepalive may have been lost with the old primary: a lease is the least that was promised.
promotions.append(
    "update core_session set "
    "expires_at = greatest(expires_at, clock_timestamp() + ttl_seconds * interval '1 second') "
    "where ended_at is null"
)


class SessionNotFound(NotFound):
    """There is no such session, or it ended some time ago."""


class SessionEnded(Conflict):
    """The session has ended; `reason` says why. It never comes back: open another."""


@dataclass(slots=True)
class SessionState:
    """A session. `expires_at` moves with every keepalive; `ended_at` and `reason` are there once it is over."""

    session_id: str
    owner: str
    ttl_seconds: float
    lock_delay_seconds: float
    opened_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    reason: str | None
    metadata: Any


@dataclass(slots=True)
class Sessions:
    items: list[SessionState]
    next_cursor: str | None


SessionId = Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9-]+$")]
SessionTtl = Annotated[float, Field(ge=0.1, le=86400)]
LockDelay = Annotated[float, Field(ge=0, le=60)]


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Session, params["session_id"]),)


def when_ended(function: Ending) -> Ending:
    """Register what ends with a session: `function(tx, session, reason)`, in the same transaction."""
    _endings.append(function)
    return function


@command("POST sessions", name="sessions.open", returns=SessionState, status=201, hot=True, volatile=refused)
def open_session(
    tx: Transaction,
    *,
    owner: Text,
    ttl_seconds: SessionTtl = 15.0,
    lock_delay_seconds: LockDelay = 0.0,
    metadata: Object = "{}",
) -> SessionState:
    """Open a session. Locks, candidacies and places in queues that are taken with its `session_id` last as long
    as it does: until it is closed, or `ttl_seconds` (0.1 to 86400) after the last keepalive.

    `lock_delay_seconds` (0 to 60): after it expired, its locks are given to nobody for so long, so that what it
    still had under way can arrive. Closing it sets the locks free at once. `owner` is a label for people.
    """
    session = tx.add(
        Session, token_hex(16), owner=owner, ttl_seconds=ttl_seconds, lock_delay_seconds=lock_delay_seconds,
        metadata=None if metadata == "{}" else metadata, opened_at=tx.now,
        expires_at=tx.now + timedelta(seconds=ttl_seconds),
    )  # fmt: skip
    about = {"owner": owner, "ttl_seconds": ttl_seconds, "lock_delay_seconds": lock_delay_seconds}
    tx.emit(session, "session.opened", about)
    return state(session)


@command(
    "POST sessions/{session_id}/keepalive",
    name="sessions.keepalive",
    returns=SessionState,
    hot=True,
    touches=touches,
    volatile=refused,
    patience=0.02,
)
def keepalive(tx: Transaction, *, session_id: SessionId) -> SessionState:
    """Give a session its whole TTL again, and with it everything it holds. A good rhythm is a third of the TTL.

    Keepalives are not events: they change nothing that anyone else must know.

    Errors: `session_not_found` (404); `session_ended` (409) with a `reason`, expired or closed.
    """
    session = live(tx, session_id)
    session.expires_at = tx.now + timedelta(seconds=session.ttl_seconds)
    return state(session)


@command(
    "DELETE sessions/{session_id}",
    name="sessions.close",
    returns=SessionState,
    aliases=["POST sessions/{session_id}/close"],
    touches=touches,
    volatile=refused,
)
def close(tx: Transaction, *, session_id: SessionId) -> SessionState:
    """End a session: its locks pass on, its candidacies and its places in queues are given up, at once.

    Errors: `session_not_found` (404), `session_ended` (409).
    """
    session = live(tx, session_id)
    end(tx, session, "closed")
    return state(session)


@command(touches=touches, name="sessions.expire")
def expire(tx: Transaction, *, session_id: str) -> None:
    """End a session whose time is up; one that was kept alive meanwhile goes on."""
    session = tx.get(Session, session_id)
    if session and session.ended_at is None and session.expires_at <= tx.now:
        end(tx, session, "expired")


def live(tx: Transaction, session_id: str) -> Session:
    """The session, if it lives.

    Raises: SessionNotFound, SessionEnded.
    """
    session = tx.get(Session, session_id)
    if session is None:
        raise SessionNotFound(session_id=session_id)
    if session.ended_at is not None or session.expires_at <= tx.now:
        reason = session.reason or "expired"
        raise SessionEnded(f"The session has ended: {reason}.", session_id=session_id, reason=reason)
    return session


def end(tx: Transaction, session: Session, reason: str) -> None:
    session.ended_at, session.reason = tx.now, reason
    for ending in _endings:
        ending(tx, session, reason)
    tx.emit(session, f"session.{reason}", {"owner": session.owner})


def state(session: Session) -> SessionState:
    return SessionState(
        session.name, session.owner, session.ttl_seconds, session.lock_delay_seconds, session.opened_at,
        session.expires_at, session.ended_at, session.reason, Fragment(session.metadata or "{}"),
    )  # fmt: skip


# -- looking -----------------------------------------------------------------------------------------

COLUMNS = """select split_part(id, '/', 2), owner, ttl_seconds, lock_delay_seconds, opened_at, expires_at,
    ended_at, reason, metadata::text from core_session"""


def seen(row: Sequence[Any]) -> SessionState:
    session_id, owner, ttl, delay, opened_at, expires_at, ended_at, reason, metadata = row
    about = Fragment(metadata or "{}")
    return SessionState(session_id, owner, ttl, delay, opened_at, expires_at, ended_at, reason, about)


@query("GET sessions/{session_id}", name="sessions.get", returns=SessionState, hot=True, volatile=refused)
async def get(call: Call, *, session_id: SessionId) -> SessionState:
    """A session, also one that ended within the last ten minutes.

    Errors: `session_not_found` (404).
    """
    found = await rows(f"{COLUMNS} where id = %s", [f"{call.namespace.name}/{session_id}"])
    if not found:
        raise SessionNotFound(session_id=session_id)
    return seen(found[0])


@query("GET sessions", name="sessions.find", returns=Sessions, volatile=refused)
async def find(
    call: Call, *, owner: Text | None = None, limit: Limit = 50, cursor: Cursor | None = None
) -> Sessions:
    """The sessions that live, in the order of their ids; of one owner, if that is said."""
    start, end = between(call.namespace.name)
    found = await rows(
        f"{COLUMNS} where ended_at is null and id > %s and id < %s and (%s::text is null or owner = %s) "
        "order by id limit %s",
        [max(start, cursor or start), end, owner, owner, limit + 1],  # never before this namespace
    )
    items = [seen(row) for row in found[:limit]]
    return Sessions(items, encode_cursor(start + items[-1].session_id) if len(found) > limit else None)


# -- what nobody asks for ----------------------------------------------------------------------------

OVERDUE = """select id from core_session where ended_at is null and expires_at <= statement_timestamp()
    limit %s"""


@every(0.4)
async def end_overdue() -> None:
    """End the sessions whose time is up, each by a command of its own."""
    while len(found := await rows(OVERDUE, [AT_ONCE])) == AT_ONCE:
        await end_all(found)
    await end_all(found)


async def end_all(found: Sequence[Row]) -> None:
    await asyncio.gather(*(end_one(address) for (address,) in found))


async def end_one(address: str) -> None:
    name, _, session_id = address.partition("/")
    await runtime.carry_out(expire, Call(SYSTEM, await namespaces.get(name)), {"session_id": session_id})
