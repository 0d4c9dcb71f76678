"""How the admin writes things down: instants, spans, states and JSON."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models.functions import Cast
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

MOST_JSON = 100_000  # characters of one value on a page
NBSP = "\u00a0"  # a length of time is not broken at the end of a line
MOST_BRIEF = 60  # of one in a line of a table
# As styles: Unfold's stylesheet has no classes for these.
JSON_STYLE = "font-family: ui-monospace, monospace; max-height: 32rem; white-space: pre-wrap"


def when(at: datetime | None) -> str:
    """An instant, in UTC, to the millisecond: what one compares with a log."""
    if at is None:
        return "-"
    utc = at.astimezone(UTC)
    text = utc.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return format_html(
        '<time datetime="{}" title="UTC" class="whitespace-nowrap">{}</time>', utc.isoformat(), text
    )


def span(seconds: timedelta | float) -> str:
    """A length of time in its two largest units."""
    left = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if left < 0:
        return f"-{span(-left)}"
    if left < 60:
        return f"{left:.1f}{NBSP}s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append(f"{int(count)}{NBSP}{unit}" if count else "")
    first = next(index for index, part in enumerate(parts) if part)
    return NBSP.join(part for part in parts[first : first + 2] if part)


@lru_cache(maxsize=256)
def label(text: str, kind: str = "") -> SafeString:
    """A word with a colour; the word alone says it too. Kinds: success, info, warning, danger."""
    return render_to_string("unfold/helpers/label.html", {"text": text, "type": kind})


def link(url: str, text: Any) -> SafeString:
    return format_html('<a href="{}" class="text-primary-600 dark:text-primary-500">{}</a>', url, text)


def pretty(text: str | None) -> SafeString:
    """Stored JSON, indented; of a huge value the beginning."""
    if not text:
        return mark_safe("-")
    shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    rest = len(shown) - MOST_JSON
    more = f"\n… {rest:,} more characters: read them over the API." if rest > 0 else ""
    return format_html(
        '<pre class="leading-relaxed overflow-auto text-xs" style="{}">{}{}</pre>',
        JSON_STYLE,
        shown[:MOST_JSON],
        more,
    )


def brief(text: str | None, most: int = MOST_BRIEF) -> str:
    """Stored JSON in a line of a table: its beginning, and more of it under the pointer."""
    if not text or text in {"{}", "null"}:
        return "-"
    shown = text if len(text) <= most else f"{text[:most]}…"
    return format_html('<code class="text-xs" title="{}">{}</code>', text[: 20 * MOST_BRIEF], shown)


def instant(name: str, title: str | None = None) -> Callable[[Any], str]:
    """A column that shows an instant of the row."""

    @admin.display(description=title or name.removesuffix("_at").replace("_", " "))
    def show(row: Any) -> str:
        return when(getattr(row, name))

    show.__name__ = name
    return show


def stored_json(row: models.Model, column: str) -> str:
    """A column's JSON, indented, read as it is stored."""
    text = (
        type(row)._default_manager.filter(pk=row.pk).values_list(Cast(column, models.TextField()), flat=True)
    )
    return pretty(text.first())
