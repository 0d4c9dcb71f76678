"""What checks found out."""

from collections.abc import Sequence
from typing import Any

from core.batch import Transaction
from core.encoding import encode
from core.operations import command
from discovery import checker, rules
from discovery.models import Instance, Service
from discovery.services.registering import become

__all__ = ["checker", "judge"]


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return (Instance, params["name"]), (Service, params["name"].partition("#")[0])


@command(name="services.judge", touches=touches)
def judge(tx: Transaction, *, name: str, incarnation: int, number: int, state: str, message: str) -> None:
    """Write down that a check turned to another state, and what that makes of its instance. What was found of an
    incarnation says nothing about the next one."""
    found, owner = tx.get(Instance, name), tx.get(Service, name.partition("#")[0])
    if found is None or owner is None or found.status in rules.GONE or found.incarnation != incarnation:
        return
    checks = rules.checks_of(found)
    if number < len(checks):
        checks[number].update(state=state, message=message)
        found.checks = encode(checks).decode()
        become(tx, owner, found)
