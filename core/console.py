"""What the admin's pages are made of: records that are only read, pages by key, operations as actions.

The admin is a transport like the others: what a page shows is decided by the right to read it over the API, and
what a page changes is changed by an operation, authorized and logged like a client's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import urandom
from typing import Any, ClassVar

import psycopg
from django import forms
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote
from django.db import OperationalError, connection, models, transaction
from django.db.models import Func, QuerySet
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminTextInputWidget

from core import callers
from core.callers import Call, Caller, authorize
from core.display import pretty
from core.errors import Forbidden, SyrosError
from core.models import Namespace
from core.operations import Operation, registry
from core.runtime import runtime

PAGE = 100
LISTED_NAMESPACES = 200  # in a filter; any other can be named in the address
MOST_NAMESPACES = 1000  # that one search looks into
LIST_SECONDS, PANEL_SECONDS = 5.0, 2.0


class Clock(Func):
    """The database's clock: the only one by which a lease is over."""

    function = "clock_timestamp"
    output_field = models.DateTimeField()


# -- statements with an end --------------------------------------------------------------------------


class TooSlow(Exception):
    """The database did not answer in the time a page may take."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within, no statement takes longer: an operator's search must not weigh on the callers.

    Raises: TooSlow.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select set_config('statement_timeout', %s, true)", [str(int(seconds * 1000))])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise TooSlow from error
        raise


def fetch(statement: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


# -- rights ------------------------------------------------------------------------------------------


def caller_of(request: HttpRequest) -> Caller:
    """The admin's user as every other transport knows it."""
    user = request.user
    return Caller(f"user:{user.get_username()}", is_admin=user.is_active and user.is_staff)


def may(request: HttpRequest, operation: str) -> bool:
    """May this user call this operation? No name: nothing to ask for beyond the admin's login."""
    if not request.user.is_active or not request.user.is_staff:
        return False
    try:
        if operation:
            authorize(caller_of(request), registry[operation], {})
    except Forbidden:
        return False
    return True


