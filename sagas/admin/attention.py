"""The page of what waits for a human."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from core.console import Choice, NamespaceFilter, each, fetch, span
from sagas import progress as stored_progress
from sagas.admin.sagas import LISTED_NAMES, NameFilter, SagaAdmin
from sagas.admin.steps import side_of, stuck_in
from sagas.admin.words import breakable, cause, saga_link
from sagas.models import Attention

LOOKED_AT = 1000  # sagas whose errors the filter offers
SHOWN = 3  # stuck steps in one cell
# How far each is, and since when it waits.
WAITING = """select s.id, s.progress::text, e.recorded_at from sagas_saga s
join core_namespace n on n.name = split_part(s.id, '/', 1)
left join lateral (
    select recorded_at from core_event where namespace_id = n.number
        and stream = '$saga:' || split_part(s.id, '/', 2) and type = 'saga.attention' order by version desc limit 1
) e on true
where s.id = any(%s::text[])"""


CODES = """select distinct failed_code from (
    select failed_code from sagas_saga where status = 'attention' and failed_code is not null limit %s) found
order by failed_code limit %s"""


class CodeFilter(Choice):
    """By what is stuck."""

    title = "error"
    parameter_name = "error"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(code, code) for (code,) in fetch(CODES, [LOOKED_AT, LISTED_NAMES])]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(failed_code=self.value()) if self.value() else queryset


@admin.register(Attention)
class AttentionAdmin(SagaAdmin):
    """What waits for a human, of all namespaces: what is stuck, since when, and why."""

    actions = (
        each("sagas.retry", saga_id="name"),
        each("sagas.cancel", saga_id="name"),
        each("sagas.terminate", saga_id="name"),
        each("steps.retry", "Retry a step", saga_id="name"),
        each("steps.skip", "Skip a step", saga_id="name"),
        each("steps.complete", "Complete a step", saga_id="name"),
        each("steps.compensate", "Give a step up and compensate", saga_id="name"),
    )
    list_display = ("saga", "title_of", "namespace", "stuck", "waiting", "reason_of", "failure", "tag_list")
    list_display_links = None  # one page for each saga is enough
    list_filter = (CodeFilter, NameFilter, NamespaceFilter)
    search_fields = ()  # nor are they found twice

    def complete(self, rows: list[Any]) -> None:
        found = {address: about for address, *about in fetch(WAITING, [[row.pk for row in rows]])}
        for row in rows:
            text, row.since = found.get(row.pk, ('{"steps": {}}', None))
            progress = stored_progress.from_text(text)
            row.stuck = stuck_in(progress)
            row.errors = [side_of(progress, *each).error or {} for each in row.stuck.items()]

    @admin.display(description="id")
    def saga(self, saga: Attention) -> str:
        return saga_link(saga.pk)

    @admin.display(description="stuck")
    def stuck(self, saga: Any) -> str:
        names = [name if op == "action" else f"compensation of {name}" for name, op in saga.stuck.items()]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return breakable(", ".join(names[:SHOWN]) + more or "-")

    @admin.display(description="error")
    def failure(self, saga: Any) -> str:
        """Of the first that is stuck: the saga's own may be why it turned back."""
        found: dict[str, Any] = next(iter(saga.errors), {})
        return cause(found.get("code"), found.get("message"))

    @admin.display(description="waits for")
    def waiting(self, saga: Any) -> str:
        return span(saga.now - (saga.since or saga.created_at))
