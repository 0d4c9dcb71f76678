"""Upkeep of configuration: old history goes, where it is not kept for ever; secrets are sealed anew."""

from django.conf import settings

from config import sealing
from config.errors import UnknownSealingKey
from config.models import Entry
from core.database import Pool, pool
from core.retention import forget_history
from core.runtime import every

AT_ONCE = 200  # secrets a round
# Sealed values of revisions that are gone, and that their key is not set to.
FORGET_SEALED = f"""delete from config_sealed s using core_namespace n, config_entry e
    where n.name = split_part(s.id, '/', 1) and e.id = split_part(s.id, '#', 1)
    and split_part(s.id, '#', 2)::bigint not in (coalesce(e.sealed, 0), coalesce(e.next_sealed, 0))
    and not exists (select from core_event v where v.namespace_id = n.number
        and v.stream = '{Entry.STREAMS}' || substr(e.id, strpos(e.id, '/') + 1)
        and split_part(s.id, '#', 2) in (v.data->>'sealed', v.data->'rollout'->>'sealed'))
    returning s.id"""
OLD_SEALS = (
    "select id, token from config_sealed where id > %s and not starts_with(token, %s) order by id limit %s"
)
RESEAL = "update config_sealed set token = %s where id = %s and token = %s returning id"


async def prune(days: float, database: Pool) -> int:
    """Forget revisions that are older than so many days; how many there were. What is set stays set."""
    count = await forget_history(Entry.STREAMS, days, database)
    if count:
        await database.rows(FORGET_SEALED)
    return count


@every(600)
async def prune_in_time() -> None:
    if settings.CONFIG_HISTORY_DAYS:
        await prune(settings.CONFIG_HISTORY_DAYS, pool)


async def reseal(database: Pool) -> tuple[int, int]:
    """Seal by the first key what others sealed; how many that were, and how many none of the keys opens.

    Raises: NoSealingKey.
    """
    name, after, done, lost = sealing.name_of(sealing.first_key()), "", 0, 0
    while found := await database.rows(OLD_SEALS, [after, f"{name}.", AT_ONCE]):
        for sealed, token in found:
            after, address = sealed, sealed.partition("#")[0]
            try:
                anew = sealing.seal(sealing.unseal(token, address), address)
            except UnknownSealingKey:
                lost += 1
                continue
            done += len(await database.rows(RESEAL, [anew, sealed, token]))
    return done, lost
