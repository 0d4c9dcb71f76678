"""prune_locks: forget old lock history now, rather than when a serving process comes to it."""

import asyncio
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from core.database import Pool
from locks.services.upkeep import prune


class Command(BaseCommand):
    help = (
        "Forget the history of locks, elections and sessions that is older than SYROS_LOCK_HISTORY_DAYS, and the rows "
        "of locks that have been idle since. Serving processes do the same every ten minutes."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--days", type=float, help="instead of SYROS_LOCK_HISTORY_DAYS")

    def handle(self, *args: Any, **options: Any) -> None:
        days = settings.LOCK_HISTORY_DAYS if options["days"] is None else options["days"]
        events, locks = asyncio.run(pruned(days))
        self.stdout.write(f"{events} events and {locks} idle locks are gone.")


async def pruned(days: float) -> tuple[int, int]:
    database = Pool(1)
    await database.open()
    try:
        return await prune(days, database)
    finally:
        await database.close()
