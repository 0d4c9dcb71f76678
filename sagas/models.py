"""The tables of sagas. How one goes on is decided in rules.py."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Func, Q, Value

from core.models import Aggregate, JSONTextField


class Definition(Aggregate):
    """What a saga does, immutable: `namespace/name#version`, or `namespace/$<hash>` of steps that were given inline."""

    engine_locks = False  # never changed

    body = JSONTextField()
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = "version of a definition"
        verbose_name_plural = "versions of definitions"


class DefinitionName(Aggregate):
    """The name of a definition and its last version; also of its stream, `$definition:<name>`."""

    version = models.BigIntegerField(default=0)
    last_hash = models.TextField(default="")

    class Meta:
        verbose_name = "definition"

    @property
    def stream(self) -> str:
        return f"$definition:{self.name}"


class Saga(Aggregate):
    """A saga and how far it is. Its stream, `$saga:<id>`, tells how it came there.

    Whoever decides about it holds this row; only the process in `owner` calls participants for it, for as long as
    that process lives.
    """

    version = models.BigIntegerField(default=0)  # of its stream
    title = models.TextField(db_collation="C")  # the name its author gave it
    definition = models.TextField()
    status = models.TextField()
    reason = models.TextField(null=True)
    current_step = models.TextField(null=True)
    owner = models.TextField(null=True)
    # When somebody must look at it. Indexed, so it stays as it is while calls are answered in time.
    wake_at = models.DateTimeField(null=True)
    progress = JSONTextField()
    input = JSONTextField()
    output = JSONTextField(null=True)
    error = JSONTextField(null=True)
    # What failed: the side, as `step.op`, and its code. They differ from the error where a compensation is stuck.
    failed_side = models.TextField(null=True)
    failed_code = models.TextField(null=True)
    failed_at = models.DateTimeField(null=True)
    metadata = JSONTextField(null=True)
    tags = models.JSONField(null=True)
    dirty = models.BooleanField(default=False)
    traceparent = models.TextField(null=True)  # of its start: the trace that its calls belong to
    parent = models.TextField(null=True)  # the saga and the step that this one is: `saga.step`
    created_at = models.DateTimeField()
    deadline_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["wake_at"], name="saga_wake", condition=Q(wake_at__isnull=False)),
            models.Index(fields=["owner"], name="saga_owner", condition=Q(owner__isnull=False)),
            models.Index(fields=["status", "id"], name="saga_status"),
            models.Index(fields=["finished_at"], name="saga_over", condition=Q(finished_at__isnull=False)),
            models.Index(fields=["title", "id"], name="saga_title"),
            models.Index(
                fields=["failed_code", "id"], name="saga_failed_code", condition=Q(failed_code__isnull=False)
            ),
            models.Index(
                Func(F("id"), Value("/"), Value(1), function="split_part"),
                "failed_at",
                name="saga_failed_at",
                condition=Q(failed_at__isnull=False),
            ),
        ]

    @property
    def stream(self) -> str:
        return f"$saga:{self.name}"


class Attentions(models.Manager["Attention"]):
    def get_queryset(self) -> models.QuerySet["Attention"]:
        return super().get_queryset().filter(status="attention")


class Attention(Saga):
    """The same row, to those who look at what waits for a human."""

    objects: ClassVar[Attentions] = Attentions()  # of fewer rows than the base's

    class Meta:
        proxy = True
        verbose_name = "saga that needs attention"
        verbose_name_plural = "sagas that need attention"


class Task(Aggregate):
    """An attempt that waits for a worker who polls, or that a worker has: `namespace/saga.step.op`."""

    queue = models.TextField(db_collation="C")  # `namespace/service`
    saga = models.TextField()
    step = models.TextField()
    op = models.TextField()
    attempt = models.IntegerField()
    body = JSONTextField()  # what the worker is given beside its lease
    queued_at = models.DateTimeField()
    fetched_at = models.DateTimeField(null=True)
    worker = models.TextField(null=True)
    lease_token = models.TextField(null=True)
    lease_until = models.DateTimeField(null=True)
    lease_seconds = models.FloatField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["queue", "queued_at", "id"], name="task_queued",
                         condition=Q(lease_token__isnull=True)),
            models.Index(fields=["lease_until"], name="task_leased", condition=Q(lease_until__isnull=False)),
        ]  # fmt: skip


class Schedule(Aggregate):
    """When sagas of a definition are started. Its stream is `$schedule:<name>`."""

    version = models.BigIntegerField(default=0)
    definition = models.TextField()
    definition_version = models.IntegerField(null=True)
    cron = models.TextField(null=True)
    interval_seconds = models.FloatField(null=True)
    time_zone = models.TextField()
    input = JSONTextField()
    overlap = models.TextField()
    catch_up = models.TextField()
    is_paused = models.BooleanField(default=False)
    next_at = models.DateTimeField(null=True)
    last_at = models.DateTimeField(null=True)
    last_saga = models.TextField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["next_at"], name="schedule_due", condition=Q(next_at__isnull=False)),
        ]

    @property
    def stream(self) -> str:
        return f"$schedule:{self.name}"
