"""The tables that every primitive shares: namespaces, the log, processes, kept answers."""

from typing import Any, ClassVar
from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

# A log address is one bigint: the namespace's number above, the position in its log below. One primary
# key orders every log, and `max(id)` within a namespace's range is the head of its log.
POSITION_BITS = 40


def log_id(namespace: int, position: int) -> int:
    return (namespace << POSITION_BITS) | position


def position_of(log_address: int) -> int:
    return log_address & ((1 << POSITION_BITS) - 1)


class JSONTextField(models.TextField):  # type: ignore[type-arg]
    """JSON kept exactly as it was written: stored as `json`, handed over as text, never parsed on the way."""

    def db_type(self, connection: Any) -> str:
        return "json"


def between(namespace: str, prefix: str = "") -> tuple[str, str]:
    """The addresses between which a namespace's rows are whose names begin so: `~` comes after all that names hold."""
    return f"{namespace}/{prefix}", f"{namespace}/{prefix}~"


class Aggregate(models.Model):
    """A row that the engine loads, locks and stores. Its id is its address: `namespace/name`."""

    # False where the rows are changed only under another row's lock, or by one process only.
    engine_locks: ClassVar[bool] = True

    id = models.CharField(primary_key=True, max_length=400, db_collation="C")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.id

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]


class Namespace(models.Model):
    """The unit of order, tenancy and sharding: each namespace has its own log."""

    number = models.AutoField(primary_key=True)
    name = models.SlugField(max_length=63, unique=True)
    floor = models.BigIntegerField(default=0, help_text="positions up to here are pruned")
    locks = models.TextField(
        choices=[("durable", "durable"), ("volatile", "volatile")], default="durable", db_default="durable"
    )
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.name


class Cluster(models.Model):
    """One row. The epoch rises at failover and restore, so that tokens given out before stay the smaller ones."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    epoch = models.BigIntegerField(default=1)
    # Rises when the row of an idle lock is pruned: whoever takes that lock next gets a larger token all the same.
    token_floor = models.BigIntegerField(default=0, help_text="no lock's token starts below this")
    timeline = models.IntegerField(null=True, help_text="of the WAL; a promotion or a restore begins another")
    # Names the wake-up channel, so that two installations may share a Redis.
    identity = models.UUIDField(default=uuid4)

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=Q(id=1), name="one_cluster")]

    def __str__(self) -> str:
        return f"epoch {self.epoch}"


class Process(Aggregate):
    """A Syros process and its own lease: waiters of a process whose lease ran out are skipped."""

    engine_locks = False  # only its own process writes it

    host = models.TextField()
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    beat_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "processes"


class Session(Aggregate):
    """A client's lease: what it holds and waits for lasts as long as somebody keeps it alive.

    An ended one stays for a while, so that its client is told why; it never comes back to life.
    """

    version = models.BigIntegerField(default=0)  # of its stream, `$session:<id>`
    owner = models.TextField()
    ttl_seconds = models.FloatField()
    lock_delay_seconds = models.FloatField(default=0.0)
    metadata = JSONTextField(null=True)
    opened_at = models.DateTimeField()
    # Not indexed: that would make every keepalive write the index too (no HOT update).
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    reason = models.TextField(null=True)  # why it ended

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["id"], name="session_live", condition=Q(ended_at__isnull=True)),
        ]

    @property
    def stream(self) -> str:
        return f"$session:{self.name}"


class Stream(Aggregate):
    """A stream of events and its version: the number of its last event."""

    version = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    @property
    def stream(self) -> str:
        return self.name


class Answer(Aggregate):
    """The kept answer to a command that carried an Idempotency-Key; without a body while the caller waits."""

    engine_locks = (
        False  # made once, guarded by its key; filled in under the lock row that its caller waits for
    )

    fingerprint = models.TextField()
    status = models.SmallIntegerField(null=True)
    body = models.TextField(null=True)
    waiting = models.TextField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["created_at"], name="answer_created_at")]


class Retention(models.Model):
    """How far the history of a kind is gone: `namespace/prefix` of the streams, and the last position."""

    id = models.CharField(primary_key=True, max_length=400, db_collation="C")
    position = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.id} up to {self.position}"


class Event(models.Model):
    """One entry of the log. Written by the engine only, never changed."""

    id = models.BigIntegerField(primary_key=True)
    namespace = models.ForeignKey(
        Namespace, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    stream = models.CharField(max_length=300, db_collation="C")
    version = models.BigIntegerField()
    type = models.CharField(max_length=255)
    # Only what the client chose; else the event is named after its place (core.log.place_id).
    event_id = models.UUIDField(null=True)
    data = JSONTextField()
    metadata = JSONTextField(null=True)
    actor = models.TextField()
    correlation_id = models.TextField(null=True)
    causation_id = models.TextField(null=True)
    recorded_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["namespace", "stream", "version"], name="event_version"),
            models.UniqueConstraint(
                fields=["namespace", "event_id"], condition=Q(event_id__isnull=False), name="event_event_id"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.position} {self.stream} {self.type}"

    @property
    def position(self) -> int:
        return position_of(self.id)
