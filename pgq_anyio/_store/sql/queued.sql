-- name: enqueue_jobs
-- One statement for lists of any length: ids come back in input order. The arrays have one element per job;
-- delays (seconds) and run_ats are null for jobs that are due at once.
-- Sleepers are notified only if there are any (always_notify: the caller's own transaction, whose commit a worker
-- that is just falling asleep cannot see). The alarm of the promoter is set only if no earlier one is a second away:
-- an alarm nearer than that may ring before this insert is visible.
-- The subselects hide always_notify from the planner: knowing it to be true, it finds a plan so much cheaper than the
-- generic one that it plans anew for each call, which takes as long as all the rest.
with input as materialized (
    select i.entrypoint, i.payload, i.priority, i.ordinal, pg_catalog.clock_timestamp() as now,
        coalesce(i.run_at,
            pg_catalog.clock_timestamp() operator(pg_catalog.+) pg_catalog.make_interval(secs => i.delay)) as run_at,
        pg_catalog.nextval({job_id_seq}) as job_id
    from unnest(%(entrypoints)s::pg_catalog.text[], %(payloads)s::pg_catalog.bytea[],
        %(priorities)s::integer[],
        %(delays)s::double precision[], %(run_ats)s::pg_catalog.timestamptz[])
        with ordinality as i (entrypoint, payload, priority, delay, run_at, ordinal)
), due as (
    insert into {schema}.queued (job_id, entrypoint, priority, created_at, payload)
    select job_id, entrypoint, priority, now, payload from input
    where run_at is null or run_at operator(pg_catalog.<=) now order by ordinal
    returning entrypoint
), later as (
    insert into {schema}.deferred (run_at, job_id, entrypoint, priority, created_at, payload)
    select run_at, job_id, entrypoint, priority, now, payload from input
        where run_at operator(pg_catalog.>) now order by ordinal
    returning run_at
), woken as (
    select pg_catalog.pg_notify({channel}, 'queued:' operator(pg_catalog.||) pg_catalog.left(d.entrypoint, 1000))
    from (select distinct entrypoint from due) d
    where (select %(always_notify)s::boolean)
        or exists (
            select from {schema}.worker w
            where w.left_at is null
                and d.entrypoint operator(pg_catalog.=) any (case when w.sleeping then w.entrypoints else w.dozing end)
        )
), alarmed as (
    select pg_catalog.pg_notify({channel}, 'deferred:' operator(pg_catalog.||) extract(epoch from l.run_at))
    from (select pg_catalog.min(run_at) as run_at from later having pg_catalog.min(run_at) is not null) l
    where (select %(always_notify)s::boolean)
        or not exists (
            select from {schema}.deferred d
            where d.run_at operator(pg_catalog.>=) (
                    select pg_catalog.clock_timestamp() operator(pg_catalog.+) interval '1 second'
                )
                and d.run_at operator(pg_catalog.<=) l.run_at
        )
)
select array(select job_id from input order by ordinal), (select pg_catalog.count(*)
    from woken), (select pg_catalog.count(*) from alarmed)

-- name: enqueue_job
-- As enqueue_jobs, for a single job that is due at once. Of what that takes, half was the start of the larger plan.
-- The id is asked from the sequence: a producer may not read it in the table.
insert into {schema}.queued as q (job_id, entrypoint, priority, created_at, payload)
values (pg_catalog.nextval({job_id_seq}), %(entrypoint)s::pg_catalog.text, %(priority)s::integer,
    pg_catalog.clock_timestamp(), %(payload)s::pg_catalog.bytea)
returning pg_catalog.currval({job_id_seq}), (
    select pg_catalog.pg_notify({channel}, 'queued:' operator(pg_catalog.||) pg_catalog.left(q.entrypoint, 1000))
    where (select %(always_notify)s::boolean)
        or exists (
            select from {schema}.worker w
            where w.left_at is null
                and q.entrypoint operator(pg_catalog.=) any (case when w.sleeping then w.entrypoints else w.dozing end)
        )
)

-- name: allot_job_ids
-- Ids for a COPY, which returns none.
select array(select pg_catalog.nextval({job_id_seq}) from pg_catalog.generate_series(1, %(count)s::integer))

-- name: copy_jobs
copy {schema}.queued (job_id, entrypoint, priority, payload) from stdin (format binary)

-- name: notify_queued
-- After a COPY: one notification for each name that a sleeper serves.
select pg_catalog.count(*) from (
    select pg_catalog.pg_notify({channel}, 'queued:' operator(pg_catalog.||) pg_catalog.left(n.entrypoint, 1000))
    from pg_catalog.unnest(%(entrypoints)s::pg_catalog.text[]) as n (entrypoint)
    where (select %(always_notify)s::boolean)
        or exists (
            select from {schema}.worker w
            where w.left_at is null
                and n.entrypoint operator(pg_catalog.=) any (case when w.sleeping then w.entrypoints else w.dozing end)
        )
) as woken

-- name: look_queued
-- Which of these names have jobs that wait.
select array(
    select n.name from unnest(%(entrypoints)s::text[]) as n (name)
    where exists (select from {schema}.queued q where q.entrypoint = n.name)
)

