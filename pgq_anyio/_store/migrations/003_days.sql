-- The first week of finished, so that its default partition stays empty also where jobs end before any worker has run.
do $days$
declare
    day date;
begin
    for ahead in 0 .. 7 loop
        day := (clock_timestamp() at time zone 'UTC')::date + ahead;
        execute format(
            'create table %1$I.%2$I partition of %1$I.finished for values from (%3$L) to (%4$L)',
            {schema_name}, 'finished_' || to_char(day, 'YYYYMMDD'), day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00'
        );
    end loop;
end
$days$;
