"""A Syros with bugs: `python -m tests.races.bugs serve …`. Each is at work only in namespaces that are named after it.

They are what the checkers of histories are there to find, and test_bugs.py asks whether they do:

- `token_repeats`: now and then a lock gives the same token again
- `lifo`: the last of a queue is served first
- `expiry_ignored`: a hold never runs out
- `no_owner_check`: a release ends whatever hold there is
- `renew_revives`: a renewal takes a hold back that had run out
- `capacity_off_by_one`: a semaphore has one permit more than it should
- `shared_beside_exclusive`: shared holds are given out beside exclusive ones
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import django
from django.core.management import execute_from_command_line

BUGS = (
    "token_repeats", "lifo", "expiry_ignored", "no_owner_check", "renew_revives", "capacity_off_by_one",
    "shared_beside_exclusive",
)  # fmt: skip
Function = Callable[..., Any]


def plant(bug: str, module: Any, name: str, wrong: Function) -> None:
    """Put a bug into a function. Parameters: `wrong(right, *arguments)`."""
    right: Function = getattr(module, name)

    def function(*arguments: Any, **named: Any) -> Any:
        lock = next((each for each in arguments if hasattr(each, "namespace")), None)
        namespace = getattr(lock, "namespace", "")
        if isinstance(namespace, int):  # a transaction's
            namespace = lock.call.namespace.name  # type: ignore[union-attr]
        if not namespace.startswith(bug.replace("_", "-")):
            return right(*arguments, **named)
        return wrong(right, *arguments, **named)

    setattr(module, name, function)


def plant_all() -> None:
    from locks import rules
    from locks.models import Claim
    from locks.services import holds, queues

    def same_token(right: Function, lock: Any, *more: Any) -> Any:
        return lock.last_token if lock.last_token % 8 == 7 else right(lock, *more)

    def last(right: Function, tx: Any, lock: Any, todo: Any) -> Any:
        waiting = list(tx.queue(Claim, lock, whole=True)) if lock.queued else []
        return waiting[-1] if waiting else None

    def any_hold(right: Function, tx: Any, lock: Any, lock_id: str) -> Any:
        found = right(tx, lock, lock_id)
        if found is None and tx.job.operation.name == "locks.release":
            found = next(iter(queues.all_holds(tx, lock)), None)
        return found

    def revived(right: Function, tx: Any, key: str, lock_id: str) -> Any:
        lock = tx.get(holds.Lock, key)
        hold = holds.hold_of(tx, lock, lock_id) if lock else None
        if hold is not None and tx.job.operation.name == "locks.renew":
            return lock, hold
        return right(tx, key, lock_id)

    def one_more(right: Function, lock: Any, claim: Any, now: Any) -> Any:
        is_room = not lock.shared and lock.used + claim.permits <= lock.capacity + 1
        is_odd = lock.capacity > 1 and claim.mode == "exclusive" and not rules.is_sole(lock, claim)
        return (is_odd and is_room and lock.lock_id is None) or right(lock, claim, now)

    def beside(right: Function, lock: Any, claim: Any, now: Any) -> Any:
        return (claim.mode == "shared" and lock.lock_id is None) or right(lock, claim, now)

    plant("token_repeats", rules, "next_token", same_token)
    plant("lifo", queues, "first", last)
    plant("expiry_ignored", rules, "is_held", lambda right, hold, now: hold.lock_id is not None)
    plant("expiry_ignored", queues, "expire", lambda right, tx, lock: False)
    plant("no_owner_check", holds, "hold_of", any_hold)
    plant("renew_revives", holds, "held", revived)
    plant("capacity_off_by_one", rules, "fits", one_more)
    plant("shared_beside_exclusive", rules, "fits", beside)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    django.setup()
    plant_all()
    execute_from_command_line(sys.argv)
