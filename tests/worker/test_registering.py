"""What a worker registers as, and one that is told to stop, or is cancelled, while it registers."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from pgq_anyio import Job, PgQueuer
from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._term import lines
from pgq_anyio.testing import running_worker
from tests.store.scenes import rows, value

pytestmark = pytest.mark.anyio

#: A server that is slow to register a worker, and slow to hear that it need not.
SLOW_SERVER = """
create function {schema}.be_slow() returns trigger language plpgsql as '
begin
    perform pg_catalog.pg_sleep(60);
    return new;
exception when query_canceled then
    perform pg_catalog.pg_sleep(0.3);
    return new;
end';
create trigger be_slow before insert on {schema}.worker for each row execute function {schema}.be_slow();
"""
REGISTERING = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and query like %s"


@pytest.mark.promise(12, 13)
async def test_the_shortest_retry_timer_is_the_lease(app: PgQueuer, conn: Connection, schema: str) -> None:
    """Others judge the worker by it, so it shows that it is alive as often as that needs."""

    async def fetch(job: Job) -> None:
        pass

    for name, timer in (("unhurried", None), ("long", 60), ("short", timedelta(seconds=2.4)), ("middle", 5)):
        app.entrypoint(name, retry_timer=timer)(fetch)
    store = Store(schema)
    async with running_worker(app, lease=30):
        assert 2.4 == await value(conn, store, "select lease from {schema}.worker")
        with anyio.fail_after(20):  # at the pace of the other lease, three heartbeats take longer
            while True:
                if await value(conn, store, "select beat from {schema}.worker") >= 3:
                    break
                await anyio.sleep(0.05)  # the fact lies in the server: it can only be looked at


@pytest.mark.promise(17, 34, 36)
@pytest.mark.parametrize("ending", ["cancel", "stop"])
async def test_a_registration_that_was_interrupted_leaves_nothing(
    app: PgQueuer, conn: Connection, schema: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed although it was cancelled; the farewell has to come after it."""
    monkeypatch.setattr(lines, "REGISTRATION_CLEANUP", 10.0)
    store = Store(schema)
    await rows(conn, store, SLOW_SERVER)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        pass

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.run)
            while True:
                if await value(conn, store, REGISTERING, f'%insert into "{schema}".worker%'):
                    break
                await anyio.sleep(0.005)  # the fact lies in the server: it can only be looked at
            if ending == "stop":
                app.stop()
            else:
                tasks.cancel_scope.cancel()
        async with conn.transaction():
            await rows(conn, store, "lock table {schema}.worker in exclusive mode")  # after all who still write to it
            assert [] == await rows(conn, store, "select * from {schema}.worker")
