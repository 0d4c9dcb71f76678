"""What the event store can refuse."""

from core.errors import Conflict
from core.following import PositionAhead
from core.tail import PositionPruned

__all__ = ["EventIdConflict", "PositionAhead", "PositionPruned", "WrongExpectedVersion"]


class WrongExpectedVersion(Conflict):
    """The stream is not at the version you expected."""


class EventIdConflict(Conflict):
    """Some of these event ids were used before, but not all of them, or not in this way."""
