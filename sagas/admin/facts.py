"""What the log tells of a saga, as its pages show it."""

from datetime import datetime

from core.admin import log_url, number_of
from core.console import Panel, fetch, link, url_of, when
from core.models import Event
from sagas.admin.words import length
from sagas.facts import FACTS, FETCHED, Fact
from sagas.models import Saga

TOLD = 500  # facts that are read for a page
LISTED = 100  # facts in the list


def said(fact: Fact) -> str:
    """Why, and what comes next, in words."""
    parts = [": ".join(part for part in (fact.code, fact.message) if part)]
    if fact.waits_for:
        parts.append(f"waits for {fact.waits_for}{f' {fact.about}' if fact.about else ''}")
    elif fact.about:
        parts.append(f"signal {fact.about}")
    if instant := fact.retry_at or fact.until:
        parts.append(f"{'again at' if fact.retry_at else 'until'} {instant:%Y-%m-%d %H:%M:%S}")
    return "; ".join(part for part in parts if part)


def facts_of(saga: Saga) -> list[Fact]:
    """The last of what happened to a saga, in order."""
    found = fetch(FACTS, [number_of(saga.namespace), saga.stream, TOLD])
    return [Fact(*row) for row in reversed(found)]


def fetched_of(saga: Saga) -> dict[tuple[str, str], datetime]:
    return {(step, op): at for step, op, at in fetch(FETCHED, [saga.pk, saga.pk])}


def history_panel(saga: Saga, facts: list[Fact]) -> Panel:
    shown = facts[-LISTED:]
    rows = [
        [link(url_of(Event, fact.address), fact.version), when(fact.at),
         length((fact.at - saga.created_at).total_seconds()), fact.type, fact.step or "-", fact.attempt or "-",
         said(fact) or "-", fact.actor]
        for fact in reversed(shown)
    ]  # fmt: skip
    headers = ["version", "at", "after", "type", "step", "attempt", "what it says", "actor"]
    more = f" (the last {len(shown)} of {facts[-1].version:,})" if shown and shown[0].version > 1 else ""
    url = log_url(saga.namespace, saga.stream)
    return Panel(f"History{more}", headers, rows, "None that the log still tells of.", url)
