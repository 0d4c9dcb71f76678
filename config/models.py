"""The tables of configuration: keys and what they are set to now. What they were is in their streams."""

from typing import ClassVar

from django.db import models

from core.models import Aggregate, JSONTextField


class Entry(Aggregate):
    """A key, and what it is set to. A deleted one stays, for its revision: that never comes again."""

    STREAMS: ClassVar[str] = "$config:"

    # The revision: the version of its stream. Known when a command is decided, as a place in the log is not.
    version = models.BigIntegerField(default=0)
    is_set = models.BooleanField(default=False)
    value = JSONTextField(null=True)
    # Of a secret: the revision under which its value is sealed; 0: it is deleted.
    sealed = models.BigIntegerField(null=True)
    # While a rollout is under way: what some instances get instead.
    percentage = models.FloatField(null=True)
    salt = models.TextField(null=True)
    next_value = JSONTextField(null=True)
    next_sealed = models.BigIntegerField(null=True)
    source = models.TextField(null=True)  # the store that it follows, which alone changes it
    changed_at = models.DateTimeField()
    changed_by = models.TextField()

    class Meta:
        verbose_name_plural = "entries"

    @property
    def stream(self) -> str:
        return f"{self.STREAMS}{self.name}"

    @property
    def expected(self) -> int:
        """The revision that a writer has to expect: 0 while nothing is set."""
        return self.version if self.is_set else 0


class Sealed(Aggregate):
    """A secret value, `namespace/key#revision`. Not in the log, which never changes: keys rotate."""

    engine_locks: ClassVar[bool] = False  # made once, under the lock of its key

    token = models.TextField()


class Schema(Aggregate):
    """The JSON Schema of the keys at and under a prefix."""

    STREAMS: ClassVar[str] = "$config-schema:"

    # Every change of a key reads those above it, and must not wait for others that do. Two who change the same one
    # meet at the version of its stream: the second breaks there, and its batch runs again.
    engine_locks: ClassVar[bool] = False

    version = models.BigIntegerField(default=0)
    is_set = models.BooleanField(default=False)
    json_schema = JSONTextField(null=True)
    changed_at = models.DateTimeField()
    changed_by = models.TextField()

    @property
    def stream(self) -> str:
        return f"{self.STREAMS}{self.name}"

    @property
    def expected(self) -> int:
        """The revision that a writer has to expect: 0 while nothing is set."""
        return self.version if self.is_set else 0


class Mirror(Aggregate):
    """Another store that keys follow, `namespace/source`: how far, and which process does it."""

    revision = models.BigIntegerField()
    # What the revision is of: another store that has this name now begins anew.
    followed = models.TextField(default="", db_default="")
    owner = models.TextField(null=True)
