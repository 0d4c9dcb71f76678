"""Servers that may be killed: one house a test process, its two Syros processes kept between tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.house import Couple, House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    found = House(tmp_path_factory.mktemp("house")).start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def kept_couple(house: House) -> Iterator[Couple]:
    found = Couple(house)
    yield found
    found.end()


@pytest.fixture
def couple(kept_couple: Couple) -> Iterator[Couple]:
    kept_couple.prepare()
    before = [len(process.complaints()) for process in kept_couple.both]
    yield kept_couple
    # A fault outside is no error inside: it is answered for, and at most worth a warning.
    both = zip(kept_couple.both, before, strict=True)
    news: list[Any] = [process.complaints()[count:] for process, count in both]
    assert news == [[], []]
