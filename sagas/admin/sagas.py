"""The pages of sagas."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, TextField
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.http import urlencode

from core.console import (
    Choice,
    OneNamespace,
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
from core.models import Process
from sagas.admin.facts import facts_of, history_panel
from sagas.admin.steps import standing, steps_panel, stuck_panel
from sagas.admin.timeline import timeline_panel
from sagas.admin.words import STATES, breakable, cause, length, saga_link, short, state_label
from sagas.models import Definition, Saga

LISTED_NAMES = 100  # in a filter; any other can be searched for
TAG = "tag:"
WHOLE = 1000  # characters of an error on its own page
# The names of all sagas, each found by the index and not by reading those that have it.
NAMES = """with recursive names (name) as (
    (select title from sagas_saga order by title limit 1)
    union all select (select title from sagas_saga where title > name order by title limit 1) from names
        where name is not null
) select name from names where name is not null limit %s"""
LIVE = ("sagas.cancel", "sagas.pause", "sagas.signal", "sagas.terminate")
# What is not refused anyway; a step is helped where it is shown to be stuck.
OFFERED = {
    "scheduled": LIVE,
    "running": LIVE,
    "paused": ("sagas.resume", "sagas.cancel", "sagas.signal", "sagas.terminate"),
    "compensating": ("sagas.pause", "sagas.terminate"),
    "attention": ("sagas.retry", "sagas.terminate"),
}


class StatusFilter(Choice):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status.capitalize()) for status in STATES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(status=self.value()) if self.value() else queryset


class NameFilter(Choice):
    title = "name"
    parameter_name = "name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for (name,) in fetch(NAMES, [LISTED_NAMES])]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(title=self.value()) if self.value() else queryset


def said_of_error(member: str) -> RawSQL:
    """A member of a saga's error, which itself is not loaded."""
    return RawSQL(f"left(sagas_saga.error->>'{member}', {WHOLE})", (), output_field=TextField())


