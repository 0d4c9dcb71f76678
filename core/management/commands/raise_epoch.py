"""raise_epoch: for the operator who restored a dump, or failed over where the database does not tell."""

from typing import Any

from django.core.management.base import BaseCommand
from django.db.models import F

from core.models import Cluster


class Command(BaseCommand):
    help = (
        "Raise the epoch by one, so that every fencing token given out from now on is larger than all before, "
        "also than those that the restored database does not know of. It holds from the next command on."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        Cluster.objects.update(epoch=F("epoch") + 1)
        self.stdout.write(f"epoch {Cluster.objects.get().epoch}")
