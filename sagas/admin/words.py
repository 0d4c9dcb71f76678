"""How pages about sagas write things down."""

import json
import re
from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe

from core.console import brief, label, link, span, url_of
from core.encoding import encode
from sagas.models import Saga

FOLDED = 4_000  # characters of one step's answer on a saga's page
SHORT = 24  # characters that need no folding
CAUSE = 48  # characters of a failure in a line
SHORT_ID = 16  # letters of an id: the instant of the start, and some more
STATES = {
    "scheduled": "info", "running": "info", "paused": "warning", "compensating": "warning", "attention": "danger",
    "succeeded": "success", "compensated": "", "failed": "", "terminated": "danger",
}  # fmt: skip
SIDES = {
    "succeeded": "success", "compensated": "success", "failed": "danger", "unknown": "danger", "stuck": "danger",
    "backoff": "warning", "calling": "info", "queued": "info", "waiting": "info", "locking": "info", "ready": "info",
}  # fmt: skip


def state_label(status: str) -> str:
    return label(status, STATES.get(status, ""))


def side_label(status: str) -> str:
    return label(status, SIDES.get(status, ""))


def length(seconds: float) -> str:
    """A length of time: calls take milliseconds."""
    return f"{1000 * seconds:.0f}\u00a0ms" if 0 <= seconds < 1 else span(seconds)


def saga_link(address: str, text: str = "") -> str:
    """To the page of a saga, its id shortened unless said."""
    name = address.partition("/")[2]
    return link(url_of(Saga, address), format_html('<span title="{}">{}</span>', name, text or short(name)))


def short(name: str) -> str:
    return name if len(name) <= SHORT_ID else f"{name[:SHORT_ID]}…"


def folded(value: Any) -> str:
    """JSON in a cell: at once if it is short, else when somebody opens it."""
    text = encode(value).decode()
    if len(text) <= SHORT:
        return brief(text)
    shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    rest = len(shown) - FOLDED
    more = f"\n… {rest:,} more characters: read them over the API." if rest > 0 else ""
    return folding(f"{text[:SHORT]}…", shown[:FOLDED] + more)


def folding(title: str, text: str) -> str:
    return format_html(
        '<details><summary class="cursor-pointer whitespace-nowrap"><code class="text-xs">{}</code></summary>'
        '<pre class="leading-relaxed text-xs" style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>'
        "</details>",
        title, text,
    )  # fmt: skip


def breakable(text: str) -> str:
    """A name in a column: a long one goes on in the next line, after what joins its words."""
    parts = [part for part in re.split(r"(?<=[_.:-])", text) if part]
    return format_html_join(mark_safe("<wbr>"), "{}", ((part,) for part in parts))


def cause(code: str | None, message: str | None, most: int = CAUSE) -> str:
    """A failure in one line: its code and what was said, more of that under the pointer."""
    text = ": ".join(part for part in (code, message) if part)
    shown = text if len(text) <= most else f"{text[:most]}…"
    return format_html('<span title="{}">{}</span>', text, shown) if text else "-"


def failure(error: Any) -> str:
    """A failure in a cell: its code, and what was said when somebody opens it."""
    code, message = str(error.get("code", "error")), str(error.get("message", ""))
    return folding(code, message) if message else format_html('<code class="text-xs">{}</code>', code)
