"""Old history goes: events of system streams of a kind, once they are older than that kind is kept.

Positions stay what they are, so what is gone leaves gaps. How far a kind is gone is noted: who goes on at a position
before that, and wants that kind, is told rather than served with gaps.
"""

from core.database import Pool, pool
from core.models import between

AT_ONCE = 5000  # events that a statement looks at
# The next events of a log that are old enough, whatever they are: each is looked at once. The last event of a log
# stays, because it says where the log ends.
OLD = """select max(id) from (select id, recorded_at from core_event
    where id > greatest(%(after)s, %(number)s::bigint << 40) and id < (
        select max(id) from core_event where id < (%(number)s::bigint + 1) << 40)
    order by id limit %(limit)s) next where recorded_at < statement_timestamp() - %(days)s * interval '1 day'"""
FORGET = """with gone as (delete from core_event where id > %(after)s and id <= %(until)s
        and id > %(number)s::bigint << 40 and stream >= %(prefix)s and stream < %(prefix)s || '~' returning id),
    noted as (insert into core_retention (id, position) values (%(noted)s, %(until)s & ((1::bigint << 40) - 1))
        on conflict (id) do update set position = greatest(core_retention.position, excluded.position))
select count(*) from gone"""
KNOWN = """select n.number, n.name, coalesce(r.position, 0) from core_namespace n
    left join core_retention r on r.id = n.name || '/' || %s"""
PRUNED = "select coalesce(max(position), 0) from core_retention where id >= %s and id < %s"


async def forget_history(prefix: str, days: float, database: Pool) -> int:
    """Delete the events of streams whose names begin so and that are older than so many days; how many there were."""
    count = 0
    for number, name, position in await database.rows(KNOWN, [prefix]):
        after = (number << 40) + position
        while until := await next_old(number, after, days, database):
            values = {
                "number": number,
                "after": after,
                "until": until,
                "prefix": prefix,
                "noted": f"{name}/{prefix}",
            }
            ((gone,),) = await database.rows(FORGET, values)
            count, after = count + gone, until
    return count


async def next_old(number: int, after: int, days: float, database: Pool) -> int | None:
    """Up to where the next page of a log is old."""
    values = {"number": number, "after": after, "limit": AT_ONCE, "days": days}
    ((until,),) = await database.rows(OLD, values)
    found: int | None = until
    return found


async def pruned(namespace: str, kind: str = "") -> int:
    """Up to which position some of a namespace's system streams are gone whose names begin so."""
    ((position,),) = await pool.rows(PRUNED, between(namespace, kind))
    found: int = position
    return found
