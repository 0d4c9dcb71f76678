"""From a method and a path to an operation, the same way in the fast lane and in Django."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import Resolver404, resolve

from api.requests import PREFIX
from api.routing import match, methods, pattern, routes, specificity
from core.errors import MethodNotAllowed, NotFound
from core.operations import Route

NAMES = ["a", "a/b", "a/b/c", "order-42", "A.b_c:d@e/f+g=h-i", "renewed", "x/renewed"]
VERBS = ["renew", "extend", "release", "check", "status", "info", "revoke"]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]


def filled(route: Route, name: str) -> str:
    path = route.path
    for each in route.names:
        path = path.replace(f"{{{each}}}", name)
    return path


def matched(method: str, path: str) -> tuple[str, dict[str, str]] | None:
    found = match(method, path)
    return found and (found[0].name, found[1])


def resolved(method: str, path: str) -> tuple[str, dict[str, str]] | None:
    """What Django's URLs lead to, as the view at the path says for a request."""
    view: Any = resolve(PREFIX + path).func.cls  # type: ignore[attr-defined]
    operation, names = view.find(RequestFactory().generic(method, PREFIX + path))
    return operation.name, names


def samples() -> Iterator[tuple[str, str]]:
    for route, _ in routes():
        for name in NAMES if route.names else [""]:
            yield route.method, filled(route, name)


@pytest.mark.parametrize(
    ("method", "path", "operation", "names"),
    [
        ("POST", "locks", "locks.acquire", {}),
        ("GET", "locks", "locks.find", {}),
        ("GET", "locks/a", "locks.get", {"key": "a"}),
        ("GET", "locks/a/b/c", "locks.get", {"key": "a/b/c"}),
        ("GET", "locks/a/b/status", "locks.get", {"key": "a/b"}),
        ("POST", "locks/a/renew", "locks.renew", {"key": "a"}),
        ("POST", "locks/a/b/renew", "locks.renew", {"key": "a/b"}),
        ("POST", "locks/renew/renew", "locks.renew", {"key": "renew"}),
        ("POST", "locks/a/renew/renew", "locks.renew", {"key": "a/renew"}),
        ("PUT", "locks/a/extend", "locks.renew", {"key": "a"}),
        ("POST", "locks/a/release", "locks.release", {"key": "a"}),
        ("POST", "locks/a/release/check", "locks.check", {"key": "a/release"}),
        ("DELETE", "locks/a/b", "locks.release", {"key": "a/b"}),
        ("POST", "events", "events.append", {}),
        ("POST", "events/batch", "events.append_many", {}),
        ("POST", "events/order/42", "events.append", {"stream_id": "order/42"}),
        ("GET", "events", "events.read_all", {}),
        ("GET", "events/follow", "events.follow", {}),
        ("GET", "events/a/follow", "events.read", {"stream_id": "a/follow"}),
        ("GET", "events/$lock:a/b", "events.read", {"stream_id": "$lock:a/b"}),
        ("GET", "events/a/b/info", "streams.get", {"stream_id": "a/b"}),
        ("GET", "events/info", "events.read", {"stream_id": "info"}),
        ("GET", "auth/whoami", "auth.whoami", {}),
        ("DELETE", "auth/api-keys/0123456789ab", "api_keys.revoke", {"key_id": "0123456789ab"}),
        ("POST", "auth/api-keys/0123456789ab/revoke", "api_keys.revoke", {"key_id": "0123456789ab"}),
    ],
)
def test_path_leads_to_its_operation(method: str, path: str, operation: str, names: dict[str, str]) -> None:
    assert matched(method, path) == (operation, names)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "lock"), ("GET", "lockss/a"), ("PATCH", "locks"), ("POST", "locks/a"), ("GET", "locks/"),
     ("get", "locks"), ("GET", "Locks"), ("GET", "locks/a\nb"), ("GET", "/locks"), ("GET", "auth"),
     ("PUT", "events/a")],
)  # fmt: skip
def test_what_is_no_route_leads_nowhere(method: str, path: str) -> None:
    assert match(method, path) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_route_leads_back_to_its_own_operation(name: str) -> None:
    for route, operation in routes():
        assert matched(route.method, filled(route, name)) == (
            operation.name,
            dict.fromkeys(route.names, name),
        )


def test_literal_routes_come_first_then_verbs_then_names_that_take_the_rest() -> None:
    texts = ["locks/{key}", "locks", "locks/{key}/renew", "locks/waits-for", "events/{a}/{b}"]
    ordered = sorted((Route("GET", text) for text in texts), key=specificity)
    assert [route.path for route in ordered] == [
        "locks/waits-for", "locks", "locks/{key}/renew", "events/{a}/{b}", "locks/{key}"
    ]  # fmt: skip


def test_pattern_takes_only_names_as_names() -> None:
    assert pattern(Route("GET", "a.b/{key}/c-d")) == r"a\.b/(?P<key>.+)/c\-d"


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("locks", ["GET", "POST"]),
        ("locks/a", ["DELETE", "GET"]),
        ("locks/a/renew", ["DELETE", "GET", "POST"]),
        ("locks/a/extend", ["DELETE", "GET", "PUT"]),
        ("events", ["GET", "POST"]),
        ("events/batch", ["GET", "POST"]),
        ("events/a", ["GET", "POST"]),
        ("auth/login", ["POST"]),
        ("auth/api-keys", ["GET", "POST"]),
        ("auth", []),
        ("nothing", []),
        ("", []),
    ],
)
def test_methods_of_a_path(path: str, answered: list[str]) -> None:
    assert methods(path) == answered
    assert [method for method in sorted(METHODS) if match(method, path)] == answered


# -- Django's URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), list(samples()))
def test_django_leads_to_the_same_operation_as_the_lane(method: str, path: str) -> None:
    assert resolved(method, path) == matched(method, path)
    assert matched(method, path) is not None


@pytest.mark.parametrize("path", ["nothing", "lock", "auth", "auth/nothing", "a/b/c"])
def test_what_is_no_route_is_a_problem_in_django_too(path: str) -> None:
    for method in METHODS:
        assert match(method, path) is None
        with pytest.raises((NotFound, MethodNotAllowed)):
            resolved(method, path)


def test_outside_the_prefix_django_has_no_operations() -> None:
    with pytest.raises(Resolver404):
        resolve("/api/v2/locks")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "locks/a/renew"), ("DELETE", "locks/a/renew"), ("POST", "events/a/info"), ("GET", "events/batch"),
     ("POST", "events/follow")],
)  # fmt: skip
def test_django_answers_the_other_methods_of_a_name_that_looks_like_a_verb(method: str, path: str) -> None:
    assert matched(method, path) is not None
    assert resolved(method, path) == matched(method, path)


@pytest.mark.parametrize("path", ["locks/", "locks/a/", "locks/a/status/", "events/a/", "auth/whoami/"])
def test_slash_at_the_end_means_the_same_in_django_as_in_the_lane(path: str) -> None:
    assert resolved("GET", path) == matched("GET", path.rstrip("/"))
