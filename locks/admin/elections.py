"""The pages of elections."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Left
from django.http import HttpRequest

from core.admin import last_events
from core.console import NamespaceFilter, Panel, RecordAdmin, brief, each, instant, stored_json
from locks.admin.holding import (
    SAID,
    hold_all,
    left_of,
    of_many,
    owned_by,
    owners_of,
    session_link,
    state_of,
    times,
    waiting,
    waiting_for,
)
from locks.models import ELECTION, Election


@admin.register(Election)
class ElectionAdmin(RecordAdmin):
    """Elections: who leads, what it says, and who would lead next."""

    reads = "elections.find"
    unloaded = ("lock_id", "endings", "metadata")
    actions = (each("elections.depose", name="name"),)
    list_display = ("name", "namespace", "state", "leader", "said", "term", "left", "candidates")
    list_filter = (NamespaceFilter,)
    search_help_text = "name prefix, or owner:name of the leader"
    fields = (
        ("name", "namespace"), ("state", "leader"), ("term", instant("acquired_at", "elected")),
        ("left", "session_of"), ("candidates", instant("changed_at", "last event")), "value_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        said = Left(Cast("metadata", TextField()), SAID)
        found: QuerySet[Any] = super().get_queryset(request).annotate(value=said)
        return found

    def complete(self, rows: list[Any]) -> None:
        hold_all(rows)

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith("owner:"):
            return queryset.filter(owned_by(term.removeprefix("owner:").strip()))
        prefix = term if "/" in term else f"{ELECTION}{term}"
        return super().found(request, queryset, prefix)

    def name_of(self, row: Any) -> str:
        leader = f"led by {row.owner}" if row.holding.count else "nobody leads"
        return f"{row.namespace}/{row.name}: {leader}"

    @admin.display(description="name")
    def name(self, election: Election) -> str:
        return election.name

    @admin.display(description="state")
    def state(self, election: Any) -> str:
        return state_of(election, "led", "vacant")

    @admin.display(description="leader")
    def leader(self, election: Any) -> str:
        return owners_of(election.holding, Election)

    @admin.display(description="value")
    def said(self, election: Any) -> str:
        return brief(election.value, 28) if election.holding.count else "-"

    @admin.display(description="value")
    def value_json(self, election: Any) -> str:
        return stored_json(election, "metadata") if election.holding.count else "-"

    @admin.display(description="term")
    def term(self, election: Election) -> str:
        return str(election.last_token)

    @admin.display(description="expires in")
    def left(self, election: Any) -> str:
        return left_of(election)

    @admin.display(description="session")
    def session_of(self, election: Any) -> str:
        return session_link(election.namespace, election.session)

    @admin.display(description="candidates")
    def candidates(self, election: Election) -> str:
        return waiting(election)

    def panels(self, election: Any) -> Iterable[Panel]:
        yield candidates_panel(election)
        yield last_events(election.namespace, election.stream)


def candidates_panel(election: Any) -> Panel:
    """Who stands, in the order in which they will lead."""
    rows: list[list[Any]] = [
        [place, claim.owner, brief(claim.said), session_link(election.namespace, claim.session),
         *times(election.now, claim), claim.ticket, process]
        for place, (claim, process) in enumerate(waiting_for(election), 1)
    ]  # fmt: skip
    headers = ["place", "candidate", "value", "session", "stands for", "gives up in", "ticket", "its process"]
    return Panel(f"Candidates{of_many(election)}", headers, rows, "Nobody stands.")
