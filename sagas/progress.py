"""Progress as it is stored, and back: JSON of what is not as it was in the beginning."""

from dataclasses import fields
from typing import Any

from core.encoding import decode, encode
from sagas.rules import Progress, Side, StepProgress

SIDE = {each.name: each.default for each in fields(Side)}
STEP: dict[str, Any] = {
    "maybe": False,
    "place": 0,
    "output": None,
    "locks": {},
    "child": None,
    "is_recalled": False,
    "is_verifying": False,
    "checks": 0,
    "edited": {},
}
WHOLE = {each.name: each.default for each in fields(Progress) if each.name not in ("signals", "steps")}


def to_text(progress: Progress) -> str:
    found = differences(progress, WHOLE)
    if progress.signals:
        found["signals"] = progress.signals
    found["steps"] = {name: step_to_json(step) for name, step in progress.steps.items()}
    return encode(found).decode()


def step_to_json(step: StepProgress) -> dict[str, Any]:
    found = differences(step, STEP)
    for name in ("action", "undo"):
        if side := differences(getattr(step, name), SIDE):
            found[name] = side
    return found


def differences(thing: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, default in defaults.items() if (value := getattr(thing, name)) != default}


def from_text(text: str) -> Progress:
    found = decode(text)
    found["steps"] = {name: step_from_json(step) for name, step in found["steps"].items()}
    return Progress(**found)


def step_from_json(found: dict[str, Any]) -> StepProgress:
    for name in ("action", "undo"):
        if name in found:
            found[name] = Side(**found[name])
    return StepProgress(**found)
