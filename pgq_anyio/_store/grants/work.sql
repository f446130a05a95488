-- {role} runs workers: it moves jobs from table to table and keeps the books. It owns nothing, so that it can neither change
-- tables nor empty them at one blow, and days of finished come and go by functions that do only that.
-- Rows are locked before they are deleted, and whoever locks rows needs the right to update them.
grant usage on schema {schema} to {role};
grant select on {schema}.migration to {role};
grant usage on sequence {schema}.job_id_seq, {schema}.queued_seq to {role};
grant select, insert, update, delete on {schema}.queued, {schema}.deferred, {schema}.running, {schema}.finished,
    {schema}.finished_default, {schema}.attempt_error, {schema}.worker to {role};
grant select, update, delete on {schema}.cancel_request to {role};
grant select, insert, update on {schema}.schedule to {role};
grant select, insert, update on {schema}.limiter to {role};
grant select, insert, delete on {schema}.limiter_state, {schema}.limiter_refund to {role};
grant execute on function {schema}.enqueue(text, bytea, integer, interval), {schema}.make_finished_day(date),
    {schema}.drop_finished_day(date) to {role};
