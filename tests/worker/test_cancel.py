"""A cancel request in the database is the cancellation of the job's scope."""

from __future__ import annotations

import logging
import threading

import anyio
import anyio.from_thread
import pytest

from pgq_anyio import (
    CancelReason,
    Context,
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    PsycopgDriver,
    Queries,
    Retry,
    RetryPolicy,
    Snooze,
)
from pgq_anyio._store.migrations import migrate
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio


async def wait_status(queries: Queries, job_id: JobId, status: JobStatus) -> None:
    """Wait until a job has this status."""
    with anyio.fail_after(10):
        while (await queries.job_status([job_id])).get(job_id) is not status:
            await anyio.lowlevel.checkpoint()


@pytest.mark.promise(23)
async def test_a_queued_job_never_runs(app: PgQueuer, queries: Queries) -> None:
    """One record, no run."""
    ran = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.append(job.id)

    (job_id,) = await queries.enqueue("fetch", b"kept")
    assert [job_id] == await queries.mark_job_as_cancelled([job_id], "not needed")
    with anyio.fail_after(10):
        await drain(app)
    assert [] == ran
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.CANCELLED, "not needed", b"kept") == (record.status, record.cancel_reason, record.payload)


@pytest.mark.promise(23)
async def test_an_async_handler_stops_at_its_next_checkpoint(app: PgQueuer, queries: Queries) -> None:
    """Within a second; shielded cleanup runs to its end before the job is recorded."""
    started, cleaned = anyio.Event(), anyio.Event()
    reasons: list[CancelReason | None] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            reasons.append(context.cancel_reason)
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                cleaned.set()

    async with running_worker(app):
        (job_id,) = await queries.enqueue("fetch")
        await started.wait()
        asked_at = anyio.current_time()
        assert [job_id] == await queries.mark_job_as_cancelled([job_id])
        with anyio.fail_after(1):
            await cleaned.wait()
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        assert anyio.current_time() - asked_at < 1
    assert [CancelReason.USER] == reasons


@pytest.mark.promise(23)
async def test_code_after_a_cancelled_block_still_runs(app: PgQueuer, queries: Queries) -> None:
    """Entering ctx.cancellation makes the handler cooperative: only what is inside is cancelled."""
    started, after = anyio.Event(), anyio.Event()
    seen: list[object] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        cancellation = app.get_context(job.id).cancellation
        with cancellation:
            started.set()
            await anyio.sleep_forever()
        await anyio.sleep(0.01)
        seen.extend([cancellation.cancel_called, cancellation.cancelled_caught])
        with cancellation:
            await anyio.sleep_forever()  # born cancelled
        after.set()

    async with running_worker(app):
        (job_id,) = await queries.enqueue("fetch")
        await started.wait()
        await queries.mark_job_as_cancelled([job_id])
        with anyio.fail_after(2):
            await after.wait()
        await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert [True, True] == seen


@pytest.mark.promise(23)
async def test_a_cooperative_handler_that_goes_on_is_cancelled_after_the_grace(app: PgQueuer, queries: Queries) -> None:
    """After cancel_grace the job's own scope is cancelled too."""
    started = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        with context.cancellation:
            started.set()
            await anyio.sleep_forever()
        await anyio.sleep_forever()

    async with running_worker(app, cancel_grace=0.2):
        (job_id,) = await queries.enqueue("fetch")
        await started.wait()
        asked_at = anyio.current_time()
        await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        assert 0.2 <= anyio.current_time() - asked_at < 1.2


async def test_blocks_in_child_tasks_are_all_cancelled(app: PgQueuer, queries: Queries) -> None:
    """Several blocks of one job may be open at once, nested and in child tasks."""
    started = [anyio.Event() for _ in range(3)]
    ended = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        async def child(number: int) -> None:
            with context.cancellation, context.cancellation:
                started[number].set()
                await anyio.sleep_forever()
            ended.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(child, number)

    async with running_worker(app):
        (job_id,) = await queries.enqueue("fetch")
        for event in started:
            await event.wait()
        await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert [0, 1, 2] == sorted(ended)


@pytest.mark.promise(23)
async def test_a_sync_handler_sees_the_flag_and_check_cancelled_raises(app: PgQueuer, queries: Queries) -> None:
    """In a thread: the flag turns true; the block is allowed and changes nothing."""
    started = threading.Event()
    seen: list[object] = []

    @app.entrypoint("flag")
    def flag(job: Job, context: Context) -> None:
        with context.cancellation:
            started.set()
            while not context.cancellation.cancel_called:
                threading.Event().wait(0.005)
        seen.append(context.cancel_reason)

    @app.entrypoint("check")
    def check(job: Job) -> None:
        started.set()
        try:
            while True:
                anyio.from_thread.check_cancelled()
                threading.Event().wait(0.005)
        finally:
            seen.append("checked")

    async with running_worker(app):
        for name in ("flag", "check"):
            started.clear()
            (job_id,) = await queries.enqueue(name)
            await anyio.to_thread.run_sync(started.wait)
            await queries.mark_job_as_cancelled([job_id])
            await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert [CancelReason.USER, "checked"] == seen


