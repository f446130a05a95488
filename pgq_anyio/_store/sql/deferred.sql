-- name: promote_due
-- Move jobs that are due by the database's clock, in the order in which they became due, and say when the next one is.
-- Jobs of every name are moved: the state of a job does not depend on who happens to run.
-- One look at the clock: what becomes due while the statement runs is not moved any more, so it has to be the next one.
-- By a subquery, for a volatile function is no condition of an index: every job that is not due would be walked.
-- The scan starts behind the last job that was moved (its run_at and id): entries of moved jobs are never walked, whatever
-- old snapshot keeps them.
with clock as materialized (
    select clock_timestamp() as now
), due as materialized (
    select d.ctid as tid, d.run_at, d.job_id from {schema}.deferred d
    where d.run_at <= (select now from clock)
        and (d.run_at, d.job_id) > (%(moved_run_at)s::timestamptz, %(moved_job_id)s::bigint)
    order by d.run_at, d.job_id limit %(limit)s::integer
    for update skip locked
), taken as (
    delete from {schema}.deferred d using due where d.ctid = due.tid
    returning d.run_at, d.job_id, d.entrypoint, d.priority, d.attempt, d.crashes, d.created_at, d.payload
), moved as (
    insert into {schema}.queued (job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select job_id, entrypoint, priority, attempt, crashes, created_at, payload from taken order by run_at, job_id
    returning entrypoint
), last as materialized (
    select t.run_at, t.job_id from taken t order by t.run_at desc, t.job_id desc limit 1
), woken as (
    select pg_notify({channel}, 'queued:' || left(m.entrypoint, 1000))
    from (select distinct entrypoint from moved) m
    where exists (
        select from {schema}.worker w
        where w.left_at is null and m.entrypoint = any (case when w.sleeping then w.entrypoints else w.dozing end)
    )
)
select (select count(*) from moved), array(select distinct entrypoint from moved),
    (
        select extract(epoch from d.run_at - clock_timestamp())::double precision from {schema}.deferred d
        where d.run_at > (select now from clock) order by d.run_at limit 1
    ),
    (select run_at from last), (select job_id from last),
    (select count(*) from woken)
