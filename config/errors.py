"""What configuration can refuse."""

from core.errors import Conflict, Gone, Invalid, NotFound


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


class SchemaNotFound(NotFound):
    """No schema is set for exactly this prefix."""


class ValueDoesNotFit(Invalid):
    """The value does not fit the schema of its key; `errors` names every place."""


class ValuesDoNotFit(Conflict):
    """Values that are set now do not fit the schema; `keys` names them. With `force` it is stored all the same."""


class TooManyValues(Conflict):
    """More values are set under this prefix than are looked at for one schema; `force` stores it unseen."""
