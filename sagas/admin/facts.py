"""What the log tells of a saga, as its pages show it."""

from dataclasses import dataclass
from datetime import datetime

from core.admin import log_url, number_of
from core.console import Panel, fetch, link, url_of, when
from core.models import Event
from sagas.admin.words import length
from sagas.models import Saga

TOLD = 500  # facts that are read
LISTED = 100  # facts in the list
# Not `data` itself: what participants answered can be large.
FACTS = """select id, version, type, actor, recorded_at, coalesce(data->>'step', ''), coalesce(data->>'attempt', ''),
    coalesce(data->>'code', data->'error'->>'code', ''),
    left(coalesce(data->>'message', data->'error'->>'message', data->>'reason', data->>'why', ''), 300),
    coalesce(data->>'for', ''), coalesce(data->>'signal', ''), data->>'retry_at',
    coalesce(data->>'until', data->>'start_at')
from core_event where namespace_id = %s and stream = %s order by version desc limit %s"""


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of a saga's stream. `kind`: saga, step or compensation; `what` became of it."""

    address: int
    version: int
    type: str
    actor: str
    at: datetime
    step: str
    attempt: str
    code: str
    message: str
    waits_for: str
    signal: str
    retry_at: str | None
    until: str | None

    @property
    def kind(self) -> str:
        return self.type.partition(".")[0]

    @property
    def what(self) -> str:
        return self.type.partition(".")[2]

    @property
    def said(self) -> str:
        """Why, and what comes next, in words."""
        parts = [": ".join(part for part in (self.code, self.message) if part)]
        if self.waits_for:
            parts.append(f"waits for {self.waits_for}{f' {self.signal}' if self.signal else ''}")
        elif self.signal:
            parts.append(f"signal {self.signal}")
        if self.retry_at or self.until:
            instant = datetime.fromisoformat(self.retry_at or self.until or "")
            parts.append(f"{'again at' if self.retry_at else 'until'} {instant:%Y-%m-%d %H:%M:%S}")
        return "; ".join(part for part in parts if part)


def facts_of(saga: Saga) -> list[Fact]:
    """The last of what happened to a saga, in order."""
    found = fetch(FACTS, [number_of(saga.namespace), saga.stream, TOLD])
    return [Fact(*row) for row in reversed(found)]


def history_panel(saga: Saga, facts: list[Fact]) -> Panel:
    shown = facts[-LISTED:]
    rows = [
        [link(url_of(Event, fact.address), fact.version), when(fact.at),
         length((fact.at - saga.created_at).total_seconds()), fact.type, fact.step or "-", fact.attempt or "-",
         fact.said or "-", fact.actor]
        for fact in reversed(shown)
    ]  # fmt: skip
    headers = ["version", "at", "after", "type", "step", "attempt", "what it says", "actor"]
    more = f" (the last {len(shown)} of {facts[-1].version:,})" if shown and shown[0].version > 1 else ""
    url = log_url(saga.namespace, saga.stream)
    return Panel(f"History{more}", headers, rows, "None that the log still tells of.", url)
