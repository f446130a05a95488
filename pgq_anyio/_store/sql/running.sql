-- name: finish_jobs
-- Successes, the hot statement: fenced by (job_id, worker_id, claim_no). The row decides, not the worker: a cancel requested
-- before makes the job cancelled. Only failed and cancelled jobs keep their payload. Returns the jobs that were still ours.
-- Rows go in the order of job_id (a completion and a cancel of the same jobs deadlock otherwise), because the completer's
-- settings leave one plan: a btree index that is asked for an array of keys sorts them. "is true" keeps the planner from
-- making a join of the fence, which might order the rows; it is a look into a hash. To lock the rows in order and then
-- delete them took a sixth more of the server's time, and a record of 54 bytes in the WAL for each job.
with gone as (
    delete from {schema}.running r
    where r.job_id = any (%(job_ids)s::bigint[]) and (
        (r.job_id, r.worker_id, r.claim_no) in (
            select * from unnest(%(job_ids)s::bigint[], %(worker_ids)s::bigint[], %(claim_nos)s::bigint[])
        )
    ) is true
    returning r.job_id, r.worker_id, r.entrypoint, r.priority, r.attempt, r.crashes, r.created_at, r.claimed_at,
        r.cancel_requested_at, r.cancel_reason, r.payload
), recorded as (
    insert into {schema}.finished
        (job_id, entrypoint, status, priority, attempt, crashes, worker_id, created_at, claimed_at, cancel_reason, payload)
    select job_id, entrypoint, case when cancel_requested_at is null then 'successful' else 'cancelled' end,
        priority, attempt, crashes, worker_id, created_at, claimed_at, cancel_reason,
        case when cancel_requested_at is not null then payload end
    from gone
    returning job_id
)
select array(select job_id from recorded)

