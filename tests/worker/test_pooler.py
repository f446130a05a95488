"""A worker behind PgBouncer in transaction mode: everything works, at once if LISTEN has a way around, else later."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from pgq_anyio import Context, Job, JobId, JobStatus, PgQueuer, PsycopgDriver, Queries, Schedule
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within
from tests.poolers import open_pgbouncer
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

LEASE = 3.0
#: Settings that a worker makes for itself, and that nobody else may find.
OURS = ("synchronous_commit", "plan_cache_mode", "jit", "enable_seqscan", "default_transaction_isolation")


@pytest.fixture(scope="module")
def pooled_dsn(server_dsn: str) -> Iterator[str]:
    """Three connections to the server for all that a worker has: each is passed around."""
    with open_pgbouncer(server_dsn, size=3) as pooler:
        yield pooler.dsn


@pytest.fixture
async def driver(anyio_backend: object, pooled_dsn: str) -> AsyncIterator[PsycopgDriver]:
    """Producers come through the pooler as well."""
    async with PsycopgDriver(pooled_dsn) as driver:
        yield driver


@asynccontextmanager
async def every_session(pooled_dsn: str) -> AsyncIterator[list[psycopg.Connection[tuple[Any, ...]]]]:
    """Transactions in all sessions that the pooler has, at the same time, as soon as they are to be had."""
    clients = [psycopg.connect(pooled_dsn, autocommit=True) for _ in range(3)]
    try:
        for client in clients:
            await anyio.to_thread.run_sync(client.execute, "begin")
        yield clients
    finally:
        for client in clients:
            client.close()


async def traces(pooled_dsn: str) -> list[list[Any]]:
    """What clients have left in the pooler's sessions."""
    found = []
    async with every_session(pooled_dsn) as clients:
        for client in clients:
            settings = client.execute(
                "select name, setting from pg_settings where name = any (%s) and source = 'session' order by name",
                [list(OURS)],
            ).fetchall()
            statements = client.execute("select name from pg_prepared_statements").fetchall()
            channels = client.execute("select * from pg_listening_channels()").fetchall()
            found.append([*settings, *statements, *channels])
    return found


async def time_status(queries: Queries, job_id: JobId, status: JobStatus) -> float:
    """Wait for the state of a job; how long that took (in seconds)."""
    began_at = time.monotonic()
    await wait_status(queries, job_id, status)
    return time.monotonic() - began_at


