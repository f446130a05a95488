-- {role} makes the tables and changes them (pgq-anyio migrate, uninstall). The schema is made for it here, so that it needs
-- no right to make schemas; tables that somebody else has made become its own.
do $grants$
declare
    command text;
begin
    if not exists (select from pg_catalog.pg_namespace where nspname = {schema_name}) then
        execute format('create schema %I authorization %I', {schema_name}, {role_name});
    end if;
    for command in
        select format('alter schema %I owner to %I', n.nspname, {role_name})
        from pg_catalog.pg_namespace n
        where n.nspname = {schema_name} and pg_catalog.pg_get_userbyid(n.nspowner) <> {role_name}
        union all
        select format('alter table %I.%I owner to %I', n.nspname, c.relname, {role_name})
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = {schema_name} and c.relkind in ('r', 'p', 'S')
            and pg_catalog.pg_get_userbyid(c.relowner) <> {role_name}
            and (
                c.relname in (
                    'queued', 'deferred', 'running', 'finished', 'finished_default', 'attempt_error', 'cancel_request',
                    'worker', 'schedule', 'limiter', 'limiter_state', 'limiter_refund', 'migration',
                    'job_id_seq', 'queued_seq'
                )
                or c.relname ~ '^finished_[0-9]{{8}}$'
            )
        union all
        select format('alter function %s owner to %I', p.oid::regprocedure, {role_name})
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = {schema_name} and p.proname in ('enqueue', 'queue_size', 'make_finished_day', 'drop_finished_day')
            and pg_catalog.pg_get_userbyid(p.proowner) <> {role_name}
    loop
        execute command;
    end loop;
end
$grants$;
