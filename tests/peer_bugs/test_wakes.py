"""What one enqueue costs a fleet of fifty idle workers."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Final

import anyio
import psycopg
import pytest
from psycopg import sql

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries
from tests.bounds import Within
from tests.worker.own_server import open_own_server

pytestmark = [pytest.mark.anyio, pytest.mark.promise(48), pytest.mark.heavy]

SCHEMA: Final = "fleet"
#: Workers that serve the name, and workers that do not.
SERVING, OTHERS = 25, 25
ENQUEUES: Final = 5
#: Whether the looks that follow falling asleep are over: the last one comes a second after the one before.
QUIET: Final = """
select max(query_start) < clock_timestamp() - interval '3 s' from pg_stat_activity
where application_name like 'pgq_anyio dispatch%'
"""


async def test_fifty_idle_workers(server_dsn: str, within: Within) -> None:
    """Each of those that serve the name looks once, and nobody else does anything. On a busy machine some look again:
    the job that another one is about to take is locked for longer.
    """
    started: list[float] = []
    names = ["fetch"] * SERVING + ["other"] * OTHERS

    async def handle(job: Job) -> None:
        started.append(time.monotonic())

    with open_own_server(server_dsn, max_connections="400") as server:
        server.start()
        server.migrate(SCHEMA)
        observer = psycopg.connect(server.dsn, autocommit=True)

        async def wait_for(query: str, expected: Any) -> None:
            text = sql.SQL(query).format(schema=sql.Identifier(SCHEMA))
            with anyio.fail_after(40):
                while (row := observer.execute(text).fetchone()) is None or row[0] != expected:  # noqa: ASYNC110
                    await anyio.sleep(0.02)

        async with PsycopgDriver(server.dsn) as driver, anyio.create_task_group() as tasks:
            queries = Queries(driver, schema=SCHEMA)
            for name in names:
                app = PgQueuer(server.dsn, schema=SCHEMA)
                app.entrypoint(name)(handle)
                await tasks.start(partial(app.run, lease=600, dequeue_timeout=3600))
            await wait_for("select count(*) from {schema}.worker where sleeping", len(names))
            await wait_for(QUIET, True)
            since = server.log.stat().st_size
            for number in range(1, ENQUEUES + 1):
                await queries.enqueue("fetch")
                await wait_for("select count(*) from {schema}.finished", number)
                await anyio.sleep(0.5)  # who has been woken in vain says so within this time
            counts = server.count_statements(since)
            tasks.cancel_scope.cancel()
        observer.close()
    assert ENQUEUES == len(started) == counts.pop("finish_jobs")
    looks = counts.pop("claim_sweep") + counts.pop("claim_hinted", 0)
    assert ENQUEUES <= looks <= ENQUEUES * within(SERVING + 2, 2 * SERVING)
    assert counts.total() <= ENQUEUES, counts
