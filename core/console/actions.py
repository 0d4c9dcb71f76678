"""Operations as the admin's actions: confirmed, carried out for the admin's user, told of in a message."""

from collections.abc import Callable, Iterable
from os import urandom
from typing import Any

from django import forms
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from unfold.widgets import UnfoldAdminTextInputWidget

from core import callers
from core.callers import Call
from core.console.records import PAGE
from core.console.rights import caller_of
from core.errors import SyrosError
from core.models import Namespace
from core.operations import Operation, registry
from core.runtime import runtime

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
        space = callers.Namespace(namespace.name, namespace.number, namespace.locks == "volatile")
        call = Call(caller_of(request), space, urandom(8).hex())
        runtime.run_from_thread(operation, call, operation.parse(values, strict=False))
    except SyrosError as error:
        messages.error(request, f"{row}: {error.detail} ({error.code})")
        return False
    return True
