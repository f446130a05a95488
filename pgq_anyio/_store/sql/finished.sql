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

-- name: prune_default
-- In batches: a long transaction would keep all other tables from being vacuumed.
with old as materialized (
    select f.ctid as tid from {schema}.finished_default f
    where f.finished_at < clock_timestamp() - make_interval(secs => %(retention)s::double precision)
    order by f.finished_at limit %(limit)s::integer
    for update skip locked
)
delete from {schema}.finished_default f where f.ctid = any (array(select tid from old))

-- name: prune_errors
with old as materialized (
    select e.ctid as tid from {schema}.attempt_error e
    where e.failed_at < clock_timestamp() - make_interval(secs => %(retention)s::double precision)
    order by e.failed_at limit %(limit)s::integer
    for update skip locked
)
delete from {schema}.attempt_error e where e.ctid = any (array(select tid from old))
