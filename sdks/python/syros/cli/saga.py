"""`syros sagas watch`: what becomes of a saga, a line a change, until it rests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from syros.cli import output
from syros.client import PAUSES, RECONNECT_SECONDS, Client

# How it ends, by how the saga does; the codes below are those of every command.
CODES = {"succeeded": 0, "compensated": 10, "failed": 11, "terminated": 12, "attention": 13}
PATIENCE = (*PAUSES, *(RECONNECT_SECONDS,) * 10_000)  # once it was there, Syros is waited for


def follow(client: Client, saga_id: str, tell: Callable[[dict[str, Any]], None]) -> int:
    """Tell every event of a saga, from its first one on, until it is over or needs a human; the exit code.

    Raises: Refused, Unavailable.
    """
    begin = client.call("sagas.history", {"saga_id": saga_id, "limit": 1})
    first = [event["position"] for event in begin["events"]]
    params = {"streams": [f"$saga:{saga_id}"], "from_position": first[0] if first else 1}
    may_rest = False
    for kind, event in client.stream("events.follow", params):
        if kind != "event":
            continue
        tell(event)
        may_rest |= event["event_type"].removeprefix("saga.") in CODES
        # Only the saga itself knows: what once needed a human may have gone on since.
        if may_rest and (status := rest_after(client, saga_id, event["version"])):
            return CODES[status]
    raise AssertionError("a stream has no end")


def rest_after(client: Client, saga_id: str, version: int) -> str | None:
    """How the saga rests; none, if there is more to be told of it, or to come."""
    params = {"saga_id": saga_id, "from_version": version + 1, "limit": 1}
    if client.call("sagas.history", params, pauses=PATIENCE)["events"]:
        return None
    status = str(client.call("sagas.get", {"saga_id": saga_id}, pauses=PATIENCE)["status"])
    return status if status in CODES else None


def line(event: dict[str, Any], width: int) -> str:
    """When, which step (in a column of that width), what, which attempt, and why."""
    kind, _, what = event["event_type"].partition(".")
    data = event["data"]
    words = [kind, what] if kind == "compensation" else [what]
    attempt = f"attempt {data['attempt']}" if data.get("attempt") else ""
    parts = [output.cell(event["recorded_at"]), data.get("step", "saga").ljust(width),
             " ".join(words).replace("_", " "), attempt, why(data), when(data)]  # fmt: skip
    return "  ".join(part for part in parts if part)


def why(data: dict[str, Any]) -> str:
    """The error, or else the reason, that an event gives."""
    error = data.get("error") or data
    found = [error.get("code"), error.get("message") or data.get("why")]
    return ": ".join(part for part in found if part) or str(data.get("reason") or "")


def when(data: dict[str, Any]) -> str:
    """Until when nothing is to be expected."""
    if instant := data.get("retry_at"):
        return f"again at {output.cell(instant)}"
    instant = data.get("until") or data.get("start_at")
    return f"until {output.cell(instant)}" if instant else ""
