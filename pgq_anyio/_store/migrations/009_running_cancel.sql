-- Each heartbeat asks which jobs of its worker are to be cancelled, and they are few: without this, it reads all of running.
-- The rest have no entry, so that claims and completions write nothing more.
create index running_cancel on {schema}.running (worker_id) where cancel_requested_at is not null;
