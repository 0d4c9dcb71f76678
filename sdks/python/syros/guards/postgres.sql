-- A fencing guard for your own PostgreSQL (9.5 or newer). Install it once, as the role that owns your tables:
--
--     psql mydatabase < this-file
--
-- Then, in every transaction that writes what a lock protects, call it FIRST, before anything is read or written:
--
--     begin;
--     select syros_guard('orders/7', 1099511627777);  -- the resource, and the fencing_token of your grant
--     update orders set state = 'shipped' where id = 7;
--     commit;
--
-- It takes a token that is at least the largest that this resource has seen, and remembers it. A smaller one is that
-- of a holder whose lock has passed on: it raises SQLSTATE SY409, and PostgreSQL refuses the rest of the transaction.
--
-- Two transactions at once: the second waits for the row of the first, then compares with what was committed, or with
-- what was there before if the first rolled back. Under REPEATABLE READ and SERIALIZABLE it may get 40001 (could not
-- serialize) instead, as always there: begin anew, and it is compared.
--
-- For exclusive locks only. Of a shared lock or a semaphore several tokens are alive at once, and this guard would
-- refuse all holders but the newest. Who guards several resources in one transaction guards them in sorted order, or
-- two may wait for each other.

create table if not exists syros_guard (
    resource text primary key,
    token bigint not null check (token > 0),
    guarded_at timestamptz not null default clock_timestamp()
);

create or replace function syros_guard(resource_name text, fencing_token bigint) returns void
language plpgsql
set search_path from current  -- the table beside it, whatever path the caller has
as $$
begin
    insert into syros_guard as guard (resource, token) values (resource_name, fencing_token)
    on conflict (resource) do update set token = excluded.token, guarded_at = excluded.guarded_at
    where guard.token <= excluded.token;
    if not found then
        -- The row is locked by now, also where it was not updated: this is what it was compared with.
        raise exception 'stale fencing token % of %: % has been seen', fencing_token, resource_name,
            (select guard.token from syros_guard guard where guard.resource = resource_name)
            using errcode = 'SY409', hint = 'The lock has passed to another holder. Take it again.';
    end if;
end
$$;
