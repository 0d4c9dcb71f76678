"""The pages of definitions and their versions."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib import admin
from django.urls import reverse
from django.utils.http import urlencode

from core.admin import last_events
from core.console import (
    NamespaceFilter,
    Panel,
    RecordAdmin,
    fetch,
    instant,
    label,
    link,
    span,
    stored_json,
    url_of,
    when,
)
from core.encoding import decode, encode
from core.models import between
from sagas.admin.sagas import sagas_panel
from sagas.admin.simulating import simulate
from sagas.models import Definition, DefinitionName, Saga
from sagas.plans import StepPlan, plan_of
from sagas.services.courses import versioned

VERSIONS, SAGAS = 20, 10  # below a definition
BODY = "select body::text from sagas_definition where id = %s"
LAST = """select n.id, d.created_at, json_array_length(d.body->'steps') from sagas_definitionname n
    join sagas_definition d on d.id = n.id || '#' || lpad(n.version::text, 6, '0') where n.id = any(%s::text[])"""


# -- by name -----------------------------------------------------------------------------------------


@admin.register(DefinitionName)
class DefinitionNameAdmin(RecordAdmin):
    """Definitions: what sagas of a name do, in their last version."""

    reads = "definitions.find"
    actions = (simulate(lambda known: body_at(last_of(known))),)
    list_display = ("name", "namespace", "version", "step_count", instant("changed_at", "last changed"))
    list_filter = (NamespaceFilter,)
    search_help_text = "name prefix"
    fields = (
        ("name", "namespace"), ("version_link", "step_count"), ("order", instant("changed_at", "last changed")),
        "output_json", "body_json",
    )  # fmt: skip

    def complete(self, rows: list[Any]) -> None:
        found = {address: about for address, *about in fetch(LAST, [[row.pk for row in rows]])}
        for row in rows:
            row.changed_at, row.count = found.get(row.pk, (None, "-"))

    @admin.display(description="name")
    def name(self, known: DefinitionName) -> str:
        return known.name

    @admin.display(description="steps")
    def step_count(self, known: Any) -> str:
        return str(known.count)

    @admin.display(description="last version")
    def version_link(self, known: DefinitionName) -> str:
        return link(url_of(Definition, last_of(known)), known.version)

    @admin.display(description="compensates")
    def order(self, known: DefinitionName) -> str:
        return order_of(last_of(known))

    @admin.display(description="output")
    def output_json(self, known: DefinitionName) -> str:
        return output_of(last_of(known))

    @admin.display(description="as JSON")
    def body_json(self, known: DefinitionName) -> str:
        return stored_json(Definition(id=last_of(known)), "body")

    def panels(self, known: DefinitionName) -> Iterable[Panel]:
        yield graph_panel(last_of(known))
        yield versions_panel(known)
        start, end = between(known.namespace)
        of_name = Saga.objects.filter(title=known.name, id__gt=start, id__lt=end)
        found = of_name.only("id", "title", "status", "current_step", "created_at").order_by("-id")[:SAGAS]
        yield sagas_panel("Last sagas of this name", found, sagas_url(known))
        yield last_events(known.namespace, known.stream)


def last_of(known: DefinitionName) -> str:
    return f"{known.namespace}/{versioned(known.name, known.version)}"


def sagas_url(known: DefinitionName) -> str:
    query = urlencode({"namespace": known.namespace, "name": known.name})
    return f"{reverse('admin:sagas_saga_changelist')}?{query}"


def versions_panel(known: DefinitionName) -> Panel:
    of_name = Definition.objects.filter(id__gt=f"{known.pk}#", id__lt=f"{known.pk}$").order_by("-id")
    rows = [
        [link(url_of(Definition, each.pk), version_of(each)), when(each.created_at)]
        for each in of_name.defer("body")[:VERSIONS]
    ]
    return Panel("Versions", ["version", "created"], rows, "None.")


# -- versions ----------------------------------------------------------------------------------------


@admin.register(Definition)
class DefinitionAdmin(RecordAdmin):
    """Each version of each definition, and steps that were given with the start of a saga."""

    reads = "definitions.get"
    actions = (simulate(lambda definition: body_at(definition.pk)),)
    unloaded = ("body",)
    list_display = ("title", "version", "namespace", instant("created_at"))
    list_filter = (NamespaceFilter,)
    search_help_text = "name prefix"
    fields = (
        ("title", "namespace"), ("version", instant("created_at")), "order", "output_json", "body_json",
    )  # fmt: skip

    @admin.display(description="name")
    def title(self, definition: Definition) -> str:
        return definition.name.partition("#")[0]

    @admin.display(description="version")
    def version(self, definition: Definition) -> str:
        return version_of(definition)

    @admin.display(description="compensates")
    def order(self, definition: Definition) -> str:
        return order_of(definition.pk)

    @admin.display(description="output")
    def output_json(self, definition: Definition) -> str:
        return output_of(definition.pk)

    @admin.display(description="as JSON")
    def body_json(self, definition: Definition) -> str:
        return stored_json(definition, "body")

    def panels(self, definition: Definition) -> Iterable[Panel]:
        yield graph_panel(definition.pk)


def version_of(definition: Definition) -> str:
    version = definition.name.partition("#")[2]
    return str(int(version)) if version else "given with a start"


# -- what they say -----------------------------------------------------------------------------------


NOTHING = '{"steps": [], "output": null, "order": "reverse"}'  # where a row was lost: the page says so


def body_at(address: str) -> str:
    found = fetch(BODY, [address])
    return str(found[0][0]) if found else NOTHING


def order_of(address: str) -> str:
    return str(decode(body_at(address))["order"])


def output_of(address: str) -> str:
    output = decode(body_at(address))["output"]
    return "-" if output is None else encode(output).decode()


def graph_panel(address: str) -> Panel:
    """The steps in the order in which they can begin: those of one stage side by side."""
    plan = plan_of(decode(body_at(address)))
    stages = stages_of(plan.steps)
    rows: list[list[Any]] = [
        [stages[step.name], step.name, step.kind, does(step), ", ".join(step.after) or "-",
         step.compensation or "-", retries(step), span(step.timeout),
         label("pivot", "warning") if step.pivot else "-", ", ".join(also(step)) or "-"]
        for step in sorted(plan.steps.values(), key=lambda step: stages[step.name])
    ]  # fmt: skip
    headers = [
        "stage", "step", "kind", "does", "after", "compensation", "attempts", "timeout", "pivot", "also",
    ]  # fmt: skip
    note = "Steps of one stage do not wait for one another; nothing is compensated once a pivot was passed."
    return Panel("Steps", headers, rows, note=note)


def stages_of(steps: Mapping[str, StepPlan]) -> dict[str, int]:
    """How many steps each comes after at least, one after another."""
    found: dict[str, int] = {}
    left = dict(steps)
    while left:
        ready = [name for name, step in left.items() if all(each in found for each in step.after)]
        for name in ready:
            found[name] = 1 + max((found[each] for each in left.pop(name).after), default=0)
    return found


def does(step: StepPlan) -> str:
    if step.kind == "call":
        return f"{step.service}/{step.action}"
    if step.child:
        name, version = step.child
        return f"{name} version {version}" if version else name
    return step.signal if step.kind == "signal" else "-"


def retries(step: StepPlan) -> str:
    if step.kind != "call":
        return "-"
    return str(step.policy.attempts or f"for {span(step.policy.patience or 0.0)}")


def also(step: StepPlan) -> Iterable[str]:
    if step.when:
        yield "under a condition"
    if step.locks:
        yield f"{len(step.locks)} locks" if len(step.locks) > 1 else "a lock"
    if step.events:
        yield f"{len(step.events)} events" if len(step.events) > 1 else "an event"
