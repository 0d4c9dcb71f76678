"""A Syros with bugs in its sagas: `python -m tests.faults.saga_bugs serve …`. Each is at work in sagas of its name.

They are what the ledger is there to find, and test_saga_bugs.py asks whether it does:

- `forward_order`: compensation goes along the graph, not against it
- `doubt_forgotten`: a step of which nobody knows what came of it is not compensated
- `attempt_in_key`: each attempt has an Idempotency-Key of its own
- `not_fenced`: a process that lost a saga to another one still decides what came of a call
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import django
from django.core.management import execute_from_command_line

BUGS = ("forward_order", "doubt_forgotten", "attempt_in_key", "not_fenced")
Function = Callable[..., Any]


def plant(bug: str, place: Any, name: str, title_of: Function, wrong: Function) -> None:
    """Put a bug into a function. Parameters: `title_of(*arguments)`, the saga's name; `wrong(right, *arguments)`."""
    right: Function = getattr(place, name)

    def function(*arguments: Any, **named: Any) -> Any:
        if title_of(*arguments, **named) != bug:
            return right(*arguments, **named)
        return wrong(right, *arguments, **named)

    setattr(place, name, function)


def plant_all() -> None:
    from core.operations import registry
    from sagas.models import Saga
    from sagas.rules import Course
    from sagas.services import courses
    from sagas.services.driving import heard

    def of_course(course: Any, *more: Any) -> Any:
        return course.scope["saga"]["name"]

    def of_command(tx: Any, *, saga_id: str, **more: Any) -> Any:
        saga = tx.get(Saga, saga_id)
        return saga.title if saga else None

    def ancestors(right: Function, course: Any, name: str) -> set[str]:
        found: set[str] = set()
        for each in course.plan.steps[name].after:
            found |= {each, *ancestors(right, course, each)}
        return found

    def only_certain(right: Function, course: Any, step: Any) -> bool:
        return right(course, step) and course.saga.steps[step.name].action.status == "succeeded"

    def of_any_process(
        right: Function, tx: Any, *, saga_id: str, step: str, op: str, attempt: int, outcome: Any
    ) -> Any:
        """Without the owner's name nothing else may save it: so it is taken for what came of the last attempt."""
        saga = tx.get(Saga, saga_id)
        course = courses.course_of(tx, saga)
        progress = course.saga.steps[step]
        side = progress.action if op == "action" else progress.undo
        if course.saga.is_over:
            return right(tx, saga_id=saga_id, step=step, op=op, attempt=attempt, outcome=outcome)
        return heard(tx, saga, step, op, side.attempts, outcome)

    plant("forward_order", Course, "_descendants", of_course, ancestors)
    plant("doubt_forgotten", Course, "_needs_undo", of_course, only_certain)
    plant("attempt_in_key", courses, "key_of", lambda saga, send: saga.title,
          lambda right, saga, send: f"{right(saga, send)}.{send.attempt}")  # fmt: skip
    plant("not_fenced", registry["sagas.hear"], "function", of_command, of_any_process)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    django.setup()
    plant_all()
    execute_from_command_line(sys.argv)
