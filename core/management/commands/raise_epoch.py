"""raise_epoch: for the operator who restored a dump, or failed over where the database does not tell."""

from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.db.models import F

from core.engine import renew_leases
from core.models import Cluster


class Command(BaseCommand):
    help = (
        "Raise the epoch by one, so that every fencing token given out from now on is larger than all before, "
        "also than those that the restored database does not know of. Every lease gets its whole time again. "
        "It holds from the next command on."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            Cluster.objects.update(epoch=F("epoch") + 1)
            renew_leases(cursor)
        self.stdout.write(f"epoch {Cluster.objects.get().epoch}")
