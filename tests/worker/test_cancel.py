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
    Queries,
)
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within

pytestmark = pytest.mark.anyio


async def wait_status(queries: Queries, job_id: JobId, status: JobStatus) -> None:
    """Wait until a job has this status."""
    with anyio.fail_after(20):
        while (await queries.job_status([job_id])).get(job_id) is not status:  # noqa: ASYNC110  (a fact of the database)
            await anyio.sleep(0.002)


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
async def test_an_async_handler_stops_at_its_next_checkpoint(app: PgQueuer, queries: Queries, within: Within) -> None:
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
        with anyio.fail_after(within(1)):
            await cleaned.wait()
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        assert anyio.current_time() - asked_at < within(1)
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
        with anyio.fail_after(10):
            await after.wait()
        await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert [True, True] == seen


@pytest.mark.promise(23)
async def test_a_cooperative_handler_that_goes_on_is_cancelled_after_the_grace(
    app: PgQueuer, queries: Queries, within: Within
) -> None:
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
        assert 0.2 <= anyio.current_time() - asked_at < within(1.2, 4.5)  # the default is 5 s


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

    @app.entrypoint("check in a block")
    def check_in_a_block(job: Job, context: Context) -> None:
        with context.cancellation:
            check(job)

    async with running_worker(app, cancel_grace=3600):
        for name in ("flag", "check", "check in a block"):
            started.clear()
            (job_id,) = await queries.enqueue(name)
            await anyio.to_thread.run_sync(started.wait)
            await queries.mark_job_as_cancelled([job_id])
            await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert [CancelReason.USER, "checked", "checked"] == seen


@pytest.mark.promise(23)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_handler_that_ignores_its_cancellation_is_reported_and_waited_for(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """It is named with its stack and marked in its row; row, slot and outcome wait for its end."""
    started, release = anyio.Event(), threading.Event()

    async def stubborn_handler(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            started.set()
            while not release.is_set():  # noqa: ASYNC110  (the thread waits for the same event)
                await anyio.sleep(0.01)

    def stubborn_handler_in_a_thread(job: Job) -> None:
        anyio.from_thread.run_sync(started.set)
        release.wait()

    app.entrypoint("stubborn")(stubborn_handler if kind == "async" else stubborn_handler_in_a_thread)

    async with running_worker(app, cancel_grace=0.1, max_concurrency=1):
        job_id, other = await queries.enqueue(["stubborn"] * 2, None)
        await started.wait()
        with caplog.at_level(logging.WARNING, "pgq_anyio.overdue"):
            await queries.mark_job_as_cancelled([job_id])
            with anyio.fail_after(20):
                while (record := await queries.get_job(job_id)) is None or record.overdue_at is None:
                    await anyio.lowlevel.checkpoint()
        assert record.status is JobStatus.RUNNING
        assert {other: JobStatus.QUEUED} == await queries.job_status([other])
        assert "stubborn_handler" in caplog.text
        assert f"job {job_id}" in caplog.text
        release.set()
        await wait_status(queries, job_id, JobStatus.CANCELLED)
