-- How many jobs of each name are queued, exact up to a limit for each: a dashboard that asks every few seconds must not
-- read millions of rows each time. Null is no limit. select * from pgq_anyio.queue_size();
-- From name to name and then along the name's entries, by the index of lanes. Whatever the statistics say, which are none
-- for this table: a planner without them would rather read all of it.
create function {schema}.queue_size(up_to bigint default 10000) returns table (entrypoint text, jobs bigint)
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $function$
    with recursive name as (
        (select q.entrypoint from {schema}.queued q order by q.entrypoint limit 1)
        union all
        select (
            select q.entrypoint from {schema}.queued q where q.entrypoint > n.entrypoint order by q.entrypoint limit 1
        )
        from name n where n.entrypoint is not null
    )
    select n.entrypoint, (
        select count(*) from (select from {schema}.queued q where q.entrypoint = n.entrypoint limit up_to) as counted
    )
    from name n where n.entrypoint is not null order by n.entrypoint
$function$;
