"""Cancel requests for many jobs, for jobs that are on their way, and for those of another schema."""

from __future__ import annotations

import anyio
import anyio.from_thread
import pytest

from pgq_anyio import (
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    PsycopgDriver,
    Queries,
    Retry,
    Snooze,
)
from pgq_anyio._store.migrations import migrate
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within
from tests.worker.test_cancel import wait_status

pytestmark = pytest.mark.anyio


@pytest.mark.promise(24)
async def test_ended_unknown_and_cancelled_ids_change_nothing(app: PgQueuer, queries: Queries) -> None:
    """The answer says which ids were affected."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    (done,) = await queries.enqueue("fetch")
    await drain(app)
    cancelled, fresh = await queries.enqueue(["fetch"] * 2, None)
    assert [cancelled] == await queries.mark_job_as_cancelled([cancelled], "first")
    assert [fresh] == await queries.mark_job_as_cancelled([done, cancelled, fresh, JobId(999_999)], "second")
    record = await queries.get_job(cancelled)
    assert record is not None
    assert record.cancel_reason == "first"
    assert {done: JobStatus.SUCCESSFUL} == await queries.job_status([done])


@pytest.mark.promise(24)
async def test_a_thousand_ids_while_workers_claim_and_finish_them(app: PgQueuer, queries: Queries) -> None:
    """Every id that had not ended is cancelled, none slips through, nothing deadlocks."""
    number = 1_500

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        await anyio.sleep(0.002)

    async with running_worker(app, max_concurrency=50, batch_size=20):
        ids = await queries.enqueue(["fetch"] * number, None)
        affected: list[JobId] = []
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:

                async def cancel(some: list[JobId]) -> None:
                    affected.extend(await queries.mark_job_as_cancelled(some))

                tasks.start_soon(cancel, ids[::-1])
                tasks.start_soon(cancel, ids)
            while set((await queries.job_status(ids)).values()) - {JobStatus.SUCCESSFUL, JobStatus.CANCELLED}:
                await anyio.lowlevel.checkpoint()
    statuses = await queries.job_status(ids)
    assert number == len(statuses)
    assert sorted(affected) == sorted(job_id for job_id, status in statuses.items() if status is JobStatus.CANCELLED)
    assert len(affected) == len(set(affected))


@pytest.mark.promise(25)
async def test_cancelled_while_the_worker_drains(app: PgQueuer, queries: Queries) -> None:
    """Cancels are still delivered after the stop was requested."""
    started = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with running_worker(app, shutdown_grace=60):
            (job_id,) = await queries.enqueue("fetch")
            await started.wait()
            app.stop()
            await queries.mark_job_as_cancelled([job_id])
    assert {job_id: JobStatus.CANCELLED} == await queries.job_status([job_id])


@pytest.mark.promise(25)
async def test_without_notifications_the_next_heartbeat_delivers(
    app: PgQueuer, queries: Queries, within: Within
) -> None:
    """Nothing depends on a notification."""
    started = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        await anyio.sleep_forever()

    async with running_worker(app, lease=2):
        (job_id,) = await queries.enqueue("fetch")
        await started.wait()
        worker = app._worker
        assert worker is not None
        assert worker.term is not None
        worker.term.ear.on_notification = lambda payload: None
        asked_at = anyio.current_time()
        await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        assert anyio.current_time() - asked_at < within(2 / 3 + 0.5)


@pytest.mark.promise(25, 26)
@pytest.mark.parametrize("answer", [None, Retry(delay=0), Snooze(0), ValueError("x")], ids=str)
async def test_a_request_before_the_end_beats_what_the_handler_says(
    app: PgQueuer, queries: Queries, answer: Exception | None
) -> None:
    """A return, a retry, a snooze or a failure that races with a cancel does not bring the job back."""
    started, release = anyio.Event(), anyio.Event()

    @app.entrypoint("fetch", max_attempts=5)
    async def fetch(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            started.set()
            await release.wait()
        if answer is not None:
            raise answer

    async with running_worker(app):
        (job_id,) = await queries.enqueue("fetch")
        await started.wait()
        assert [job_id] == await queries.mark_job_as_cancelled([job_id])
        release.set()
        await wait_status(queries, job_id, JobStatus.CANCELLED)


@pytest.mark.promise(26)
async def test_a_cancel_in_one_schema_touches_no_other(
    app: PgQueuer, queries: Queries, dsn: str, empty_schema: str
) -> None:
    """The same ids live in two schemas of one database, and both jobs run: one is cancelled, the other one goes on."""
    started = [anyio.Event(), anyio.Event()]
    release = anyio.Event()

    def register(app: PgQueuer, number: int) -> None:
        @app.entrypoint("fetch")
        async def fetch(job: Job) -> None:
            started[number].set()
            await release.wait()

    register(app, 0)
    neighbour = PgQueuer(dsn, schema=empty_schema + "_b")
    register(neighbour, 1)

    async with PsycopgDriver(dsn) as driver:
        other = Queries(driver, schema=empty_schema + "_b")
        async with driver.connection() as connection:
            await migrate(connection, empty_schema + "_b")
        try:
            async with running_worker(app, lease=2), running_worker(neighbour, lease=2):
                (job_id,) = await queries.enqueue("fetch")
                assert [job_id] == await other.enqueue("fetch")
                for event in started:
                    await event.wait()
                assert [job_id] == await other.mark_job_as_cancelled([job_id])
                await wait_status(other, job_id, JobStatus.CANCELLED)
                await anyio.sleep(0.8)  # a heartbeat could have brought the request, too
                assert {job_id: JobStatus.RUNNING} == await queries.job_status([job_id])
                release.set()
                await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
        finally:
            async with driver.connection() as connection:
                await connection.execute(f'drop schema "{empty_schema}_b" cascade')
