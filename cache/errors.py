"""What can go wrong with the cache."""

from core.errors import Conflict, NotFound, TooLarge


class CacheMiss(NotFound):
    """It is not in the cache. `as_of` says when: hand it to put, with what you load now."""


class StaleLoad(Conflict):
    """What was loaded may be old already: something it depends on changed after the load began. Load it again."""


class EtagMismatch(Conflict):
    """The value is not the one with this etag."""


class AlreadyCached(Conflict):
    """There is a value already."""


class NotANumber(Conflict):
    """The value is no integer, or would be too large for one."""

    code = "not_a_number"


class ValueTooLarge(TooLarge):
    """The value is larger than this namespace allows."""


class CacheFull(Conflict):
    """The namespace's values take as much memory as they may."""
