-- name: cancel_jobs
-- One snapshot: a job is visible in exactly one table, or its claim or completion is under way. Rows are locked in the
-- order of job_id, table by table. Returns every id that the snapshot saw and that had not ended, and whether this
-- statement affected it; the caller repeats with a fresh snapshot for those it did not (a mover was faster).
-- "states" are the tables to look into: who asks for queued jobs only does not interrupt one that was started meanwhile.
-- Who asks is the user and the application_name of the connection.
with seen as materialized (
    select d.job_id from {schema}.deferred d
    where 'deferred' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and d.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
    union all
    select q.job_id from {schema}.queued q
    where 'queued' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and q.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
    union all
    select r.job_id from {schema}.running r
    where 'running' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and r.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
        and r.cancel_requested_at is null
), deferred_locked as materialized (
    select d.job_id from {schema}.deferred d
    where 'deferred' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and d.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
    order by d.job_id for update
), queued_locked as materialized (
    select q.job_id from {schema}.queued q
    where 'queued' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and q.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
    order by q.job_id for update
), running_locked as materialized (
    select r.job_id from {schema}.running r
    where 'running' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and r.job_id operator(pg_catalog.=) any (%(job_ids)s::bigint[])
    order by r.job_id for update
), undeferred as (
    delete from {schema}.deferred d
    where d.job_id operator(pg_catalog.=) any (array(select job_id from deferred_locked))
    returning d.job_id, d.entrypoint, d.priority, d.attempt, d.crashes, d.created_at, d.payload
), unqueued as (
    delete from {schema}.queued q where q.job_id operator(pg_catalog.=) any (array(select job_id from queued_locked))
    returning q.job_id, q.entrypoint, q.priority, q.attempt, q.crashes, q.created_at, q.payload
), recorded as (
    insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, created_at, cancel_reason, payload)
    select u.job_id, u.entrypoint, 'cancelled', u.priority, u.attempt, u.crashes, u.created_at,
        %(reason)s::pg_catalog.text, u.payload
    from (select * from undeferred union all select * from unqueued) u
    returning job_id
), requested as (
    update {schema}.running r set cancel_requested_at = pg_catalog.clock_timestamp(),
        cancel_reason = %(reason)s::pg_catalog.text
    where r.job_id operator(pg_catalog.=) any (array(select job_id from running_locked))
        and r.cancel_requested_at is null
    returning r.job_id, r.worker_id, r.claim_no
), noted as (
    insert into {schema}.cancel_request (job_id, requested_by)
    select job_id, pg_catalog.concat_ws(
        ' ', session_user, '(' operator(pg_catalog.||) a.name operator(pg_catalog.||) ')'
    )
    from (select job_id from recorded union all select job_id from requested) r
    left join (select pg_catalog.current_setting('application_name') as name) a on a.name operator(pg_catalog.<>) ''
), chunk as (
    -- A notification holds less than 8,000 bytes: 100 jobs of at most 41 characters each.
    select worker_id,
        pg_catalog.string_agg(job_id operator(pg_catalog.||) '.' operator(pg_catalog.||) claim_no, ',') as jobs
    from (select *,
        (pg_catalog.row_number() over (partition by worker_id order by job_id) operator(pg_catalog.-) 1)
        operator(pg_catalog./) 100 as number from requested
    ) n
    group by worker_id, number
), woken as (
    select pg_catalog.pg_notify(
        {channel}, 'cancel:' operator(pg_catalog.||) worker_id operator(pg_catalog.||) ':' operator(pg_catalog.||) jobs
    ) from chunk
)
select s.job_id, (a.job_id is not null), (select pg_catalog.count(*) from woken)
from (select job_id from seen union select job_id from recorded union select job_id from requested) s
left join (select job_id from recorded union all select job_id
    from requested) a on a.job_id operator(pg_catalog.=) s.job_id

-- name: find_unfinished
-- The jobs that match now and have not been cancelled yet. "created_before", or else "older_than" (in seconds), bounds
-- their time of creation.
with bound as materialized (
    select coalesce(
        %(created_before)s::pg_catalog.timestamptz,
        pg_catalog.clock_timestamp() operator(pg_catalog.-) pg_catalog.make_interval(secs => %(older_than)s::double precision),
        'infinity'
    ) as at
)
select array(
    select d.job_id from {schema}.deferred d
    where 'deferred' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and d.created_at operator(pg_catalog.<) (select at from bound)
        and (%(entrypoint)s::pg_catalog.text is null or d.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
    union all
    select q.job_id from {schema}.queued q
    where 'queued' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and q.created_at operator(pg_catalog.<) (select at from bound)
        and (%(entrypoint)s::pg_catalog.text is null or q.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
    union all
    select r.job_id from {schema}.running r
    where 'running' operator(pg_catalog.=) any (%(states)s::pg_catalog.text[])
        and r.created_at operator(pg_catalog.<) (select at from bound)
        and (%(entrypoint)s::pg_catalog.text is null or r.entrypoint operator(pg_catalog.=) %(entrypoint)s::pg_catalog.text)
        and r.cancel_requested_at is null
    order by 1
)
