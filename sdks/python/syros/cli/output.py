"""What people and programs see: tables on a terminal, JSON elsewhere, problems on stderr, and the exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from syros.client import SyrosError

JSON = "syros.json"  # in a context's meta: was --json given?
OK, REFUSED, MISUSED, UNAVAILABLE, FORBIDDEN, NOT_FOUND = range(6)
CODES = {
    400: MISUSED, 401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 405: MISUSED, 413: MISUSED, 415: MISUSED,
    422: MISUSED, 429: UNAVAILABLE,
}  # fmt: skip
NOTHING: tuple[Any, ...] = (None, "", [], {})  # what a table leaves out
INSTANT = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z$")
SUMMARY = ("position", "recorded_at", "stream_id", "event_type", "data")  # of an event, in a line


def failures() -> tuple[type[SyrosError], ...]:
    """What a call may raise; without the client, which takes a while to import, there was no call."""
    client = sys.modules.get("syros.client")
    return (client.SyrosError,) if client else ()


def exit_code(error: SyrosError) -> int:
    """2 what was asked for cannot be, 3 unavailable, 4 unauthenticated or forbidden, 5 not found, else 1: refused."""
    status = getattr(error, "status", 503)
    return CODES.get(status, UNAVAILABLE if status >= 500 else REFUSED)


def complain(error: SyrosError, *, raw: bool) -> None:
    """The code and the sentence of a problem, and every bad field. `raw`: the problem as JSON, if there is one."""
    problem = getattr(error, "problem", {})
    if raw and problem:
        print(as_json(problem), file=sys.stderr)
        return
    print(f"syros: {error}", file=sys.stderr)
    for bad in problem.get("errors", ()):
        print(f"  {bad.get('pointer')}: {bad.get('detail')} ({bad.get('code')})", file=sys.stderr)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def show(value: Any, *, raw: bool) -> None:
    """An answer. `raw`: as JSON."""
    if raw:
        print(as_json(value), flush=True)
        return
    from rich.console import Console

    console = Console()
    if not isinstance(value, dict):
        console.print_json(as_json(value))
        return
    lists = {name: each for name, each in value.items() if is_table(each)}
    facts = {name: each for name, each in value.items() if name not in lists and each not in NOTHING}
    if facts:
        console.print(record(facts))
    for name, items in lists.items():
        if facts or len(lists) > 1:
            console.print(f"\n{name}", style="italic")
        console.print(table(items))


def show_item(kind: str, value: Any, *, raw: bool) -> None:
    """An item of a stream, in a line. Heartbeats are for programs."""
    if raw:
        print(as_json({kind: value}), flush=True)
    elif kind != "heartbeat":
        print("  ".join(text(value[name]) for name in SUMMARY if name in value) or as_json(value), flush=True)


def is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def record(facts: dict[str, Any]) -> Table:
    """Names and values, one below the other."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(style="bold")
    found.add_column(overflow="fold")
    for name, value in facts.items():
        found.add_row(name, Text(text(value)))
    return found


def table(items: Sequence[dict[str, Any]]) -> Table:
    """A row an item; its columns are what any item has."""
    from rich.table import Table
    from rich.text import Text

    columns = list(dict.fromkeys(name for item in items for name in item if item[name] not in NOTHING))
    found = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        found.add_column(name, overflow="fold", no_wrap=name in {"key", "position", "version"})
    for item in items:
        found.add_row(*(Text(cell(item.get(name))) for name in columns))
    return found


def text(value: Any) -> str:
    return value if isinstance(value, str) else as_json(value)


def cell(value: Any) -> str:
    """A value in the space of a column: of an instant the seconds, of each item of a list what comes first in it."""
    if value in NOTHING:
        return ""
    if is_table(value):
        return ", ".join(text(next(iter(each.values()), "")) for each in value)
    return INSTANT.sub(r"\1 \2", text(value))
