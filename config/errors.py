"""What configuration can refuse."""

from core.errors import Conflict, Gone, NotFound


class ConfigNotFound(NotFound):
    """The key is not set."""


class WrongExpectedRevision(Conflict):
    """The key is not at the revision you expected."""


class RevisionNotFound(NotFound):
    """The key has not reached that revision."""


class RevisionPruned(Gone):
    """The history of the key up to that revision is gone."""


class RevisionWithoutValue(Conflict):
    """The key was deleted at that revision: there is no value to go back to."""
