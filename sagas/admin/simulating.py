"""Trying a definition out: a page that asks what its participants answer, and shows what would become of a saga."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from core.console import Action, Json, Panel, label, run, takes, url_of
from core.encoding import decode, encode
from core.errors import SyrosError
from core.operations import registry
from sagas.admin.words import failure, folded, length, state_label
from sagas.plans import Plan, plan_of
from sagas.services.simulating import Happening, Simulation

OPERATION = "definitions.simulate"
ASKED = 100  # steps that are asked about; the others succeed
SHOWN = 500  # happenings
OUTCOMES = {"action": ("succeeded", "failed", "refused", "unknown"),
            "compensation": ("succeeded", "refused", "unknown")}  # fmt: skip


def simulate(body_of: Callable[[Any], str]) -> Action:
    """An admin action: try the definition of the selected row out. `body_of` gives what it says, as JSON."""

    def action(page: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        rows = list(queryset.filter(pk__in=request.POST.getlist("_selected_action")[:2]))
        if len(rows) != 1:
            messages.error(request, "One definition at a time.")
            return None
        body = decode(body_of(rows[0]))
        trial = Trial(plan_of(body), request.POST if "confirmed" in request.POST else None)
        found = trial.outcome(request, rows[0], body) if trial.is_valid() else None
        return answer(page, request, action, rows[0], trial, found)

    action.__name__ = "definitions_simulate"
    action.__dict__.update(short_description="Simulate", operation=OPERATION)
    return action


@dataclass
class Asked:
    """What is asked about a step. `undo`: about what takes it back, if anything does."""

    step: str
    action: list[Any]
    undo: list[Any]


class Trial(forms.Form):
    """What the participants of a plan answer. A field is named as the parameter is in the operation's problems."""

    input = Json(required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))
    deadline_seconds = forms.CharField(required=False, widget=UnfoldAdminTextInputWidget())

    def __init__(self, plan: Plan, asked: Any) -> None:
        super().__init__(asked)
        calls = [step for step in plan.steps.values() if step.kind == "call"]
        self.calls, self.left_out = calls[:ASKED], len(calls[ASKED:])
        for step in self.calls:
            self.fields.update(questions(f"answers/{step.name}", OUTCOMES["action"], has_output=True))
            if step.compensation:
                self.fields.update(questions(f"compensations/{step.name}", OUTCOMES["compensation"]))

    def general(self) -> list[Any]:
        return [self["input"], self["deadline_seconds"]]

    def asked(self) -> Iterator[Asked]:
        for step in self.calls:
            yield Asked(
                step.name, self._fields(f"answers/{step.name}/"), self._fields(f"compensations/{step.name}/")
            )

    def _fields(self, prefix: str) -> list[Any]:
        return [self[name] for name in self.fields if name.startswith(prefix)]

    def outcome(self, request: HttpRequest, row: Any, body: dict[str, Any]) -> Simulation | None:
        """What would become of it; none, if something is wrong, which then stands beside its field."""
        params = {"steps": body["steps"], "output": body["output"], "compensation_order": body["order"],
                  **self._answers()}  # fmt: skip
        params = {name: value for name, value in params.items() if value is not None}
        if not takes(registry[OPERATION], self, params):
            return None
        try:
            found: Simulation = run(request, registry[OPERATION], str(row.namespace), params)
        except SyrosError as error:
            self.add_error(None, f"{error.detail} ({error.code})")
            return None
        return found

    def _answers(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self.cleaned_data.items():
            *path, last = name.split("/")
            about = found
            for part in path:
                about = about.setdefault(part, {})
            if value != "":
                about[last] = value
        return found


def questions(name: str, outcomes: tuple[str, ...], *, has_output: bool = False) -> dict[str, forms.Field]:
    choice = forms.ChoiceField(choices=[(each, each) for each in outcomes], required=False, label="answers",
                               widget=UnfoldAdminSelectWidget())  # fmt: skip
    found: dict[str, forms.Field] = {f"{name}/outcome": choice, f"{name}/times": short("times", "always")}
    if has_output:
        found[f"{name}/code"] = short("code", "")
        found[f"{name}/output"] = Json(required=False, label="output", widget=text("JSON"))
    return found


def short(title: str, unless_said: str) -> forms.CharField:
    return forms.CharField(required=False, label=title, widget=text(unless_said))


def text(unless_said: str) -> UnfoldAdminTextInputWidget:
    return UnfoldAdminTextInputWidget(attrs={"placeholder": unless_said})


def answer(
    page: Any, request: HttpRequest, action: Any, row: Any, trial: Trial, found: Simulation | None
) -> TemplateResponse:
    context = {
        **page.admin_site.each_context(request),
        "title": f"Simulate {row}",
        "opts": page.opts,
        "name": action.__name__,
        "key": row.pk,
        "form": trial,
        "panels": [ending(found), course(found)] if found else [],
        "back": url_of(page.model, row.pk),
    }
    return TemplateResponse(request, "admin/simulate.html", context)


def ending(found: Simulation) -> Panel:
    because, left = (found.reason or "-").replace("_", " "), label("dirty", "danger") if found.dirty else "no"
    error = failure(found.error) if found.error else "-"
    output = "-" if found.output is None else folded(found.output)
    row = [state_label(found.status), length(found.seconds), because, error, left, output]
    return Panel(
        "How it would end", ["status", "after", "reason", "error", "may leave something", "output"], [row]
    )


def course(found: Simulation) -> Panel:
    shown = found.events[:SHOWN]
    rows: list[list[Any]] = [
        [length(each.at_seconds), each.type, each.data.get("step", "-"), each.data.get("attempt") or "-", said(each)]
        for each in shown
    ]  # fmt: skip
    more = f"The first {SHOWN} of {len(found.events):,} events." if len(found.events) > SHOWN else ""
    return Panel("What would happen", ["after", "type", "step", "attempt", "what it says"], rows, note=more)


def said(happening: Happening) -> str:
    """Why, and what comes next, in words."""
    data = happening.data
    error = data.get("error") or data
    parts = [": ".join(str(error[name]) for name in ("code", "message") if error.get(name))]
    parts.append(str(data.get("why", "")))
    if "for" in data:
        parts.append(f"waits for {data['for']}")
    if retry_at := data.get("retry_at"):
        parts.append(f"again after {length(retry_at)}")
    elif until := data.get("until"):
        parts.append(f"until {length(until)}")
    if data.get("output") is not None:
        parts.append(encode(data["output"]).decode()[:200])
    return "; ".join(part for part in parts if part) or "-"
