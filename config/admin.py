"""Configuration, for people: what is set, what it was, and who changed it. Of a secret nobody sees the value here."""

import json
from collections.abc import Iterable
from difflib import unified_diff
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Left
from django.http import HttpRequest
from django.utils.html import format_html

from config.models import Entry, Schema
from core.admin import last_events, number_of
from core.console import (
    Choice,
    Figure,
    NamespaceFilter,
    Panel,
    RecordAdmin,
    brief,
    each,
    fetch,
    instant,
    label,
    on_front_page,
    stored_json,
    when,
)

SAID = 1000  # characters of a value that a line can have
REVISIONS = 20  # shown below a key
LARGE = 20_000  # bytes of an event whose difference is not worked out
HISTORY = f"""select version, type, actor, recorded_at, data->>'reason', case when octet_length(data::text) < {LARGE}
    then data::text end from core_event where namespace_id = %s and stream = %s order by version desc limit %s"""


class StateFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("set", "Set"), ("secret", "Secret"), ("rollout", "Being rolled out"), ("deleted", "Deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen: dict[str | None, dict[str, Any]] = {
            "set": {"is_set": True}, "secret": {"sealed__gt": 0}, "rollout": {"percentage__isnull": False},
            "deleted": {"is_set": False},
        }  # fmt: skip
        return queryset.filter(**chosen.get(self.value(), {}))


@admin.register(Entry)
class EntryAdmin(RecordAdmin):
    """Keys and what they are set to. A deleted one comes back by a rollback."""

    reads = "config.find"
    unloaded = ("value", "next_value")
    actions = (
        each("config.put", key="name", expected_revision="expected"),
        each("config.rollback", "Roll back", key="name", expected_revision="expected"),
        each("config.widen", "Widen the rollout", key="name", expected_revision="expected"),
        each("config.finish", "Finish the rollout", key="name", expected_revision="expected"),
        each("config.abort", "Abort the rollout", key="name", expected_revision="expected"),
        each("config.adopt", key="name", expected_revision="expected"),
        each("config.delete", key="name", expected_revision="expected"),
    )
    list_display = ("key", "namespace", "state", "said", "version", "changed_by", instant("changed_at"))
    list_filter = (StateFilter, NamespaceFilter)
    search_help_text = "key prefix"
    fields = (
        ("key", "namespace"), ("state", "version"), ("changed_by", instant("changed_at")), "value_json",
        ("rollout", "salt"), "next_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        found = found.annotate(start=Left(Cast("value", TextField()), SAID))
        return found.defer(*self.unloaded)

    def name_of(self, row: Any) -> str:
        return f"{row}: revision {row.version}{'' if row.is_set else ', deleted'}"

    def offers(self, row: Any, operation: str) -> bool:
        verb = operation.partition(".")[2]
        if verb in {"widen", "finish", "abort"}:
            return row.percentage is not None
        if verb == "adopt":
            return row.source is not None
        return row.source is None and (row.is_set or verb != "delete")

    @admin.display(description="key")
    def key(self, entry: Entry) -> str:
        return entry.name

    @admin.display(description="state")
    def state(self, entry: Entry) -> str:
        if not entry.is_set:
            return label("deleted", "warning")
        if entry.source:
            return label(f"from {entry.source}", "info")
        if entry.percentage is not None:
            return label(f"rollout at {entry.percentage:g} %", "info")
        return label("secret", "success") if entry.sealed is not None else label("set", "success")

    @admin.display(description="value")
    def said(self, entry: Any) -> str:
        return "(secret)" if entry.sealed is not None else brief(entry.start)

    @admin.display(description="value")
    def value_json(self, entry: Entry) -> str:
        return "(secret)" if entry.sealed is not None else stored_json(entry, "value")

    @admin.display(description="rollout")
    def rollout(self, entry: Entry) -> str:
        return "-" if entry.percentage is None else f"{entry.percentage:g} % of the instances"

    @admin.display(description="value of the rollout")
    def next_json(self, entry: Entry) -> str:
        return "(secret)" if entry.next_sealed is not None else stored_json(entry, "next_value")

    def panels(self, entry: Entry) -> Iterable[Panel]:
        yield history_panel(entry)
        yield last_events(entry.namespace, entry.stream)


def history_panel(entry: Entry) -> Panel:
    """The last revisions, each with what it changed of the value."""
    found = fetch(HISTORY, [number_of(entry.namespace), entry.stream, REVISIONS + 1])
    before: list[str | None] = [*(data for *_, data in found[1:]), None]
    rows: list[list[Any]] = [
        [version, kind.removeprefix("config."), actor, when(at), reason or "-", difference(data, earlier)]
        for (version, kind, actor, at, reason, data), earlier in zip(found, before, strict=False)
    ]
    headers = ["revision", "change", "by", "at", "reason", "difference"]
    return Panel("Revisions", headers, rows[:REVISIONS], "There is no history: it is kept no longer.")


def difference(data: str | None, before: str | None) -> str:
    """What another value says, line by line; nothing of a secret."""
    if data is None:
        return "(large)"
    one, other = lines_of(before), lines_of(data)
    changed = [line for line in unified_diff(one, other, n=0, lineterm="") if line[:3] not in {"---", "+++"}]
    told = "\n".join(line for line in changed if not line.startswith("@@"))
    return format_html('<pre class="text-xs" style="white-space: pre-wrap">{}</pre>', told) if told else "-"


def lines_of(data: str | None) -> list[str]:
    found = json.loads(data) if data else {}
    if "sealed" in found:
        return [f"(secret of revision {found['sealed']})"]
    return json.dumps(found["value"], indent=2, ensure_ascii=False).splitlines() if "value" in found else []


@admin.register(Schema)
class SchemaAdmin(RecordAdmin):
    """The JSON Schemas of values, by the prefix that each is for."""

    reads = "config.find_schemas"
    unloaded = ("json_schema",)
    actions = (
        each("config.put_schema", "Put", prefix="name", expected_revision="expected"),
        each("config.delete_schema", "Delete", prefix="name", expected_revision="expected"),
    )
    list_display = ("prefix", "namespace", "state", "version", "changed_by", instant("changed_at"))
    list_filter = (NamespaceFilter,)
    search_help_text = "prefix"
    fields = (
        ("prefix", "namespace"),
        ("state", "version"),
        ("changed_by", instant("changed_at")),
        "schema_json",
    )

    def offers(self, row: Any, operation: str) -> bool:
        return row.is_set or operation != "config.delete_schema"

    @admin.display(description="prefix")
    def prefix(self, schema: Schema) -> str:
        return schema.name

    @admin.display(description="state")
    def state(self, schema: Schema) -> str:
        return label("set", "success") if schema.is_set else label("deleted", "warning")

    @admin.display(description="schema")
    def schema_json(self, schema: Schema) -> str:
        return stored_json(schema, "json_schema")

    def panels(self, schema: Schema) -> Iterable[Panel]:
        yield last_events(schema.namespace, schema.stream)


@on_front_page("config.find")
def rollouts_under_way() -> Iterable[Figure | Panel]:
    """How many keys are being rolled out."""
    ((count,),) = fetch("select count(*) from config_entry where percentage is not null")
    if count:
        yield Figure("Rollouts", f"{count:,}", "under way", "/admin/config/entry/?state=rollout")
