-- name: lock_definitions
-- Definitions change one after the other, and while nobody claims under them. Claimers only ever try these locks.
select pg_advisory_xact_lock(hashtextextended('pgq_anyio limits of ' || {schema_name}, 0))::text,
    array(
        select pg_advisory_xact_lock(key)::text
        from (
            select distinct hashtextextended(name, hashtextextended('pgq_anyio limit in ' || {schema_name}, 0)) as key
            from unnest(%(entrypoints)s::text[]) as n (name) order by key
        ) k
    )

-- name: define_limits
-- The last worker to start decides. Returns what was defined before, and whether a worker that lives serves it.
-- A name that had no limit until now may have jobs that nobody counted, claimed by workers that do not know yet: for a
-- while, what runs is counted in full (limiter_state.counted).
with input as materialized (
    select * from unnest(%(entrypoints)s::text[], %(concurrency_limits)s::integer[], %(rates)s::double precision[],
        %(serialized)s::boolean[]) as i (entrypoint, concurrency_limit, requests_per_second, serialized)
), old as materialized (
    select l.* from {schema}.limiter l where l.entrypoint = any (%(entrypoints)s::text[])
), changed as (
    insert into {schema}.limiter as l
        (entrypoint, concurrency_limit, requests_per_second, serialized, worker_id, defined_by, defined_at)
    select i.entrypoint, i.concurrency_limit, i.requests_per_second, i.serialized,
        %(worker_id)s::bigint, %(name)s::text, now()
    from input i left join old o on o.entrypoint = i.entrypoint
    where case
        when o.entrypoint is null then i.concurrency_limit > 0 or i.requests_per_second < 'infinity'
        else (o.concurrency_limit, o.requests_per_second, o.serialized)
            <> (i.concurrency_limit, i.requests_per_second, i.serialized)
    end
    order by i.entrypoint
    on conflict (entrypoint) do update set
        concurrency_limit = excluded.concurrency_limit, requests_per_second = excluded.requests_per_second,
        serialized = excluded.serialized, worker_id = excluded.worker_id, defined_by = excluded.defined_by,
        defined_at = excluded.defined_at
    returning l.entrypoint, l.concurrency_limit
), state as materialized (
    select c.entrypoint, s.version, s.slots, s.tat, c.concurrency_limit > 0 and coalesce(o.concurrency_limit, 0) = 0 as is_new
    from changed c
    left join old o on o.entrypoint = c.entrypoint
    left join lateral (
        select s.version, s.slots, s.tat from {schema}.limiter_state s
        where s.entrypoint = c.entrypoint order by s.version desc limit 1
    ) s on true
), stated as (
    insert into {schema}.limiter_state (entrypoint, version, slots, tat, counted)
    select s.entrypoint, coalesce(s.version, 0) + 1, coalesce(s.slots, '{{}}'), s.tat,
        not exists (select from {schema}.running r where r.entrypoint = s.entrypoint)
        and not exists (
            select from {schema}.worker w
            where w.worker_id <> %(worker_id)s::bigint and s.entrypoint = any (w.entrypoints)
        )
    from state s where s.is_new or s.version is null
), unstated as (
    delete from {schema}.limiter_state t using state s
    where s.is_new and t.entrypoint = s.entrypoint and t.version = s.version
)
select o.entrypoint, o.concurrency_limit, o.requests_per_second, o.serialized, o.defined_by
from changed c join old o on o.entrypoint = c.entrypoint
where exists (
    select from {schema}.worker w
    where w.worker_id <> %(worker_id)s::bigint and w.left_at is null and o.entrypoint = any (w.entrypoints)
)
order by o.entrypoint

-- name: outdate_workers
-- After define_limits, in its transaction: workers that serve a changed name claim nothing without limits until they know.
-- Here, and not when they claim, is counted what they have to know. Workers of an earlier version look at the mark.
with changed as materialized (
    select array(
        select l.entrypoint from {schema}.limiter l where l.worker_id = %(worker_id)s::bigint and l.defined_at = now()
    ) as entrypoints
), other as materialized (
    select w.worker_id from {schema}.worker w, changed c
    where w.worker_id <> %(worker_id)s::bigint and w.entrypoints && c.entrypoints
    order by w.worker_id for update of w
), outdated as (
    update {schema}.worker w set limit_changes = w.limit_changes + 1, outdated = true
    from other o where w.worker_id = o.worker_id returning w.worker_id
)
select pg_notify({channel}, 'limits')::text where exists (select from outdated)

-- name: list_limits
-- In one snapshot with the number of changes: what commits later is not taken for known.
select coalesce((select w.limit_changes from {schema}.worker w where w.worker_id = %(worker_id)s::bigint), -1),
    l.entrypoint, l.concurrency_limit, l.requests_per_second, l.serialized, l.defined_by
