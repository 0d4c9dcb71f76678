"""reseal_config: seal every secret by the first of SYROS_CONFIG_KEYS, so that the others can go."""

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.services.upkeep import reseal
from core.database import Pool
from core.errors import SyrosError


class Command(BaseCommand):
    help = (
        "Seal every secret of the configuration by the first of SYROS_CONFIG_KEYS. To rotate: put the new key before "
        "the old ones, restart every process, run this, and take the old ones away."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            done, lost = asyncio.run(resealed())
        except SyrosError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{done} secrets are sealed anew.")
        if lost:
            raise CommandError(f"{lost} secrets are sealed by keys that are not here.")


async def resealed() -> tuple[int, int]:
    database = Pool(1)
    await database.open()
    try:
        return await reseal(database)
    finally:
        await database.close()
