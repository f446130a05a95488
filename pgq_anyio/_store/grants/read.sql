-- {role} sees all there is, payloads and errors among it, and changes nothing.
grant usage on schema {schema} to {role};
grant select on {schema}.migration, {schema}.queued, {schema}.deferred, {schema}.running, {schema}.finished,
    {schema}.attempt_error, {schema}.cancel_request, {schema}.worker, {schema}.schedule,
    {schema}.limiter, {schema}.limiter_state, {schema}.limiter_refund to {role};
grant execute on function {schema}.queue_size(bigint) to {role};
