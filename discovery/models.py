"""The tables of discovery: services and where their instances are. What becomes of them is decided in rules.py."""

from typing import ClassVar

from django.db import models
from django.db.models import Q

from core.models import Aggregate, JSONTextField


class Service(Aggregate):
    """A service by name, the version of its stream, `$service:<name>`, and how many of its instances are well."""

    version = models.BigIntegerField(default=0)
    last_incarnation = models.BigIntegerField(default=0)
    healthy = models.IntegerField(default=0)
    protected = models.IntegerField(default=0)  # not healthy, but listed all the same
    # How many were healthy before those failed that failed of late: protection is a share of these.
    last_healthy = models.IntegerField(default=0)
    failed_at = models.DateTimeField(null=True)  # the last time that one did
    maintenance = models.TextField(null=True)  # why all of it is taken out; null: it is not

    @property
    def stream(self) -> str:
        return f"$service:{self.name}"


class Instance(Aggregate):
    """Where one instance of a service is, `namespace/service#instance`.

    One that is gone stays for a while as a tombstone, so that whoever still speaks for it is told why.
    """

    address = models.TextField()
    port = models.IntegerField()
    scheme = models.TextField()
    tags = JSONTextField()
    metadata = JSONTextField()
    weight = models.IntegerField()
    # Registered by somebody who may name addresses that are not public: see discovery.addresses.
    may_be_private = models.BooleanField()
    incarnation = models.BigIntegerField(default=0)  # which registration this is
    session = models.TextField(null=True)  # whose lease the instance's is
    ttl_seconds = models.FloatField()
    registered_at = models.DateTimeField()
    # Null: with the session. Not indexed: that would make every heartbeat write the index too (no HOT update).
    expires_at = models.DateTimeField(null=True)
    status = models.TextField(default="healthy")
    reason = models.TextField(null=True)  # of its status
    protected = models.BooleanField(default=False)  # listed although it failed, because too many did
    changed_at = models.DateTimeField(null=True)  # its status
    maintenance = models.TextField(null=True)  # why it is taken out; null: it is not
    checks = JSONTextField(null=True)  # what is to be checked, and how that was found; null: nothing
    flaps = JSONTextField(null=True)  # when it failed of late, and how often it was held back for that
    held_until = models.DateTimeField(null=True)  # because it was flapping

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["session"], name="instance_session", condition=Q(session__isnull=False)),
            models.Index(fields=["id"], name="instance_checked", condition=Q(checks__isnull=False)),
            models.Index(fields=["id"], name="instance_protected", condition=Q(protected=True)),
        ]

    @property
    def service(self) -> str:
        return self.name.partition("#")[0]

    @property
    def instance(self) -> str:
        return self.name.partition("#")[2]


class Checker(models.Model):
    """A process that checks instances, and its lease: those that live share them out among themselves."""

    id = models.CharField(primary_key=True, max_length=400, db_collation="C")
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.id
