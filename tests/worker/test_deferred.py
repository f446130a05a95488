"""Deferred jobs: never early by the server's clock, soon after their time, in due order."""

from __future__ import annotations

import statistics
from datetime import datetime, timedelta

import anyio
import pytest

from pgq_anyio import Job, JobId, JobStatus, PgQueuer, PsycopgDriver, Queries
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio


async def server_time(driver: PsycopgDriver) -> datetime:
    """What time the server has."""
    async with driver.connection() as connection:
        cursor = await connection.execute("select clock_timestamp()")
        row = await cursor.fetchone()
    assert row is not None
    time = row[0]
    assert isinstance(time, datetime)
    return time


@pytest.mark.promise(9)
async def test_never_early_and_soon_after(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver, figures: bool
) -> None:
    """By 2 s, and by more and less, on an idle worker with a poll interval of 30 s: within 100 ms after its time;
    on a busy machine half of them within half a second.
    """
    started: dict[JobId, datetime] = {}
    due: dict[JobId, datetime] = {}

    @app.entrypoint("later")
    async def later(job: Job) -> None:
        started[job.id] = await server_time(driver)

    async with running_worker(app, dequeue_timeout=30):
        for delay in (2.0, 2.6, 2.3, 0.3, 2.9, 1.0, 2.0):
            before = await server_time(driver)
            (job_id,) = await queries.enqueue("later", execute_after=timedelta(seconds=delay))
            due[job_id] = before + timedelta(seconds=delay)
        with anyio.fail_after(10):
            while len(started) < len(due):  # noqa: ASYNC110  (handlers fill it)
                await anyio.sleep(0.01)
    lateness = [(started[job_id] - due[job_id]).total_seconds() for job_id in due]
    assert min(lateness) >= 0
    assert max(lateness) < 0.1 if figures else statistics.median(lateness) < 0.5


@pytest.mark.promise(9)
async def test_due_order_is_kept_and_priority_decides_among_due_jobs(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver
) -> None:
    """What became due while nobody ran starts by priority, and within a priority in the order of becoming due."""
    seen: list[bytes | None] = []

    @app.entrypoint("later")
    async def later(job: Job) -> None:
        seen.append(job.payload)

    jobs = [(b"third", 0, 0.3), (b"first", 0, 0.1), (b"second", 0, 0.2), (b"urgent", 5, 0.35)]
    payloads, priorities, delays = zip(*jobs, strict=True)
    ids = await queries.enqueue(
        ["later"] * len(jobs),
        list(payloads),
        list(priorities),
        execute_after=[timedelta(seconds=delay) for delay in delays],
    )
    assert set(dict(await queries.job_status(ids)).values()) == {JobStatus.DEFERRED}
    async with driver.connection() as connection:
        await connection.execute("select pg_sleep(0.5)")
    with anyio.fail_after(10):
        await drain(app, max_concurrency=1, batch_size=1)
    assert [b"urgent", b"first", b"second", b"third"] == seen


async def defer_many(driver: PsycopgDriver, schema: str, number: int, *, payload: str, priority: str) -> None:
    """Jobs that became due one after the other, long ago; those of a later call after those of earlier ones."""
    async with driver.connection() as connection:
        await connection.execute(
            f"insert into {schema}.deferred (run_at, entrypoint, payload, priority)"
            f" select now() - interval '1 hour' + job_id * interval '1 ms', 'later', '{payload}'::bytea, {priority}"
            f" from (select nextval('{schema}.job_id_seq') as job_id from generate_series(1, {number})) as j"
        )


@pytest.mark.promise(9)
async def test_priority_decides_among_more_due_jobs_than_one_pass_moves(
    dsn: str, schema: str, driver: PsycopgDriver
) -> None:
    """After a long time without a worker: the urgent job became due last of all, and is the first to start."""
    await defer_many(driver, schema, 12_000, payload="low", priority="0")
    await defer_many(driver, schema, 1, payload="urgent", priority="5")
    seen: list[bytes | None] = []

    async def later(job: Job) -> None:
        seen.append(job.payload)
        await anyio.sleep_forever()

    first, second = PgQueuer(dsn, schema=schema), PgQueuer(dsn, schema=schema)
    one_by_one = {"max_concurrency": 1, "batch_size": 1, "shutdown_grace": 0}
    first.entrypoint("later")(later)
    second.entrypoint("later")(later)
    async with running_worker(first, **one_by_one), running_worker(second, **one_by_one):
        with anyio.fail_after(30):
            while len(seen) < 2:  # noqa: ASYNC110  (handlers fill it)
                await anyio.sleep(0.01)
    assert b"urgent" in seen[:2]