@pytest.mark.promise(23)
async def test_a_handler_that_ignores_its_cancellation_is_reported_and_waited_for(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named with its stack and marked in its row; row, slot and outcome wait for its end."""
    started, release = anyio.Event(), anyio.Event()

    @app.entrypoint("stubborn")
    async def stubborn_handler(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            started.set()
            await release.wait()

    async with running_worker(app, cancel_grace=0.1, max_concurrency=1):
        job_id, other = await queries.enqueue(["stubborn"] * 2, None)
        await started.wait()
        with caplog.at_level(logging.WARNING, "pgq_anyio.overdue"):
            await queries.mark_job_as_cancelled([job_id])
            with anyio.fail_after(5):
                while (record := await queries.get_job(job_id)) is None or record.overdue_at is None:
                    await anyio.lowlevel.checkpoint()
        assert record.status is JobStatus.RUNNING
        assert {other: JobStatus.QUEUED} == await queries.job_status([other])
        assert "stubborn_handler" in caplog.text
        assert f"job {job_id}" in caplog.text
        release.set()
        await wait_status(queries, job_id, JobStatus.CANCELLED)


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
async def test_without_notifications_the_next_heartbeat_delivers(app: PgQueuer, queries: Queries) -> None:
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
        await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)


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
    """The same ids live in two schemas of one database."""
    started = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        await anyio.sleep(0.3)

    async with PsycopgDriver(dsn) as driver:
        other = Queries(driver, schema=empty_schema + "_b")
        async with driver.connection() as connection:
            await migrate(connection, empty_schema + "_b")
        try:
            async with running_worker(app):
                (job_id,) = await queries.enqueue("fetch")
                assert [job_id] == await other.enqueue("fetch")
                await started.wait()
                assert [job_id] == await other.mark_job_as_cancelled([job_id])
                await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
        finally:
            async with driver.connection() as connection:
                await connection.execute(f'drop schema "{empty_schema}_b" cascade')


@pytest.mark.promise(27)
async def test_what_a_handler_does_to_itself_is_no_job_cancellation(app: PgQueuer, queries: Queries) -> None:
    """Its own timeouts, nested scopes and task groups."""

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with anyio.CancelScope() as nested:
            nested.cancel()
            await anyio.sleep_forever()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            tasks.cancel_scope.cancel()
        with context.cancellation:
            context.cancellation.cancel()
            await anyio.sleep_forever()
        assert context.cancel_reason is None

    (job_id,) = await queries.enqueue("fetch")
    with anyio.fail_after(10):
        await drain(app)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


@pytest.mark.promise(27)
async def test_a_leaked_cancelled_error_is_a_failure(
    app: PgQueuer, queries: Queries, anyio_backend: tuple[str, object]
) -> None:
    """A CancelledError that no scope explains neither cancels the job nor stops the worker."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio's Cancelled cannot be raised by hand")
    import asyncio

    @app.entrypoint("leak")
    async def leak(job: Job) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    @app.entrypoint("own")
    async def own(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(1)

    ids = await queries.enqueue(["leak", "own"], None)
    with anyio.fail_after(10):
        await drain(app)
    assert dict.fromkeys(ids, JobStatus.FAILED) == await queries.job_status(ids)
    record = await queries.get_job(ids[0])
    assert record is not None
    assert "CancelledError" == record.errors[0].type


@pytest.mark.promise(28)
async def test_a_timeout_is_a_failure_with_its_own_reason(app: PgQueuer, queries: Queries) -> None:
    """The scope is cancelled with reason timeout, recorded as such, retried if attempts are left."""
    reasons: list[tuple[int, CancelReason | None]] = []

    @app.entrypoint("slow", timeout=0.05, max_attempts=2, retry_policy=RetryPolicy(initial_delay=0.01))
    async def slow(job: Job, context: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            reasons.append((job.attempt, context.cancel_reason))

    @app.entrypoint("thread", timeout=0.05)
    def thread(job: Job, context: Context) -> None:
        while not context.cancellation.cancel_called:
            threading.Event().wait(0.005)

    ids = await queries.enqueue(["slow", "thread"], None)
    with anyio.fail_after(20):
        await drain(app)
    assert [(1, CancelReason.TIMEOUT), (2, CancelReason.TIMEOUT)] == reasons
    for job_id, attempts in zip(ids, (2, 1), strict=True):
        record = await queries.get_job(job_id)
        assert record is not None
        assert JobStatus.FAILED == record.status
        assert ["JobTimeout"] * attempts == [error.type for error in record.errors]
