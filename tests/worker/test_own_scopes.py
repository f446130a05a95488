"""What a handler does to itself is no job cancellation, and what it keeps from itself is none either."""

from __future__ import annotations

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
@pytest.mark.parametrize("interruption", ["stop", "timeout"])
async def test_a_handler_that_ends_its_own_block_is_not_interrupted(
    app: PgQueuer, queries: Queries, interruption: str
) -> None:
    """It has cancelled its block itself, looks whether it has, and ends its work although a stop or a timeout wants to
    end it meanwhile: its job is successful.
    """
    started = anyio.Event()

    @app.entrypoint("fetch", timeout=0.2 if interruption == "timeout" else None)
    async def fetch(job: Job, context: Context) -> None:
        with anyio.CancelScope(shield=True):
            with context.cancellation:
                context.cancellation.cancel()
                await anyio.sleep_forever()
            started.set()
            while context.cancel_reason is None:  # noqa: ASYNC110  (whose scope it is depends)
                await anyio.sleep(0.005)
            assert context.cancellation.cancel_called

    (job_id,) = await queries.enqueue("fetch")
    with anyio.fail_after(20):
        async with running_worker(app, shutdown_grace=0):
            await started.wait()
            if interruption == "timeout":
                await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


@pytest.mark.promise(27)
@pytest.mark.parametrize("interruption", ["stop", "timeout"])
@pytest.mark.parametrize("way", ["shielded", "swallowed"])
async def test_a_handler_that_keeps_the_cancellation_and_returns_has_done_its_work(
    app: PgQueuer, queries: Queries, interruption: str, way: str
) -> None:
    """Only one that raises then, or that returns because it was told, was interrupted by a stop or a timeout."""
    started = anyio.Event()
    reasons: list[CancelReason | None] = []

    @app.entrypoint("fetch", timeout=0.2 if interruption == "timeout" else None)
    async def fetch(job: Job, context: Context) -> None:
        started.set()
        if way == "shielded":
            with anyio.CancelScope(shield=True):
                while context.cancel_reason is None:  # noqa: ASYNC110  (whose scope it is depends)
                    await anyio.sleep(0.005)
        else:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():  # noqa: ASYNC103  (what is tested)
                pass
        reasons.append(context.cancel_reason)

    (job_id,) = await queries.enqueue("fetch")
    with anyio.fail_after(20):
        async with running_worker(app, shutdown_grace=0):
            await started.wait()
            if interruption == "timeout":
                await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    assert [CancelReason.TIMEOUT if interruption == "timeout" else CancelReason.SHUTDOWN] == reasons


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
