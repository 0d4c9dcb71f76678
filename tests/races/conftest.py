"""Two Syros processes on the suite's servers, shared by the races of a test process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.races.client import Client
from tests.races.processes import Syros, environment, migrate, new_namespace, serving
from tests.servers import WORKER, database


@dataclass
class Pair:
    """Two processes, and a fresh namespace for the test."""

    a: Syros
    b: Syros
    database_url: str
    namespace: str

    @property
    def both(self) -> tuple[Syros, Syros]:
        return self.a, self.b

    def client(self, process: Syros) -> Client:
        return Client(process.port, self.namespace)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Syros]]]:
    url = database(f"syros_races_{WORKER}")
    var: Path = tmp_path_factory.mktemp("races")
    environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], var)
    migrate(environ)
    with serving(environ, "a", "b") as processes:
        yield url, processes


@pytest.fixture
def pair(two_processes: tuple[str, list[Syros]]) -> Iterator[Pair]:
    url, (a, b) = two_processes
    before = [len(process.complaints()) for process in (a, b)]
    yield Pair(a, b, url, new_namespace(url))
    # Nothing in these tests may make a process complain: what it logs as an error is a bug of its own.
    news: list[Any] = [p.complaints()[n:] for p, n in zip((a, b), before, strict=True)]
    assert news == [[], []]
