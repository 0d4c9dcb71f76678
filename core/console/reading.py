"""Reading the database for a page: by its own clock, and with an end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import OperationalError, connection, models, transaction
from django.db.models import Func

LIST_SECONDS, PANEL_SECONDS = 5.0, 2.0


class Clock(Func):
    """The database's clock: the only one by which a lease is over."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


class TooSlow(Exception):
    """The database did not answer in the time a page may take."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within, no statement takes longer: an operator's search must not weigh on the callers.

    Raises: TooSlow.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select set_config('statement_timeout', %s, true)", [str(int(seconds * 1000))])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise TooSlow from error
        raise


def fetch(statement: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found
