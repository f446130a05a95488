-- name: job_status
-- One statement has one snapshot, in which a job is in exactly one table; with a statement per table a job that moves
-- meanwhile is seen twice or not at all.
select d.job_id, 'deferred' as status from {schema}.deferred d
    where d.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
union all
select q.job_id, 'queued' from {schema}.queued q where q.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
union all
select r.job_id, 'running' from {schema}.running r where r.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
union all
select f.job_id, f.status from {schema}.finished f where f.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])

-- name: list_jobs
-- The newest first; also for one job. Each table gives as many as are wanted in all, from its index on job_id; then they are merged.
-- The errors of a job are those of earlier attempts, oldest first; the last one stands in its record.
with job as materialized (
    (
        select d.job_id, d.entrypoint, 'deferred' as status, d.priority, d.attempt, d.crashes, d.payload, d.created_at,
            d.run_at, null::pg_catalog.timestamptz as claimed_at, null::pg_catalog.timestamptz as finished_at,
                null::bigint as worker_id,
            null::pg_catalog.timestamptz as cancel_requested_at, null::pg_catalog.text as cancel_reason,
                null::pg_catalog.timestamptz as overdue_at,
            null::pg_catalog.text as error_type, null::pg_catalog.text as error_message,
                null::pg_catalog.text as error_traceback
        from {schema}.deferred d
        where d.job_id operator(pg_catalog.>=) %(first)s::bigint and d.job_id operator(pg_catalog.<=) %(last)s::bigint
            and coalesce(%(status)s::pg_catalog.text, 'deferred') operator(pg_catalog.=) 'deferred'
            and (%(entrypoint)s::pg_catalog.text is null or d.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
        order by d.job_id desc limit %(limit)s::integer
    )
    union all
    (
        select q.job_id, q.entrypoint, 'queued', q.priority, q.attempt, q.crashes, q.payload, q.created_at,
            null, null, null, null, null, null, null, null, null, null
        from {schema}.queued q
        where q.job_id operator(pg_catalog.>=) %(first)s::bigint and q.job_id operator(pg_catalog.<=) %(last)s::bigint
            and coalesce(%(status)s::pg_catalog.text, 'queued') operator(pg_catalog.=) 'queued'
            and (%(entrypoint)s::pg_catalog.text is null or q.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
        order by q.job_id desc limit %(limit)s::integer
    )
    union all
    (
        select r.job_id, r.entrypoint, 'running', r.priority, r.attempt, r.crashes, r.payload, r.created_at,
            null, r.claimed_at, null, r.worker_id, r.cancel_requested_at, r.cancel_reason, r.overdue_at, null, null, null
        from {schema}.running r
        where r.job_id operator(pg_catalog.>=) %(first)s::bigint and r.job_id operator(pg_catalog.<=) %(last)s::bigint
            and coalesce(%(status)s::pg_catalog.text, 'running') operator(pg_catalog.=) 'running'
            and (%(entrypoint)s::pg_catalog.text is null or r.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
        order by r.job_id desc limit %(limit)s::integer
    )
    union all
    (
        select f.job_id, f.entrypoint, f.status, f.priority, f.attempt, f.crashes, f.payload, f.created_at,
            null, f.claimed_at, f.finished_at, f.worker_id, null, f.cancel_reason, null,
            f.error_type, f.error_message, f.error_traceback
        from {schema}.finished f
        where f.job_id operator(pg_catalog.>=) %(first)s::bigint and f.job_id operator(pg_catalog.<=) %(last)s::bigint
            and coalesce(%(status)s::pg_catalog.text, f.status) operator(pg_catalog.=) f.status
            and (%(entrypoint)s::pg_catalog.text is null or f.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
        order by f.job_id desc limit %(limit)s::integer
    )
    order by job_id desc limit %(limit)s::integer
)
select j.job_id, j.entrypoint, j.status, j.priority, j.attempt, j.crashes, j.payload, j.created_at, j.run_at,
    j.claimed_at, j.finished_at, j.worker_id, j.cancel_requested_at, j.cancel_reason, j.overdue_at,
    j.error_type, j.error_message, j.error_traceback,
    e.attempts, e.failed_ats, e.types, e.messages, e.tracebacks, c.requested_by
from job j left join lateral (
    select pg_catalog.array_agg(a.attempt order by a.failed_at) as attempts,
        pg_catalog.array_agg(a.failed_at order by a.failed_at) as failed_ats,
        pg_catalog.array_agg(a.error_type order by a.failed_at) as types,
        pg_catalog.array_agg(a.error_message order by a.failed_at) as messages,
        pg_catalog.array_agg(a.error_traceback order by a.failed_at) as tracebacks
    from {schema}.attempt_error a where a.job_id operator(pg_catalog.=) j.job_id
) e on true left join lateral (
    select r.requested_by from {schema}.cancel_request r
    where r.job_id operator(pg_catalog.=) j.job_id
        and (j.status operator(pg_catalog.=) 'cancelled' or j.cancel_requested_at is not null)
    order by r.requested_at desc limit 1
) c on true
order by j.job_id desc

-- name: queue_size
select s.entrypoint, s.jobs from {schema}.queue_size(%(limit)s::bigint) s

-- name: list_workers
select w.worker_id, w.name, w.entrypoints, w.lease, w.started_at, w.heartbeat_at, w.sleeping, w.left_at,
    (select pg_catalog.count(*) from {schema}.running r where r.worker_id operator(pg_catalog.=) w.worker_id)
from {schema}.worker w order by w.started_at, w.worker_id
