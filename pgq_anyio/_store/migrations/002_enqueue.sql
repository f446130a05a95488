-- Enqueue from plain SQL: select pgq_anyio.enqueue('fetch', 'payload'::bytea, priority => 5, execute_after => interval '1 minute').
-- Runs in the caller's transaction and always notifies: a sleeper that looked before the commit would miss the job.
create function {schema}.enqueue(
    entrypoint text,
    payload bytea default null,
    priority integer default 0,
    execute_after interval default null
) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
declare
    new_id bigint := nextval({job_id_seq});
    due_at timestamptz := clock_timestamp() + execute_after;
begin
    if entrypoint is null or entrypoint = '' then
        raise exception 'enqueue: the entrypoint must be a name, not %', coalesce(quote_literal(entrypoint), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if due_at > clock_timestamp() then
        insert into {schema}.deferred (run_at, job_id, entrypoint, priority, payload)
        values (due_at, new_id, enqueue.entrypoint, coalesce(enqueue.priority, 0), enqueue.payload);
        perform pg_notify({channel}, 'deferred');
    else
        insert into {schema}.queued (job_id, entrypoint, priority, payload)
        values (new_id, enqueue.entrypoint, coalesce(enqueue.priority, 0), enqueue.payload);
        perform pg_notify({channel}, 'queued:' || left(enqueue.entrypoint, 1000));
    end if;
    return new_id;
end
$function$;
