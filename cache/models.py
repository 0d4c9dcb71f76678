"""The table of the cache: what a namespace has set, and how many invalidations its log has."""

from django.db import models

from core.models import Aggregate

NAME = "cache"  # of a namespace's one row


class Cache(Aggregate):
    """A namespace's cache. `version` is that of its stream, `$cache`."""

    version = models.BigIntegerField(default=0)
    default_ttl_seconds = models.FloatField(default=300.0)
    max_ttl_seconds = models.FloatField(default=604_800.0)
    max_value_bytes = models.IntegerField(default=1 << 20)
    quota_bytes = models.BigIntegerField(null=True)
    on_error = models.TextField(choices=[("miss", "miss"), ("error", "error")], default="miss")

    class Meta:
        verbose_name_plural = "caches"

    @property
    def stream(self) -> str:
        return "$cache"
