"""What locks promise, through the command line."""

import pytest

from tests.doors import Door, Served
from tests.doors.cli import Cli
from tests.test_locks import *  # noqa: F403


@pytest.fixture
def call(served: Served, namespace: str) -> Door:
    return Cli(served, namespace)


@pytest.fixture
def waiting(served: Served, namespace: str) -> Door:
    return Cli(served, namespace)
