-- name: find_requeueable
-- One page of the jobs that match, in the order of their ids: for the statement below, which takes them as it finds them.
select f.job_id from {schema}.finished f
where f.status operator(pg_catalog.<>) 'successful'
    and f.status operator(pg_catalog.=) any (%(statuses)s::pg_catalog.text[])
    and f.job_id operator(pg_catalog.>) %(after)s::bigint
    and f.finished_at operator(pg_catalog.<) %(finished_before)s::pg_catalog.timestamptz
    and (%(finished_after)s::pg_catalog.timestamptz is null or f.finished_at operator(pg_catalog.>=) %(finished_after)s::pg_catalog.timestamptz)
    and (%(entrypoint)s::pg_catalog.text is null or f.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
    and (%(error_type)s::pg_catalog.text is null or f.error_type operator(pg_catalog.=) %(error_type)s::pg_catalog.text)
order by f.job_id limit %(limit)s::integer

-- name: requeue_jobs
-- From finished back to queued: the same id, payload, priority and time of creation, a fresh seq, and attempts and crashes
-- counted anew. The error of the last attempt joins those of the earlier ones. Whoever asked for a cancel is forgotten:
-- it was for the life that is over.
-- A record is deleted once, so of two requeues of one job one finds nothing. A job that has run and ended since the caller
-- looked has a younger record, which "finished_before" keeps (null: whatever its age).
with chosen as materialized (
    select f.job_id from {schema}.finished f
    where f.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[]) and f.status operator(pg_catalog.<>) 'successful'
        and (%(finished_before)s::pg_catalog.timestamptz is null or f.finished_at operator(pg_catalog.<) %(finished_before)s::pg_catalog.timestamptz)
    order by f.job_id for update
), gone as (
    delete from {schema}.finished f
    where f.job_id operator(pg_catalog.=) any (array(select job_id from chosen))
        and f.status operator(pg_catalog.<>) 'successful'
    returning f.job_id, f.entrypoint, f.priority, f.attempt, f.worker_id, f.created_at, f.finished_at, f.payload,
        f.error_type, f.error_message, f.error_traceback
), noted as (
    insert into {schema}.attempt_error (job_id, attempt, worker_id, failed_at, error_type, error_message, error_traceback)
    select job_id, attempt, worker_id, finished_at, error_type, coalesce(error_message, ''), error_traceback
    from gone where error_type is not null
), forgotten as (
    delete from {schema}.cancel_request r where r.job_id operator(pg_catalog.=) any (array(select job_id from gone))
), requeued as (
    insert into {schema}.queued (job_id, entrypoint, priority, created_at, payload)
    select job_id, entrypoint, priority, created_at, payload from gone order by job_id
    returning job_id, entrypoint
), woken as (
    select pg_catalog.pg_notify({channel}, 'queued:' operator(pg_catalog.||) pg_catalog.left(q.entrypoint, 1000))
        from (select distinct entrypoint from requeued) q
)
select array(select job_id from requeued order by job_id), (select pg_catalog.count(*) from woken)
