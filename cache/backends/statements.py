"""The statements of the cache in PostgreSQL: each is one atomic step, as a script is in Redis.

`clock` is the namespace's own row: read, or counted up. Who counts up waits for the others who do until they are
done, so readings of the clock are in the order of commits. Who only reads waits for nobody: what it sees is one
snapshot, with values and the clocks of their tags from the same moment. A value is as old as the reading of the clock
with which its load began, and is compared with its tags whenever it is read: one that was written by a statement whose
snapshot is older than an invalidation is written in vain.

What decides whether a row is replaced stands in `on conflict`: there the row is seen as it is now.
"""

LONGEST_LOAD = 300_000  # ms from a miss to the put that answers it
SLACK = 20_000  # ms that a statement may run, and more
OVERHEAD = 120  # bytes that are kept of an item beside its key and value
NOW = "floor(extract(epoch from statement_timestamp()) * 1000)::bigint"
SPACE = "%(space)s::int"
ROW = f"namespace_id = {SPACE} and key = %(key)s::text"
ABOUT = f"generation, hard as at, soft, floor, applied, {NOW} as now"
READ = f"""clock as materialized (
    select {ABOUT} from cache_clock where namespace_id = {SPACE} and tag = ''
)"""
TICK = f"""clock as (
    update cache_clock set hard = hard + 1 where namespace_id = {SPACE} and tag = '' returning {ABOUT}
)"""

# -- of a row of cache_item --------------------------------------------------------------------------

TAG_CLOCKS = """from cache_clock t
    where t.namespace_id = cache_item.namespace_id and t.tag = any(cache_item.tags)"""
LIVE = f"""(
    cache_item.generation = (select generation from clock) and cache_item.ends > (select now from clock)
    and not exists (select {TAG_CLOCKS} and t.hard > cache_item.as_of)
    and not ((select floor from clock) > cache_item.as_of and cardinality(cache_item.tags) > 0)
)"""
SOFTLY = f"""(
    (select soft from clock) > cache_item.as_of
    and exists (select {TAG_CLOCKS} and t.soft > cache_item.as_of)
)"""
STATE = f"""case when not {LIVE} then 'miss'
    when cache_item.fresh <= (select now from clock) or {SOFTLY} then 'stale' else 'hit' end"""
SIZE = f"octet_length(cache_item.data) + octet_length(cache_item.key) + {OVERHEAD}"
HEAD = "created, fresh, ends, etag, kind, tags"

# -- reading -----------------------------------------------------------------------------------------

SEEN = f"""select clock.generation, clock.at, clock.now, coalesce(item.state, 'miss') as state, {HEAD},
        case when item.state <> 'miss' then item.data end as data, coalesce(item.lease_ends, 0) - clock.now as lease_ms
    from clock left join lateral (
        select *, {STATE} as state from cache_item where {ROW}
    ) item on true"""
GET = f"with {READ} {SEEN}"
PEEK = f"with {READ}, seen as ({SEEN}) select generation, state, lease_ms from seen"
# The one who gets the lease is the first to write it into the row.
LEASE = f"""with {READ}, seen as materialized ({SEEN}), taken as (
    insert into cache_item (namespace_id, key, generation, lease, lease_ends)
    select {SPACE}, %(key)s::text, generation, concat_ws('.', at, now, generation, %(token)s::text),
        now + %(lease_ms)s::bigint
    from seen where state <> 'hit'
    on conflict (namespace_id, key) do update set lease = excluded.lease, lease_ends = excluded.lease_ends
    where cache_item.lease_ends <= (select now from clock)
        or split_part(cache_item.lease, '.', 3) <> (select generation from clock)
    returning lease
) select seen.*, taken.lease from seen left join taken on true"""
MANY = f"""with {READ}, found as (
    select clock.generation, clock.at, clock.now, coalesce(item.state, 'miss') as state, {HEAD}, data, asked.number,
        sum(case when item.state <> 'miss' then octet_length(item.data) end) over (order by asked.number) as so_far
    from clock cross join unnest(%(keys)s::text[]) with ordinality as asked (key, number)
    left join lateral (
        select cache_item.*, {STATE} as state from cache_item
        where cache_item.namespace_id = {SPACE} and cache_item.key = asked.key
    ) item on true
)
select generation, at, now, case when state <> 'miss' and so_far > %(enough)s::bigint then 'left' else state end,
    {HEAD}, case when state <> 'miss' and so_far <= %(enough)s::bigint then data end
from found order by number"""
PAGE = f"""with {READ}, page as (
    select * from cache_item where namespace_id = {SPACE} and key > %(after)s::text
        and key >= %(prefix)s::text and key < %(prefix)s::text || chr(1114111)
    order by key limit %(limit)s::int
)
select (select generation from clock), {STATE}, {HEAD}, ({SIZE})::bigint, key
from page as cache_item order by key"""

# -- writing -----------------------------------------------------------------------------------------


