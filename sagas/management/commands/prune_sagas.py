"""prune_sagas: forget old sagas now, rather than when a serving process comes to it."""

import asyncio
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from core.database import Pool
from sagas.services.upkeep import prune


class Command(BaseCommand):
    help = (
        "Forget the sagas that have been over for longer than SYROS_SAGA_HISTORY_DAYS, with their history. Serving "
        "processes do the same every ten minutes."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--days", type=float, help="instead of SYROS_SAGA_HISTORY_DAYS")

    def handle(self, *args: Any, **options: Any) -> None:
        days = settings.SAGA_HISTORY_DAYS if options["days"] is None else options["days"]
        self.stdout.write(f"{asyncio.run(pruned(days))} sagas are gone.")


async def pruned(days: float) -> int:
    database = Pool(1)
    await database.open()
    try:
        return await prune(days, database)
    finally:
        await database.close()
