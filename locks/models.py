"""The tables of locks. Who may hold what is decided in rules.py."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from core.models import Aggregate, JSONTextField


class Lock(Aggregate):
    """A lock, its queue's counters and its exclusive holder.

    The exclusive holder stands on the lock's own row: taking a free lock writes one row, not two.
    """

    version = models.BigIntegerField(default=0)  # of its stream, `$lock:<key>`
    capacity = models.IntegerField(default=1)
    last_token = models.BigIntegerField(default=0)
    last_ticket = models.BigIntegerField(default=0)
    queued = models.IntegerField(default=0)
    lock_id = models.TextField(null=True)
    owner = models.TextField(null=True)
    acquired_at = models.DateTimeField(null=True)
    # Not indexed: that would make every renewal write the index too (no HOT update).
    expires_at = models.DateTimeField(null=True)
    ttl_seconds = models.FloatField(null=True)
    metadata = JSONTextField(null=True)
    # The last 32 holds that ended, newest first: each eight letters of its lock_id and one of the reason.
    endings = models.TextField(default="")

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["id"], name="lock_contended", condition=Q(queued__gt=0)),
        ]

    @property
    def stream(self) -> str:
        return f"$lock:{self.name}"


class Claim(Aggregate):
    """A waiter in a lock's queue, `namespace/key#ticket`: tickets in commit order, so ids in queue order."""

    engine_locks = False  # changed only under its lock's row

    lock_id = models.TextField()
    ticket = models.BigIntegerField()
    owner = models.TextField()
    permits = models.IntegerField(default=1)
    ttl_seconds = models.FloatField()
    metadata = JSONTextField(null=True)
    since = models.DateTimeField()
    deadline = models.DateTimeField()
    process = models.TextField()  # where the caller waits; its lease is the claim's
    answer_id = models.TextField(null=True)  # the kept answer to fill in when it is granted
