"""Barrier: a participant's own database makes sure that each call of a saga has its effect once, and in order.

In the transaction that does the work, call `once()`. A call that comes again gets the answer of the first time. A
compensation of an action that never came does nothing, and the action, should it come after all, is refused. The
technique is dtm's sub-transaction barrier (https://dtm.pub); here the stored answer is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from syros.guard import dialect_of

TABLE = """create table if not exists syros_barrier (
    saga_id varchar(64) not null, step varchar(64) not null, op varchar(16) not null,
    reason varchar(16) not null, answer text,
    primary key (saga_id, step, op)
)"""
INSERT = {
    "postgres": "insert into syros_barrier (saga_id, step, op, reason) values (%s, %s, %s, %s) on conflict do nothing",
    "mysql": "insert ignore into syros_barrier (saga_id, step, op, reason) values (%s, %s, %s, %s)",
    "sqlite": "insert into syros_barrier (saga_id, step, op, reason) values (?, ?, ?, ?) on conflict do nothing",
}
SELECT = "select reason, answer from syros_barrier where saga_id = %s and step = %s and op = %s"
UPDATE = "update syros_barrier set answer = %s where saga_id = %s and step = %s and op = %s"
ACTION, COMPENSATE = "action", "compensate"


class Hanging(Exception):
    """The action came after its compensation: it must not be carried out any more. Answer 409."""


def install(cursor: Any) -> None:
    """Create the table, where it is not there yet. Commit then.

    Raises: what the driver raises.
    """
    cursor.execute(TABLE)


def once(
    cursor: Any, headers: Mapping[str, str], work: Callable[[], Any], *, dialect: str | None = None
) -> Any:
    """Carry out what a saga asks for, unless that was done before; what to answer, as JSON.

    Commit after it, then answer. Roll back when it raises: a failure leaves no trace, and the next call tries again.

    Parameters: a DB-API `cursor`, in a transaction; the `headers` of the request (`Syros-Saga-Id`, `Syros-Step`,
    `Syros-Op`); `work()`, which does it by the same connection and gives what JSON can say; `dialect` (postgres, mysql,
    sqlite) for drivers that are not known here.
    Raises: Hanging; KeyError, for a request without these headers; what `work` and the driver raise.
    """
    dialect = dialect or dialect_of(cursor)
    saga_id, step, op = (header(headers, name) for name in ("Syros-Saga-Id", "Syros-Step", "Syros-Op"))
    is_empty = op == COMPENSATE and insert(cursor, dialect, saga_id, step, ACTION, COMPENSATE)
    if not insert(cursor, dialect, saga_id, step, op, op):
        return answer_again(cursor, dialect, saga_id, step, op)
    answer = None if is_empty else work()
    cursor.execute(said(UPDATE, dialect), (json.dumps(answer), saga_id, step, op))
    return answer


def insert(cursor: Any, dialect: str, saga_id: str, step: str, op: str, reason: str) -> bool:
    """Whether there was no such row. Waits for a transaction that is about to write it."""
    cursor.execute(INSERT[dialect], (saga_id, step, op, reason))
    return bool(cursor.rowcount == 1)


def answer_again(cursor: Any, dialect: str, saga_id: str, step: str, op: str) -> Any:
    cursor.execute(said(SELECT, dialect), (saga_id, step, op))
    reason, answer = cursor.fetchone()
    if reason != op:
        raise Hanging(f"{step} of saga {saga_id} was compensated already")
    return json.loads(answer) if answer else None


def said(statement: str, dialect: str) -> str:
    return statement.replace("%s", "?") if dialect == "sqlite" else statement


def header(headers: Mapping[str, str], name: str) -> str:
    found = headers.get(name) or headers.get(name.lower())
    if not found:
        raise KeyError(f"the request has no {name}: it is not from a saga")
    return found
