"""Operations as the admin's actions: confirmed, carried out for the admin's user, told of in a message."""

from collections.abc import Callable, Iterable, Mapping
from os import urandom
from typing import Annotated, Any, get_args, get_origin

from django import forms
from django.contrib import messages
from django.db.models import QuerySet
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from core import callers
from core.callers import Call
from core.console.records import PAGE, url_of
from core.console.rights import caller_of
from core.errors import Invalid, SyrosError
from core.models import Namespace
from core.operations import Operation, registry
from core.runtime import runtime

Action = Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponse | None]


def each(name: str, verb: str = "", /, **given: str) -> Action:
    """An admin action: the operation of this name, for every selected row, after the user has confirmed it.

    Parameters: `verb`, what its button says, the operation's own unless given; `given` maps the operation's
    parameters to attributes of the row. The rest is asked for on the page of confirmation, e.g. a `reason`; the
    page that offers the action may answer some of it beforehand.
    """

    def action(page: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        operation = registry[name]
        # What is ticked, whatever `select_across` says: nobody confirms what was not shown.
        rows = list(queryset.filter(pk__in=request.POST.getlist("_selected_action")[:PAGE]))
        page.complete(rows)
        form = questions(operation, given, request.POST)
        back = where_from(page, request, rows)
        if not form.is_valid() or not all(
            takes(operation, form, params_of(form, row, given)) for row in rows
        ):
            return confirmation(page, request, operation, action, rows, form, back)
        done = sum(carry_out(request, operation, row, params_of(form, row, given)) for row in rows)
        if done:
            messages.success(request, f"{operation.name}: {done} done.")
        return HttpResponseRedirect(back) if "from_page" in request.POST else None

    verb = verb or name.rpartition(".")[2].replace("_", " ").capitalize()
    action.__name__ = name.replace(".", "_")
    action.__dict__.update(short_description=verb, operation=name)
    return action


class Json(forms.JSONField):
    """JSON; what is nested so deeply, or has so long a number, that Python's reader gives up is as wrong as none."""

    def prepare_value(self, value: Any) -> Any:
        return "" if value is None else super().prepare_value(value)

    def to_python(self, value: Any) -> Any:
        if value in self.empty_values:
            return ""  # no answer; `null` is one
        try:
            return super().to_python(value)
        except (RecursionError, ValueError):
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid") from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except (RecursionError, ValueError):
            return InvalidJSONInput(data)


class Words(forms.CharField):
    """Several texts, apart by commas."""

    def to_python(self, value: Any) -> Any:
        return [word for each in (value or "").split(",") if (word := each.strip())] or ""


def questions(operation: Operation, given: Iterable[str], asked: Mapping[str, Any]) -> forms.Form:
    """A form for the parameters that the row does not give."""
    form = forms.Form(asked if "confirmed" in asked else None)
    for name, about in operation.params.model_fields.items():
        if name not in given and name != "fence":
            form.fields[name] = question(name, about, asked.get(name))
    return form


def question(name: str, about: FieldInfo, answered: str | None) -> forms.Field:
    # An operator says why, also where a client need not.
    required = about.is_required() or name == "reason"
    if is_json(about.annotation):
        return Json(required=required, widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}))
    if get_origin(about.annotation) is list:
        widget = UnfoldAdminTextInputWidget()
        return Words(required=required, initial=answered, widget=widget, help_text="Several apart by commas.")
    initial = answered or ("" if required else about.default)
    return forms.CharField(required=required, initial=initial, widget=UnfoldAdminTextInputWidget())


def is_json(annotation: Any) -> bool:
    """Any JSON, or none: `Json`, `Json | None`; or an object of its own form."""
    return annotation is Any or any(
        (get_origin(each) is Annotated and each.__origin__ is Any)
        or (isinstance(each, type) and issubclass(each, BaseModel))
        for each in get_args(annotation)
    )


def params_of(form: forms.Form, row: Any, given: Mapping[str, str]) -> dict[str, Any]:
    """What was answered, and what the row gives."""
    answers = {key: value for key, value in form.cleaned_data.items() if value != ""}
    return {**answers, **{key: getattr(row, attribute) for key, attribute in given.items()}}


def takes(operation: Operation, form: forms.Form, params: dict[str, Any]) -> bool:
    """Whether the operation takes these parameters; beside the fields stands what it does not."""
    try:
        operation.parse(params, strict=False)
    except Invalid as error:
        for problem in error.extra["errors"]:
            name = problem["pointer"].split("/")[1]
            form.add_error(name if name in form.fields else None, f"{problem['detail']} ({problem['code']})")
        return False
    return True


def where_from(page: Any, request: HttpRequest, rows: list[Any]) -> str:
    """The page of the one record, or the list, on which the action was chosen."""
    if "from_page" in request.POST and rows:
        return url_of(page.model, rows[0].pk)
    return reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist")


def confirmation(
    page: Any,
    request: HttpRequest,
    operation: Operation,
    action: Any,
    rows: list[Any],
    form: forms.Form,
    back: str,
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
        "back": back,
        "from_page": "from_page" in request.POST,
    }
    return TemplateResponse(request, "admin/confirm.html", context)


def carry_out(request: HttpRequest, operation: Operation, row: Any, values: dict[str, Any]) -> bool:
    """Carry an operation out in the row's namespace, for the admin's user; a refusal becomes a message."""
    try:
        run(request, operation, str(row.namespace), values)
    except SyrosError as error:
        messages.error(request, f"{row}: {error.detail} ({error.code})")
        return False
    return True


def run(request: HttpRequest, operation: Operation, name: str, values: dict[str, Any]) -> Any:
    """What an operation answers in the namespace of this name, for the admin's user.

    Raises: SyrosError.
    """
    namespace = Namespace.objects.get(name=name)
    space = callers.Namespace(namespace.name, namespace.number, namespace.locks == "volatile")
    call = Call(caller_of(request), space, urandom(8).hex())
    return runtime.run_from_thread(operation, call, operation.parse(values, strict=False)).value
