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


class NoSealingKey(Conflict):
    """Secrets cannot be sealed here: the operator has to set SYROS_CONFIG_KEYS."""


class UnknownSealingKey(Conflict):
    """The secret was sealed by a key that is not among SYROS_CONFIG_KEYS."""


class RolloutUnderWay(Conflict):
    """A rollout of this key is under way: finish or abort it first."""


class NoRollout(Conflict):
    """No rollout of this key is under way."""


class NothingToRollOutFrom(Conflict):
    """The key is not set, so there is no value for the other instances."""


class RolloutNarrowed(Conflict):
    """A rollout only widens: no instance that has the new value loses it, but by aborting."""


class ReadOnlyConfig(Conflict):
    """This key follows another store, which has the say: change it there."""


class MirrorMoved(Conflict):
    """Another process follows that store."""
