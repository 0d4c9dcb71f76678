"""What looks for rows every moment finds them by an index, however many there are: its plan says so, where it can."""

import psycopg
import pytest

from core import housekeeping
from core.database import conninfo
from sagas import worker
from sagas.services import schedules, upkeep

FOUND_BY_INDEX = {
    "kept answers that are old": housekeeping.OLD_ANSWERS,
    "sagas that are due": worker.DUE,
    "leases of tasks that are over": worker.LEASES_OVER,
    "schedules that are due": schedules.DUE,
    "sagas that are old": upkeep.FORGET,
}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("statement", FOUND_BY_INDEX.values(), ids=FOUND_BY_INDEX.keys())
def test_time_is_a_condition_of_an_index(statement: str) -> None:
    """`clock_timestamp()`, which is another at every row, cannot be one: every row would be looked at."""
    with psycopg.connect(conninfo(), autocommit=True) as connection:
        connection.execute("set enable_seqscan = off")
        asked = "explain (generic_plan) " + number_params(statement)
        plan = "\n".join(line for (line,) in connection.execute(asked))
    assert "Index Cond: (" in plan
    assert "statement_timestamp()" in "".join(line for line in plan.splitlines() if "Index Cond" in line), (
        plan
    )


def number_params(statement: str) -> str:
    parts = statement.split("%s")
    return "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