# -- lists -------------------------------------------------------------------------------------------

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
            with limited(LIST_SECONDS):
                return list(queryset[: self.list_per_page + 1])
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
        except TooSlow:
            messages.warning(
                request,
                f"Stopped after {LIST_SECONDS:.0f} s. Choose a namespace, or search for an exact name.",
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


def in_question(request: HttpRequest) -> list[tuple[int, str]]:
    """The namespaces that a search looks into, number and name: the chosen one, or every one."""
    chosen = request.GET.get("namespace")
    namespaces = Namespace.objects.order_by("name").values_list("number", "name")
    if chosen:
        return list(namespaces.filter(name=chosen))
    found = list(namespaces[: MOST_NAMESPACES + 1])
    if len(found) > MOST_NAMESPACES:
        messages.warning(request, f"Searched the first {MOST_NAMESPACES:,} namespaces only. Choose one.")
    return found[:MOST_NAMESPACES]


def named(request: HttpRequest, queryset: QuerySet[Any], prefix: str) -> QuerySet[Any]:
    """The aggregates whose name, or whole address, begins so: in the chosen namespace or in every one."""
    # By address, and so by the primary key; a condition on the part after the slash would read the table.
    wanted = models.Q(id__startswith=prefix)
    for _, name in in_question(request):
        wanted |= models.Q(id__startswith=f"{name}/{prefix}")
    return queryset.filter(wanted)


# -- pages -------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """One number on the front page."""

    title: str
    value: Any
    note: str = ""
    link: str = ""


@dataclass
class Panel:
    """A small table on the front page or below a record."""

    title: str
    headers: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    empty: str = "Nothing."
    link: str = ""

    @property
    def table(self) -> dict[str, Any]:
        return {"headers": self.headers, "rows": self.rows}


def stored_json(row: models.Model, column: str) -> str:
    """A column's JSON, indented, read as it is stored."""
    text = (
        type(row)._default_manager.filter(pk=row.pk).values_list(Cast(column, models.TextField()), flat=True)
    )
    return pretty(text.first())


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
    search_fields = ("pk",)  # that there is a search; `found` says what it does
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
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

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

    def panels(self, row: Any) -> Iterable[Panel]:
        """The tables below a record."""
        return ()

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        row = kwargs.get("obj")
        context.update(
            panels=list(self.panels(row)) if row else [],
            record_actions=[(name, title) for _, name, title in self.get_actions(request).values()],
            show_history=False,  # its history is in the log, not among the admin's own entries
        )
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


def may_look(request: HttpRequest, model: str) -> bool:
    """May this user see the pages about a model (`locks.Lock`)? What the sidebar asks."""
    page = admin.site.get_model_admin(apps.get_model(model))
    return bool(page.has_view_permission(request))


# -- operations as actions ---------------------------------------------------------------------------

Action = Callable[[Any, HttpRequest, QuerySet[Any]], TemplateResponse | None]


def each(name: str, **given: str) -> Action:
    """An admin action: the operation of this name, for every selected row, after the user has confirmed it.

    Parameters: `given` maps the operation's parameters to attributes of the row. The rest is asked for on the
    page of confirmation, e.g. a `reason`.
    """

    def action(page: Any, request: HttpRequest, queryset: QuerySet[Any]) -> TemplateResponse | None:
        operation = registry[name]
        # What is ticked, whatever `select_across` says: nobody confirms what was not shown.
        rows = list(queryset.filter(pk__in=request.POST.getlist("_selected_action")[:PAGE]))
        form = questions(operation, given, request.POST if "confirmed" in request.POST else None)
        if not form.is_valid():
            return confirmation(page, request, operation, action, rows, form)
        answers = {key: value for key, value in form.cleaned_data.items() if value != ""}
        done = sum(
            carry_out(
                request, operation, row, {**answers, **{key: getattr(row, at) for key, at in given.items()}}
            )
            for row in rows
        )
        if done:
            messages.success(request, f"{operation.name}: {done} done.")
        return None

    verb = name.rpartition(".")[2].replace("_", " ").capitalize()
    action.__name__ = name.replace(".", "_")
    action.__dict__.update(short_description=verb, operation=name)
    return action


def questions(operation: Operation, given: Iterable[str], data: Any) -> forms.Form:
    """A form for the parameters that the row does not give."""
    form = forms.Form(data)
    for name, about in operation.params.model_fields.items():
        if name not in given and name != "fence":
            form.fields[name] = forms.CharField(
                required=about.is_required(),
                initial="" if about.is_required() else about.default,
                widget=UnfoldAdminTextInputWidget(),
            )
    return form


def confirmation(
    page: Any, request: HttpRequest, operation: Operation, action: Any, rows: list[Any], form: forms.Form
) -> TemplateResponse:
    context = {
        **page.admin_site.each_context(request),
        "title": f"{action.short_description}?",
        "opts": page.opts,
        "operation": operation,
        "name": action.__name__,
        "verb": action.short_description,
        "rows": [(row.pk, page.name_of(row)) for row in rows],
        "form": form,
    }
    return TemplateResponse(request, "admin/confirm.html", context)


def carry_out(request: HttpRequest, operation: Operation, row: Any, values: dict[str, Any]) -> bool:
    """Carry an operation out in the row's namespace, for the admin's user; a refusal becomes a message."""
    try:
        namespace = Namespace.objects.get(name=str(row.namespace))
        call = Call(caller_of(request), callers.Namespace(namespace.name, namespace.number), urandom(8).hex())
        runtime.run_from_thread(operation, call, operation.parse(values, strict=False))
    except SyrosError as error:
        messages.error(request, f"{row}: {error.detail} ({error.code})")
        return False
    return True


# -- the front page ----------------------------------------------------------------------------------

Section = Callable[[], Iterable[Figure | Panel]]
_sections: list[tuple[str, Section]] = []


def on_front_page(reads: str = "") -> Callable[[Section], Section]:
    """Register figures and panels for the admin's front page, for those who may call the operation `reads`."""

    def register(section: Section) -> Section:
        _sections.append((reads, section))
        return section

    return register


def front_page(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """The context of the admin's front page: what each app says of now."""
    parts: list[Figure | Panel] = []
    for reads, section in reversed(_sections):  # core, which comes first, is what all else stands on
        if may(request, reads):
            parts += _in_time(section)
    ((as_of,),) = fetch("select clock_timestamp()")
    return {
        **context,
        "figures": [part for part in parts if isinstance(part, Figure)],
        "panels": [part for part in parts if isinstance(part, Panel)],
        "as_of": as_of,
    }


def _in_time(section: Section) -> list[Figure | Panel]:
    try:
        with limited(PANEL_SECONDS):
            return list(section())
    except TooSlow:
        title = section.__name__.replace("_", " ").capitalize()
        return [Figure(title, "—", f"not known: took more than {PANEL_SECONDS:.0f} s")]
