"""The tables of locks. Who may hold what is decided in rules.py."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from core.models import Aggregate, JSONTextField

ELECTION = "$election:"  # an election is a lock of this name
IS_ELECTION = Q(id__contains=f"/{ELECTION}")  # as the partial index says it; no key of a client's has a `$`


class Lock(Aggregate):
    """A lock, its counters, and the hold that has it to itself.

    A hold that leaves room for no other (exclusive, with all permits) stands on the lock's own row: taking a free
    lock writes one row, not two. The others are rows of `Hold`, and counted here.
    """

    version = models.BigIntegerField(default=0)  # of its stream, `$lock:<key>`
    capacity = models.IntegerField(default=1)
    last_token = models.BigIntegerField(default=0)
    last_ticket = models.BigIntegerField(default=0)
    queued = models.IntegerField(default=0)
    shared = models.IntegerField(default=0)  # shared holds
    used = models.IntegerField(default=0)  # permits of the holds that have rows of their own
    lock_id = models.TextField(null=True)
    owner = models.TextField(null=True)
    session = models.TextField(null=True)  # whose lease the hold's is
    acquired_at = models.DateTimeField(null=True)
    # When the sole hold ends, and of several no later than the first of them does; null: with a session.
    # Not indexed: that would make every renewal write the index too (no HOT update).
    expires_at = models.DateTimeField(null=True)
    ttl_seconds = models.FloatField(null=True)
    metadata = JSONTextField(null=True)
    not_before = models.DateTimeField(null=True)  # given to nobody until then: the lock-delay
    changed_at = models.DateTimeField(null=True)  # its last event
    # The last holds that ended, newest first: each eight letters of its lock_id and one of the reason.
    endings = models.TextField(default="")

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["id"], name="lock_contended", condition=Q(queued__gt=0)),
            models.Index(fields=["session"], name="lock_session", condition=Q(session__isnull=False)),
            models.Index(fields=["id"], name="lock_election", condition=IS_ELECTION),
        ]

    @property
    def stream(self) -> str:
        name = self.name
        return name if name.startswith(ELECTION) else f"$lock:{name}"

    # As a hold, the sole one:

    @property
    def mode(self) -> str:
        return "exclusive"

    @property
    def permits(self) -> int:
        return self.capacity

    @property
    def token(self) -> int:
        return self.last_token


class Elections(models.Manager["Election"]):
    def get_queryset(self) -> models.QuerySet["Election"]:
        return super().get_queryset().filter(IS_ELECTION)


class Election(Lock):
    """The same row, to those who look at elections."""

    objects: ClassVar[Elections] = Elections()  # of fewer rows than the base's

    class Meta:
        proxy = True

    @property
    def name(self) -> str:
        return super().name.removeprefix(ELECTION)

    @property
    def stream(self) -> str:
        return f"{ELECTION}{self.name}"


class Hold(Aggregate):
    """One of several holds of a lock, `namespace/key#lock_id`."""

    engine_locks = False  # changed only under its lock's row

    lock_id = models.TextField()
    token = models.BigIntegerField()
    owner = models.TextField()
    mode = models.TextField()
    permits = models.IntegerField()
    session = models.TextField(null=True)
    acquired_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)  # null: with the session
    ttl_seconds = models.FloatField(null=True)
    metadata = JSONTextField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["session"], name="hold_session", condition=Q(session__isnull=False)),
        ]


class Claim(Aggregate):
    """A waiter in a lock's queue, `namespace/key#ticket`: tickets in commit order, so ids in queue order.

    Who wants several locks at once waits in each of their queues; the first of these claims leads the others.
    """

    engine_locks = False  # changed only under its lock's row

    lock_id = models.TextField()
    ticket = models.BigIntegerField()
    owner = models.TextField()
    mode = models.TextField(default="exclusive")
    permits = models.IntegerField(default=1)
    session = models.TextField(null=True)
    ttl_seconds = models.FloatField()
    metadata = JSONTextField(null=True)
    since = models.DateTimeField()
    deadline = models.DateTimeField()
    process = models.TextField()  # where the caller waits; its lease is the claim's
    answer_id = models.TextField(null=True)  # the kept answer to fill in when it is granted
    lead = models.TextField(null=True)  # the id of the claim that leads it
    others = models.TextField(null=True)  # of who asked for several: the ids of its other claims, in order

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["session"], name="claim_session", condition=Q(session__isnull=False)),
        ]
