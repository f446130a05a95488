-- {role} enqueues, from Python, the command line and plain SQL, and does nothing else: it reads no payload, not even its own.
grant usage on schema {schema} to {role};
grant select on {schema}.migration to {role};
grant usage on sequence {schema}.job_id_seq, {schema}.queued_seq to {role};
grant insert (job_id, entrypoint, priority, created_at, payload), select (entrypoint) on {schema}.queued to {role};
grant insert (run_at, job_id, entrypoint, priority, created_at, payload), select (run_at) on {schema}.deferred to {role};
-- Who sleeps, and is to be woken.
grant select (entrypoints, sleeping, dozing, left_at) on {schema}.worker to {role};
grant execute on function {schema}.enqueue(text, bytea, integer, interval) to {role};
