"""API keys. Users are Django's own."""

from django.db import models

from core.models import Aggregate


class ApiKey(Aggregate):
    """A key by which a service calls. Only the HMAC of its secret is kept; the key is shown once."""

    key_id = models.CharField(max_length=12, unique=True)  # the part that names it, also in the address
    title = models.CharField(max_length=255)
    digest = models.CharField(max_length=64)
    created_by = models.TextField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "API key"
