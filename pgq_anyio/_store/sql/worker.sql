-- name: register_worker
-- Repeatable: the answer to the first request may have been lost.
insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease)
values (%(worker_id)s::bigint, %(name)s::text, %(entrypoints)s::text[], %(max_crashes)s::integer[], %(lease)s::double precision)
on conflict (worker_id) do nothing

-- name: beat_worker
-- One statement per beat carries all that an idle worker needs to know: whether it is still a worker (no row: the lease is
-- lost), which of its jobs are to be cancelled (for when notifications are lost), when the next deferred job is due,
-- how the other workers are, and what time the database has.
-- Rows of nobody are looked for in one beat of each lease. For that the whole table is read, which after a busy minute has
-- thousands of pages: with 32,000 of them, a beat that read it five times took 0.2 to 0.4 s.
with beaten as (
    update {schema}.worker w set beat = w.beat + 1, heartbeat_at = clock_timestamp()
    where w.worker_id = %(worker_id)s::bigint and w.left_at is null
    returning w.worker_id, w.beat, w.limit_changes
)
select
    extract(epoch from clock_timestamp())::double precision,
    c.job_ids, c.claim_nos,
    (
        select extract(epoch from d.run_at - clock_timestamp())::double precision from {schema}.deferred d
        order by d.run_at limit 1
    ),
    o.ids, o.beats, o.leases, o.ages, o.have_left,
    case when beaten.beat %% %(beats_per_lease)s::bigint = 1 then
        exists (
            select from {schema}.running r
            where not exists (select from {schema}.worker w where w.worker_id = r.worker_id)
        )
        else false
    end or exists (
        select from {schema}.schedule s
        where s.worker_id is not null and not exists (select from {schema}.worker w where w.worker_id = s.worker_id)
    ),
    case when cardinality(%(unresolved)s::bigint[]) > 0 then
        exists (
            select from {schema}.running r
            where r.worker_id = %(worker_id)s::bigint and r.claim_no = any (%(unresolved)s::bigint[])
        )
        else false
    end,
    beaten.limit_changes,
    -- Which session answers. No session survives a crash, but a connection to a pooler does. When it began tells it from
    -- an earlier one with its number, and is compared with nothing else.
    (select concat_ws(' ', a.pid, extract(epoch from a.backend_start)) from pg_stat_get_activity(pg_backend_pid()) a),
    -- An echo for the listener of this worker: how it notices that its connection is dead.
    pg_notify('pgq_anyio.w' || beaten.worker_id, 'echo')
from beaten cross join (
    select array_agg(w.worker_id order by w.worker_id) as ids, array_agg(w.beat order by w.worker_id) as beats,
        array_agg(w.lease order by w.worker_id) as leases,
        array_agg(extract(epoch from clock_timestamp() - w.heartbeat_at)::double precision order by w.worker_id) as ages,
        array_agg(w.left_at is not null order by w.worker_id) as have_left
    from {schema}.worker w where w.worker_id <> %(worker_id)s::bigint
) o cross join (
    select coalesce(array_agg(r.job_id order by r.job_id), '{{}}') as job_ids,
        coalesce(array_agg(r.claim_no order by r.job_id), '{{}}') as claim_nos
    from {schema}.running r where r.worker_id = %(worker_id)s::bigint and r.cancel_requested_at is not null
) c

-- name: set_sleeping
update {schema}.worker w set sleeping = %(sleeping)s::boolean where w.worker_id = %(worker_id)s::bigint

-- name: mark_left
-- A worker that goes although handlers of its own still run: its jobs may be rescued at once.
update {schema}.worker w set left_at = clock_timestamp(), sleeping = false, dozing = '{{}}'
where w.worker_id = %(worker_id)s::bigint and w.left_at is null

-- name: leave
-- The last act of a worker, when the outcomes of all that it started are stored. Should a row be left all the same, nobody
-- has started its job: it is given back here, and its token refunded.
with gone_worker as (
    delete from {schema}.worker w where w.worker_id = %(worker_id)s::bigint returning w.entrypoints
), owned as materialized (
    select s.name, s.expression from {schema}.schedule s where s.worker_id = %(worker_id)s::bigint
    order by s.name, s.expression for update
), released as (
    update {schema}.schedule s set worker_id = null, claim_no = null, given_back_due_at = s.due_at,
        last_status = 'given_back', last_finished_at = clock_timestamp(),
        last_error_type = null, last_error_message = null, last_error_traceback = null
    from owned o
    where s.name = o.name and s.expression = o.expression and s.worker_id = %(worker_id)s::bigint
    returning s.name
), locked as materialized (
    select r.job_id from {schema}.running r where r.worker_id = %(worker_id)s::bigint order by r.job_id for update
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
    returning entrypoint
), refunded as (
    insert into {schema}.limiter_refund (entrypoint, tokens)
    select g.entrypoint, count(*) from gone g join {schema}.limiter l on l.entrypoint = g.entrypoint
    where l.requests_per_second < 'infinity' group by g.entrypoint
), woken as (
    -- Also for jobs that only leave a slot free.
    select pg_notify({channel}, 'front:' || left(g.entrypoint, 1000)) from (select distinct entrypoint from gone) g
    union all
    -- Whoever found a name full rests, and no enqueuer notifies it: it was this worker that was notified, or that would
    -- have looked for the next job. One of the others has to be from now on.
    select pg_notify({channel}, 'slot:' || left(l.entrypoint, 1000))
    from gone_worker g join {schema}.limiter l on l.entrypoint = any (g.entrypoints)
    where l.concurrency_limit > 0
    union all
    select pg_notify({channel}, 'schedule') where exists (select from released)
)
select (select count(*) from gone_worker), array(select job_id from gone), (select count(*) from woken)

