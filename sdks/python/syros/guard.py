"""Guards: a database of your own refuses the writes of who holds a lock no longer.

In every transaction that writes what a lock protects, call `guard()` first, with the fencing token of the grant.
`install()` brings the table and the function that it needs; the texts are in `syros/guards/`.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("guards")
STALE = "stale fencing token"  # what every database's refusal says
CALLS = {
    "postgres": "select syros_guard(%s::text, %s::bigint)",
    "mysql": "call syros_guard(%s, %s)",
    "sqlite": "insert into syros_guard_call (resource, token) values (%s, %s)",
}
DRIVERS = {
    "psycopg": "postgres", "psycopg2": "postgres", "pg8000": "postgres",
    "pymysql": "mysql", "MySQLdb": "mysql", "mysql": "mysql", "mariadb": "mysql",
    "sqlite3": "sqlite",
}  # fmt: skip


class StaleToken(Exception):
    """The resource has seen a larger fencing token: the lock has passed to another holder. Roll back."""

    def __init__(self, resource: str, token: int) -> None:
        self.resource, self.token = resource, token
        super().__init__(f"{STALE} {token} of {resource}")

    def __reduce__(self) -> tuple[type[StaleToken], tuple[str, int]]:
        return StaleToken, (self.resource, self.token)


def guard(cursor: Any, resource: str, token: int, *, dialect: str | None = None) -> None:
    """Refuse this transaction if the resource has seen a larger token; else remember this one.

    Call it before anything is read or written, and roll back what it refuses. The resource's other guarded transactions
    wait until this one ends.

    Parameters: a DB-API `cursor`, in a transaction; the `resource`, whatever you call it (in MySQL at most 255
    characters); `token`, the `fencing_token` of your grant, 1 to 2^63 - 1; `dialect` (postgres, mysql, sqlite) for
    drivers that are not known here.
    Raises: StaleToken; RuntimeError, when each statement is a transaction of its own and the guard would guard nothing;
    TypeError, for an asynchronous cursor and an unknown driver; what the driver raises.
    """
    if inspect.iscoroutinefunction(cursor.execute):
        raise TypeError(
            "guard() awaits nothing: with an asynchronous cursor, execute the statement of syros.guard.CALLS"
        )
    dialect = dialect or dialect_of(cursor)
    call = CALLS[dialect].replace("%s", "?") if dialect == "sqlite" else CALLS[dialect]
    try:
        cursor.execute(call, (resource, token))
    except Exception as error:
        if is_stale(error):
            raise StaleToken(resource, token) from error
        raise
    if is_over(getattr(cursor, "connection", None)):
        raise RuntimeError("guard() needs a transaction that it shares with what it guards")


def install(cursor: Any, *, dialect: str | None = None) -> None:
    """Create the table and the function, where they are not there yet. Commit then.

    Raises: what the driver raises.
    """
    for statement in statements(dialect or dialect_of(cursor)):
        cursor.execute(statement)


def script(dialect: str) -> str:
    """What `manage.py print_guard` prints, for postgres, mysql, sqlite or redis."""
    (path,) = FOLDER.glob(f"{dialect}.*")
    return path.read_text(encoding="utf-8")


def statements(dialect: str) -> list[str]:
    """The SQL one by one, without the `delimiter` of MySQL's client: a blank line is between two statements."""
    text = re.sub(r"^(--|delimiter ).*\n|//$", "", script(dialect), flags=re.MULTILINE)
    return [each.strip() for each in text.split("\n\n") if each.strip()]


def dialect_of(cursor: Any) -> str:
    """Raises: TypeError, for the cursor of a driver that is not known."""
    for each in type(cursor).__mro__:
        if found := DRIVERS.get(each.__module__.partition(".")[0]):
            return found
    raise TypeError(f"{type(cursor).__qualname__} is of no known driver: say which dialect it speaks")


def is_stale(error: Exception) -> bool:
    return STALE in str(error)


def is_over(connection: Any) -> bool:
    """Was the statement just made a transaction of its own? False also where the driver does not tell."""
    if hasattr(connection, "in_transaction"):  # sqlite3, mysql.connector
        return not connection.in_transaction
    if hasattr(connection, "server_status"):  # pymysql: SERVER_STATUS_IN_TRANS
        return not connection.server_status & 1
    info = getattr(connection, "info", None)  # psycopg, psycopg2: libpq's PQTRANS_IDLE
    return getattr(info, "transaction_status", None) == 0
