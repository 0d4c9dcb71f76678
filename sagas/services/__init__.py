"""The saga operations, by what they are about. Importing this declares them all."""

from sagas.services import (
    definitions,
    driving,
    looking,
    operating,
    schedules,
    simulating,
    starting,
    tasks,
    upkeep,
)

__all__ = [
    "definitions",
    "driving",
    "looking",
    "operating",
    "schedules",
    "simulating",
    "starting",
    "tasks",
    "upkeep",
]
