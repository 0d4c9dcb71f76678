"""The pages of schedules: when sagas are started by the clock, and what came of it."""

from collections.abc import Iterable
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from core.admin import last_events, number_of
from core.console import (
    Choice,
    NamespaceFilter,
    Panel,
    RecordAdmin,
    each,
    fetch,
    instant,
    label,
    link,
    span,
    stored_json,
    url_of,
    when,
)
from sagas.admin.words import saga_link, state_label
from sagas.models import DefinitionName, Saga, Schedule
from sagas.services.schedules import times_after

NEXT, RUNS = 10, 20  # shown below a schedule
# What it did by the log, the newest first; and how the sagas are by now.
DID = """select e.recorded_at, e.type, (e.data->>'due_at')::timestamptz, s.id, s.status,
    coalesce(e.data->>'because', e.data->>'reason', '')
from core_event e left join sagas_saga s on s.id = %s || '/' || (e.data->>'saga_id')
where e.namespace_id = %s and e.stream = %s
    and e.type in ('schedule.fired', 'schedule.skipped', 'schedule.failed') order by e.version desc limit %s"""


class PausedFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("active", "Active"), ("paused", "Paused")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(is_paused=self.value() == "paused") if self.value() else queryset


@admin.register(Schedule)
class ScheduleAdmin(RecordAdmin):
    """Schedules: when each starts its next sagas, what it started last, and what an operator can say to it."""

    reads = "schedules.find"
    unloaded = ("input",)
    actions = (
        each("schedules.run", "Run now", name="name"),
        each("schedules.pause", name="name"),
        each("schedules.resume", name="name"),
        each("schedules.drop", "Delete", name="name"),
    )
    list_display = ("name", "namespace", "definition_link", "timing", "state", "due", "last_saga_link")
    list_filter = (PausedFilter, NamespaceFilter)
    search_help_text = "name prefix"
    fields = (
        ("name", "namespace"), ("definition_link", "state"), ("timing", "time_zone"), ("overlap", "catch_up"),
        ("due", "last_saga_link"), (instant("last_at", "last run"), instant("created_at")), "input_json",
    )  # fmt: skip

    def name_of(self, row: Any) -> str:
        return f"{row} ({timing_of(row)}, of {row.definition}): {'paused' if row.is_paused else 'active'}"

    def offers(self, row: Any, operation: str) -> bool:
        return operation != ("schedules.pause" if row.is_paused else "schedules.resume")

    def complete(self, rows: list[Any]) -> None:
        last = {f"{row.namespace}/{row.last_saga}" for row in rows if row.last_saga}
        known = dict(Saga.objects.filter(pk__in=last).values_list("pk", "status")) if last else {}
        for row in rows:
            row.last_status = known.get(f"{row.namespace}/{row.last_saga}")

    @admin.display(description="name")
    def name(self, schedule: Schedule) -> str:
        return schedule.name

    @admin.display(description="starts")
    def definition_link(self, schedule: Schedule) -> str:
        version = f" version {schedule.definition_version}" if schedule.definition_version else ""
        url = url_of(DefinitionName, f"{schedule.namespace}/{schedule.definition}")
        return link(url, f"{schedule.definition}{version}")

    @admin.display(description="when")
    def timing(self, schedule: Schedule) -> str:
        return timing_of(schedule)

    @admin.display(description="state")
    def state(self, schedule: Schedule) -> str:
        return label("paused", "warning") if schedule.is_paused else label("active", "success")

    @admin.display(description="next run")
    def due(self, schedule: Any) -> str:
        if schedule.is_paused or schedule.next_at is None:
            return "-"
        return f"in {span(schedule.next_at - schedule.now)}" if schedule.next_at > schedule.now else "now"

    @admin.display(description="last saga")
    def last_saga_link(self, schedule: Any) -> str:
        if not schedule.last_saga:
            return "-"
        if schedule.last_status is None:
            return f"{schedule.last_saga} (forgotten)"
        saga = saga_link(f"{schedule.namespace}/{schedule.last_saga}")
        return format_html("{} {}", saga, state_label(schedule.last_status))

    @admin.display(description="input")
    def input_json(self, schedule: Schedule) -> str:
        return stored_json(schedule, "input")

    def panels(self, schedule: Any) -> Iterable[Panel]:
        yield next_panel(schedule)
        yield did_panel(schedule)
        yield last_events(schedule.namespace, schedule.stream)


def timing_of(schedule: Schedule) -> str:
    return schedule.cron or f"every {span(schedule.interval_seconds or 0.0)}"


def next_panel(schedule: Any) -> Panel:
    """When it will run, by the clock of the database; while it is paused, when it would."""
    zone = ZoneInfo(schedule.time_zone)
    rows: list[list[Any]] = [
        [when(each), f"{each.astimezone(zone):%a %Y-%m-%d %H:%M:%S}", f"in {span(each - schedule.now)}"]
        for each in islice(times_after(schedule, schedule.now), NEXT)
    ]
    note = "It is paused: so it would be, were it resumed now." if schedule.is_paused else ""
    return Panel("Next runs", ["at (UTC)", f"there ({schedule.time_zone})", "that is"], rows, note=note)


def did_panel(schedule: Any) -> Panel:
    found = fetch(DID, [schedule.namespace, number_of(schedule.namespace), schedule.stream, RUNS])
    rows: list[list[Any]] = [
        [when(at), when(due), kind.partition(".")[2], saga_link(saga) if saga else "-",
         state_label(status) if status else "-", wrapped(why or "-")]
        for at, kind, due, saga, status, why in found
    ]  # fmt: skip
    headers = ["at", "due at", "what", "saga", "status", "why"]
    return Panel("Last runs", headers, rows, "None that the log still tells of.")


def wrapped(text: str) -> str:
    """Ids have no place to be broken at."""
    return format_html('<span style="overflow-wrap: anywhere">{}</span>', text)
