"""The published documents are what the operations say, and nothing that breaks a client is written over them."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from api import contracts

OPENAPI = "docs/contracts/openapi.json"


def test_what_is_checked_in_is_what_the_operations_say() -> None:
    call_command("make_contracts", check=True)


@pytest.fixture
def place(tmp_path: Path, settings: Any) -> Path:
    """A checkout with the documents of today."""
    settings.BASE_DIR = tmp_path
    call_command("make_contracts", stdout=StringIO())
    assert contracts.changed(tmp_path, contracts.documents(contracts.SOURCES)) == {}
    return tmp_path


def change(path: Path, **operation: Any) -> str:
    """Let the document that is checked in say something else of one operation."""
    document = json.loads(path.read_text())
    document["paths"]["/api/v1/locks"]["post"].update(operation)
    path.write_text(json.dumps(document))
    return path.read_text()


def test_what_breaks_clients_is_not_written(place: Path) -> None:
    released = {"name": "colour", "in": "query", "required": False, "schema": {"type": "string"}}
    before = change(place / OPENAPI, parameters=[released])
    complaints = StringIO()
    with pytest.raises(CommandError, match="Nothing was written"):
        call_command("make_contracts", stderr=complaints)
    assert "locks_acquire.query.colour: is gone" in complaints.getvalue()
    assert (place / OPENAPI).read_text() == before
    call_command("make_contracts", breaking=True, stdout=StringIO(), stderr=StringIO())
    assert contracts.changed(place, contracts.documents(contracts.SOURCES)) == {}


def test_what_breaks_the_command_line_is_not_written(place: Path) -> None:
    file = place / "sdks/python/syros/operations.json"
    document = json.loads(file.read_text())
    document["operations"].append({"name": "locks.paint", "parameters": []})
    file.write_text(json.dumps(document))
    complaints = StringIO()
    with pytest.raises(CommandError, match="Nothing was written"):
        call_command("make_contracts", stderr=complaints)
    assert complaints.getvalue() == "breaks clients: locks.paint: is gone\n"


def test_what_only_adds_is_written(place: Path) -> None:
    change(place / OPENAPI, description="as it was")
    with pytest.raises(CommandError, match="make_contracts"):
        call_command("make_contracts", check=True)
    call_command("make_contracts", stdout=StringIO())
    assert contracts.changed(place, contracts.documents(contracts.SOURCES)) == {}
