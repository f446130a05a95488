-- The state of a job is the table that holds it: deferred -> queued -> running -> finished.
-- No foreign keys, no triggers, no counters: each of them would be a hot row or a lock on the path of every job.
-- Columns in the order of their alignment, texts last: a job leaves no bytes of padding in each table it goes through.

create sequence {schema}.job_id_seq as bigint;
create sequence {schema}.queued_seq as bigint;

-- Vacuum by threshold, at once and without truncation: these tables turn over thousands of rows a second,
-- a truncation takes an exclusive lock, and ANALYZE of a table that happens to be empty would flip plans.
create table {schema}.queued (
    seq bigint not null default nextval({queued_seq}),
    job_id bigint not null default nextval({job_id_seq}),
    created_at timestamptz not null default clock_timestamp(),
    priority integer not null default 0,
    attempt integer not null default 1,
    crashes integer not null default 0,
    entrypoint text not null,
    payload bytea
) with (
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000
);
create index queued_lane on {schema}.queued (entrypoint, priority desc, seq);
-- Unique for the planner's sake: without statistics it takes an id for half a percent of the table, and reads all of it
-- (a cancel of 1,000 among 1 M: 3.8 s instead of 39 ms). It costs nothing measurable on insert.
create unique index queued_job on {schema}.queued (job_id);

create table {schema}.deferred (
    run_at timestamptz not null,
    job_id bigint not null default nextval({job_id_seq}),
    created_at timestamptz not null default clock_timestamp(),
    priority integer not null default 0,
    attempt integer not null default 1,
    crashes integer not null default 0,
    entrypoint text not null,
    payload bytea
) with (
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000
);
create index deferred_due on {schema}.deferred (run_at, job_id);
create unique index deferred_job on {schema}.deferred (job_id);

create table {schema}.running (
    job_id bigint primary key,
    worker_id bigint not null,
    claim_no bigint not null,
    seq bigint not null,
    created_at timestamptz not null,
    claimed_at timestamptz not null,
    cancel_requested_at timestamptz,
    overdue_at timestamptz,
    priority integer not null,
    attempt integer not null,
    crashes integer not null,
    entrypoint text not null,
    cancel_reason text,
    payload bytea
) with (
    fillfactor = 80, vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000
);

-- One partition a day (UTC). The default partition catches what no day covers, so that a record is never refused.
create table {schema}.finished (
    job_id bigint not null,
    worker_id bigint,
    created_at timestamptz not null,
    claimed_at timestamptz,
    finished_at timestamptz not null default clock_timestamp(),
    priority integer not null,
    attempt integer not null,
    crashes integer not null,
    entrypoint text not null,
    status text not null,
    cancel_reason text,
    error_type text,
    error_message text,
    error_traceback text,
    payload bytea,
    constraint finished_status check (status in ('successful', 'failed', 'cancelled'))
) partition by range (finished_at);
create index finished_job on {schema}.finished (job_id);
create table {schema}.finished_default partition of {schema}.finished default;
create index finished_default_at on {schema}.finished_default (finished_at);

-- The errors of attempts that were followed by another one. Append only; the last error is in finished.
create table {schema}.attempt_error (
    job_id bigint not null,
    attempt integer not null,
    worker_id bigint,
    failed_at timestamptz not null default clock_timestamp(),
    error_type text not null,
    error_message text not null,
    error_traceback text
);
create index attempt_error_job on {schema}.attempt_error (job_id, failed_at);
create index attempt_error_failed_at on {schema}.attempt_error (failed_at);

-- worker_id is a random number, never host and pid: a process that comes back is another worker.
create table {schema}.worker (
    worker_id bigint primary key,
    name text not null,
    entrypoints text[] not null,
    max_crashes integer[] not null,
    lease double precision not null,
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp(),
    beat bigint not null default 0,
    sleeping boolean not null default false,
    -- the limited names for which it sleeps
    dozing text[] not null default '{{}}',
    -- whether limits of its names have changed since it read them: until then it claims nothing without limits
    outdated boolean not null default false,
    left_at timestamptz
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- The limits of entrypoints, as the last worker to start defined them. Names that never had any have no row.
create table {schema}.limiter (
    entrypoint text primary key,
    -- 0 for any number
    concurrency_limit integer not null,
    requests_per_second double precision not null,
    serialized boolean not null,
    -- who defined it
    worker_id bigint not null,
    defined_by text not null,
    defined_at timestamptz not null,
    constraint limiter_limit check (concurrency_limit >= 0),
    constraint limiter_rate check (requests_per_second > 0)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- What a limited name has in use: one row, replaced by each claim under the lock of the name. It is found newest first,
-- so that dead rows are never walked.
create table {schema}.limiter_state (
    entrypoint text not null,
    version bigint not null,
    -- the jobs that were running after the claim; those that still have a row in running hold a slot
    slots bigint[] not null,
    -- when the next job would start at an even pace
    tat timestamptz,
    -- whether slots lists all jobs: not while a worker may claim who does not know of the limit yet
    counted boolean not null
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_threshold = -1);
-- The list changes as a whole each time: compressing it would only cost.
alter table {schema}.limiter_state alter column slots set storage external;
create unique index limiter_state_newest on {schema}.limiter_state (entrypoint, version desc);

-- Tokens of jobs that were claimed and never started, until the next claim takes them back.
create table {schema}.limiter_refund (
    entrypoint text not null,
    tokens integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
create index limiter_refund_entrypoint on {schema}.limiter_refund (entrypoint);

-- One row per name and expression that any code has ever registered. A row has an owner exactly while it runs.
create table {schema}.schedule (
    name text not null,
    expression text not null,
    timezone text not null,
    registered_at timestamptz not null default clock_timestamp(),
    -- the latest occurrence that was run or passed over; the next one is computed from it
    last_due_at timestamptz not null default clock_timestamp(),
    -- an occurrence whose run was interrupted by the stop of its worker: it comes first
    given_back_due_at timestamptz,
    paused boolean not null default false,
    worker_id bigint,
    claim_no bigint,
    -- of the present run, or else of the last one
    due_at timestamptz,
    started_at timestamptz,
    -- of the last run that ended
    last_status text,
    last_finished_at timestamptz,
    last_error_type text,
    last_error_message text,
    last_error_traceback text,
    primary key (name, expression),
    constraint schedule_status check (last_status in ('successful', 'failed', 'cancelled', 'given_back')),
    constraint schedule_owner check ((worker_id is null) = (claim_no is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
-- What a worker runs, for its heartbeat and its rescue. Tiny: almost every row has no owner.
create index schedule_owned on {schema}.schedule (worker_id) where worker_id is not null;
