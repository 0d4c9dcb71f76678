-- A fencing guard for your own MySQL or MariaDB (InnoDB). Install it once, with the `mysql` client, for `delimiter`:
--
--     mysql mydatabase < this-file
--
-- Then, in every transaction that writes what a lock protects, call it FIRST, before anything is read or written:
--
--     start transaction;
--     call syros_guard('orders/7', 1099511627777);  -- the resource, and the fencing_token of your grant
--     update orders set state = 'shipped' where id = 7;
--     commit;
--
-- It takes a token that is at least the largest that this resource has seen, and remembers it. A smaller one is that
-- of a holder whose lock has passed on: it raises SQLSTATE 45000 with `stale fencing token`. MySQL leaves the
-- transaction open after an error: ROLL BACK then. Who goes on after the error and commits has no guard.
--
-- Two transactions at once: the second waits for the row of the first, then compares with what was committed, or with
-- what was there before if the first rolled back; under every isolation level, since both statements below read the
-- row itself and no snapshot. But what you read BEFORE the call may be old by then, under REPEATABLE READ for the whole
-- transaction: MySQL does not tell. An error 1213 (deadlock), 1205 or 1020 is no refusal: begin anew.
--
-- For exclusive locks only. Of a shared lock or a semaphore several tokens are alive at once, and this guard would
-- refuse all holders but the newest. Who guards several resources in one transaction guards them in sorted order, or
-- two may wait for each other.

create table if not exists syros_guard (
    resource varchar(255) character set utf8mb4 collate utf8mb4_bin not null primary key,
    token bigint not null,
    guarded_at timestamp(6) not null default current_timestamp(6)
) engine = InnoDB;

drop procedure if exists syros_guard;

-- A procedure: with the binary log on, a function that writes needs more than the usual rights.
delimiter //
create procedure syros_guard(
    in resource_name varchar(255) character set utf8mb4 collate utf8mb4_bin, in fencing_token bigint
)
modifies sql data
sql security invoker
begin
    declare seen bigint;
    declare refusal varchar(512) character set utf8mb4;
    -- Assigned from left to right: the time is decided by the token that was there before.
    insert into syros_guard (resource, token) values (resource_name, fencing_token)
    on duplicate key update
        guarded_at = if(fencing_token >= token, current_timestamp(6), guarded_at),
        token = greatest(token, fencing_token);
    select token into seen from syros_guard where resource = resource_name for update;
    if seen > fencing_token then
        set refusal = concat('stale fencing token ', fencing_token, ': ', seen, ' has been seen of ', resource_name);
        set refusal = left(refusal, 128);
        signal sqlstate '45000' set message_text = refusal;
    end if;
end //
delimiter ;
