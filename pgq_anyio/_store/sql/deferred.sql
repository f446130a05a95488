-- name: promote_due
-- Move jobs that are due by the database's clock, and say when the next one is. Jobs of every name are moved: the state of a
-- job does not depend on who happens to run.
-- One moves at a time, for places in the queue are allotted here: of two that did so at once, the one with the later jobs
-- might be ahead. A second one moves nothing, and does not wait.
-- Among those that are due the highest priority is moved first, and within a priority, what became due first. After a long
-- time without any worker that is more than one look can see: it is looked at in the order of becoming due, a window at a
-- time. How much is moved at once is bounded, in bytes too.
-- One look at the clock: what becomes due while the statement runs is not moved any more, so it has to be the next one.
-- By a subquery, for a volatile function is no condition of an index: every job that is not due would be walked.
-- The scan starts behind a job before which all have been moved (its run_at and id): their entries are never walked,
-- whatever old snapshot keeps them.
with turn as materialized (
    select pg_try_advisory_xact_lock(hashtextextended('pgq_anyio promotion in ' || {schema_name}, 0)) as is_ours,
        clock_timestamp() as now
), due as materialized (
    select d.ctid as tid, d.run_at, d.job_id, d.priority, coalesce(octet_length(d.payload), 0) as size
    from {schema}.deferred d
    where (select is_ours from turn) and d.run_at <= (select now from turn)
        and (d.run_at, d.job_id) > (%(moved_run_at)s::timestamptz, %(moved_job_id)s::bigint)
    order by d.run_at, d.job_id limit %(window)s::integer
), chosen as materialized (
    select f.*
    from (
        select f.*, sum(f.size) over (order by f.priority desc, f.run_at, f.job_id) - f.size as size_before
        from (select * from due order by priority desc, run_at, job_id limit %(limit)s::integer) f
    ) f
    where f.size_before < %(bytes)s::bigint
), last_chosen as materialized (
    select priority, run_at, job_id from chosen order by priority, run_at desc, job_id desc limit 1
), first_left as materialized (
    select d.run_at, d.job_id from due d join last_chosen l
        on d.priority < l.priority or (d.priority = l.priority and (d.run_at, d.job_id) > (l.run_at, l.job_id))
    order by d.run_at, d.job_id limit 1
), last_before as materialized (
    select d.run_at, d.job_id from due d
    where not exists (select from first_left l where (d.run_at, d.job_id) >= (l.run_at, l.job_id))
    order by d.run_at desc, d.job_id desc limit 1
), locked as materialized (
    select d.ctid as tid from chosen c join {schema}.deferred d on d.ctid = c.tid
    order by c.run_at, c.job_id for update of d skip locked
), taken as (
    delete from {schema}.deferred d where d.ctid = any (array(select tid from locked))
    returning d.run_at, d.job_id, d.entrypoint, d.priority, d.attempt, d.crashes, d.created_at, d.payload
), moved as (
    insert into {schema}.queued (job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select job_id, entrypoint, priority, attempt, crashes, created_at, payload from taken order by run_at, job_id
    returning entrypoint
), woken as (
    select pg_notify({channel}, 'queued:' || left(m.entrypoint, 1000))
    from (select distinct entrypoint from moved) m
    where exists (
        select from {schema}.worker w
        where w.left_at is null and m.entrypoint = any (case when w.sleeping then w.entrypoints else w.dozing end)
    )
)
select (select is_ours from turn), (select count(*) from moved), array(select distinct entrypoint from moved),
    exists (select from first_left) or (select count(*) from due) = %(window)s::integer,
    (
        select extract(epoch from d.run_at - clock_timestamp())::double precision from {schema}.deferred d
        where d.run_at > (select now from turn) order by d.run_at limit 1
    ),
    (select run_at from last_before), (select job_id from last_before),
    (select count(*) from taken) < (select count(*) from chosen),
    (select count(*) from woken)
