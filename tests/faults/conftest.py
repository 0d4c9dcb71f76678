"""Servers that may be killed: one house a test process, its two Syros processes kept between tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.house import Couple, House


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    # Not below pytest's folder: that is root's alone, and the servers' user would have to live elsewhere.
    var = Path(tempfile.mkdtemp(prefix="syros-house-"))
    found = House(var).start()
    yield found
    found.stop()
    shutil.rmtree(var)


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