def put(clock: str, as_of: str, begun: str, refused: str, kept: str) -> str:
    """Parameters: `as_of`, a reading of the clock; `begun`, when that was; `refused` says why a load is, or null;
    `kept`, until when the row stays although its value has run out: a load that began before it must find it."""
    return f"""with {clock}, late as (
    select tag from cache_clock where namespace_id = {SPACE} and tag = any(%(tags)s::text[])
        and hard > %(at)s::bigint limit 1
), old as (
    select etag, gone, written, begun, generation, {LIVE} as is_live from cache_item where {ROW}
), verdict as (
    select clock.*, old.etag, case
        when %(absent)s::bool and old.is_live then 'present'
        when %(if_etag)s::text <> '' and (old.is_live and old.etag = %(if_etag)s::text) is not true then 'changed'
        else {refused}
    end as reason
    from clock left join old on true
), stored as (
    insert into cache_item (namespace_id, key, generation, as_of, written, begun, created, fresh, ends, etag, kind,
        tags, data, gone_ends)
    select {SPACE}, %(key)s::text, generation, {as_of}, {as_of}, {begun}, now, now + %(ttl)s::bigint,
        now + %(ttl)s::bigint + %(stale)s::bigint, %(etag)s::text, %(kind)s::text, %(tags)s::text[], %(data)s::bytea,
        {kept}
    from verdict where reason is null
    on conflict (namespace_id, key) do update set
        generation = excluded.generation, as_of = excluded.as_of, written = excluded.written, begun = excluded.begun,
        created = excluded.created, fresh = excluded.fresh, ends = excluded.ends, etag = excluded.etag,
        kind = excluded.kind, tags = excluded.tags, data = excluded.data,
        gone = case when cache_item.generation = excluded.generation then cache_item.gone else 0 end,
        gone_ends = greatest(cache_item.gone_ends, excluded.gone_ends),
        lease_ends = case when cache_item.lease = %(lease)s::text then 0 else cache_item.lease_ends end
    where (cache_item.generation <> excluded.generation
            or (greatest(cache_item.gone, cache_item.written) <= excluded.as_of
                and (cache_item.written, cache_item.begun) <= (excluded.written, excluded.begun)))
        and (not %(absent)s::bool or not {LIVE})
        and (%(if_etag)s::text = '' or (cache_item.etag = %(if_etag)s::text and {LIVE}))
    returning fresh
), given_back as (
    update cache_item set lease_ends = 0 where {ROW} and lease <> '' and lease = %(lease)s::text
        and (select reason from verdict) is not null
)
select generation, reason, case when reason = 'present' or reason = 'changed' then coalesce(etag, '')
    else (select tag from late) end, (select fresh from stored)
from verdict"""


DIRECT = put(TICK, "at", "now", "null", f"now + {LONGEST_LOAD + SLACK}")
LOADED = put(
    READ,
    "%(at)s::bigint",
    "%(begun)s::bigint",
    f"""case when clock.generation <> %(generation)s::text or clock.at < %(at)s::bigint then 'generation'
        when clock.now - %(begun)s::bigint > {LONGEST_LOAD} then 'too_old'
        when exists (select from late) then 'invalidated'
        when clock.floor > %(at)s::bigint and cardinality(%(tags)s::text[]) > 0 then 'invalidated'
        when old.generation = clock.generation and old.gone > %(at)s::bigint then 'deleted'
        when old.generation = clock.generation
            and (old.written, old.begun) > (%(at)s::bigint, %(begun)s::bigint) then 'newer' end""",
    "0",
)
# The row stays as long as a load may take that began before.
DELETE = f"""with {TICK}
insert into cache_item (namespace_id, key, generation, gone, gone_ends)
select {SPACE}, %(key)s::text, generation, at, now + {LONGEST_LOAD + SLACK} from clock
on conflict (namespace_id, key) do update set
    kind = case when {LIVE} then 'was' else '' end, generation = excluded.generation,
    as_of = 0, written = 0, created = 0, fresh = 0, ends = 0, etag = '', tags = '{{}}', data = '',
    gone = excluded.gone, gone_ends = excluded.gone_ends, lease = '', lease_ends = 0
returning generation, kind = 'was'"""
TOUCH = f"""with {READ}, touched as (
    update cache_item set
        fresh = (select now from clock) + %(ttl)s::bigint,
        ends = (select now from clock) + %(ttl)s::bigint + %(stale)s::bigint,
        as_of = case when {SOFTLY} then as_of else (select at from clock) end
    where {ROW} and {LIVE}
    returning fresh, etag
) select generation, at, now, fresh, etag from clock left join touched on true"""

TEXT = "encode(cache_item.data, 'escape')"
IS_NUMBER = f"(cache_item.kind = 'j-' and {TEXT} ~ '^-?[0-9]{{1,16}}$')"
# Nothing is added to what is too large already: in Redis it is not exact.
SUM = f"""(case when not {LIVE} then %(first)s::bigint
    when {IS_NUMBER} then case when abs({TEXT}::bigint) <= %(largest)s::bigint
        then {TEXT}::bigint + %(by)s::bigint end end)"""
