"""What the timeout of an entrypoint interrupts is a failure, told from scopes and never from an exception's type."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter

from pgq_anyio import (
    CancelReason,
    Context,
    Job,
    JobId,
    JobStatus,
    JobTimeout,
    PgQueuer,
    Queries,
    RetryPolicy,
    Snooze,
)
from pgq_anyio._context import ExecutionTools, OuterScopes
from pgq_anyio._db.inner_scopes import watch_inner_scopes
from pgq_anyio._holdings import Run
from pgq_anyio._lifecycle import GIVEN_BACK, Outcome
from pgq_anyio._models import Held
from pgq_anyio._services.runner import run_job
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio


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


class CleanupError(Exception):
    pass


def in_a_group(error: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("cleanup", [error])


@pytest.mark.promise(28)
@pytest.mark.parametrize(
    "error", [CleanupError("no disk"), Snooze(3600), in_a_group(CleanupError("no disk")), SystemExit(3)], ids=repr
)
async def test_what_a_handler_raises_when_its_timeout_interrupts_it(
    app: PgQueuer, queries: Queries, error: BaseException
) -> None:
    """The record says JobTimeout whatever it is, and has it as the cause; it is tried again if attempts are left."""
    attempts: list[int] = []
    policy = RetryPolicy(initial_delay=0.01, retry_on=(JobTimeout,))

    @app.entrypoint("slow", timeout=0.05, max_attempts=2, retry_policy=policy)
    async def slow(job: Job) -> None:
        attempts.append(job.attempt)
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    (job_id,) = await queries.enqueue("slow")
    with anyio.fail_after(20):
        await drain(app)
    assert [1, 2] == attempts
    record = await queries.get_job(job_id)
    assert record is not None
    assert JobStatus.FAILED == record.status
    assert ["JobTimeout"] * 2 == [one.type for one in record.errors]
    leaf = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    for one in record.errors:
        assert one.traceback is not None
        assert f"{type(leaf).__name__}: {leaf}" in one.traceback
        assert "direct cause of the following exception" in one.traceback


@pytest.mark.promise(28)
async def test_child_tasks_that_the_timeout_interrupts(app: PgQueuer, queries: Queries) -> None:
    """One is cancelled, another one fails in its cleanup: that is the timeout, too."""

    @app.entrypoint("slow", timeout=0.05)
    async def slow(job: Job) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            try:
                await anyio.sleep_forever()
            finally:
                raise CleanupError("no disk")

    (job_id,) = await queries.enqueue("slow")
    with anyio.fail_after(20):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert ["JobTimeout"] == [error.type for error in record.errors]
    assert "CleanupError: no disk" in (record.errors[0].traceback or "")


@pytest.mark.promise(27, 28)
async def test_an_error_after_a_timeout_that_nothing_has_seen(app: PgQueuer, queries: Queries) -> None:
    """A handler that blocks the event loop beyond its timeout and then fails was not interrupted, on any backend."""

    @app.entrypoint("block", timeout=0.05)
    async def block(job: Job) -> None:
        time.sleep(0.1)  # noqa: ASYNC251  (what is tested)
        raise CleanupError("its own")

    (job_id,) = await queries.enqueue("block")
    with anyio.fail_after(20):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert [("CleanupError", "its own")] == [(error.type, error.message) for error in record.errors]


@pytest.mark.promise(27)
async def test_an_error_when_a_stop_interrupts_is_no_failure(app: PgQueuer, queries: Queries) -> None:
    """Also if the timeout has passed meanwhile: the outermost scope counts."""
    started = anyio.Event()

    @app.entrypoint("slow", timeout=3)  # longer than a busy machine needs for the stop to arrive
    async def slow(job: Job, context: Context) -> None:
        timed_out_at = anyio.current_time() + 3
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep_until(timed_out_at + 0.1)
            raise CleanupError("no disk")

    (job_id,) = await queries.enqueue("slow")
    with anyio.fail_after(20):
        async with running_worker(app, shutdown_grace=0):
            await started.wait()
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.QUEUED, 1, ()) == (record.status, record.attempt, record.errors)


@pytest.mark.promise(27, 36)
async def test_a_scope_around_the_run_counts_before_the_timeout(app: PgQueuer) -> None:
    """Both have been cancelled, and the worker has not learnt of the outer one yet: the job is given back."""
    ended: list[Outcome] = []
    job = Job(JobId(1), "slow", None, 0, 1, 0, datetime.now(UTC))
    context = Context(
        job=job,
        schedule=None,
        resources=None,
        tools=ExecutionTools(CapacityLimiter(1), None, 5.0),
        outer=OuterScopes(CancelScope(), CancelScope()),
    )
    with CancelScope() as around:

        @app.entrypoint("slow", timeout=0.05)
        async def slow(job: Job, context: Context) -> None:
            with CancelScope(shield=True):
                while context.cancel_reason is None:  # noqa: ASYNC110  (the timeout's scope is the runner's)
                    await anyio.sleep(0.005)
            around.cancel()
            raise CleanupError("no disk")

        with CancelScope() as scope:
            run = Run(Held(job, 1, 1), app._registry.entrypoints["slow"], context)
            await run_job(run, scope, watch_inner_scopes(), False, lambda run, outcome: ended.append(outcome))
    assert [GIVEN_BACK] == ended