@admin.register(Saga)
class SagaAdmin(RecordAdmin):
    """Sagas: how far each is, what it did and when, and what an operator can say to it."""

    reads = "sagas.find"
    newest_first = True
    unloaded = ("progress", "input", "output", "error", "metadata")
    actions: tuple[Any, ...] = (
        each("sagas.retry", saga_id="name"),
        each("sagas.cancel", saga_id="name"),
        each("sagas.pause", saga_id="name"),
        each("sagas.resume", saga_id="name"),
        each("sagas.signal", saga_id="name"),
        each("sagas.terminate", saga_id="name"),
        each("steps.retry", "Retry a step", saga_id="name"),
        each("steps.skip", "Skip a step", saga_id="name"),
        each("steps.complete", "Complete a step", saga_id="name"),
        each("steps.compensate", "Give a step up and compensate", saga_id="name"),
    )
    list_display: tuple[str, ...] = (
        "short",
        "title_of",
        "namespace",
        "state",
        "step",
        "failure",
        "age",
        "took",
        "tag_list",
    )
    list_filter: tuple[type[Choice], ...] = (StatusFilter, NameFilter, OneNamespace)
    search_help_text = "id, prefix of a name, or tag:key:value"
    fields = (
        ("name", "title_of"), ("namespace", "definition_link"), ("state", "reason_of"), ("step", "failure_whole"),
        (instant("created_at"), instant("finished_at")), ("took", instant("deadline_at", "deadline")),
        ("owner_link", instant("wake_at", "looked at next")), ("parent_link", "tag_list"), "dirt",
        "input_json", "output_json", "metadata_json",
    )  # fmt: skip

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        """Without the namespace, where all rows are of the one that is chosen above them."""
        if request.GET.get("q") or OneNamespace not in self.list_filter:
            return self.list_display
        return tuple(each for each in self.list_display if each != "namespace")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        said: QuerySet[Any] = found.annotate(code=said_of_error("code"), message=said_of_error("message"))
        return said

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith(TAG):
            key, _, value = term.removeprefix(TAG).partition(":")
            return queryset.filter(tags__contains={key: value})
        prefix = term.rstrip("*")
        by_id: QuerySet[Any] = super().found(request, queryset, term)
        return by_id | queryset.filter(title__startswith=prefix)

    def name_of(self, row: Any) -> str:
        return f"{row} ({row.title}): {row.status}{f' at {row.current_step}' if row.current_step else ''}"

    def offers(self, row: Any, operation: str) -> bool:
        return operation in OFFERED.get(row.status, ())

    @admin.display(description="id")
    def name(self, saga: Saga) -> str:
        return saga.name

    @admin.display(description="id")
    def short(self, saga: Saga) -> str:
        return short(saga.name)

    @admin.display(description="name")
    def title_of(self, saga: Saga) -> str:
        return breakable(saga.title)

    @admin.display(description="status")
    def state(self, saga: Saga) -> str:
        return state_label(saga.status)

    @admin.display(description="reason")
    def reason_of(self, saga: Saga) -> str:
        return (saga.reason or "-").replace("_", " ")

    @admin.display(description="current step")
    def step(self, saga: Saga) -> str:
        return breakable(saga.current_step or "-")

    @admin.display(description="error")
    def failure(self, saga: Any) -> str:
        return cause(saga.code, saga.message)

    @admin.display(description="error")
    def failure_whole(self, saga: Any) -> str:
        return cause(saga.code, saga.message, WHOLE)

    @admin.display(description="age")
    def age(self, saga: Any) -> str:
        return span(saga.now - saga.created_at)

    @admin.display(description="took")
    def took(self, saga: Any) -> str:
        return length((saga.finished_at - saga.created_at).total_seconds()) if saga.finished_at else "-"

    @admin.display(description="tags")
    def tag_list(self, saga: Saga) -> str:
        """Each leads to all that have it."""
        tags = [
            (tag_url(key, value), breakable(f"{key}:{value}")) for key, value in (saga.tags or {}).items()
        ]
        return format_html_join(" ", "{}", ((link(*tag),) for tag in tags)) or "-"

    @admin.display(description="may have left something")
    def dirt(self, saga: Saga) -> str:
        return label("dirty", "danger") if saga.dirty else "no"

    @admin.display(description="definition")
    def definition_link(self, saga: Saga) -> str:
        name, _, version = saga.definition.partition("/")[2].partition("#")
        text = f"{name} version {int(version)}" if version else "given with the start"
        return link(url_of(Definition, saga.definition), text)

    @admin.display(description="carried out by")
    def owner_link(self, saga: Saga) -> str:
        return link(url_of(Process, saga.owner), saga.owner.partition("/")[2]) if saga.owner else "-"

    @admin.display(description="step of")
    def parent_link(self, saga: Saga) -> str:
        parent, _, step = (saga.parent or "").partition(".")
        return saga_link(f"{saga.namespace}/{parent}", f"{short(parent)} {step}") if parent else "-"

    @admin.display(description="input")
    def input_json(self, saga: Saga) -> str:
        return stored_json(saga, "input")

    @admin.display(description="output")
    def output_json(self, saga: Saga) -> str:
        return stored_json(saga, "output")

    @admin.display(description="metadata")
    def metadata_json(self, saga: Saga) -> str:
        return stored_json(saga, "metadata")

    def panels(self, saga: Any) -> Iterable[Panel]:
        facts, stands = facts_of(saga), standing(saga)
        if stands:
            plan, progress = stands
            yield from stuck_panel(progress)
            yield timeline_panel(saga, plan.steps, facts)
            yield steps_panel(saga, plan, progress)
        yield history_panel(saga, facts)


def tag_url(key: str, value: str) -> str:
    return f"{reverse('admin:sagas_saga_changelist')}?{urlencode({'q': f'{TAG}{key}:{value}'})}"


def sagas_panel(title: str, sagas: Iterable[Any], url: str = "") -> Panel:
    """Some sagas as a table."""
    rows = [
        [saga_link(saga.pk), saga.title, saga.namespace, state_label(saga.status), saga.current_step or "-",
         when(saga.created_at)]
        for saga in sagas
    ]  # fmt: skip
    return Panel(title, ["id", "name", "namespace", "status", "current step", "created"], rows, "None.", url)
