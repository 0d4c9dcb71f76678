"""JSON Schemas of configuration: one a prefix, the longest above a key is its own."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from orjson import Fragment
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from config import fitting, rules
from config.errors import SchemaNotFound, TooManyValues, ValuesDoNotFit
from config.models import Entry, Schema
from config.services.changing import note
from config.services.looking import OCTETS, revisions
from config.types import (
    Revision,
    RevisionCursor,
    SchemaChange,
    SchemaHistory,
    SchemaPrefix,
    SchemaRevision,
    Schemas,
    SchemaState,
)
from core.batch import Transaction
from core.callers import Call
from core.database import Row, rows
from core.encoding import decode
from core.errors import Invalid
from core.log import Entry as Written
from core.models import between
from core.operations import command, query
from core.types import Cursor, Limit, Object, Prefix, Text, encode_cursor

SCHEMA_BYTES = 64 << 10
# Values that one schema is held against: in the engine's thread, so others wait for it.
LOOKED_AT, LOOKED_AT_BYTES = 10_000, 16 << 20
NAMED = 100  # keys that a refusal names
STORED = "coalesce(pg_column_size(value), 0) + coalesce(pg_column_size(next_value), 0)"
# Those of secrets are null: whether they fit, schema after schema, would tell what they are.
# What is too much already as it is stored, compressed, is not unpacked in order to measure it.
VALUES = f"""select substr(near.id, length($3) + 1), value::text, next_value::text from (
    select *, sum({OCTETS}) over (order by id) as size from (
        select id, value, next_value, sum({STORED}) over (order by id) as stored
        from config_entry where (id = $1 or id > $1 || '/' and id < $1 || '0') and is_set
        order by id limit $2::int) known where stored < {LOOKED_AT_BYTES}
) near where size < {LOOKED_AT_BYTES}"""
COUNT = (
    """select count(*) from config_entry where (id = $1 or id > $1 || '/' and id < $1 || '0') and is_set"""
)
LONGER = (
    "select substr(id, length($2) + 1) from config_schema where id > $1 || '/' and id < $1 || '0' and is_set"
)


def check_size(text: str) -> str:
    if len(text) > SCHEMA_BYTES:
        raise PydanticCustomError("too_long", "a schema of at most {bytes} bytes", {"bytes": SCHEMA_BYTES})
    return text


JsonSchema = Annotated[Object, AfterValidator(check_size)]


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Schema, params["prefix"]),)


# -- changing ----------------------------------------------------------------------------------------


@command(
    "PUT config-schemas/{prefix}", name="config.put_schema", returns=SchemaChange, touches=touches, admin=True
)
def put_schema(
    tx: Transaction,
    *,
    prefix: SchemaPrefix,
    json_schema: JsonSchema,
    force: bool = False,
    expected_revision: Revision | None = None,
    reason: Text | None = None,
) -> Any:
    """Say what the values of a key, and of all keys under it, must look like: a JSON Schema (draft 2020-12, unless it
    says another), up to 64 KiB, that refers to nothing outside of it. The schema of the longest prefix is a key's.

    It is refused if values that are set now do not fit, or those of rollouts, unless `force`; then the answer names
    them. Secrets are held against it when they are set again. A change that is under way in that very moment may still
    be held against the schema before.

    Errors: `values_do_not_fit` (409, with `keys`), `too_many_values` (409), `wrong_expected_revision` (409),
    `invalid` (422, naming what is wrong with the schema).
    """
    schema = tx.get(Schema, prefix)
    rules.check_revision(prefix, expected_revision, schema)
    if faults := fitting.faults_of(json_schema, "/json_schema"):
        raise Invalid(faults)
    misfits = list(misfits_of(tx, prefix, json_schema, force))
    if misfits and not force:
        raise ValuesDoNotFit(keys=misfits[:NAMED], count=len(misfits))
    schema = schema or tx.add(Schema, prefix)
    schema.is_set, schema.json_schema = True, json_schema
    return changed(tx, schema, "schema.put", {"json_schema": Fragment(json_schema)}, reason, misfits[:NAMED])


@command(
    "DELETE config-schemas/{prefix}",
    name="config.delete_schema",
    returns=SchemaChange,
    touches=touches,
    admin=True,
)
def delete_schema(
    tx: Transaction,
    *,
    prefix: SchemaPrefix,
    expected_revision: Revision | None = None,
    reason: Text | None = None,
) -> Any:
    """Have no schema for exactly this prefix: its keys are held against that of a shorter one, if there is one.

    Errors: `schema_not_found` (404), `wrong_expected_revision` (409).
    """
    schema = tx.get(Schema, prefix)
    if schema is None or not schema.is_set:
        raise SchemaNotFound(prefix=prefix)
    rules.check_revision(prefix, expected_revision, schema)
    schema.is_set, schema.json_schema = False, None
    return changed(tx, schema, "schema.deleted", {}, reason, [])


def changed(
    tx: Transaction, schema: Schema, kind: str, data: dict[str, Any], reason: str | None, misfits: list[str]
) -> Any:
    written = note(tx, schema, kind, data, reason)
    return lambda: SchemaChange(schema.name, written.version, written.position, misfits, written.recorded_at)


def misfits_of(tx: Transaction, prefix: str, json_schema: str, force: bool) -> Iterator[str]:
    """The keys that are set to what does not fit, or some instances get it, as far as no longer prefix has a schema of
    its own.

    Raises: TooManyValues.
    """
    address, start = tx.address(prefix), tx.address("")
    longer = {name for (name,) in tx.look(LONGER, address, start)}
    found = {key: values for key, *values in tx.look(VALUES, address, str(LOOKED_AT), start)}
    if not force and tx.look(COUNT, address)[0][0] > len(found):
        raise TooManyValues(prefix=prefix)
    for entry in tx.loaded(Entry):  # what this very batch has made of them
        if entry.namespace == tx.call.namespace.name and prefix in rules.prefixes(entry.name):
            found[entry.name] = [entry.value, entry.next_value]
    for key, values in sorted(found.items()):
        is_its_own = rules.schema_of(key, {prefix, *longer}) == prefix
        if is_its_own and not all(fitting.fits(json_schema, value) for value in values if value is not None):
            yield key


# -- looking -----------------------------------------------------------------------------------------

STATE = "select id, json_schema::text, version, changed_at, changed_by from config_schema"
ONE = f"{STATE} where id = %s and is_set"
PAGE = f"{STATE} where id >= %s and id < %s and id > %s and is_set order by id limit %s"


@query("GET config-schemas/{prefix}", name="config.get_schema", returns=SchemaState)
async def get_schema(call: Call, *, prefix: SchemaPrefix) -> SchemaState:
    """The schema of exactly this prefix.

    Errors: `schema_not_found` (404).
    """
    found = await rows(ONE, [f"{call.namespace.name}/{prefix}"])
    if not found:
        raise SchemaNotFound(prefix=prefix)
    return state_of(found[0])


@query("GET config-schemas", name="config.find_schemas", returns=Schemas)
async def find_schemas(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> Schemas:
    """The schemas there are, by the prefix that each is for."""
    start, end = between(call.namespace.name, prefix)
    found = await rows(PAGE, [start, end, f"{call.namespace.name}/{cursor or ''}", limit + 1])
    items = [state_of(row) for row in found[:limit]]
    return Schemas(items, encode_cursor(items[-1].prefix) if len(found) > limit else None)


def state_of(row: Row) -> SchemaState:
    address, json_schema, *rest = row
    return SchemaState(address.partition("/")[2], Fragment(json_schema), *rest)


@query("GET config-schemas/{prefix}/history", name="config.schema_history", returns=SchemaHistory)
async def schema_history(
    call: Call, *, prefix: SchemaPrefix, limit: Limit = 50, cursor: RevisionCursor | None = None
) -> SchemaHistory:
    """The revisions of a schema, the newest first: who set it to what, and why."""
    found, next_cursor = await revisions(call, f"{Schema.STREAMS}{prefix}", limit, cursor)
    return SchemaHistory([revision_of(entry) for entry in found], next_cursor)


def revision_of(entry: Written) -> SchemaRevision:
    data = decode(entry.data)
    return SchemaRevision(
        entry.stream.removeprefix(Schema.STREAMS), entry.version, entry.position, entry.type.removeprefix("schema."),
        data.get("json_schema"), data.get("reason"), entry.recorded_at, entry.actor,
    )  # fmt: skip
