-- A fencing guard for your own SQLite (3.24 or newer). Install it once:
--
--     sqlite3 my.db < this-file
--
-- SQLite has no functions of one's own; what is called is an insert into a view. In every transaction that writes what
-- a lock protects, do it FIRST, before anything is read or written:
--
--     begin immediate;
--     insert into syros_guard_call (resource, token) values ('orders/7', 1099511627777);  -- your grant's fencing_token
--     update orders set state = 'shipped' where id = 7;
--     commit;
--
-- It takes a token that is at least the largest that this resource has seen, and remembers it. A smaller one is that
-- of a holder whose lock has passed on: it fails with `stale fencing token`. SQLite leaves the transaction open after
-- an error: ROLL BACK then. Who goes on after the error and commits has no guard.
--
-- Two transactions at once: SQLite has one writer at a time, and the insert is a write. With a busy timeout the second
-- waits for the first, then compares with what was committed. SQLITE_BUSY is no refusal: begin anew.
--
-- For exclusive locks only. Of a shared lock or a semaphore several tokens are alive at once, and this guard would
-- refuse all holders but the newest.

create table if not exists syros_guard (
    resource text not null primary key,
    token integer not null check (typeof(token) = 'integer' and token > 0),
    guarded_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

create view if not exists syros_guard_call as select resource, token from syros_guard;

create trigger if not exists syros_guard_call instead of insert on syros_guard_call
begin
    select raise(abort, 'stale fencing token') from syros_guard
    where resource = new.resource and token > new.token;
    insert into syros_guard (resource, token) values (new.resource, new.token)
    on conflict (resource) do update set token = excluded.token, guarded_at = excluded.guarded_at;
end;
