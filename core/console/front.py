"""The admin's front page: what each app says of now."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from core.console import reading
from core.console.reading import TooSlow, fetch, limited
from core.console.records import Panel
from core.console.rights import may


@dataclass
class Figure:
    """One number on the front page."""

    title: str
    value: Any
    note: str = ""
    link: str = ""


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
        with limited(reading.PANEL_SECONDS):
            return list(section())
    except TooSlow:
        title = section.__name__.replace("_", " ").capitalize()
        return [Figure(title, "—", f"not known: took more than {reading.PANEL_SECONDS:.0f} s")]
