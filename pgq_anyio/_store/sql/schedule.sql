-- name: register_schedules
-- A new schedule starts from now; one whose time zone has changed too, or an occurrence of the new zone that lies in the
-- past would count as missed. Rows are written in the order of the key: many workers start at once.
with known as (
    insert into {schema}.schedule as s (name, expression, timezone)
    select u.name, u.expression, u.timezone
    from unnest(%(names)s::text[], %(expressions)s::text[], %(timezones)s::text[]) as u (name, expression, timezone)
    order by u.name, u.expression
    on conflict (name, expression) do update
        set timezone = excluded.timezone, last_due_at = greatest(s.last_due_at, clock_timestamp())
        where s.timezone <> excluded.timezone
    returning 1
)
select count(*) from known

-- name: serve_schedules
-- Say which schedules this worker has code for. A statement of its own, before the rows of schedules are locked: a rescue
-- locks the row of the worker first.
update {schema}.worker w set schedule_names = %(names)s::text[], schedule_expressions = %(expressions)s::text[]
where w.worker_id = %(worker_id)s::bigint

-- name: read_schedules
-- What the rows say that this worker has code for, and what time the database has.
select extract(epoch from clock_timestamp())::double precision, s.name, s.expression, s.last_due_at, s.given_back_due_at,
    s.worker_id, s.claim_no, s.paused, s.last_finished_at, s.asked_for
from (select 1) one left join (
    {schema}.schedule s
    join unnest(%(names)s::text[], %(expressions)s::text[]) as u (name, expression)
        on s.name = u.name and s.expression = u.expression
) on true

-- name: fire_schedules
-- Take occurrences: compare-and-set on what the worker knows of the row (last_due_at, given_back_due_at), so that each is
-- run once in the fleet. Rows are locked first, in the order of the key, and read as the lock finds them: the answer holds
-- the present state of every row that was asked for, so that who comes too late learns what happened.
-- "taken" is the time by which occurrences are judged, read before the locks: an occurrence that was refused as too early
-- is later than the clock of the answer.
-- What was asked for travels with the locked rows: a join of two lists of a thousand would be a million comparisons.
with taken as materialized (
    select clock_timestamp() as at
), locked as materialized (
    select s.name, s.expression, s.last_due_at, s.given_back_due_at, s.worker_id, s.claim_no, s.paused, s.last_finished_at,
        s.asked_for, w.due_at, w.last_due_at as known_due_at, w.given_back_due_at as known_given_back_due_at
    from {schema}.schedule s join unnest(
        %(names)s::text[], %(expressions)s::text[], %(last_due_ats)s::timestamptz[], %(given_back_due_ats)s::timestamptz[],
        %(due_ats)s::timestamptz[]
    ) as w (name, expression, last_due_at, given_back_due_at, due_at) on s.name = w.name and s.expression = w.expression
    order by s.name, s.expression for update of s
), judged as materialized (
    select l.*,
        -- An occurrence that comes again, or that an operator asked for, is not the latest one: what was missed stays so.
        case when l.given_back_due_at is null then greatest(l.last_due_at, l.due_at) else l.last_due_at end as due_at_now,
        l.worker_id is null and (not l.paused or (l.asked_for and l.given_back_due_at is not null))
        and l.last_due_at = l.known_due_at and l.given_back_due_at is not distinct from l.known_given_back_due_at
        and l.due_at <= (select at from taken)
        and exists (
            select from {schema}.worker k where k.worker_id = %(worker_id)s::bigint and k.left_at is null
        ) as ours
    from locked l
), fired as (
    update {schema}.schedule s set
        worker_id = %(worker_id)s::bigint, claim_no = %(claim_no)s::bigint, due_at = j.due_at, started_at = clock_timestamp(),
        last_due_at = j.due_at_now, given_back_due_at = null
    from judged j where j.ours and s.name = j.name and s.expression = j.expression
)
select (select extract(epoch from at)::double precision from taken), j.name, j.expression,
    case when j.ours then j.due_at_now else j.last_due_at end,
    case when not j.ours then j.given_back_due_at end,
    case when j.ours then %(worker_id)s::bigint else j.worker_id end,
    case when j.ours then %(claim_no)s::bigint else j.claim_no end,
    j.paused, j.last_finished_at, j.asked_for, j.ours
from (select 1) one left join judged j on true

-- name: release_schedules
-- The end of runs, fenced by (name, expression, worker_id, claim_no). An interrupted one is given back: its occurrence is
-- remembered, whatever came after it. Others are told only if they may have something to run: an occurrence that was given
-- back, or one that passed while a worker ran that does not start anything any more.
with ended as materialized (
    select s.name, s.expression, s.worker_id, s.claim_no,
        e.worker_id as by_worker_id, e.claim_no as by_claim_no, e.status, e.error_type, e.error_message, e.error_traceback
    from {schema}.schedule s join unnest(
        %(names)s::text[], %(expressions)s::text[], %(worker_ids)s::bigint[], %(claim_nos)s::bigint[], %(statuses)s::text[],
        %(error_types)s::text[], %(error_messages)s::text[], %(error_tracebacks)s::text[]
    ) as e (name, expression, worker_id, claim_no, status, error_type, error_message, error_traceback)
        on s.name = e.name and s.expression = e.expression
    order by s.name, s.expression for update of s
), released as (
    update {schema}.schedule s set
        worker_id = null, claim_no = null,
        given_back_due_at = case when e.status = 'given_back' then s.due_at else s.given_back_due_at end,
        last_status = e.status, last_finished_at = clock_timestamp(), last_error_type = e.error_type,
        last_error_message = e.error_message, last_error_traceback = e.error_traceback
    from ended e
    where e.worker_id = e.by_worker_id and e.claim_no = e.by_claim_no
        and s.name = e.name and s.expression = e.expression and s.worker_id = e.by_worker_id and s.claim_no = e.by_claim_no
    returning s.name, s.expression, e.claim_no, e.status
), woken as (
    select pg_notify({channel}, 'schedule')
    where exists (select from released where status = 'given_back')
        or (%(leaving)s::boolean and exists (select from released))
)
select name, expression, claim_no, (select count(*) from woken) from released

