"""From a method and a path to an operation: one table for the fast lane and for Django's urls.

Names may hold slashes, so routes overlap; the order decides. A literal route comes before one that ends in a verb,
and that before one whose name takes all the rest: `locks/waits-for`, `locks/{key}/renew`, `locks/{key}`.
"""

import re
from collections.abc import Iterator
from functools import cache

from core.operations import Operation, Route, registry


def specificity(route: Route) -> tuple[int, int, int]:
    parts = route.path.split("/")
    names = len(route.names)
    return (1 if names else 0, 1 if parts[-1].startswith("{") else 0, -len(parts))


def pattern(route: Route) -> str:
    """The route as a regular expression. A name takes slashes; what it may hold, its operation checks."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(route.path))


def routes() -> Iterator[tuple[Route, Operation]]:
    """Every route there is, in the order in which they are to be tried."""
    found = [
        (route, operation)
        for operation in registry
        for route in ([operation.route] if operation.route else []) + operation.aliases
    ]
    yield from sorted(found, key=lambda pair: specificity(pair[0]))


@cache
def _table() -> dict[tuple[str, str], list[tuple[re.Pattern[str], Operation]]]:
    table: dict[tuple[str, str], list[tuple[re.Pattern[str], Operation]]] = {}
    for route, operation in routes():
        first = route.path.partition("/")[0]
        table.setdefault((route.method, first), []).append((re.compile(pattern(route)), operation))
    return table


@cache
def _literal() -> dict[tuple[str, str], Operation]:
    """The routes without names, which come first in any case."""
    return {(route.method, route.path): operation for route, operation in routes() if not route.names}


def match(method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
    """The operation at a path below /api/v1/, and the names in the path."""
    if literal := _literal().get((method, path)):
        return literal, {}
    for expression, operation in _table().get((method, path.partition("/")[0]), ()):
        if found := expression.fullmatch(path):
            return operation, found.groupdict()
    return None


def methods(path: str) -> list[str]:
    """The methods that a path answers."""
    first = path.partition("/")[0]
    candidates = {method for method, collection in _table() if collection == first}
    return sorted(method for method in candidates if match(method, path))