-- name: settle_jobs
-- Every other way out of running. action: 'failed', 'cancelled', 'again' (a new attempt or a snooze, after delay seconds,
-- with a fresh seq) or 'back' (to its old place, as if never claimed). A requested cancel beats them all.
-- Returns the jobs that were still ours, with where they went.
with ended as materialized (
    select * from unnest(
        %(job_ids)s::bigint[], %(worker_ids)s::bigint[], %(claim_nos)s::bigint[], %(actions)s::text[],
        %(delays)s::double precision[], %(next_attempts)s::bigint[],
        %(error_types)s::text[], %(error_messages)s::text[], %(error_tracebacks)s::text[], %(reasons)s::text[],
        %(started)s::boolean[]
    ) as e (job_id, worker_id, claim_no, action, delay, next_attempt, error_type, error_message, error_traceback, reason, started)
    order by e.job_id
), locked as materialized (
    select e.* from ended e cross join lateral (
        select from {schema}.running r
        where r.job_id = e.job_id and r.worker_id = e.worker_id and r.claim_no = e.claim_no for update
    ) l
), deleted as (
    delete from {schema}.running r where r.job_id = any (array(select job_id from locked))
    returning r.job_id, r.worker_id, r.seq, r.entrypoint, r.priority, r.attempt, r.crashes, r.created_at, r.claimed_at,
        r.cancel_requested_at, r.cancel_reason, r.payload
), gone as materialized (
    select d.job_id, d.worker_id, d.seq, d.entrypoint, d.priority, d.attempt, d.crashes, d.created_at, d.claimed_at, d.payload,
        case when d.cancel_requested_at is not null then 'cancelled' else e.action end as action,
        coalesce(d.cancel_reason, e.reason) as reason,
        e.delay, e.next_attempt, e.error_type, e.error_message, e.error_traceback, e.started
    from deleted d join locked e on e.job_id = d.job_id
), recorded as (
    insert into {schema}.finished
        (job_id, entrypoint, status, priority, attempt, crashes, worker_id, created_at, claimed_at,
         cancel_reason, error_type, error_message, error_traceback, payload)
    select job_id, entrypoint, action, priority, attempt, crashes, worker_id, created_at, claimed_at,
        case when action = 'cancelled' then reason end, error_type, error_message, error_traceback, payload
    from gone where action in ('failed', 'cancelled')
), noted as (
    insert into {schema}.attempt_error (job_id, attempt, worker_id, error_type, error_message, error_traceback)
    select job_id, attempt, worker_id, error_type, error_message, error_traceback
    from gone where action = 'again' and error_type is not null
), requeued as (
    insert into {schema}.queued (seq, job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select case when action = 'back' then seq else nextval({queued_seq}) end,
        job_id, entrypoint, priority, coalesce(next_attempt, attempt), crashes, created_at, payload
    from gone where action = 'back' or (action = 'again' and coalesce(delay, 0) <= 0) order by seq
    returning entrypoint
), postponed as (
    insert into {schema}.deferred (run_at, job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select clock_timestamp() + make_interval(secs => delay),
        job_id, entrypoint, priority, coalesce(next_attempt, attempt), crashes, created_at, payload
    from gone where action = 'again' and delay > 0
    returning run_at
), refunded as (
    -- A job that never started spent no token of its rate.
    insert into {schema}.limiter_refund (entrypoint, tokens)
    select g.entrypoint, count(*) from gone g join {schema}.limiter l on l.entrypoint = g.entrypoint
    where not g.started and l.requests_per_second < 'infinity' group by g.entrypoint
), woken as (
    -- 'front': rows may lie left of every claimer's hint.
    select pg_notify({channel}, 'front:' || left(q.entrypoint, 1000)) from (select distinct entrypoint from requeued) q
), alarmed as (
    select pg_notify({channel}, 'deferred:' || extract(epoch from min(p.run_at))) from postponed p having count(*) > 0
)
select job_id, action, (select count(*) from woken) + (select count(*) from alarmed) from gone

-- name: give_back_claims
-- Jobs that the worker does not know: of claims whose answer was lost on the way (job_id null: all that the claim took), and
-- single ones that a reconcile found.
with locked as materialized (
    select r.job_id from {schema}.running r
    where r.worker_id = %(worker_id)s::bigint and exists (
        select from unnest(%(job_ids)s::bigint[], %(claim_nos)s::bigint[]) as u (job_id, claim_no)
        where u.claim_no = r.claim_no and (u.job_id is null or u.job_id = r.job_id)
    )
    order by r.job_id for update
), gone as (
    delete from {schema}.running r
    where r.job_id = any (array(select job_id from locked)) and r.worker_id = %(worker_id)s::bigint
    returning r.job_id, r.worker_id, r.seq, r.entrypoint, r.priority, r.attempt, r.crashes, r.created_at, r.claimed_at,
        r.cancel_requested_at, r.cancel_reason, r.payload
), recorded as (
    insert into {schema}.finished
        (job_id, entrypoint, status, priority, attempt, crashes, worker_id, created_at, claimed_at, cancel_reason, payload)
    select job_id, entrypoint, 'cancelled', priority, attempt, crashes, worker_id, created_at, claimed_at, cancel_reason, payload
    from gone where cancel_requested_at is not null
), requeued as (
    insert into {schema}.queued (seq, job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select seq, job_id, entrypoint, priority, attempt, crashes, created_at, payload
    from gone where cancel_requested_at is null order by seq
), refunded as (
    insert into {schema}.limiter_refund (entrypoint, tokens)
    select g.entrypoint, count(*) from gone g join {schema}.limiter l on l.entrypoint = g.entrypoint
    where l.requests_per_second < 'infinity' group by g.entrypoint
), woken as (
    -- Also for jobs that only leave a slot free.
    select pg_notify({channel}, 'front:' || left(g.entrypoint, 1000)) from (select distinct entrypoint from gone) g
)
select array(select job_id from gone), (select count(*) from woken)

-- name: list_claims
-- What the database believes that this worker runs: the reconcile compares it with what it does run.
select r.job_id, r.claim_no from {schema}.running r where r.worker_id = %(worker_id)s::bigint

-- name: find_cancelled
-- Which of the jobs that a notification names are to be cancelled in truth. The array is compared with the key only, so that
-- it is an index scan for each, whatever the statistics say.
select r.job_id, r.claim_no from {schema}.running r
where r.job_id = any (%(job_ids)s::bigint[]) and r.worker_id = %(worker_id)s::bigint and r.cancel_requested_at is not null

-- name: mark_overdue
-- The first time counts.
update {schema}.running r set overdue_at = clock_timestamp()
where r.job_id = %(job_id)s::bigint and r.worker_id = %(worker_id)s::bigint and r.claim_no = %(claim_no)s::bigint
    and r.overdue_at is null
