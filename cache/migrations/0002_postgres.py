from django.db import migrations

# Unlogged: a crash empties all of them together, values with the clocks by which they are judged, and neither a standby nor
# a base backup has them. Then a new generation begins, and all there was is a miss.
ITEMS = """
create unlogged table cache_item (
    namespace_id integer not null,
    key text collate "C" not null,
    generation text not null default '',
    as_of bigint not null default 0,
    written bigint not null default 0,
    created bigint not null default 0,
    fresh bigint not null default 0,
    ends bigint not null default 0,
    etag text not null default '',
    kind text not null default '',
    tags text[] not null default '{}',
    data bytea not null default '',
    gone bigint not null default 0,
    gone_ends bigint not null default 0,
    lease text not null default '',
    lease_ends bigint not null default 0,
    useless_at bigint generated always as (greatest(ends, gone_ends, lease_ends)) stored,
    primary key (namespace_id, key)
) with (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_threshold = 1000, toast.autovacuum_vacuum_cost_delay = 0
);
-- What is large comes compressed.
alter table cache_item alter column data set storage external;
create index cache_item_useless on cache_item (useless_at);
"""
# The row without a tag is the namespace's own. Every put changes it, and room on its page makes that cheap (HOT).
CLOCKS = """
create unlogged table cache_clock (
    namespace_id integer not null,
    tag text collate "C" not null,
    hard bigint not null,
    soft bigint not null default 0,
    floor bigint not null default 0,
    applied bigint not null default 0,
    generation text not null default '',
    at timestamptz not null default statement_timestamp(),
    primary key (namespace_id, tag)
) with (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
create index cache_clock_age on cache_clock (namespace_id, at) where tag <> '';
"""
COUNTS = """
create unlogged table cache_count (
    namespace_id integer not null,
    name text collate "C" not null,
    number bigint not null,
    primary key (namespace_id, name)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
"""


class Migration(migrations.Migration):
    dependencies = [("cache", "0001_initial")]
    operations = [
        migrations.RunSQL(ITEMS, "drop table cache_item"),
        migrations.RunSQL(CLOCKS, "drop table cache_clock"),
        migrations.RunSQL(COUNTS, "drop table cache_count"),
    ]
