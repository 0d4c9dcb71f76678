"""What a lock can refuse."""

from core.errors import Conflict, NotFound


class LockHeld(Conflict):
    """The lock is held, others wait for it, or its lock-delay is not over."""


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