-- name: rescue_jobs
-- Take the rows of workers that are gone. The worker row is locked and removed first: a heartbeat that is just committing
-- makes skip locked pass the worker by, and the beat that the judge saw must still be the one in the row.
-- Also taken: rows whose worker has no row (a claim that committed late, a zombie's). Crashes are counted for workers that
-- died, and for those without a row, since nobody knows whether a handler had begun; not for those that left. Schedules
-- of a worker that left are given back; those of one that died are only released, for nobody knows how far the run came.
-- A worker that leaves handlers behind has it done for itself, when its process is gone.
with judged as materialized (
    select * from unnest(%(worker_ids)s::bigint[], %(beats)s::bigint[]) as j (worker_id, beat)
), dead as materialized (
    select w.worker_id from {schema}.worker w join judged j on j.worker_id = w.worker_id
    where w.left_at is not null or w.beat = j.beat
    order by w.worker_id for update of w skip locked
), buried as (
    delete from {schema}.worker w using dead where w.worker_id = dead.worker_id
    returning w.worker_id, w.left_at, w.entrypoints, w.max_crashes
), stranded as materialized (
    select r.job_id from {schema}.running r
    where r.worker_id in (select worker_id from dead)
        or not exists (select from {schema}.worker w where w.worker_id = r.worker_id)
    order by r.job_id for update
), gone as (
    delete from {schema}.running r where r.job_id = any (array(select job_id from stranded))
    returning r.job_id, r.worker_id, r.seq, r.entrypoint, r.priority, r.attempt, r.crashes, r.created_at, r.claimed_at,
        r.cancel_requested_at, r.cancel_reason, r.payload
), decided as materialized (
    select g.*,
        case when b.left_at is null then g.crashes + 1 else g.crashes end as crashes_now,
        case
            when g.cancel_requested_at is not null then 'cancelled'
            when b.left_at is null
                and g.crashes + 1 >= coalesce(b.max_crashes[array_position(b.entrypoints, g.entrypoint)], %(max_crashes)s::integer)
                then 'failed'
            else 'queued'
        end as target
    from gone g left join buried b on b.worker_id = g.worker_id
), recorded as (
    insert into {schema}.finished
        (job_id, entrypoint, status, priority, attempt, crashes, worker_id, created_at, claimed_at,
         cancel_reason, error_type, error_message, payload)
    select job_id, entrypoint, target, priority, attempt, crashes_now, worker_id, created_at, claimed_at,
        case when target = 'cancelled' then cancel_reason end,
        case when target = 'failed' then 'WorkerDied' end,
        case when target = 'failed' then 'worker died' end,
        payload
    from decided where target <> 'queued'
), noted as (
    insert into {schema}.attempt_error (job_id, attempt, worker_id, error_type, error_message)
    select job_id, attempt, worker_id, 'WorkerDied', 'worker died' from decided
    where target = 'queued' and crashes_now > crashes
), requeued as (
    insert into {schema}.queued (seq, job_id, entrypoint, priority, attempt, crashes, created_at, payload)
    select seq, job_id, entrypoint, priority, attempt, crashes_now, created_at, payload
    from decided where target = 'queued' order by seq
    returning entrypoint
), owned as materialized (
    select s.name, s.expression, s.worker_id from {schema}.schedule s
    where s.worker_id in (select worker_id from dead)
        or (s.worker_id is not null and not exists (select from {schema}.worker w where w.worker_id = s.worker_id))
    order by s.name, s.expression for update
), released as (
    update {schema}.schedule s set worker_id = null, claim_no = null,
        given_back_due_at = case when b.left_at is null then s.given_back_due_at else s.due_at end,
        last_status = case when b.left_at is null then 'failed' else 'given_back' end,
        last_finished_at = clock_timestamp(),
        last_error_type = case when b.left_at is null then 'WorkerDied' end,
        last_error_message = case when b.left_at is null then 'worker died' end,
        last_error_traceback = null
    from owned o left join buried b on b.worker_id = o.worker_id
    where s.name = o.name and s.expression = o.expression and s.worker_id = o.worker_id
    returning s.name
), woken as (
    -- Also for jobs that only leave a slot free.
    select pg_notify({channel}, 'front:' || left(d.entrypoint, 1000)) from (select distinct entrypoint from decided) d
    union all
    -- As in leave.
    select pg_notify({channel}, 'slot:' || left(l.entrypoint, 1000))
    from {schema}.limiter l
    where l.concurrency_limit > 0 and exists (select from buried b where l.entrypoint = any (b.entrypoints))
    union all
    select pg_notify({channel}, 'schedule') where exists (select from released)
)
select array(select worker_id from buried), array(select job_id from decided), (select count(*) from woken)

-- name: has_pending
-- What a draining worker still waits for: jobs of its names that are queued, deferred, or running anywhere.
select
    exists (select from {schema}.queued q where q.entrypoint = any (%(entrypoints)s::text[]))
    or exists (select from {schema}.deferred d where d.entrypoint = any (%(entrypoints)s::text[]))
    or exists (select from {schema}.running r where r.entrypoint = any (%(entrypoints)s::text[]))

-- name: count_pending
-- How many those are, for whoever watches.
select
    (select pg_catalog.count(*) from {schema}.queued q
        where q.entrypoint operator(pg_catalog.=) any (%(entrypoints)s::pg_catalog.text[]))
    operator(pg_catalog.+) (select pg_catalog.count(*) from {schema}.deferred d
        where d.entrypoint operator(pg_catalog.=) any (%(entrypoints)s::pg_catalog.text[]))
    operator(pg_catalog.+) (select pg_catalog.count(*) from {schema}.running r
        where r.entrypoint operator(pg_catalog.=) any (%(entrypoints)s::pg_catalog.text[]))
