"""Old sagas go: those that have been over for long, with everything that was said of them."""

from django.conf import settings

from core.database import Pool, pool
from core.runtime import every

# Sagas, and the events of their streams. The last event of a log stays, because it says where the log ends; how far
# the kind is gone is noted for who goes on there (core.retention).
FORGET = """with old as (
    select id from sagas_saga where finished_at < statement_timestamp() - %s * interval '1 day'
    order by finished_at limit 500 for update skip locked
), gone as (delete from sagas_saga s using old where s.id = old.id returning s.id
), streams as (select n.number, n.name, '$saga:' || split_part(g.id, '/', 2) as stream
    from gone g join core_namespace n on n.name = split_part(g.id, '/', 1)
), events as (delete from core_event e using streams s
    where e.namespace_id = s.number and e.stream = s.stream and e.id < (select max(l.id) from core_event l
        where l.id > s.number::bigint << 40 and l.id < (s.number::bigint + 1) << 40)
    returning e.id, s.name
), noted as (insert into core_retention (id, position)
    select name || '/$saga:', max(id & ((1::bigint << 40) - 1)) from events group by name
    on conflict (id) do update set position = greatest(core_retention.position, excluded.position))
select count(*) from gone"""


async def prune(days: float, database: Pool) -> int:
    """Forget the sagas that have been over for so many days; how many there were."""
    count = 0
    while gone := (await database.rows(FORGET, [days]))[0][0]:
        count += gone
    return count


@every(600)
async def prune_in_time() -> None:
    await prune(settings.SAGA_HISTORY_DAYS, pool)