-- name: claim_sweep
-- Every lane of the names from its start, in one order: priority, then seq.
-- Candidates are read without locks and merged; only then are the first of them locked, in that order, and those that
-- another claimer holds are skipped. Locking in each lane would lock limit rows of every name and hide them from others.
-- Fenced on the worker row: a worker declared dead, one that has left, or one that has not read new limits claims nothing,
-- and hides no row from others.
-- The first column counts the candidates: fewer rows than candidates means that others are claiming the same ones.
with lane as materialized (
    select unnest(%(entrypoints)s::text[]) as entrypoint
), candidate as materialized (
    select c.tid, c.priority, c.seq
    from lane cross join lateral (
        select q.ctid as tid, q.priority, q.seq from {schema}.queued q
        where q.entrypoint = lane.entrypoint
        order by q.priority desc, q.seq limit %(reach)s::integer
    ) c
    where exists (
        select from {schema}.worker w
        where w.worker_id = %(worker_id)s::bigint and w.left_at is null
            and w.limit_changes = %(limit_changes)s::bigint
    )
    order by c.priority desc, c.seq limit %(reach)s::integer
), locked as materialized (
    select q.ctid as tid
    from candidate c join {schema}.queued q on q.ctid = c.tid
    order by c.priority desc, c.seq limit %(limit)s::integer
    for update of q skip locked
), taken as (
    delete from {schema}.queued q
    where q.ctid = any (array(select tid from locked))
    returning q.job_id, q.seq, q.entrypoint, q.priority, q.attempt, q.crashes, q.created_at, q.payload
), moved as (
    insert into {schema}.running
        (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, crashes, created_at, claimed_at, payload)
    select job_id, %(worker_id)s::bigint, %(claim_no)s::bigint, seq, entrypoint, priority, attempt, crashes, created_at,
        clock_timestamp(), payload
    from taken order by priority desc, seq
    returning job_id, seq, entrypoint, payload, priority, attempt, crashes, created_at
)
select (select count(*) from candidate), m.job_id, m.seq, m.entrypoint, m.payload, m.priority, m.attempt, m.crashes, m.created_at
from (values (1)) as always (one) left join moved m on true
order by m.priority desc, m.seq

-- name: claim_hinted
-- As claim_sweep, but each known lane (name, priority) is entered behind the last row claimed from it, so that the dead
-- entries of jobs already done are never walked, whatever old snapshot keeps them. The gaps between known priorities are
-- searched as far as lanes: one row of each would be enough to find a new priority, but the rest of that claim would
-- bring lower ones.
with lane as materialized (
    select * from unnest(%(entrypoints)s::text[], %(priorities)s::integer[], %(seqs)s::bigint[]) as l (entrypoint, priority, seq)
), gap as materialized (
    select * from unnest(%(gap_entrypoints)s::text[], %(gap_aboves)s::bigint[], %(gap_belows)s::bigint[])
        as g (entrypoint, above, below)
), candidate as materialized (
    select c.tid, c.priority, c.seq
    from (
        select h.tid, h.priority, h.seq
        from lane cross join lateral (
            select q.ctid as tid, q.priority, q.seq from {schema}.queued q
            where q.entrypoint = lane.entrypoint and q.priority = lane.priority and q.seq > lane.seq
            order by q.seq limit %(reach)s::integer
        ) h
        union all
        select p.tid, p.priority, p.seq
        from gap cross join lateral (
            select q.ctid as tid, q.priority, q.seq from {schema}.queued q
            where q.entrypoint = gap.entrypoint and q.priority > gap.above and q.priority < gap.below
            order by q.priority desc, q.seq limit %(reach)s::integer
        ) p
    ) c
    where exists (
        select from {schema}.worker w
        where w.worker_id = %(worker_id)s::bigint and w.left_at is null
            and w.limit_changes = %(limit_changes)s::bigint
    )
    order by c.priority desc, c.seq limit %(reach)s::integer
), locked as materialized (
    select q.ctid as tid
    from candidate c join {schema}.queued q on q.ctid = c.tid
    order by c.priority desc, c.seq limit %(limit)s::integer
    for update of q skip locked
), taken as (
    delete from {schema}.queued q
    where q.ctid = any (array(select tid from locked))
    returning q.job_id, q.seq, q.entrypoint, q.priority, q.attempt, q.crashes, q.created_at, q.payload
), moved as (
    insert into {schema}.running
        (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, crashes, created_at, claimed_at, payload)
    select job_id, %(worker_id)s::bigint, %(claim_no)s::bigint, seq, entrypoint, priority, attempt, crashes, created_at,
        clock_timestamp(), payload
    from taken order by priority desc, seq
    returning job_id, seq, entrypoint, payload, priority, attempt, crashes, created_at
)
select (select count(*) from candidate), m.job_id, m.seq, m.entrypoint, m.payload, m.priority, m.attempt, m.crashes, m.created_at
from (values (1)) as always (one) left join moved m on true
order by m.priority desc, m.seq
