"""The page of tasks: what waits for workers that poll, and what they have."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from core.console import Choice, Clock, NamespaceFilter, RecordAdmin, instant, label, span, stored_json
from core.console.lists import in_question
from sagas.admin.words import saga_link
from sagas.models import Task

SERVICE = "service:"


class TaskFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("queued", "Queued"), ("leased", "With a worker"), ("overdue", "Lease ran out")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "queued":
            return queryset.filter(lease_token__isnull=True)  # as the partial index says it
        if self.value() == "leased":
            return queryset.filter(lease_until__gt=Clock())
        return queryset.filter(lease_until__lte=Clock()) if self.value() == "overdue" else queryset


@admin.register(Task)
class TaskAdmin(RecordAdmin):
    """Tasks. Never the lease_token: it is the worker's secret."""

    reads = "sagas.find"
    unloaded = ("body", "lease_token")
    list_display = (
        "step", "op", "saga_of", "namespace", "service", "attempt", "state", "waited", "worker", "lease",
    )  # fmt: skip
    list_filter = (TaskFilter, NamespaceFilter)
    search_help_text = "id of a saga, or service:name"
    fields = (
        ("step", "op"), ("saga_of", "namespace"), ("service", "attempt"), ("state", "worker"),
        (instant("queued_at"), "lease"), "body_json",
    )  # fmt: skip

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith(SERVICE):
            name = term.removeprefix(SERVICE).strip()
            return queryset.filter(queue__in=[f"{space}/{name}" for _, space in in_question(request)])
        return super().found(request, queryset, term)

    @admin.display(description="saga")
    def saga_of(self, task: Task) -> str:
        return saga_link(task.saga)

    @admin.display(description="service")
    def service(self, task: Task) -> str:
        return task.queue.partition("/")[2]

    @admin.display(description="state")
    def state(self, task: Any) -> str:
        if task.lease_until is None:
            return label("queued", "info")
        return label("leased", "success") if task.lease_until > task.now else label("overdue", "danger")

    @admin.display(description="queued for")
    def waited(self, task: Any) -> str:
        return span(task.now - task.queued_at)

    @admin.display(description="lease ends in")
    def lease(self, task: Any) -> str:
        return span(task.lease_until - task.now) if task.lease_until else "-"

    @admin.display(description="what the worker is given")
    def body_json(self, task: Task) -> str:
        return stored_json(task, "body")
