"""What a graceful stop must leave as it is: the heartbeat, and the timeouts of jobs."""

from __future__ import annotations

import threading

import anyio
import anyio.from_thread
import pytest

from pgq_anyio import Job, PgQueuer
from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio.testing import running_worker
from tests.store.conftest import store
from tests.store.scenes import add_jobs, rows, value

__all__ = ["store"]

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]


async def test_a_timeout_shorter_than_the_grace(dsn: str, store: Store, conn: Connection) -> None:
    """It still ends the job in its own time, as a timeout, after the stop has begun."""
    app = PgQueuer(dsn, schema=store.schema)

    @app.entrypoint("fetch", timeout=0.5)
    async def fetch(job: Job) -> None:
        app.stop()
        await anyio.sleep_forever()

    await add_jobs(conn, store)
    with anyio.fail_after(15):
        await app.run(shutdown_grace=60)
    assert [("failed", "JobTimeout")] == await rows(conn, store, "select status, error_type from {schema}.finished")


async def test_a_job_longer_than_the_lease_during_the_stop(dsn: str, store: Store, conn: Connection) -> None:
    """The worker beats until the last job has ended: nobody could have declared it dead, and the job succeeds."""
    app = PgQueuer(dsn, schema=store.schema)
    beats: list[int] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        app.stop()
        began = anyio.current_time()
        while anyio.current_time() < began + 4:
            beats.append(await value(conn, store, "select beat from {schema}.worker"))
            await anyio.sleep(0.1)  # how long the job takes is the point

    await add_jobs(conn, store)
    with anyio.fail_after(20):
        await app.run(lease=3, shutdown_grace=60)
    assert beats[-1] >= beats[0] + 2
    assert [("successful",)] == await rows(conn, store, "select status from {schema}.finished")


async def test_a_thread_longer_than_the_lease_after_a_cancellation(dsn: str, store: Store, conn: Connection) -> None:
    """The scope around the worker is cancelled, and its thread goes on: so does the heartbeat, and the job succeeds."""
    app, other = (PgQueuer(dsn, schema=store.schema) for _ in range(2))
    started, may_end = anyio.Event(), threading.Event()

    @app.entrypoint("fetch")
    def fetch(job: Job) -> None:
        anyio.from_thread.run_sync(started.set)
        may_end.wait(30)

    @other.entrypoint("fetch")
    async def fetch_again(job: Job) -> None:
        raise AssertionError("its worker lives")

    async def run() -> None:
        with scope:
            await app.run(lease=2)

    scope = anyio.CancelScope()
    await add_jobs(conn, store)
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await started.wait()
            async with running_worker(other, lease=2):
                scope.cancel()
                before = await value(conn, store, "select min(beat) from {schema}.worker")
                beats = "select count(*) from {schema}.worker where beat > %s"
                while await value(conn, store, beats, before + 6) < 2:  # noqa: ASYNC110  (it can only be looked at)
                    await anyio.sleep(0.05)
                may_end.set()
                await wait_value(conn, store, "select count(*) from {schema}.finished")
    assert [("successful", 0)] == await rows(conn, store, "select status, crashes from {schema}.finished")


async def wait_value(conn: Connection, store: Store, query: str) -> None:
    while not await value(conn, store, query):  # noqa: ASYNC110  (it can only be looked at)
        await anyio.sleep(0.05)