async def test_everything_works(pooled_dsn: str, driver: PsycopgDriver, schema: str) -> None:
    """Jobs of every kind, limits, retries, deferred jobs and schedules; nothing is left in the sessions of others."""
    app = PgQueuer(pooled_dsn, schema=schema)
    queries = Queries(driver, schema=schema)
    seen: list[str] = []
    running = most = 0

    @app.entrypoint("plain")
    async def plain(job: Job) -> None:
        seen.append("plain")

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        seen.append("thread")

    @app.entrypoint("limited", concurrency_limit=2)
    async def limited(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1
        seen.append("limited")

    @app.entrypoint("again", max_attempts=2)
    async def again(job: Job) -> None:
        seen.append("again")
        if job.attempt == 1:
            raise ValueError("once")

    @app.schedule("often", "* * * * * *")
    async def often(schedule: Schedule) -> None:
        seen.append("schedule")

    await queries.enqueue(["plain", "thread", "limited", "again"] * 30)
    await queries.enqueue("plain", execute_after=timedelta(seconds=1.5))
    with anyio.fail_after(40):
        await drain(app, lease=LEASE, dequeue_timeout=0.5)
    assert 2 == most
    assert [31, 30, 30, 60] == [seen.count(name) for name in ("plain", "thread", "limited", "again")]
    assert seen.count("schedule") >= 1
    assert [[], [], []] == await traces(pooled_dsn)


@pytest.mark.promise(6, 25)
async def test_without_a_direct_way_work_is_found_by_polling(
    pooled_dsn: str, driver: PsycopgDriver, schema: str, caplog: pytest.LogCaptureFixture, within: Within
) -> None:
    """Jobs within the poll interval, cancel requests with the next heartbeat; it is said once why, with the fix."""
    app = PgQueuer(pooled_dsn, schema=schema)
    queries = Queries(driver, schema=schema)

    @app.entrypoint("hold")
    async def hold(job: Job, context: Context) -> None:
        await anyio.sleep_forever()

    poll = 1.0
    caplog.set_level(logging.WARNING)
    async with running_worker(app, lease=LEASE, dequeue_timeout=poll):
        await anyio.sleep(1.5)  # the looks that follow falling asleep are over
        for _ in range(3):
            (job_id,) = await queries.enqueue("hold")
            assert await time_status(queries, job_id, JobStatus.RUNNING) < within(poll + 0.5)
            await queries.mark_job_as_cancelled([job_id])
            assert await time_status(queries, job_id, JobStatus.CANCELLED) < within(LEASE / 3 + 0.5)
        await anyio.sleep(LEASE)  # nothing is heard for a whole lease, and nothing is made of it
    assert [[], [], []] == await traces(pooled_dsn)
    (warning,) = [record.getMessage() for record in caplog.records if record.name != "pgq_anyio.watchdog"]
    assert "through a pooler" in warning
    assert "found within 1 s" in warning
    assert "--direct-dsn, PGQ_ANYIO_DIRECT_DSN, or PsycopgDriver(direct_conninfo=" in warning


@pytest.mark.promise(6, 23)
@pytest.mark.parametrize("told", ["driver", "environment"])
async def test_with_a_direct_way_wakeups_are_immediate(
    dsn: str,
    pooled_dsn: str,
    driver: PsycopgDriver,
    schema: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    within: Within,
) -> None:
    """Only LISTEN goes around the pooler: jobs start and are cancelled at once although nobody polls."""
    if told == "driver":
        app = PgQueuer(PsycopgDriver(pooled_dsn, direct_conninfo=dsn), schema=schema)
    else:
        monkeypatch.setenv("PGQ_ANYIO_DIRECT_DSN", dsn)
        app = PgQueuer(pooled_dsn, schema=schema)
    queries = Queries(driver, schema=schema)
    started = anyio.Event()

    @app.entrypoint("hold")
    async def hold(job: Job, context: Context) -> None:
        started.set()
        await anyio.sleep_forever()

    starts, ends = [], []
    async with running_worker(app):
        await anyio.sleep(1.5)  # the looks that follow falling asleep are over
        for _ in range(7):
            started = anyio.Event()
            began_at = time.monotonic()
            (job_id,) = await queries.enqueue("hold")
            with anyio.fail_after(20):
                await started.wait()
            starts.append(time.monotonic() - began_at)
            await queries.mark_job_as_cancelled([job_id])
            ends.append(await time_status(queries, job_id, JobStatus.CANCELLED))
    assert statistics.median(starts) < within(0.1, 2)
    assert statistics.median(ends) < within(0.2, 2)
    assert [[], [], []] == await traces(pooled_dsn)


async def test_a_pooler_that_keeps_sessions_can_be_listened_through(
    server_dsn: str, schema: str, within: Within
) -> None:
    """It looks like one that does not; naming it as the direct way too says that LISTEN works."""
    with open_pgbouncer(server_dsn, mode="session", size=20) as pooler:
        app = PgQueuer(PsycopgDriver(pooler.dsn, direct_conninfo=pooler.dsn), schema=schema)
        started = anyio.Event()

        @app.entrypoint("quick")
        async def quick(job: Job) -> None:
            started.set()

        async with PsycopgDriver(pooler.dsn) as driver, running_worker(app):
            await anyio.sleep(1.5)
            began_at = time.monotonic()
            await Queries(driver, schema=schema).enqueue("quick")
            with anyio.fail_after(20):
                await started.wait()
            assert time.monotonic() - began_at < within(1)
