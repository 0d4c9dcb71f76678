"""What a lock can refuse."""

from typing import Any

from core.errors import Conflict, NotFound


class LockHeld(Conflict):
    """The lock is held, others wait for it, or its lock-delay is not over."""


def busy_with(about: dict[str, Any]) -> LockHeld:
    """The refusal that fits the situation: key, holders, queue_length, lock_delay_until."""
    key, owners = about["key"], [holder["owner"] for holder in about["holders"]]
    if owners:
        return LockHeld(f"{key} is held by {owners[0]}{' and others' if owners[1:] else ''}.", **about)
    if about["lock_delay_until"]:
        return LockHeld(f"{key} is kept from everybody for a while, by a lock-delay.", **about)
    return LockHeld(f"Others wait for {key}.", **about)


class LockWaitTimeout(Conflict):
    """The lock did not come free in the time you would wait."""


class LockNotHeld(Conflict):
    """You do not hold this lock (any more); `reason` says why."""


class CapacityMismatch(Conflict):
    """The lock is in use with another capacity, or has fewer permits than you ask for."""


class Deadlock(Conflict):
    """To wait would be to wait for yourself: `cycle` names who waits for whom. Release something and ask again."""


class ElectionHeld(Conflict):
    """Somebody leads, or others stand before you."""


class NotLeader(Conflict):
    """You do not lead this election (any more); `reason` says why."""


class NotCandidate(NotFound):
    """Nobody of that name stands in this election."""
