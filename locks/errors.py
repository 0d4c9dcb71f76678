"""What a lock can refuse."""

from core.errors import Conflict


class LockHeld(Conflict):
    """The lock is held, or others wait for it."""


class LockWaitTimeout(Conflict):
    """The lock did not come free in the time you would wait."""


class LockNotHeld(Conflict):
    """You do not hold this lock (any more); `reason` says why."""
