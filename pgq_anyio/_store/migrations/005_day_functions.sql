-- What only the owner of the tables may do, for the role of the workers: to make a partition of finished, and to drop one.
-- They run with the rights of their owner and refuse everything but days of finished: whoever may call them can do no more
-- harm than a worker, which deletes rows of finished anyway. Nobody may call them before it is granted.
-- Whoever waits for such a lock stalls all that come after it, hence the timeout.
create function {schema}.make_finished_day(day date) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $function$
declare
    today date := (clock_timestamp() at time zone 'UTC')::date;
    name text := 'finished_' || to_char(day, 'YYYYMMDD');
begin
    if (day between today - 1 and today + 31) is not true then
        raise exception 'make_finished_day: % is not one of the days ahead', coalesce(to_char(day, 'YYYY-MM-DD'), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    -- One waits for the other, but no longer than for any lock.
    perform pg_advisory_xact_lock(hashtextextended('pgq_anyio days ' || {schema_name}, 0));
    if to_regclass(format('%I.%I', {schema_name}, name)) is not null then
        return false;
    end if;
    -- Made beside the table and attached, because "create table ... partition of" locks out everybody else.
    execute format('create table %1$I.%2$I (like %1$I.finished including all)', {schema_name}, name);
    execute format(
        'alter table %1$I.finished attach partition %1$I.%2$I for values from (%3$L) to (%4$L)',
        {schema_name}, name, to_char(day, 'YYYY-MM-DD 00:00:00+00'), to_char(day + 1, 'YYYY-MM-DD 00:00:00+00')
    );
    return true;
end
$function$;

create function {schema}.drop_finished_day(day date) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $function$
declare
    name text := 'finished_' || to_char(day, 'YYYYMMDD');
begin
    if (day < (clock_timestamp() at time zone 'UTC')::date) is not true then
        raise exception 'drop_finished_day: % has not passed', coalesce(to_char(day, 'YYYY-MM-DD'), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if not exists (
        select from pg_inherits i
        where i.inhrelid = to_regclass(format('%I.%I', {schema_name}, name))
            and i.inhparent = to_regclass(format('%I.%I', {schema_name}, 'finished'))
    ) then
        return false;
    end if;
    execute format('drop table %I.%I', {schema_name}, name);
    return true;
end
$function$;

revoke all on function {schema}.make_finished_day(date), {schema}.drop_finished_day(date) from public;
