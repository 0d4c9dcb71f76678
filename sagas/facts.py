"""What the log tells of a saga, without what participants answered: that can be large."""

from dataclasses import dataclass
from datetime import datetime

TOLD = 2000  # facts that are read of one saga, the last ones
FACTS = """select id, version, type, actor, recorded_at, coalesce(data->>'step', ''), (data->>'attempt')::int,
    coalesce(data->>'code', data->'error'->>'code', ''),
    left(coalesce(data->>'message', data->'error'->>'message', data->>'reason', data->>'why', ''), 300),
    coalesce(data->>'outcome', ''), coalesce(data->>'for', ''),
    coalesce(data->>'signal', (select string_agg(key, ', ') from json_array_elements_text(data->'locks') key), ''),
    (data->>'retry_at')::timestamptz, coalesce(data->>'until', data->>'start_at')::timestamptz,
    (data->>'fetched_at')::timestamptz
from core_event where namespace_id = %s and stream = %s order by version desc limit %s"""

# Since when workers have what they have of a saga. The names of its tasks go on with a dot; a slash comes next.
FETCHED = """select step, op, fetched_at from sagas_task
    where id > %s || '.' and id < %s || '/' and fetched_at is not null"""


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of a saga's stream. `kind`: saga, step or compensation; `what` became of it."""

    address: int
    version: int
    type: str
    actor: str
    at: datetime
    step: str
    attempt: int | None
    code: str
    message: str
    outcome: str  # of an attempt that is repeated
    waits_for: str
    about: str  # the signal, or the keys of the locks, that it waits for
    retry_at: datetime | None
    until: datetime | None
    fetched_at: datetime | None  # by a worker

    @property
    def kind(self) -> str:
        return self.type.partition(".")[0]

    @property
    def what(self) -> str:
        return self.type.partition(".")[2]
