"""Definitions: what sagas of a name do, in versions that never change."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from core.batch import Transaction
from core.callers import Call
from core.database import rows
from core.encoding import decode
from core.models import between
from core.operations import command, query
from core.types import Cursor, Json, Limit, encode_cursor
from sagas.errors import DefinitionNotFound
from sagas.models import Definition, DefinitionName
from sagas.plans import compile_plan
from sagas.services.courses import versioned
from sagas.services.starting import body_of
from sagas.types import Order, SagaName, Steps

Version = Annotated[int, Field(ge=1, le=999_999)]


@dataclass(slots=True)
class DefinitionState:
    name: str
    version: int
    steps: Any
    output: Any
    compensation_order: Order
    created_at: datetime


@dataclass(slots=True)
class DefinitionSummary:
    name: str
    version: int


@dataclass(slots=True)
class Definitions:
    items: list[DefinitionSummary]
    next_cursor: str | None


@dataclass(slots=True)
class Checked:
    valid: bool
    steps: list[str]


@command(
    "PUT saga-definitions/{name}", name="definitions.put", returns=DefinitionState,
    touches=lambda params: [(DefinitionName, params["name"])],
)  # fmt: skip
def put(
    tx: Transaction,
    *,
    name: SagaName,
    steps: Steps,
    output: Json | None = None,
    compensation_order: Order = "reverse",
) -> DefinitionState:
    """Define what sagas of a name do: a new version, unless it is as the last one. Sagas under way keep theirs.

    Errors: `invalid` (422) names every fault.
    """
    compile_plan(steps, output, compensation_order)
    known = tx.get(DefinitionName, name) or tx.add(DefinitionName, name)
    body = body_of(steps, output, compensation_order)
    digest = hashlib.sha256(body.encode()).hexdigest()
    if known.last_hash != digest:
        known.last_hash = digest
        tx.emit(known, "definition.put", {"name": name, "version": known.version + 1})
        tx.add(Definition, versioned(name, known.version), body=body, created_at=tx.now)
    found = tx.get(Definition, versioned(name, known.version))
    assert found
    return state(name, known.version, found.body, found.created_at)


def state(name: str, version: int, body: str, created_at: datetime) -> DefinitionState:
    found = decode(body)
    return DefinitionState(name, version, found["steps"], found["output"], found["order"], created_at)


@command("POST saga-definitions/validate", name="definitions.validate", returns=Checked, changes=False)
def validate(
    tx: Transaction, *, steps: Steps, output: Json | None = None, compensation_order: Order = "reverse"
) -> Checked:
    """Would these steps do? Nothing is stored.

    Errors: `invalid` (422) names every fault.
    """
    compile_plan(steps, output, compensation_order)
    return Checked(True, [step.name for step in steps])


ONE = """select d.body::text, d.created_at, n.version from sagas_definitionname n
    join sagas_definition d on d.id = n.id || '#' || lpad(coalesce(%s, n.version)::text, 6, '0') where n.id = %s"""


@query("GET saga-definitions/{name}", name="definitions.get", returns=DefinitionState)
async def get(call: Call, *, name: SagaName, version: Version | None = None) -> DefinitionState:
    """A definition: its last version, or that one.

    Errors: `definition_not_found` (404).
    """
    found = await rows(ONE, [version, f"{call.namespace.name}/{name}"])
    if not found:
        raise DefinitionNotFound(f"There is no definition {name}.", name=name, version=version)
    body, created_at, last = found[0]
    return state(name, version or last, body, created_at)


@query("GET saga-definitions", name="definitions.find", returns=Definitions)
async def find(call: Call, *, limit: Limit = 50, cursor: Cursor | None = None) -> Definitions:
    """Definitions by name, and their last versions."""
    start, end = between(call.namespace.name)
    found = await rows(
        "select id, version from sagas_definitionname where id > %s and id < %s order by id limit %s",
        [max(start, cursor or start), end, limit + 1],
    )
    items = [DefinitionSummary(address.partition("/")[2], version) for address, version in found[:limit]]
    return Definitions(items, encode_cursor(start + items[-1].name) if len(found) > limit else None)
