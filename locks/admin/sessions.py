"""The pages of sessions: the table is core's, but what sessions hold and wait for are locks."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from core.admin import last_events
from core.console import (
    Choice,
    Clock,
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
from core.models import Session, between
from locks.admin.holding import lock_link, permits_of, times
from locks.models import Claim

SHOWN = 200  # holds and waiters of one session
COUNTED = 1000
LONGEST, SHORT = 20, 10  # letters of an id that the list shows whole, and of a longer one
LIVE = Q(ended_at__isnull=True)  # as the partial index says it
COUNTS = f"""select s.id, (select count(*) from (
        select from locks_lock where session = s.name and id > s.space and id < s.space || '~'
        union all select from locks_hold where session = s.name and id > s.space and id < s.space || '~'
        limit {COUNTED}) h),
    (select count(*) from (select from locks_claim where session = s.name and id > s.space and id < s.space || '~'
        limit {COUNTED}) c)
from (select id, split_part(id, '/', 2) as name, split_part(id, '/', 1) || '/' as space
    from unnest(%s::text[]) id) s"""
HELD = """select id, 'exclusive', capacity, last_token, acquired_at from locks_lock
    where session = %s and id > %s and id < %s and lock_id is not null
union all select split_part(id, '#', 1), mode, permits, token, acquired_at from locks_hold
    where session = %s and id > %s and id < %s
order by 1 limit %s"""


class StateFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "Live"), ("ended", "Ended")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "live":
            return queryset.filter(LIVE, expires_at__gt=Clock())
        return queryset.exclude(LIVE, expires_at__gt=Clock()) if self.value() == "ended" else queryset


@admin.register(Session)
class SessionAdmin(RecordAdmin):
    """Sessions: the leases for all that a client holds and waits for. An ended one is shown for ten minutes more."""

    reads = "sessions.find"
    unloaded = ("metadata",)
    actions = (each("sessions.close", session_id="name"),)
    list_display = (
        "short", "namespace", "owner", "state", "holds", "waits", "ttl", "lock_delay", "open_for", "left",
    )  # fmt: skip
    list_filter = (StateFilter, NamespaceFilter)
    search_help_text = "id prefix, or owner:name"
    fields = (
        "name", ("namespace", "owner"), ("state", "left"), ("ttl", "lock_delay"),
        (instant("opened_at"), instant("ended_at")), ("holds", "waits"), "metadata_json",
    )  # fmt: skip

    def complete(self, rows: list[Any]) -> None:
        counts = {address: about for address, *about in fetch(COUNTS, [[row.pk for row in rows]])}
        for row in rows:
            row.held, row.waited = counts[row.pk]

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith("owner:"):
            return queryset.filter(owner=term.removeprefix("owner:").strip())
        return super().found(request, queryset, term)

    def name_of(self, row: Any) -> str:
        return f"{row} of {row.owner}: holds {counted(row.held)}, waits for {counted(row.waited)}"

    @admin.display(description="id")
    def name(self, session: Session) -> str:
        return session.name

    @admin.display(description="id")
    def short(self, session: Session) -> str:
        return session.name if len(session.name) <= LONGEST else f"{session.name[:SHORT]}…"

    @admin.display(description="open for")
    def open_for(self, session: Any) -> str:
        return span((session.ended_at or session.now) - session.opened_at)

    @admin.display(description="state")
    def state(self, session: Any) -> str:
        if is_live(session):
            return label("live", "success")
        reason = session.reason or "expired"
        return label(reason, "warning" if reason == "expired" else "")

    @admin.display(description="holds")
    def holds(self, session: Any) -> str:
        return counted(session.held)

    @admin.display(description="waits")
    def waits(self, session: Any) -> str:
        return label(counted(session.waited), "warning") if session.waited else "0"

    @admin.display(description="TTL")
    def ttl(self, session: Session) -> str:
        return span(session.ttl_seconds)

    @admin.display(description="lock-delay")
    def lock_delay(self, session: Session) -> str:
        return span(session.lock_delay_seconds)

    @admin.display(description="expires in")
    def left(self, session: Any) -> str:
        return span(session.expires_at - session.now) if is_live(session) else "-"

    @admin.display(description="metadata")
    def metadata_json(self, session: Session) -> str:
        return stored_json(session, "metadata")

    def panels(self, session: Any) -> Iterable[Panel]:
        yield holds_panel(session)
        yield waits_panel(session)
        yield last_events(session.namespace, session.stream)


def is_live(session: Any) -> bool:
    return session.ended_at is None and session.expires_at > session.now


def counted(number: int) -> str:
    return f"{number:,}" if number < COUNTED else f"{COUNTED:,} or more"


def of_many(number: int) -> str:
    return f" (the first {SHOWN} of {counted(number)})" if number > SHOWN else ""


def bounds(session: Session) -> list[str]:
    return [session.name, *between(session.namespace)]


def holds_panel(session: Any) -> Panel:
    rows: list[list[Any]] = [
        [lock_link(address), mode, permits_of(mode, permits), token, when(at), span(session.now - at)]
        for address, mode, permits, token, at in fetch(HELD, [*bounds(session), *bounds(session), SHOWN])
    ]
    headers = ["lock or election", "mode", "permits", "token", "acquired", "held for"]
    return Panel(f"Holds{of_many(session.held)}", headers, rows, "It holds nothing.")


def waits_panel(session: Any) -> Panel:
    name, start, end = bounds(session)
    claims = (
        Claim.objects.filter(session=name, id__gt=start, id__lt=end)
        .order_by("id")
        .defer("lock_id", "metadata")
    )
    rows: list[list[Any]] = [
        [lock_link(claim.id.partition("#")[0]), claim.mode, permits_of(claim.mode, claim.permits),
         *times(session.now, claim), claim.ticket]
        for claim in claims[:SHOWN]
    ]  # fmt: skip
    headers = ["lock or election", "mode", "permits", "waits for", "gives up in", "ticket"]
    return Panel(f"Waits for{of_many(session.waited)}", headers, rows, "It waits for nothing.")
