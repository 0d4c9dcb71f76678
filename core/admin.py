"""The log, its streams, the namespaces and the processes, to look at."""

import re
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from core.console import (
    Choice,
    Figure,
    Keyset,
    NamespaceFilter,
    OneNamespace,
    Panel,
    RecordAdmin,
    fetch,
    in_question,
    instant,
    label,
    link,
    on_front_page,
    span,
    stored_json,
    url_of,
    when,
)
from core.log import place_id, place_of
from core.models import POSITION_BITS, Event, Namespace, Process, Stream, log_id, position_of

LAST = 20  # events below a record

_POSITION = re.compile(r"[0-9]{1,12}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def log_url(namespace: str, stream: str = "") -> str:
    """The list of a namespace's events, or of one stream's."""
    query = {"namespace": namespace, **({"q": stream} if stream else {})}
    return f"{reverse('admin:core_event_changelist')}?{urlencode(query)}"


def events_panel(title: str, events: QuerySet[Event], url: str) -> Panel:
    """Some events as a table below a record."""
    rows: list[list[Any]] = [
        [link(url_of(Event, event.id), event.position), event.stream, event.version, event.type, event.actor,
         when(event.recorded_at)]
        for event in events.defer("data", "metadata")
    ]  # fmt: skip
    return Panel(
        title, ["position", "stream", "version", "type", "actor", "recorded"], rows, "No events.", url
    )


def last_events(namespace: str, stream: str) -> Panel:
    """The last events of a stream, newest first."""
    of_stream = Event.objects.filter(namespace=number_of(namespace), stream=stream)
    return events_panel("Last events", of_stream.order_by("-version")[:LAST], log_url(namespace, stream))


def number_of(namespace: str) -> int | None:
    return Namespace.objects.filter(name=namespace).values_list("number", flat=True).first()


BOUNDS = """select n.floor, coalesce((select max(e.id) from core_event e
    where e.id > n.number::bigint << 40 and e.id < (n.number::bigint + 1) << 40) & ((1::bigint << 40) - 1), n.floor)
from core_namespace n where n.name = %s"""


# -- the log -----------------------------------------------------------------------------------------


class LogFilter(OneNamespace):
    """One namespace's log at a time: positions order a log, and nothing orders the events of two."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = self.value()
        if name is None:
            return queryset
        number = number_of(name)
        if number is None:
            return queryset.none()
        return queryset.filter(id__gt=log_id(number, 0), id__lt=log_id(number + 1, 0))


class OriginFilter(Choice):
    title = "streams"
    parameter_name = "streams"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("clients", "Clients'"), ("system", "System ($…)")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "clients":
            return queryset.exclude(stream__startswith="$")
        return queryset.filter(stream__startswith="$") if self.value() == "system" else queryset


@admin.register(Event)
class EventAdmin(RecordAdmin):
    """The log: what changed, in order, and who changed it."""

    reads = "events.read_all"
    newest_first = True
    unloaded = ("data", "metadata")
    list_display = ("position", "log", "stream_link", "version", "type", "actor", instant("recorded_at"))
    list_filter = (LogFilter, OriginFilter)
    list_select_related = ("namespace",)
    search_help_text = "stream, stream prefix*, event id or position"
    fields = (
        ("position", "log"), ("stream_link", "version"), ("type", "actor"), (instant("recorded_at"), "public_id"),
        ("correlation_id", "causation_id"), "data_json", "metadata_json",
    )  # fmt: skip

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        numbers = [number for number, _ in in_question(request)]
        if _POSITION.fullmatch(term):
            position = min(int(term), (1 << POSITION_BITS) - 1)
            return queryset.filter(id__in=[log_id(number, position) for number in numbers])
        if _UUID.fullmatch(term):
            place = place_of(str(UUID(term)))
            if place is not None:
                return queryset.filter(id=place, event_id=None)
            return queryset.filter(namespace__in=numbers, event_id=UUID(term))
        if term.endswith("*"):
            return queryset.filter(namespace__in=numbers, stream__startswith=term.rstrip("*"))
        return queryset.filter(namespace__in=numbers, stream=term)

    def total(self, request: HttpRequest, records: Keyset) -> str:
        """Positions are dense: the last one says how many there are."""
        if records.query or "streams" in request.GET:
            return ""
        name = request.GET.get("namespace") or "default"
        return f"{sum(head - floor for floor, head in fetch(BOUNDS, [name])):,}"

    @admin.display(description="namespace")
    def log(self, event: Event) -> str:
        return link(log_url(event.namespace.name), event.namespace.name)

    @admin.display(description="stream")
    def stream_link(self, event: Event) -> str:
        return link(log_url(event.namespace.name, event.stream), event.stream)

    @admin.display(description="event id")
    def public_id(self, event: Event) -> str:
        return str(event.event_id or place_id(event.namespace_id, event.position))

    @admin.display(description="data")
    def data_json(self, event: Event) -> str:
        return stored_json(event, "data")

    @admin.display(description="metadata")
    def metadata_json(self, event: Event) -> str:
        return stored_json(event, "metadata")

    def panels(self, event: Event) -> Iterable[Panel]:
        around = Event.objects.filter(
            namespace=event.namespace_id, stream=event.stream,
            version__gte=event.version - 5, version__lte=event.version + 5,
        )  # fmt: skip
        url = log_url(event.namespace.name, event.stream)
        yield events_panel("Before and after it in its stream", around.order_by("-version"), url)


@admin.register(Stream)
class StreamAdmin(RecordAdmin):
    reads = "streams.get"
    list_display = ("name", "namespace", "version", instant("created_at"), instant("changed_at"))
    list_filter = (NamespaceFilter,)
    search_help_text = "stream prefix"
    fields = (("name", "namespace"), "version", (instant("created_at"), instant("changed_at")))

    def panels(self, stream: Stream) -> Iterable[Panel]:
        yield last_events(stream.namespace, stream.stream)


# -- the system --------------------------------------------------------------------------------------


@admin.register(Namespace)
class NamespaceAdmin(RecordAdmin):
    list_display = ("name", "number", "locks", "head", "floor", "log", instant("created_at"))
    fields = (("name", "number"), ("locks", instant("created_at")), ("head", "floor"))
    search_help_text = "name prefix"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        last = Event.objects.filter(
            id__gt=OuterRef("number") * (1 << POSITION_BITS),
            id__lt=(OuterRef("number") + 1) * (1 << POSITION_BITS),
        )
        head = Subquery(last.order_by("-id").values("id")[:1])
        found: QuerySet[Any] = super().get_queryset(request).annotate(last=head)
        return found

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(name__startswith=term.rstrip("*"))

    @admin.display(description="last position")
    def head(self, namespace: Any) -> int:
        floor: int = namespace.floor
        return max(position_of(namespace.last or 0), floor)

    @admin.display(description="log")
    def log(self, namespace: Namespace) -> str:
        return link(log_url(namespace.name), "events")

    def panels(self, namespace: Namespace) -> Iterable[Panel]:
        base = log_id(namespace.number, 0)
        events = Event.objects.filter(id__gt=base, id__lt=base + (1 << POSITION_BITS))
        yield events_panel("Last events", events.order_by("-id")[:LAST], log_url(namespace.name))


@admin.register(Process)
class ProcessAdmin(RecordAdmin):
    list_display = ("process", "state", "host", "pid", instant("started_at"), instant("beat_at", "last beat"))
    fields = (
        ("process", "state"), ("host", "pid"), (instant("started_at"), instant("beat_at", "last beat")),
        instant("expires_at", "lease until"),
    )  # fmt: skip
    search_help_text = "host or part of the name"

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(id__icontains=term)

    @admin.display(description="process")
    def process(self, process: Process) -> str:
        return process.name

    @admin.display(description="state")
    def state(self, process: Any) -> str:
        if process.expires_at > process.now:
            return label("alive", "success")
        return label(f"gone for {span(process.now - process.expires_at)}")


# -- the front page ----------------------------------------------------------------------------------

# How much each log grew in a minute, without an index over time and without a count: within a log times only
# rise and positions are dense, so the first event of the last minute is found by halving.
GROWTH = """with recursive logs as materialized (
    select n.number, n.name, n.floor, coalesce(last.position, n.floor) as head, last.recorded_at
    from core_namespace n left join lateral (
        select e.id & ((1::bigint << 40) - 1) as position, e.recorded_at from core_event e
        where e.id > n.number::bigint << 40 and e.id < (n.number::bigint + 1) << 40 order by e.id desc limit 1
    ) last on true
), clock as materialized (select clock_timestamp() - interval '1 minute' as since),
halves (number, low, high) as (
    select number, case when recorded_at > since then floor else head end, head from logs, clock
    union all
    select h.number, case when e.recorded_at > since then h.low else middle end,
        case when e.recorded_at > since then middle - 1 else h.high end
    from halves h, clock, lateral (select (h.low + h.high + 1) / 2 as middle) m, core_event e
    where h.low < h.high and e.id = (h.number::bigint << 40) + middle
)
select logs.name, logs.head, logs.head - h.low, logs.recorded_at from logs join halves h using (number)
where h.low = h.high order by logs.head - h.low desc, logs.recorded_at desc nulls last, logs.name"""


@on_front_page("events.read_all")
def growth() -> Iterable[Figure | Panel]:
    """How much the logs grew in the last minute, and how far they reach."""
    logs = fetch(GROWTH)
    yield Figure("Events in the last minute", f"{sum(log[2] for log in logs):,}",
                 link=reverse("admin:core_event_changelist"))  # fmt: skip
    rows = [
        [link(log_url(name), name), f"{grown:,}", f"{head:,}", when(at)]
        for name, head, grown, at in logs[:10]
    ]
    headers = ["namespace", "events in the last minute", "last position", "last event"]
    yield Panel("Logs", headers, rows, link=reverse("admin:core_namespace_changelist"))


@on_front_page()
def processes() -> Iterable[Figure | Panel]:
    """Which processes hold their lease."""
    ((alive, gone),) = fetch(
        "select count(*) filter (where expires_at > clock_timestamp()), count(*) filter (where expires_at <= "
        "clock_timestamp() and expires_at > clock_timestamp() - interval '1 hour') from core_process"
    )
    note = f"{gone} gone in the last hour" if gone else ""
    yield Figure("Processes alive", alive, note, reverse("admin:core_process_changelist"))
