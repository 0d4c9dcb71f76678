"""The pages of locks."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from core.admin import last_events, number_of
from core.console import (
    NamespaceFilter,
    Panel,
    RecordAdmin,
    each,
    fetch,
    instant,
    label,
    span,
    stored_json,
    when,
)
from locks.admin.holding import (
    ContendedFilter,
    HeldFilter,
    hold_all,
    holders_panel,
    left_of,
    owned_by,
    owner_link,
    owners_of,
    queue_panel,
    session_link,
    state_of,
    waiting,
)
from locks.models import IS_ELECTION, Lock
from locks.services.looking import PAST, past_hold
from locks.types import PastHold

PAST_SHOWN = 20  # holds that ended


@admin.register(Lock)
class LockAdmin(RecordAdmin):
    reads = "locks.find"
    unloaded = ("lock_id", "endings", "metadata")  # the last endings name lock_ids too
    actions = (each("locks.force_release", key="name"),)
    list_display = ("name", "namespace", "state", "owners", "mode", "permits", "token", "left", "waiting")
    list_filter = (HeldFilter, ContendedFilter, NamespaceFilter)
    search_help_text = "key prefix, or owner:name"
    fields = (
        ("name", "namespace"), ("state", "waiting"), ("mode", "permits"), ("token", "left"),
        (instant("changed_at", "last event"), "delay"), "metadata_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request).filter(~IS_ELECTION)
        return found

    def complete(self, rows: list[Any]) -> None:
        hold_all(rows)

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith("owner:"):
            return queryset.filter(owned_by(term.removeprefix("owner:").strip()))
        return super().found(request, queryset, term)

    def name_of(self, row: Any) -> str:
        holders = ", ".join(row.holding.owners)
        more = row.holding.count - len(row.holding.owners)
        held = f"held by {holders}{f' and {more:,} more' if more else ''}" if holders else "free"
        return f"{row}: {held}"

    @admin.display(description="key")
    def name(self, lock: Lock) -> str:
        return lock.name

    @admin.display(description="state")
    def state(self, lock: Any) -> str:
        return state_of(lock, "held", "free")

    @admin.display(description="owner")
    def owners(self, lock: Any) -> str:
        return owners_of(lock.holding)

    @admin.display(description="mode")
    def mode(self, lock: Any) -> str:
        return lock.holding.mode or "-"

    @admin.display(description="permits")
    def permits(self, lock: Any) -> str:
        """Shared holds take none, and leave none."""
        used = lock.holding.permits
        return "-" if lock.holding.mode == "shared" else f"{used:,} of {lock.capacity:,}"

    @admin.display(description="last token")
    def token(self, lock: Lock) -> str:
        return str(lock.last_token)

    @admin.display(description="expires in")
    def left(self, lock: Any) -> str:
        return left_of(lock)

    @admin.display(description="lock-delay until")
    def delay(self, lock: Any) -> str:
        return when(lock.not_before) if lock.not_before and lock.not_before > lock.now else "-"

    @admin.display(description="waiting")
    def waiting(self, lock: Lock) -> str:
        return waiting(lock)

    @admin.display(description="metadata")
    def metadata_json(self, lock: Any) -> str:
        return stored_json(lock, "metadata") if lock.holding.count < 2 else "of each hold below"

    def panels(self, lock: Any) -> Iterable[Panel]:
        yield holders_panel(lock)
        yield queue_panel(lock)
        yield past_panel(lock)
        yield last_events(lock.namespace, lock.stream)


ENDINGS = {"released": "", "expired": "warning", "force_released": "danger"}


def past_panel(lock: Lock) -> Panel:
    """The last holds: whose, how long, and how each ended."""
    found = fetch(PAST, [number_of(lock.namespace), lock.stream, PAST_SHOWN])
    rows: list[list[Any]] = [
        [owner_link(hold.owner), kind_of(hold), session_link(lock.namespace, hold.session_id),
         hold.fencing_token, when(hold.acquired_at),
         span(hold.waited_seconds), span(hold.held_seconds) if hold.held_seconds is not None else "-",
         label(hold.ending.replace("_", " "), ENDINGS[hold.ending]) if hold.ending else "lasts",
         hold.because or "-"]
        for hold in (past_hold(*row) for row in found)
    ]  # fmt: skip
    headers = ["owner", "mode", "session", "token", "acquired", "waited", "held for", "ending", "because"]
    return Panel(
        "Last holds", headers, rows, "None that the log still tells of.", note="Over the API: locks.history."
    )


def kind_of(hold: PastHold) -> str:
    return hold.mode if hold.permits == 1 else f"{hold.mode}, {hold.permits:,} permits"
