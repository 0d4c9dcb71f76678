"""Caches, for people: what was counted and set in each namespace, and what there is for a key."""

import json
from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html

from cache.models import Cache
from core.admin import last_events
from core.console import (
    NamespaceFilter,
    Panel,
    RecordAdmin,
    brief,
    each,
    label,
    run,
    span,
    when,
)
from core.console.rights import may
from core.encoding import decode, encode
from core.errors import SyrosError
from core.operations import registry

SHOWN = 50  # keys that begin as what was asked for
CHARACTERS = 4000  # of a value
COUNTS = (
    ("hits", "hits"), ("stale", "of these stale"), ("misses", "misses"), ("leases", "told to load"),
    ("stored", "stored"), ("refused", "loads refused"), ("deleted", "deleted"),
    ("invalidated", "invalidations"), ("errors", "errors"),
)  # fmt: skip


@admin.register(Cache)
class CacheAdmin(RecordAdmin):
    """Caches: of namespaces that have set something, or invalidated a tag."""

    reads = "caches.get"
    actions = (
        each("cache.invalidate", "Invalidate tags"),
        each("cache.delete", "Delete a key"),
        each("caches.put", "Settings"),
    )
    change_form_template = "admin/cache.html"
    list_display = ("title", "ttl", "longest", "largest", "quota", "if_away", "version")
    list_filter = (NamespaceFilter,)
    search_help_text = "namespace"
    fields = (("title", "version"), ("ttl", "longest"), ("largest", "quota"), ("if_away",))

    def name_of(self, row: Any) -> str:
        return f"the cache of {row.namespace}"

    @admin.display(description="namespace")
    def title(self, cache: Cache) -> str:
        return cache.namespace

    @admin.display(description="default TTL")
    def ttl(self, cache: Cache) -> str:
        return span(cache.default_ttl_seconds)

    @admin.display(description="longest TTL")
    def longest(self, cache: Cache) -> str:
        return span(cache.max_ttl_seconds)

    @admin.display(description="largest value")
    def largest(self, cache: Cache) -> str:
        return size(cache.max_value_bytes)

    @admin.display(description="quota")
    def quota(self, cache: Cache) -> str:
        return "none" if cache.quota_bytes is None else size(cache.quota_bytes)

    @admin.display(description="if it is away")
    def if_away(self, cache: Cache) -> str:
        return "503" if cache.on_error == "error" else "a miss"

    def panels(self, cache: Any) -> Iterable[Panel]:
        yield last_events(cache.namespace, cache.stream)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        response = super().render_change_form(request, context, *args, **kwargs)
        if (cache := kwargs.get("obj")) is None:
            return response
        key = request.GET.get("key", "").strip()
        looked = looked_for(request, cache, key) if key and may(request, "cache.get") else []
        context["panels"] = [*looked, *counted(request, cache), *context["panels"]]
        context.update(
            key=key, may_look=may(request, "cache.get"),
            settings=[(name, getattr(cache, name)) for name in registry["caches.put"].params.model_fields
                      if hasattr(cache, name) and getattr(cache, name) is not None],
        )  # fmt: skip
        response.context_data = {**(response.context_data or {}), **context}
        return response


def asked(request: HttpRequest, cache: Cache, operation: str, **params: Any) -> Any:
    """Raises: SyrosError."""
    return run(request, registry[operation], cache.namespace, params)


def counted(request: HttpRequest, cache: Cache) -> Iterable[Panel]:
    """What was counted, for who may read that."""
    if not may(request, "cache.stats"):
        return
    panel = Panel("Statistics", ["counted", ""], note="Over the API: cache.stats.")
    try:
        stats = asked(request, cache, "cache.stats")
    except SyrosError as error:
        panel.empty = error.detail
    else:
        panel.rows = [["hit ratio", f"{stats.hit_ratio:.1%}"]]
        panel.rows += [[title, f"{getattr(stats, name):,}"] for name, title in COUNTS]
        panel.rows += [["read", size(stats.bytes_read)], ["written", size(stats.bytes_written)]]
        if stats.bytes_used is not None:
            panel.rows.append(["taken of the quota", size(stats.bytes_used)])
    yield panel


def looked_for(request: HttpRequest, cache: Cache, key: str) -> Iterable[Panel]:
    """What there is for a key, and keys that begin so."""
    try:
        yield value_panel(key, asked(request, cache, "cache.get", key=key))
    except SyrosError as error:
        yield Panel(f"Key {key}", [], empty=f"{error.detail} ({error.code})")
    if may(request, "cache.find"):
        yield keys_panel(request, cache, key)


def value_panel(key: str, item: Any) -> Panel:
    text = item.value_base64 or ""
    if item.value is not None:
        text = json.dumps(decode(encode(item.value)), indent=2, ensure_ascii=False)
    shown = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text):,} characters)"
    rows = [
        ["state", state_of(item)],
        ["value", format_html('<pre class="whitespace-pre-wrap">{}</pre>', shown) if shown else "none"],
        ["content type", item.content_type or "-"], ["tags", ", ".join(item.tags) or "-"], ["etag", item.etag],
        ["created", when(item.created_at)], ["fresh until", when(item.expires_at)],
        ["stale until", when(item.stale_until)],
    ]  # fmt: skip
    return Panel(f"Key {key}", ["field", ""], rows)


def state_of(item: Any) -> str:
    if item.negative:
        return label("negative: there is no value", "warning")
    return label("stale", "warning") if item.stale else label("fresh", "success")


def keys_panel(request: HttpRequest, cache: Cache, prefix: str) -> Panel:
    headers = ["key", "state", "tags", "size", "fresh until"]
    panel = Panel(f"Keys that begin with {prefix}", headers, note="Over the API: cache.find.")
    try:
        found = asked(request, cache, "cache.find", prefix=prefix, limit=SHOWN)
    except SyrosError as error:
        panel.empty = error.detail
        return panel
    panel.rows = [
        [item.key, state_of(item), brief(", ".join(item.tags)), size(item.size), when(item.expires_at)]
        for item in found.items
    ]
    if found.next_cursor:
        panel.note = f"The first {len(panel.rows)}. {panel.note}"
    return panel


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} GiB"
