"""The tables of discovery: services and where their instances are."""

from django.db import models

from core.models import Aggregate, JSONTextField


class Service(Aggregate):
    """A service by name, and the version of its stream, `$service:<name>`."""

    version = models.BigIntegerField(default=0)

    @property
    def stream(self) -> str:
        return f"$service:{self.name}"


class Instance(Aggregate):
    """Where one instance of a service is, `namespace/service#instance`. It is healthy while somebody says so."""

    address = models.TextField()
    port = models.IntegerField()
    scheme = models.TextField()
    tags = JSONTextField()
    metadata = JSONTextField()
    weight = models.IntegerField()
    # Registered by somebody who may name addresses that are not public: see sagas.http.
    may_be_private = models.BooleanField()
    ttl_seconds = models.FloatField()
    registered_at = models.DateTimeField()
    # Not indexed: that would make every heartbeat write the index too (no HOT update).
    expires_at = models.DateTimeField()

    @property
    def service(self) -> str:
        return self.name.partition("#")[0]

    @property
    def instance(self) -> str:
        return self.name.partition("#")[2]
