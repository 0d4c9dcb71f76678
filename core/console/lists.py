"""Lists that cost the same however long they are, their filters and their search."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.views import ChangeList

from core.console import reading
from core.console.reading import TooSlow, limited
from core.models import Namespace

LISTED_NAMESPACES = 200  # in a filter; any other can be named in the address
MOST_NAMESPACES = 1000  # that one search looks into
CURSORS = ("after", "before")


class Keyset(ChangeList):  # type: ignore[misc]
    """A list that pages by primary key: it never counts, and its last page costs what its first does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = self.opts.verbose_name_plural

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[str]:
        return ["-pk" if self.model_admin.newest_first else "pk"]

    def get_filters(self, request: HttpRequest) -> Any:
        for name in CURSORS:
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        return super().get_filters(request)

    def get_results(self, request: HttpRequest) -> None:
        backwards = "before" in request.GET
        cursor = request.GET.get("before") or request.GET.get("after")
        rows = self._rows(request, cursor, backwards)
        more, rows = len(rows) > self.list_per_page, rows[: self.list_per_page]
        if backwards:
            rows.reverse()
        self.earlier = rows[0].pk if rows and (more if backwards else cursor) else None
        self.later = rows[-1].pk if rows and (backwards or more) else None
        whole = self.earlier is None and self.later is None
        self.total = str(len(rows)) if whole else self.model_admin.total(request, self)
        self.result_list, self.paginator = rows, None
        self.result_count = self.full_result_count = len(rows)
        self.can_show_all = self.multi_page = self.show_full_result_count = False
        self.show_admin_actions = bool(rows)

    def _rows(self, request: HttpRequest, cursor: str | None, backwards: bool) -> list[Any]:
        queryset = self.queryset
        try:
            if cursor:
                side = "lt" if self.model_admin.newest_first != backwards else "gt"
                queryset = queryset.filter(**{f"pk__{side}": cursor})
            if backwards:
                queryset = queryset.reverse()
            with limited(reading.LIST_SECONDS):
                rows = list(queryset[: self.list_per_page + 1])
                self.model_admin.complete(rows)
                return rows
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
        except TooSlow:
            messages.warning(
                request,
                f"Stopped after {reading.LIST_SECONDS:.0f} s. Choose a namespace, or search for an exact name.",
            )
            return []

    # This list, with the same filters, at its beginning, a page back and a page on.

    def link_to(self, **cursor: Any) -> str:
        return str(self.get_query_string(cursor))

    def earlier_link(self) -> str:
        return self.link_to(before=self.earlier)

    def later_link(self) -> str:
        return self.link_to(after=self.later)


class Choice(admin.SimpleListFilter):
    """A filter that stands above its list."""

    template = "admin/choice.html"


class NamespaceFilter(Choice):
    """Only what is in one namespace."""

    title = "namespace"
    parameter_name = "namespace"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = Namespace.objects.order_by("name").values_list("name", flat=True)
        return [(name, name) for name in names[:LISTED_NAMESPACES]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = self.value()
        return queryset.filter(id__startswith=f"{name}/") if name else queryset


class OneNamespace(NamespaceFilter):
    """One namespace at a time, where order means something within one only. Only a search looks into every one, and
    what was chosen to be acted upon, wherever it is."""

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        self._searching = bool(request.GET.get("q")) or request.method == "POST"
        super().__init__(request, *args)

    def value(self) -> str | None:
        return super().value() or (None if self._searching else "default")

    def choices(self, changelist: Any) -> Iterator[Any]:
        everywhere, *names = super().choices(changelist)
        yield from ([everywhere] if self._searching else [])
        yield from names


def in_question(request: HttpRequest) -> list[tuple[int, str]]:
    """The namespaces that a search looks into, number and name: the chosen one, or every one, the newest first."""
    chosen = request.GET.get("namespace")
    namespaces = Namespace.objects.order_by("-number").values_list("number", "name")
    if chosen:
        return list(namespaces.filter(name=chosen))
    found = list(namespaces[: MOST_NAMESPACES + 1])
    if len(found) > MOST_NAMESPACES:
        messages.warning(request, f"Searched the newest {MOST_NAMESPACES:,} namespaces only. Choose one.")
    return found[:MOST_NAMESPACES]


def named(request: HttpRequest, queryset: QuerySet[Any], prefix: str) -> QuerySet[Any]:
    """The aggregates whose name, or whole address, begins so: in the chosen namespace or in every one."""
    # By address, and so by the primary key; a condition on the part after the slash would read the table.
    wanted = models.Q(id__startswith=prefix)
    for _, name in in_question(request):
        wanted |= models.Q(id__startswith=f"{name}/{prefix}")
    return queryset.filter(wanted)
