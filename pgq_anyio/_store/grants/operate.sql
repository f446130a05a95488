-- {role} cancels and requeues jobs, and pauses, resumes, runs and removes schedules. It sees all that it decides about.
-- A statement that locks rows needs the right to update a column of theirs: one is chosen that says little.
grant usage on schema {schema} to {role};
grant select on {schema}.migration, {schema}.queued, {schema}.deferred, {schema}.running, {schema}.finished,
    {schema}.attempt_error, {schema}.cancel_request, {schema}.worker, {schema}.schedule,
    {schema}.limiter, {schema}.limiter_state, {schema}.limiter_refund to {role};
grant execute on function {schema}.queue_size(bigint) to {role};
grant usage on sequence {schema}.queued_seq to {role};
-- Cancel.
grant delete, update (crashes) on {schema}.queued, {schema}.deferred to {role};
grant update (cancel_requested_at, cancel_reason) on {schema}.running to {role};
grant insert (job_id, entrypoint, status, priority, attempt, crashes, created_at, cancel_reason, payload)
    on {schema}.finished to {role};
grant insert (job_id, requested_by), delete on {schema}.cancel_request to {role};
-- Requeue.
grant insert (job_id, entrypoint, priority, created_at, payload) on {schema}.queued to {role};
grant delete, update (crashes) on {schema}.finished to {role};
grant insert on {schema}.attempt_error to {role};
-- Schedules.
grant delete, update (paused, asked_for, last_due_at, given_back_due_at) on {schema}.schedule to {role};
