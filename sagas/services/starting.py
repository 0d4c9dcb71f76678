"""Starting sagas."""

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Any

from orjson import Fragment
from pydantic import Field

from core.batch import Transaction
from core.callers import Call
from core.encoding import decode, encode
from core.errors import Invalid
from core.operations import command
from core.types import Instant, Json, Object, Wait
from sagas.models import Definition, DefinitionName
from sagas.plans import Plan, compile_plan
from sagas.services.courses import create, named, plan_at
from sagas.services.looking import at_rest
from sagas.states import state_of
from sagas.types import LONGEST, Order, SagaName, SagaState, Seconds, StartName, Step, Steps, Tags

RAW = ("input", "compensation_input", "seconds")  # JSON text already


def touches(params: dict[str, Any]) -> list[tuple[type[Any], str]]:
    """The definition: by its name, or by what it says."""
    if params["steps"] is not None:
        return [
            (
                Definition,
                inline_name(body_of(params["steps"], params["output"], params["compensation_order"])),
            )
        ]
    return [(DefinitionName, params["definition"])] if params["definition"] else []


async def end_of(call: Call, answer: Any, seconds: float) -> SagaState:
    """The saga that was started, or, by its key, was started before."""
    saga_id = answer.saga_id if isinstance(answer, SagaState) else decode(encode(answer))["saga_id"]
    return await at_rest(call, saga_id, seconds)


@command(
    "POST sagas",
    returns=SagaState,
    status=201,
    hot=True,
    touches=touches,
    until=end_of,
    location="GET sagas/{saga_id}",
)
def start(
    tx: Transaction,
    *,
    name: StartName,
    steps: Steps | None = None,
    definition: SagaName | None = None,
    definition_version: Annotated[int, Field(ge=1)] | None = None,
    input: Json = None,
    output: Json | None = None,
    compensation_order: Order = "reverse",
    metadata: Object = "{}",
    tags: Tags = {},  # noqa: B006
    start_at: Instant | None = None,
    delay_seconds: Seconds | None = None,
    deadline_seconds: Annotated[Seconds, Field(gt=0)] | None = None,
    wait_seconds: Wait = 0.0,
) -> SagaState:
    """Start a saga: steps that call participants one after another, each compensated if a later one fails.

    `steps` says what is to be done, or `definition` (and `definition_version`, the last unless said) names it.
    `input` is any JSON, which steps see as `${input}`. `output` is what the saga answers in the end, a template.
    `compensation_order`: reverse (of the graph; independent branches together), sequential, parallel.
    With `start_at`, an instant, or `delay_seconds` (either at most ten years ahead) it is `scheduled` until then.
    After `deadline_seconds` from its start a saga that is not over turns back. `wait_seconds` (at most 300) holds the
    answer until it is over, or needs a human. Once this is answered the saga is carried out, through every crash; its
    participants are called at least once, with the same Idempotency-Key at every attempt.

    Errors: `invalid` (422) names every fault of the steps: circles, unknown steps, templates; `definition_not_found`.
    """
    address, plan = definition_for(tx, steps, definition, definition_version, output, compensation_order)
    begins = when(tx.now, start_at, delay_seconds)
    saga, progress = create(
        tx, name, address, plan, input or "null", metadata=metadata, tags=tags, start_at=begins,
        deadline_seconds=deadline_seconds,
    )  # fmt: skip
    return state_of(saga, plan, progress)


def when(now: datetime, start_at: datetime | None, delay_seconds: float | None) -> datetime | None:
    """When a saga is to start; none, at once: also one whose instant has passed.

    Raises: Invalid.
    """
    if start_at is not None and delay_seconds is not None:
        detail = "not both start_at and delay_seconds"
        raise Invalid([{"pointer": "/start_at", "code": "one_of", "detail": detail}])
    if start_at is not None and start_at > now + timedelta(seconds=LONGEST):
        raise Invalid([{"pointer": "/start_at", "code": "too_late", "detail": "at most ten years ahead"}])
    begins = start_at or now + timedelta(seconds=delay_seconds or 0.0)
    return begins if begins > now else None


def definition_for(
    tx: Transaction,
    steps: list[Step] | None,
    name: str | None,
    version: int | None,
    output: str | None,
    order: str,
) -> tuple[str, Plan]:
    """Where the definition is stored, and what it means.

    Raises: Invalid, DefinitionNotFound.
    """
    if (steps is None) == (name is None):
        raise Invalid([{"pointer": "/steps", "code": "one_of", "detail": "either steps or definition"}])
    if extra := [name for name, value in said_beside(steps, version, output, order).items() if value]:
        detail = "is of a definition" if steps else "is in the definition"
        raise Invalid([{"pointer": f"/{name}", "code": "one_of", "detail": detail} for name in extra])
    if steps is not None:
        return inline(tx, body_of(steps, output, order), steps, output, order)
    return named(tx, name or "", version)


def said_beside(
    steps: list[Step] | None, version: int | None, output: str | None, order: str
) -> dict[str, bool]:
    """What does not go with steps, or with the name of a definition: was it said?"""
    if steps is not None:
        return {"definition_version": version is not None}
    return {"output": output is not None, "compensation_order": order != "reverse"}


def inline(tx: Transaction, body: str, steps: list[Step], output: str | None, order: str) -> tuple[str, Plan]:
    """Steps that were given with the start: the same steps are one definition."""
    name = inline_name(body)
    found = tx.get(Definition, name)
    if found is None:
        compile_plan(steps, output, order)  # names every fault by where the caller wrote it
        found = tx.add(Definition, name, body=body, created_at=tx.now)
    return found.id, plan_at(found.id, body)


def inline_name(body: str) -> str:
    return f"${hashlib.sha256(body.encode()).hexdigest()[:40]}"


def body_of(steps: list[Step], output: str | None, order: str) -> str:
    return encode({"steps": [said(step) for step in steps], "output": raw(output), "order": order}).decode()


def said(step: Step) -> dict[str, Any]:
    found = step.model_dump(exclude_defaults=True)
    for event in found.get("events", ()):
        event["data"] = raw(event["data"])
    return {**found, **{name: raw(found[name]) for name in RAW if name in found}}


def raw(text: str | None) -> Any:
    return None if text is None else Fragment(text)
