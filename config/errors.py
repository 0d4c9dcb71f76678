"""What configuration can refuse."""

from core.errors import Conflict, NotFound


class ConfigNotFound(NotFound):
    """The key is not set."""


class WrongExpectedRevision(Conflict):
    """The key is not at the revision you expected."""