@pytest.mark.promise(9)
async def test_two_workers_keep_due_order(dsn: str, schema: str, driver: PsycopgDriver) -> None:
    """Both move what is due into the queue, batch after batch: within a priority, places follow the times."""
    number = 24_000
    await defer_many(driver, schema, number, payload="", priority="(job_id % 3)::integer")
    first, second = PgQueuer(dsn, schema=schema), PgQueuer(dsn, schema=schema)

    async def never(job: Job) -> None:
        raise AssertionError("jobs of another name are looked at")

    first.entrypoint("other")(never)
    second.entrypoint("other")(never)
    async with running_worker(first), running_worker(second), driver.connection() as connection:
        with anyio.fail_after(40):
            while True:
                cursor = await connection.execute(
                    f"select count(*), count(*) filter (where before > job_id) from ("
                    f" select job_id, lag(job_id) over (partition by priority order by seq) as before"
                    f" from {schema}.queued) as q"
                )
                moved, out_of_order = (await cursor.fetchall())[0]
                if moved == number:
                    break
                await anyio.sleep(0.02)  # a fact of the database: it can only be looked at
    assert 0 == out_of_order


@pytest.mark.promise(10)
async def test_deferred_jobs_of_higher_priority_do_not_slow_a_due_one(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver, schema: str, figures: bool
) -> None:
    """100,000 of them wait in a table of their own: the claim of a job that is due, or becomes due, never sees them.

    What is read is counted in ``tests/store/test_deferred.py``; on a busy machine half a second is the bound here.
    """
    started: dict[JobId, datetime] = {}

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started[job.id] = await server_time(driver)

    async with driver.connection() as connection:
        await connection.execute(
            f"insert into {schema}.deferred (run_at, entrypoint, priority)"
            " select now() + interval '1 day', 'fetch', 9 from generate_series(1, 100000)"
        )
    delays = [0.0, 0.3, 0.6, 0.9, 1.2]
    async with running_worker(app, dequeue_timeout=30):
        asked_at = await server_time(driver)
        ids = await queries.enqueue("fetch", execute_after=[timedelta(seconds=delay) for delay in delays])
        with anyio.fail_after(10):
            while len(started) < len(ids):  # noqa: ASYNC110  (handlers fill it)
                await anyio.sleep(0.01)
    lateness = [(started[one] - asked_at).total_seconds() - delay for one, delay in zip(ids, delays, strict=True)]
    assert min(lateness) >= 0
    assert max(lateness) < 0.1 if figures else statistics.median(lateness) < 0.5


@pytest.mark.promise(10)
async def test_deferral_survives_the_worker_and_a_cancelled_job_never_runs(
    dsn: str, schema: str, app: PgQueuer, queries: Queries
) -> None:
    """Deferred while one worker runs, started by another; cancelled while deferred: never."""
    ran: list[JobId] = []

    async def later(job: Job) -> None:
        ran.append(job.id)

    app.entrypoint("later")(later)
    async with running_worker(app):
        kept, cancelled = await queries.enqueue(["later"] * 2, execute_after=timedelta(seconds=0.5))
        assert [cancelled] == await queries.mark_job_as_cancelled([cancelled])
    assert {kept: JobStatus.DEFERRED, cancelled: JobStatus.CANCELLED} == await queries.job_status([kept, cancelled])
    other = PgQueuer(dsn, schema=schema)
    other.entrypoint("later")(later)
    with anyio.fail_after(10):
        await drain(other)
    assert [kept] == ran


@pytest.mark.promise(9)
async def test_a_cancel_that_is_rolled_back_delays_it_hardly(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver
) -> None:
    """It was being cancelled when it became due. The next heartbeat is 20 s away."""
    ran = anyio.Event()

    @app.entrypoint("later")
    async def later(job: Job) -> None:
        ran.set()

    @app.entrypoint("sooner")
    async def sooner(job: Job) -> None:
        passed.set()

    passed = anyio.Event()
    async with running_worker(app, lease=60, dequeue_timeout=3600), driver.connection() as connection:
        (job_id,) = await queries.enqueue("later", execute_after=timedelta(seconds=0.5))
        await queries.enqueue("sooner", execute_after=timedelta(seconds=0.6))
        with anyio.fail_after(15):
            async with connection.transaction(force_rollback=True):
                assert [job_id] == await queries.mark_job_as_cancelled([job_id], connection=connection)
                await passed.wait()
            assert not ran.is_set()
            await ran.wait()
