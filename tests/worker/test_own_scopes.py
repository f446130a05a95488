"""What a handler does to itself is no job cancellation, and what its timeout does is a failure."""

from __future__ import annotations

import threading

import anyio
import anyio.from_thread
import pytest

from pgq_anyio import (
    CancelReason,
    Context,
    Job,
    JobStatus,
    PgQueuer,
    Queries,
    RetryPolicy,
)
from pgq_anyio.testing import drain, running_worker
from tests.worker.test_cancel import wait_status

pytestmark = pytest.mark.anyio


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


@pytest.mark.promise(27)
async def test_a_cancellation_kept_for_later_is_a_failure(app: PgQueuer, queries: Queries) -> None:
    """One that a scope of the handler explained, raised again outside of that scope. The worker goes on."""

    @app.entrypoint("keep")
    async def keep(job: Job) -> None:
        kept: BaseException | None = None
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as error:
                kept = error
        assert kept is not None
        raise kept

    @app.entrypoint("other")
    async def other(job: Job) -> None: ...

    async with running_worker(app):
        (job_id,) = await queries.enqueue("keep")
        await wait_status(queries, job_id, JobStatus.FAILED)
        (later,) = await queries.enqueue("other")
        await wait_status(queries, later, JobStatus.SUCCESSFUL)
    record = await queries.get_job(job_id)
    assert record is not None
    assert [anyio.get_cancelled_exc_class().__name__] == [error.type.rpartition(".")[2] for error in record.errors]


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
