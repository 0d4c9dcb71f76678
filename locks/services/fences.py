"""Fencing tokens: whether one is current, and what was refused because one was not."""

from core.batch import Transaction
from core.callers import Call
from core.database import rows
from core.errors import FenceStale
from core.models import position_of
from core.operations import Fence, command, guard, query, refused
from core.types import Cursor, Limit, Token, encode_cursor
from locks import rules, volatile
from locks.models import Lock
from locks.services.holds import touches
from locks.services.queues import all_holds
from locks.types import Currency, Key, Violation, Violations


def is_current(tx: Transaction, lock: Lock | None, token: int) -> bool:
    """Is this the token of a present hold? What a resource asks before it takes a write."""
    if lock is None:
        return False
    return any(hold.token == token and rules.is_held(hold, tx.now) for hold in all_holds(tx, lock))


@command(
    "POST locks/{key}/check",
    returns=Currency,
    hot=True,
    touches=touches,
    fenced=False,
    volatile=volatile.check,
)
def check(tx: Transaction, *, key: Key, fencing_token: Token) -> Currency:
    """Is this fencing token that of a present hold of the lock? For resources that cannot keep the last token
    themselves: they refuse a write whose token is not.

    A stale token is recorded in `$fence`, and listed by `locks.violations`.
    """
    lock = tx.get(Lock, key)
    current = is_current(tx, lock, fencing_token)
    last_token = lock.last_token if lock else 0
    if not current:
        record(tx, key, fencing_token, last_token)
    return Currency(current, last_token)


def record(tx: Transaction, key: str, fencing_token: int, last_token: int) -> None:
    data = {"key": key, "fencing_token": fencing_token, "last_token": last_token}
    tx.emit(tx.stream("$fence"), "fence.refused", {**data, "operation": tx.job.operation.name})


def check_fence(tx: Transaction, fence: Fence) -> None:
    """Refuse a write whose token is not current, and record the refusal.

    Raises: FenceStale.
    """
    lock = tx.get(Lock, fence.key)
    if is_current(tx, lock, fence.fencing_token):
        return
    last_token = lock.last_token if lock else 0
    refusal = FenceStale(
        f"Token {fence.fencing_token} of {fence.key} is stale.",
        key=fence.key, fencing_token=fence.fencing_token, last_token=last_token,
    )  # fmt: skip
    refusal.aftermath = lambda tx: record(tx, fence.key, fence.fencing_token, last_token)
    raise refusal


guard.touches = staticmethod(lambda fence: [(Lock, fence.key)])
guard.check = staticmethod(check_fence)

REFUSED = """select id, version, data->>'key', (data->>'fencing_token')::bigint, (data->>'last_token')::bigint,
    data->>'operation', actor, recorded_at from core_event
where namespace_id = %s and stream = '$fence' and version < %s and (%s::text is null or data->>'key' = %s)
order by version desc limit %s"""


@query("GET locks/violations", returns=Violations, volatile=refused)
async def violations(
    call: Call, *, key: Key | None = None, limit: Limit = 50, cursor: Cursor | None = None
) -> Violations:
    """The tokens that were refused because they were stale, newest first; of one lock, if that is said."""
    before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else 2**53
    found = await rows(REFUSED, [call.namespace.number, before, key, key, limit + 1])
    items = [
        Violation(of, token, last_token, operation, actor, position_of(address), at)
        for address, _, of, token, last_token, operation, actor, at in found[:limit]
    ]
    return Violations(items, encode_cursor(str(found[limit - 1][1])) if len(found) > limit else None)
