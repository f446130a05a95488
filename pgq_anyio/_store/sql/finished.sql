-- name: list_days
-- The day by the database's clock (UTC), the first day that is kept, and the partitions that hold a day.
select (clock_timestamp() at time zone 'UTC')::date,
    ((clock_timestamp() - make_interval(secs => %(retention)s::double precision)) at time zone 'UTC')::date,
    array(
        select c.relname::text
        from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
        join pg_catalog.pg_class p on p.oid = i.inhparent
        join pg_catalog.pg_namespace n on n.oid = p.relnamespace
        where n.nspname = {schema_name} and p.relname = 'finished' and c.relnamespace = n.oid
            and c.relname ~ '^finished_[0-9]{{8}}$'
        order by c.relname
    )

-- name: is_in_default
-- Whether the default partition holds a part of the day: PostgreSQL refuses a partition for it then.
select exists (
    select from {schema}.finished_default f
    where f.finished_at >= %(starts_at)s::timestamptz and f.finished_at < %(ends_at)s::timestamptz
)

-- name: make_day
select {schema}.make_finished_day(%(day)s::date)

-- name: drop_day
select {schema}.drop_finished_day(%(day)s::date)

-- name: prune_default
-- In batches: a long transaction would keep all other tables from being vacuumed.
with old as materialized (
    select f.ctid as tid from {schema}.finished_default f
    where f.finished_at < now() - make_interval(secs => case f.status
        when 'successful' then %(successful)s::double precision
        when 'failed' then %(failed)s::double precision
        else %(cancelled)s::double precision
    end)
    order by f.finished_at limit %(limit)s::integer
    for update skip locked
)
delete from {schema}.finished_default f where f.ctid = any (array(select tid from old))

-- name: count_blocks
-- How large a partition is; 0 for one that has gone.
select coalesce(max(pg_relation_size(c.oid) / current_setting('block_size')::bigint), 0)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = {schema_name} and c.relname = %(name)s::text

-- name: sweep_day
-- Old rows of some blocks of one day, which its bounds choose among the partitions. Nothing else bounds the work of a
-- statement: there is no index on the time, and a search from the start of the table would walk over all that earlier
-- batches have deleted.
with old as materialized (
    select f.ctid as tid from {schema}.finished f
    where f.finished_at >= %(starts_at)s::timestamptz and f.finished_at < %(ends_at)s::timestamptz
        and f.ctid >= ('(' || %(first)s::bigint || ',0)')::tid and f.ctid < ('(' || %(until)s::bigint || ',0)')::tid
        and f.finished_at < now() - make_interval(secs => case f.status
            when 'successful' then %(successful)s::double precision
            when 'failed' then %(failed)s::double precision
            else %(cancelled)s::double precision
        end)
    for update skip locked
)
delete from {schema}.finished f
where f.ctid = any (array(select tid from old))
    and f.finished_at >= %(starts_at)s::timestamptz and f.finished_at < %(ends_at)s::timestamptz

-- name: prune_errors
-- Not those of jobs that have not ended, however old: their record will tell of them; nor those that a record tells of.
with old as materialized (
    select e.ctid as tid from {schema}.attempt_error e
    where e.failed_at < now() - make_interval(secs => %(retention)s::double precision)
        and not exists (select from {schema}.deferred d where d.job_id = e.job_id)
        and not exists (select from {schema}.queued q where q.job_id = e.job_id)
        and not exists (select from {schema}.running r where r.job_id = e.job_id)
        and (select f.job_id from {schema}.finished f where f.job_id = e.job_id limit 1) is null
    order by e.failed_at limit %(limit)s::integer
    for update of e skip locked
)
delete from {schema}.attempt_error e where e.ctid = any (array(select tid from old))

-- name: prune_cancels
-- Not those of jobs that run, nor those that a record tells of: it says who has cancelled.
with old as materialized (
    select c.ctid as tid from {schema}.cancel_request c
    where c.requested_at < now() - make_interval(secs => %(retention)s::double precision)
        and not exists (select from {schema}.running r where r.job_id = c.job_id)
        and (select f.job_id from {schema}.finished f where f.job_id = c.job_id limit 1) is null
    order by c.requested_at limit %(limit)s::integer
    for update of c skip locked
)
delete from {schema}.cancel_request c where c.ctid = any (array(select tid from old))