from (values (1)) as always (one) left join {schema}.limiter l on l.entrypoint = any (%(entrypoints)s::text[])
order by l.entrypoint

-- name: try_lock_limits
-- In the statement before the one that counts, and in its transaction: the count has a snapshot that is younger than the
-- lock, so it sees every claim that was made under it. In one statement a limit of 2 was seen to give 6.
-- Names that only need a process are not limited by what other workers claim.
select set_config(
    'pgq_anyio.locked',
    array(
        select not n.is_limited or pg_try_advisory_xact_lock(
            hashtextextended(n.name, hashtextextended('pgq_anyio limit in ' || {schema_name}, 0))
        )
        from unnest(%(entrypoints)s::text[], %(limited)s::boolean[]) with ordinality as n (name, is_limited, number)
        order by n.number
    )::text,
    true
)

-- name: claim_limited
-- Right after try_lock_limits. Claims for all names that were locked, in one order: priority, then seq.
-- What is in use: limiter_state lists the jobs that were running after the last claim; those that still have a row in
-- running (looked up by its key) hold a slot. Nothing but a claim brings a job into running, so no way out of it has to
-- count anything, and none can be forgotten. The list is a fresh row each time, and the newest row is found first: dead
-- rows are never walked, whatever old snapshot keeps them.
-- The rate is a clock of tokens (GCRA): tat is when the next job would start at an even pace. A job may start up to
-- %(tolerance)s seconds before it, which makes up for wake-ups that come late. tat is never far ahead of the clock: the
-- clock may have been set back.
-- Jobs that need a process are no more than this worker has seats for, over all names and in one order. A name of these
-- that has no limits is looked at without its lock, as long as the worker knows all limits; of its rows no more are locked
-- than there are seats, or others would be passed over.
-- Names without limits are looked at under the conditions of claim_sweep, and their jobs are taken in one order with
-- those that the limits allow. Gaps are searched as far as lanes: what a short look leaves there would be passed by
-- others. If others hold the first of them, nothing far behind is taken: there is more in between than was looked at.
-- Rows: one per name asked for (no job id), then one per job.
with asked as materialized (
    select a.entrypoint, a.is_limited, a.in_process, a.locked, clock_timestamp() as now
    from unnest(%(entrypoints)s::text[], %(limited)s::boolean[], %(in_process)s::boolean[],
        current_setting('pgq_anyio.locked')::boolean[]) as a (entrypoint, is_limited, in_process, locked)
), known as materialized (
    select a.entrypoint, a.is_limited, case when a.in_process then %(processes)s::integer end as seats, a.now,
        nullif(l.concurrency_limit, 0) as concurrency_limit, l.serialized,
        case when l.requests_per_second < 'infinity' then make_interval(secs => 1 / l.requests_per_second) end as pace,
        s.version, s.slots, s.tat, s.counted,
        case when not s.counted then a.now > l.defined_at + make_interval(secs => %(counting)s::double precision) end as complete
    from asked a
    join {schema}.limiter l on l.entrypoint = a.entrypoint
    cross join lateral (
        select s.version, s.slots, s.tat, s.counted from {schema}.limiter_state s
        where s.entrypoint = a.entrypoint order by s.version desc limit 1
    ) s
    where a.locked and a.is_limited
    union all
    select a.entrypoint, a.is_limited, case when a.in_process then %(processes)s::integer end, a.now,
        null, false, null, null, null, null, null, null
    from asked a
    where not a.is_limited
        and exists (select from {schema}.worker w where w.worker_id = %(worker_id)s::bigint and w.limit_changes = %(limit_changes)s::bigint)
), used as materialized (
    select k.entrypoint, u.job_ids, coalesce(f.refunds, 0) as refunds
    from known k
    cross join lateral (
        select array(
            select r.job_id from {schema}.running r where r.job_id = any (k.slots) and r.entrypoint = k.entrypoint
            union
            select r.job_id from {schema}.running r where not k.counted and r.entrypoint = k.entrypoint
        ) as job_ids
    ) u
    cross join lateral (
        select sum(f.tokens) as refunds from {schema}.limiter_refund f where k.pace is not null and f.entrypoint = k.entrypoint
    ) f
), clocked as materialized (
    select k.*, u.job_ids, u.refunds, make_interval(secs => %(tolerance)s::double precision) as tolerance,
        greatest(
            k.now,
            least(coalesce(k.tat, k.now), k.now + k.pace + make_interval(secs => %(tolerance)s::double precision)) - u.refunds * k.pace
        ) as base
    from known k join used u on u.entrypoint = k.entrypoint
), open as materialized (
    select c.*,
        c.concurrency_limit - cardinality(c.job_ids) as slots_free,
        greatest(0, least(
            c.concurrency_limit - cardinality(c.job_ids),
            %(limit)s::integer,
            c.seats,
            case when c.pace is not null then
                1 + floor(extract(epoch from c.now + c.tolerance - c.base) / extract(epoch from c.pace))
            end
        ))::integer as free
    from clocked c
), look as materialized (
    select o.entrypoint, o.is_limited, o.seats, o.free, greatest(o.free, 1) * case when o.serialized then 1 else %(reach)s::integer end as reach
    from open o
), lane as materialized (
    select l.entrypoint, l.priority, l.seq, k.reach
    from unnest(%(lane_entrypoints)s::text[], %(priorities)s::integer[], %(seqs)s::bigint[]) as l (entrypoint, priority, seq)
    join look k on k.entrypoint = l.entrypoint
), gap as materialized (
    select g.entrypoint, g.above, g.below, k.reach
    from unnest(%(gap_entrypoints)s::text[], %(gap_aboves)s::bigint[], %(gap_belows)s::bigint[]) as g (entrypoint, above, below)
    join look k on k.entrypoint = g.entrypoint
), found as materialized (
    select h.tid, lane.entrypoint, h.priority, h.seq
    from lane cross join lateral (
        select q.ctid as tid, q.priority, q.seq from {schema}.queued q
        where q.entrypoint = lane.entrypoint and q.priority = lane.priority and q.seq > lane.seq
        order by q.seq limit lane.reach
    ) h
    union all
    select p.tid, gap.entrypoint, p.priority, p.seq
    from gap cross join lateral (
        select q.ctid as tid, q.priority, q.seq from {schema}.queued q
        where q.entrypoint = gap.entrypoint and q.priority > gap.above and q.priority < gap.below
        order by q.priority desc, q.seq limit gap.reach
    ) p
), candidate as materialized (
    select f.tid, f.entrypoint, f.priority, f.seq, k.is_limited, k.seats, k.free
    from (
        select f.*, row_number() over (partition by f.entrypoint order by f.priority desc, f.seq) as place from found f
    ) f
    join look k on k.entrypoint = f.entrypoint
    where f.place <= k.reach
), locked as materialized (
    select q.ctid as tid, c.entrypoint, c.priority, c.seq, c.seats, c.free
    from candidate c join {schema}.queued q on q.ctid = c.tid
    where c.is_limited and c.free > 0
    order by c.priority desc, c.seq
    for update of q skip locked
), placed as materialized (
    select l.tid, l.priority, l.seq, l.seats
    from (
        select l.*, row_number() over (partition by l.entrypoint order by l.priority desc, l.seq) as place from locked l
    ) l
    where l.place <= l.free
), seated as materialized (
    select p.tid, p.priority, p.seq, false as is_open from placed p where p.seats is not null
    union all
    select c.tid, c.priority, c.seq, true from candidate c where not c.is_limited and c.free > 0
    order by priority desc, seq limit %(processes)s::integer * %(reach)s::integer
), seat_locked as materialized (
    select q.ctid as tid, s.priority, s.seq
    from seated s join {schema}.queued q on q.ctid = s.tid
    where s.is_open
    order by s.priority desc, s.seq limit least(%(processes)s::integer, %(limit)s::integer)
    for update of q skip locked
), allowed as materialized (
    select p.tid, p.priority, p.seq from placed p where p.seats is null
    union all
    (
        select f.tid, f.priority, f.seq
        from (
            select s.tid, s.priority, s.seq from seated s where not s.is_open
            union all
            select l.tid, l.priority, l.seq from seat_locked l
        ) f
        order by f.priority desc, f.seq limit %(processes)s::integer
    )
), open_candidate as materialized (
    select c.tid, c.priority, c.seq
    from (
        select h.tid, h.priority, h.seq
        from unnest(%(open_entrypoints)s::text[], %(open_priorities)s::integer[], %(open_seqs)s::bigint[])
            as lane (entrypoint, priority, seq)
        cross join lateral (
            select q.ctid as tid, q.priority, q.seq from {schema}.queued q
            where q.entrypoint = lane.entrypoint and q.priority = lane.priority and q.seq > lane.seq
            order by q.seq limit %(limit)s::integer * %(reach)s::integer
        ) h
        union all
        select p.tid, p.priority, p.seq
        from unnest(%(open_gap_entrypoints)s::text[], %(open_gap_aboves)s::bigint[], %(open_gap_belows)s::bigint[])
            as gap (entrypoint, above, below)
        cross join lateral (
            select q.ctid as tid, q.priority, q.seq from {schema}.queued q
            where q.entrypoint = gap.entrypoint and q.priority > gap.above and q.priority < gap.below
            order by q.priority desc, q.seq limit %(limit)s::integer * %(reach)s::integer
        ) p
    ) c
    where exists (select from {schema}.worker w where w.worker_id = %(worker_id)s::bigint and w.limit_changes = %(limit_changes)s::bigint)
    order by c.priority desc, c.seq limit %(limit)s::integer * %(reach)s::integer
), merged as materialized (
    select a.tid, a.priority, a.seq, false as is_open from allowed a
    union all
    select c.tid, c.priority, c.seq, true from open_candidate c
    order by priority desc, seq limit %(limit)s::integer * %(reach)s::integer
), open_locked as materialized (
    select q.ctid as tid, m.priority, m.seq
    from merged m join {schema}.queued q on q.ctid = m.tid
    where m.is_open
    order by m.priority desc, m.seq limit %(limit)s::integer
    for update of q skip locked
), chosen as materialized (
    select f.tid
    from (
        select m.tid, m.priority, m.seq from merged m where not m.is_open
        union all
        select o.tid, o.priority, o.seq from open_locked o
    ) f
    order by f.priority desc, f.seq limit %(limit)s::integer
), taken as (
    delete from {schema}.queued q
    where q.ctid = any (array(select tid from chosen))
        and exists (select from {schema}.worker w where w.worker_id = %(worker_id)s::bigint and w.left_at is null)
    returning q.job_id, q.seq, q.entrypoint, q.priority, q.attempt, q.crashes, q.created_at, q.payload
), moved as (
    insert into {schema}.running
        (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, crashes, created_at, claimed_at, payload)
    select job_id, %(worker_id)s::bigint, %(claim_no)s::bigint, seq, entrypoint, priority, attempt, crashes, created_at,
        clock_timestamp(), payload
    from taken order by priority desc, seq
    returning job_id, seq, entrypoint, payload, priority, attempt, crashes, created_at
), result as materialized (
    select o.*, t.job_ids as taken_ids, coalesce(cardinality(t.job_ids), 0) as took,
        o.base + coalesce(cardinality(t.job_ids), 0) * o.pace as next_tat,
        (select count(*) from candidate c where c.entrypoint = o.entrypoint)::integer as candidates
    from open o
    left join (select m.entrypoint, array_agg(m.job_id) as job_ids from moved m group by m.entrypoint) t
        on t.entrypoint = o.entrypoint
), write as materialized (
    select r.* from result r where r.version is not null and (r.took > 0 or r.refunds > 0 or r.complete)
), stated as (
    insert into {schema}.limiter_state (entrypoint, version, slots, tat, counted)
    select w.entrypoint, w.version + 1,
        case when w.concurrency_limit is null then '{{}}' else w.job_ids || coalesce(w.taken_ids, '{{}}') end,
        w.next_tat, w.counted or w.complete
    from write w
), unstated as (
    delete from {schema}.limiter_state s using write w where s.entrypoint = w.entrypoint and s.version = w.version
), spent as (
    delete from {schema}.limiter_refund f using write w where w.refunds > 0 and f.entrypoint = w.entrypoint
)
select answer.*
from (
    select null::bigint as job_id, null::bigint as seq, a.entrypoint, null::bytea as payload, null::integer as priority,
        null::integer as attempt, null::integer as crashes, null::timestamptz as created_at,
        a.locked, r.slots_free - r.took as slots_left, r.candidates,
        extract(epoch from r.next_tat - r.tolerance - clock_timestamp())::double precision as pause,
        (select count(*) from open_candidate)::integer as open_candidates
    from asked a left join result r on r.entrypoint = a.entrypoint
    union all
    select m.job_id, m.seq, m.entrypoint, m.payload, m.priority, m.attempt, m.crashes, m.created_at, null, null, null, null,
        null
    from moved m
) answer
order by answer.job_id is not null, answer.priority desc, answer.seq

-- name: list_writers
-- Whoever inserts into the queue has this lock from before its first place is allotted until its transaction ends.
select array(
    select l.virtualtransaction
    from pg_namespace n join pg_class c on c.relnamespace = n.oid join pg_locks l on l.relation = c.oid
    where n.nspname = {schema_name} and c.relname = 'queued' and l.mode = 'RowExclusiveLock' and l.granted
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
)

-- name: notify_slots
-- For workers that wait for a slot of a name that was full, when the worker that freed one does not take it.
select count(*) from (
    select pg_notify({channel}, 'slot:' || left(l.entrypoint, 1000))
    from {schema}.limiter l where l.entrypoint = any (%(entrypoints)s::text[]) and l.concurrency_limit > 0
) as woken

-- name: set_dozing
update {schema}.worker w set dozing = %(entrypoints)s::text[] where w.worker_id = %(worker_id)s::bigint
