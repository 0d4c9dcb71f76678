"""One serving loop a test process, one namespace a test: nothing is rolled back, nothing is in the way."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from django.core.management import call_command

from tests.doors import DOORS, Door, Lane, Served


@pytest.fixture(scope="session")
def django_db_setup(django_db_blocker: pytest.FixtureDef) -> Iterator[None]:
    """The engine commits on a connection of its own, so tests commit too: no transaction to roll back."""
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0, interactive=False)
        yield


@pytest.fixture(scope="session")
def served(django_db_setup: None) -> Iterator[Served]:
    found = Served()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def namespace(served: Served) -> str:
    from core.models import Namespace

    return Namespace.objects.create(name=f"t{uuid4().hex[:12]}").name


@pytest.fixture(params=list(DOORS))
def call(request: pytest.FixtureRequest, served: Served, namespace: str) -> Door:
    """An operation through each door in turn: a behaviour is written once."""
    return DOORS[request.param](served, namespace)


@pytest.fixture
def waiting(call: Door) -> Door:
    """Only the doors that can wait."""
    if not call.can_wait:
        pytest.skip("this door does not wait")
    return call


@pytest.fixture
def lane(served: Served, namespace: str) -> Door:
    return Lane(served, namespace)