# Of a number that was counted, the etag stands for the hash that this server cannot make: `~` and the number.
INCR = f"""with {TICK}
insert into cache_item (namespace_id, key, generation, as_of, written, created, fresh, ends, etag, kind, tags, data,
    gone_ends)
select {SPACE}, %(key)s::text, generation, at, at, now, now + %(ttl)s::bigint, now + %(ttl)s::bigint,
    '~' || %(first)s::bigint, 'j-', %(tags)s::text[], convert_to((%(first)s::bigint)::text, 'UTF8'),
    now + {LONGEST_LOAD + SLACK}
from clock where abs(%(first)s::bigint) <= %(largest)s::bigint or exists (select from cache_item where {ROW})
on conflict (namespace_id, key) do update set
    (as_of, created, fresh, ends, tags, etag, data) = (
        select case when live then cache_item.as_of else excluded.as_of end,
            case when live then cache_item.created else excluded.created end,
            case when live then cache_item.fresh else excluded.fresh end,
            case when live then cache_item.ends else excluded.ends end,
            case when live then cache_item.tags else excluded.tags end,
            '~' || number, convert_to(number::text, 'UTF8')
        from (select {LIVE} as live, {SUM} as number) as counted
    ),
    kind = 'j-', generation = excluded.generation, written = excluded.written, gone_ends = excluded.gone_ends,
    gone = case when cache_item.generation = excluded.generation then cache_item.gone else 0 end
where abs({SUM}) <= %(largest)s::bigint
returning etag, fresh"""

# -- clocks ------------------------------------------------------------------------------------------

INVALIDATE = f"""with clock as (
    update cache_clock set hard = hard + 1, soft = case when %(softly)s::bool then hard + 1 else soft end,
        applied = case when applied = %(version)s::bigint - 1 then applied + 1 else applied end
    where namespace_id = {SPACE} and tag = '' returning generation, hard as at
), marked as (
    insert into cache_clock (namespace_id, tag, hard, soft)
    select {SPACE}, tag, case when %(softly)s::bool then 0 else at end, case when %(softly)s::bool then at else 0 end
    from clock, (select distinct unnest(%(tags)s::text[]) as tag) as given
    on conflict (namespace_id, tag) do update set hard = greatest(cache_clock.hard, excluded.hard),
        soft = greatest(cache_clock.soft, excluded.soft), at = excluded.at
) select generation from clock"""
APPLIED = f"with {READ} select generation, applied from clock"
# How far the log reaches is read in the snapshot, before the generation begins: all that is logged later is applied to
# it, and what was logged before is older than everything in it.
SETTLE = f"""insert into cache_clock (namespace_id, tag, hard, generation, applied)
select {SPACE}, '', 1, %(generation)s::text, coalesce((select version from cache_cache where id = %(cache)s::text), 0)
on conflict (namespace_id, tag) do """
BEGIN = f"{SETTLE} nothing returning 1"
# The clock goes on: what is left of the tags then makes nothing valid.
BEGIN_ANEW = f"""{SETTLE} update set
    hard = cache_clock.hard + 1, generation = excluded.generation, applied = excluded.applied
returning 1"""

# -- clearing away -----------------------------------------------------------------------------------

CLEAN = f"""delete from cache_item where ctid = any(array(
    select ctid from cache_item where useless_at <= {NOW} order by useless_at limit %(limit)s::int
    for update skip locked
)) returning 1"""
RAISE_FLOOR = f"""with oldest as (
    select greatest(hard, soft) as at from cache_clock where namespace_id = {SPACE} and tag <> ''
    order by cache_clock.at limit least(%(limit)s::int, greatest(0, (
        select count(*) - %(most)s::bigint from cache_clock where namespace_id = {SPACE} and tag <> '')))
)
update cache_clock set floor = greatest(floor, (select max(at) from oldest))
where namespace_id = {SPACE} and tag = '' and exists (select from oldest) returning floor"""
FORGET = f"""delete from cache_clock where ctid = any(array(
    select ctid from cache_clock where namespace_id = {SPACE} and tag <> '' and (
        at < statement_timestamp() - %(oldest_ms)s::bigint * interval '1 ms'
        or greatest(hard, soft) <= (select floor from cache_clock where namespace_id = {SPACE} and tag = ''))
    order by at limit %(limit)s::int for update skip locked
)) returning 1"""

# -- counting ----------------------------------------------------------------------------------------

USED = f"""select coalesce(sum({SIZE}), 0)::bigint from cache_item
where namespace_id = {SPACE} and ends > {NOW} and key <> %(key)s::text"""
ADD = f"""insert into cache_count (namespace_id, name, number)
select {SPACE}, name, number from unnest(%(names)s::text[], %(numbers)s::bigint[]) as given (name, number) order by name
on conflict (namespace_id, name) do update set number = cache_count.number + excluded.number returning 1"""
COUNTS = f"select name, number from cache_count where namespace_id = {SPACE}"