-- name: list_schedules
-- A schedule is an orphan if no live worker names it: its code is gone, or all its workers are.
with served as materialized (
    select distinct u.name, u.expression
    from {schema}.worker w cross join lateral unnest(w.schedule_names, w.schedule_expressions) as u (name,
        expression)
    where w.left_at is null
        and w.heartbeat_at operator(pg_catalog.>)
            (pg_catalog.clock_timestamp() operator(pg_catalog.-) pg_catalog.make_interval(secs => w.lease))
)
select s.name, s.expression, s.timezone, s.registered_at, s.last_due_at, s.given_back_due_at, s.paused,
    s.asked_for,
    not exists (
        select from served v where v.name operator(pg_catalog.=) s.name
            and v.expression operator(pg_catalog.=) s.expression
    ),
    s.worker_id, w.name, case when s.worker_id is not null then s.due_at end,
    case when s.worker_id is not null then s.started_at end,
    s.last_status, s.last_finished_at, s.last_error_type, s.last_error_message, s.last_error_traceback
from {schema}.schedule s left join {schema}.worker w on w.worker_id operator(pg_catalog.=) s.worker_id
order by s.name, s.expression

-- name: set_paused
-- What comes due while a schedule is paused is passed over, not missed. A run that was asked for before, or interrupted,
-- waits for the end of the pause. Without an expression: all of the name.
with chosen as materialized (
    select s.name, s.expression from {schema}.schedule s
    where s.name operator(pg_catalog.=) %(name)s::pg_catalog.text
        and (%(expression)s::pg_catalog.text is null or s.expression operator(pg_catalog.=) %(expression)s::pg_catalog.text)
        and s.paused operator(pg_catalog.<>) %(paused)s::boolean
    order by s.name, s.expression for update
), changed as (
    update {schema}.schedule s set
        paused = %(paused)s::boolean, asked_for = s.asked_for and not %(paused)s::boolean,
        last_due_at = case when %(paused)s::boolean
            then s.last_due_at else greatest(s.last_due_at, pg_catalog.clock_timestamp()) end
    from chosen c where s.name operator(pg_catalog.=) c.name and s.expression operator(pg_catalog.=) c.expression
    returning s.name, s.expression
), woken as (
    select pg_catalog.pg_notify({channel}, 'schedule') where exists (select from changed)
)
select c.name, c.expression, (select pg_catalog.count(*) from woken) from changed c order by c.name, c.expression

-- name: run_schedules
-- Run now: as an occurrence that was given back, which comes first whatever came after it; after the present run, if there
-- is one. One that waits to be run again already is enough. A pause holds back what the clock brings, not what an operator
-- asks for: paused ones run once, too, and again if that run is interrupted.
with chosen as materialized (
    select s.name, s.expression from {schema}.schedule s
    where s.name operator(pg_catalog.=) %(name)s::pg_catalog.text
        and (%(expression)s::pg_catalog.text is null or s.expression operator(pg_catalog.=) %(expression)s::pg_catalog.text)
    order by s.name, s.expression for update
), changed as (
    update {schema}.schedule s set
        asked_for = true, given_back_due_at = coalesce(s.given_back_due_at, pg_catalog.clock_timestamp())
    from chosen c where s.name operator(pg_catalog.=) c.name and s.expression operator(pg_catalog.=) c.expression
    returning s.name, s.expression
), woken as (
    select pg_catalog.pg_notify({channel}, 'schedule') where exists (select from changed)
)
select c.name, c.expression, (select pg_catalog.count(*) from woken) from changed c order by c.name, c.expression

-- name: remove_schedules
-- Orphans that do not run; with "force" all. A worker that still has the code makes the row again at once.
with served as materialized (
    select distinct u.name, u.expression
    from {schema}.worker w cross join lateral unnest(w.schedule_names, w.schedule_expressions) as u (name,
        expression)
    where w.left_at is null
        and w.heartbeat_at operator(pg_catalog.>)
            (pg_catalog.clock_timestamp() operator(pg_catalog.-) pg_catalog.make_interval(secs => w.lease))
), chosen as materialized (
    select s.name, s.expression from {schema}.schedule s
    where s.name operator(pg_catalog.=) %(name)s::pg_catalog.text
        and (%(expression)s::pg_catalog.text is null or s.expression operator(pg_catalog.=) %(expression)s::pg_catalog.text)
        and (
            %(force)s::boolean
            or (s.worker_id is null and not exists (
                select from served v
                where v.name operator(pg_catalog.=) s.name and v.expression operator(pg_catalog.=) s.expression
            ))
        )
    order by s.name, s.expression for update of s
), gone as (
    delete from {schema}.schedule s using chosen c where s.name operator(pg_catalog.=) c.name
        and s.expression operator(pg_catalog.=) c.expression
    returning s.name, s.expression
), woken as (
    select pg_catalog.pg_notify({channel}, 'schedule') where exists (select from gone)
)
select g.name, g.expression, (select pg_catalog.count(*) from woken) from gone g order by g.name, g.expression
