"""Old history of configuration goes, where it is not kept for ever."""

from django.conf import settings

from core.database import Pool, pool
from core.retention import forget_history
from core.runtime import every

STREAMS = "$config:"


async def prune(days: float, database: Pool) -> int:
    """Forget revisions that are older than so many days; how many there were. What is set stays set."""
    return await forget_history(STREAMS, days, database)


@every(600)
async def prune_in_time() -> None:
    if settings.CONFIG_HISTORY_DAYS:
        await prune(settings.CONFIG_HISTORY_DAYS, pool)
