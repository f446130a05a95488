-- Whatever is not named here is not ours: without cascade, the server refuses to drop what something else depends on,
-- and the schema itself while anything is left in it. The partitions of finished go with it.
drop function if exists
    {schema}.enqueue(text, bytea, integer, interval), {schema}.queue_size(bigint), {schema}.make_finished_day(date),
    {schema}.drop_finished_day(date);
drop table if exists
    {schema}.queued, {schema}.deferred, {schema}.running, {schema}.finished, {schema}.attempt_error, {schema}.cancel_request,
    {schema}.worker,
    {schema}.schedule, {schema}.limiter, {schema}.limiter_state, {schema}.limiter_refund, {schema}.migration;
drop sequence if exists {schema}.job_id_seq, {schema}.queued_seq;
drop schema {schema};
