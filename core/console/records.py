"""Pages about rows that only operations change."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from unfold.admin import ModelAdmin

from core.console.lists import Keyset, named
from core.console.reading import Clock, fetch
from core.console.rights import may
from core.operations import registry

PAGE = 100


@dataclass
class Panel:
    """A small table on the front page or below a record."""

    title: str
    headers: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    empty: str = "Nothing."
    link: str = ""
    note: str = ""
    template: str = "admin/panel.html"

    @property
    def table(self) -> dict[str, Any]:
        return {"headers": self.headers, "rows": self.rows}


def url_of(model: type[models.Model], key: Any) -> str:
    """The page of a record."""
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[quote(key)])


class RecordAdmin(ModelAdmin):  # type: ignore[misc]
    """Pages about rows that only operations change: to look at, with actions that call operations.

    `reads` names the operation whose right opens the pages; `unloaded` are the columns that come with no row,
    because they are secret or large.
    """

    reads: ClassVar[str] = ""
    unloaded: ClassVar[tuple[str, ...]] = ()
    newest_first: ClassVar[bool] = False

    list_per_page = PAGE
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each facet counts the table
    sortable_by = ()
    list_disable_select_all = True
    search_fields: tuple[str, ...] = ("pk",)  # that there is a search; `found` says what it does
    change_list_template = "admin/records.html"
    change_form_template = "admin/record.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Keyset]:
        return Keyset

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        asked = [*request.GET.lists(), *request.POST.lists()]
        if any("\0" in value for _, values in asked for value in values):
            raise IncorrectLookupParameters("NUL is in no name")
        return super().get_changelist_instance(request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request).annotate(now=Clock()).defer(*self.unloaded)
        return found

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        row = None if "\0" in object_id else super().get_object(request, object_id, from_field)
        if row is not None:
            self.complete([row])
        return row

    def complete(self, rows: list[Any]) -> None:
        """Read what the rows do not have themselves, in one statement for all."""

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Only the list's own filters: by `?lock_id__startswith=` a secret could be guessed letter by letter."""
        return lookup in {each.parameter_name for each in self.list_filter}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (self.found(request, queryset, term) if term else queryset), False

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """What a search finds; by an index, or in a small table."""
        return named(request, queryset, term.rstrip("*"))

    def total(self, request: HttpRequest, records: Keyset) -> str:
        """How many there are, as far as that can be told without counting: as last analyzed."""
        if records.query or records.has_active_filters:
            return ""
        table = self.model._meta.db_table
        ((estimate,),) = fetch("select reltuples::bigint from pg_class where oid = %s::regclass", [table])
        return f"about {estimate:,}" if estimate >= 0 else ""

    def name_of(self, row: Any) -> str:
        """What to call a row before something is done to it."""
        return str(row)

    def offers(self, row: Any, operation: str) -> bool:
        """Whether the page of a record has a button for this operation: not where it can only be refused."""
        return True

    def panels(self, row: Any) -> Iterable[Panel]:
        """The tables below a record."""
        return ()

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        row = kwargs.get("obj")
        actions = self.get_actions(request) if row else {}
        context.update(
            panels=list(self.panels(row)) if row else [],
            allowed=set(actions),
            record_actions=[(name, title, registry[each.operation].changes) for each, name, title in actions.values()
                            if self.offers(row, each.operation)],
            show_history=False,  # its history is in the log, not among the admin's own entries
        )  # fmt: skip
        return super().render_change_form(request, context, *args, **kwargs)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        found: dict[str, Any] = super().get_actions(request)
        return {name: each for name, each in found.items() if may(request, each[0].operation)}

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may(request, self.reads)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
