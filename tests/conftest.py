"""One serving loop a test process, one namespace a test: nothing is rolled back, nothing is in the way."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.test import Client
from django.test.client import ClientHandler

from tests.doors import DOORS, Door, Lane, Served


def pytest_collection_finish() -> None:
    """As in `serve`: the collector need not look again at what is loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def middleware() -> None:
    """Loaded once, as in a server: else each of Django's test clients does it again, static files and all, in 40 ms."""
    ready = ClientHandler()
    ready.load_middleware()
    loaded = {name: value for name, value in vars(ready).items() if name.startswith("_")}

    def load_middleware(self: ClientHandler, is_async: bool = False) -> None:
        vars(self).update(loaded)

    ClientHandler.load_middleware = load_middleware


@pytest.fixture(scope="session")
def database(django_db_blocker: Any) -> Iterator[None]:
    """The engine commits on a connection of its own, so tests commit too: no transaction to roll back."""
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0, interactive=False)
        yield


@pytest.fixture(scope="session")
def served(database: None) -> Iterator[Served]:
    found = Served()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def namespace(served: Served) -> str:
    from core.models import Namespace

    return Namespace.objects.create(name=f"t{uuid4().hex[:12]}").name


@pytest.fixture(params=list(DOORS))
def call(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Door]:
    """An operation through each door in turn: a behaviour is written once."""
    with closing(DOORS[request.param](served, namespace)) as door:
        yield door


@pytest.fixture(params=[name for name, door in DOORS.items() if door.can_wait])
def waiting(request: pytest.FixtureRequest, served: Served, namespace: str) -> Iterator[Door]:
    """The doors that can wait."""
    with closing(DOORS[request.param](served, namespace)) as door:
        yield door


@pytest.fixture
def lane(served: Served, namespace: str) -> Lane:
    return Lane(served, namespace)


@pytest.fixture
def production(settings: Any) -> None:
    """No development mode: everybody needs credentials."""
    from core.callers import verdicts

    settings.DEV = False
    verdicts.clear()


@pytest.fixture
def staff(namespace: str) -> Client:
    """A browser in which an administrator is signed in, named after the test's namespace."""
    from django.contrib.auth.models import User

    browser = Client()
    browser.force_login(User.objects.create_user(f"ada-{namespace}", is_staff=True))
    return browser


@pytest.fixture
def few_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests before left thousands of namespaces; the admin's pages take half the time where they offer twenty."""
    monkeypatch.setattr("core.console.lists.LISTED_NAMESPACES", 20)


@pytest.fixture
def few_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who looks in the newest namespaces, or for nothing that is there: a search in a thousand takes a second."""
    monkeypatch.setattr("core.console.lists.MOST_NAMESPACES", 20)


@pytest.fixture
def later() -> Iterator[Callable[..., "Future[Any]"]]:
    """Run something beside the test: `later(function, *arguments)` gives a future."""
    with ThreadPoolExecutor(32) as pool:
        yield pool.submit
