-- Who asked for the cancel of a job. Append only and beside the way of the jobs, so that no statement that moves one has
-- to carry it. Only requests that took effect are here.
create table {schema}.cancel_request (
    job_id bigint not null,
    requested_at timestamptz not null default clock_timestamp(),
    requested_by text not null
);
create index cancel_request_job on {schema}.cancel_request (job_id, requested_at);
create index cancel_request_at on {schema}.cancel_request (requested_at);

-- Finds what can be requeued among millions of successes, and costs those nothing.
create index finished_unsuccessful on {schema}.finished (job_id) where status <> 'successful';

-- Which schedules a worker has code for, pairwise: a schedule that no live worker names is an orphan.
alter table {schema}.worker
    add column schedule_names text[] not null default '{{}}',
    add column schedule_expressions text[] not null default '{{}}';
