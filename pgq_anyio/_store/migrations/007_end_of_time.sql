-- PostgreSQL's dates go on for 290,000 years after those that Python can read: one job that is due then, and nobody can
-- list the others. Hence an end: what a table refuses, no way of enqueueing lets in. Queries.enqueue and the function
-- below refuse whatever is due after the year 9998, with a better message; in between is room for clocks that differ.
update {schema}.deferred set run_at = '9998-12-31 00:00:00+00' where run_at >= '9999-12-01 00:00:00+00';
-- Promotion starts to look behind 1970. What was due earlier is due now.
update {schema}.deferred set run_at = '1970-01-02 00:00:00+00' where run_at < '1970-01-02 00:00:00+00';
update {schema}.deferred set created_at = clock_timestamp()
    where created_at < '1970-01-02 00:00:00+00' or created_at >= '9999-12-01 00:00:00+00';
update {schema}.queued set created_at = clock_timestamp()
    where created_at < '1970-01-02 00:00:00+00' or created_at >= '9999-12-01 00:00:00+00';
alter table {schema}.deferred
    add constraint deferred_run_at
        check (run_at >= '1970-01-02 00:00:00+00' and run_at < '9999-12-01 00:00:00+00'),
    add constraint deferred_created_at
        check (created_at >= '1970-01-02 00:00:00+00' and created_at < '9999-12-01 00:00:00+00');
-- Where a claim would fail to read it, and with it every worker.
alter table {schema}.queued add constraint queued_created_at
    check (created_at >= '1970-01-02 00:00:00+00' and created_at < '9999-12-01 00:00:00+00');

-- As before, with the refusals of Queries.enqueue. The type of the priority has its bounds.
create or replace function {schema}.enqueue(
    entrypoint text,
    payload bytea default null,
    priority integer default 0,
    execute_after interval default null
) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $function$
declare
    new_id bigint;
    due_at timestamptz;
begin
    if entrypoint is null or entrypoint = '' then
        raise exception 'enqueue: the entrypoint must be a name, not %', coalesce(quote_literal(entrypoint), 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if length(entrypoint) > 500 then
        raise exception 'enqueue: the name of the entrypoint has % characters; at most 500 are allowed', length(entrypoint)
            using errcode = 'invalid_parameter_value';
    end if;
    if execute_after is not null then
        begin
            due_at := clock_timestamp() + execute_after;
        exception when datetime_field_overflow then
            due_at := case when execute_after > interval '0' then 'infinity' else '-infinity' end;
        end;
        if due_at >= '9999-01-01 00:00:00+00' then
            raise exception 'enqueue: execute_after is %, and from now that is after the year 9998', execute_after
                using errcode = 'invalid_parameter_value';
        end if;
    end if;
    new_id := nextval({job_id_seq});
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
