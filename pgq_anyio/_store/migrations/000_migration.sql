-- Which of these files have been applied. This one comes first, so the table tells whether the schema is ours at all.
create table {schema}.migration (
    name text primary key,
    applied_at timestamptz not null default clock_timestamp()
);
