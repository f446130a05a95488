"""A cancel request ends a retry loop, in one run and in the database, wherever the loop is."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import anyio
import pytest

from pgq_anyio import (
    Context,
    Job,
    JobStatus,
    PgQueuer,
    Queries,
    Retry,
    RetryPolicy,
    RetryWithBackoffEntrypointExecutor,
    Snooze,
)
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.promise(26)]

PATIENT = partial(RetryWithBackoffEntrypointExecutor, initial_delay=60, max_delay=60, max_time=3600)
#: Longer than any test: whoever waits for it has not been cancelled.
GRACE = 3600


@pytest.mark.parametrize("cooperative", [False, True], ids=["", "cooperative"])
@pytest.mark.parametrize("when", ["in the handler", "in the pause"])
async def test_a_loop_in_one_run(app: PgQueuer, queries: Queries, cooperative: bool, when: str, within: Within) -> None:
    """Within a second, and the handler is not called again: also if it is one that may end by itself, which it cannot
    do while the loop waits for its next call.
    """
    calls = 0
    called = anyio.Event()

    @app.entrypoint("fetch", executor_factory=PATIENT)
    async def fetch(job: Job, context: Context) -> None:
        nonlocal calls
        calls += 1
        if cooperative:
            with context.cancellation:
                await anyio.lowlevel.checkpoint()
        called.set()
        if when == "in the handler":
            try:
                with context.cancellation if cooperative else anyio.CancelScope():
                    await anyio.sleep_forever()
            finally:
                raise ConnectionError("not yet")
        raise ConnectionError("not yet")

    async with running_worker(app, cancel_grace=GRACE):
        (job_id,) = await queries.enqueue("fetch")
        with anyio.fail_after(10):
            await called.wait()
            await anyio.wait_all_tasks_blocked()
        asked_at = anyio.current_time()
        assert [job_id] == await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)
        assert anyio.current_time() - asked_at < within(1)
    assert 1 == calls


async def test_a_loop_of_a_thread(app: PgQueuer, queries: Queries) -> None:
    """A thread that fails because it saw the flag is not called again."""
    calls = 0
    called = anyio.Event()

    @app.entrypoint("fetch", executor_factory=partial(PATIENT, initial_delay=0))
    def fetch(job: Job, context: Context) -> None:
        nonlocal calls
        calls += 1
        with context.cancellation:
            anyio.from_thread.run_sync(called.set)
            while not context.cancellation.cancel_called:
                anyio.from_thread.run(anyio.lowlevel.checkpoint)
            raise ConnectionError("interrupted")

    async with running_worker(app, cancel_grace=GRACE):
        (job_id,) = await queries.enqueue("fetch")
        with anyio.fail_after(10):
            await called.wait()
        await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert 1 == calls


@pytest.mark.parametrize("again", [Retry(delay=1), Snooze(1), ValueError("no")], ids=["retry", "snooze", "attempts"])
async def test_a_loop_through_the_database(app: PgQueuer, queries: Queries, again: Exception) -> None:
    """Cancelled between two attempts, the job never runs again."""
    calls, later = 0, anyio.Event()

    @app.entrypoint("fetch", max_attempts=5, retry_policy=RetryPolicy(initial_delay=1, jitter=False))
    async def fetch(job: Job) -> None:
        nonlocal calls
        calls += 1
        raise again

    @app.entrypoint("witness")
    async def witness(job: Job) -> None:
        later.set()

    async with running_worker(app):
        (job_id,) = await queries.enqueue("fetch")
        await wait_status(queries, job_id, JobStatus.DEFERRED)
        assert [job_id] == await queries.mark_job_as_cancelled([job_id])
        # What lay in the same place is promoted when its time has come.
        await queries.enqueue("witness", execute_after=timedelta(seconds=1.2))
        with anyio.fail_after(10):
            await later.wait()
    assert {job_id: JobStatus.CANCELLED} == await queries.job_status([job_id])
    assert 1 == calls


@pytest.mark.promise(30)
async def test_a_loop_that_always_fails_is_recorded_with_its_last_cause(app: PgQueuer, queries: Queries) -> None:
    """After exactly as many calls as it may make, as one attempt of the job."""
    calls = 0

    @app.entrypoint("fetch", executor_factory=partial(PATIENT, max_attempts=3, initial_delay=0, max_delay=0))
    async def fetch(job: Job) -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError(f"call {calls}")

    (job_id,) = await queries.enqueue("fetch")
    await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.FAILED, 3, 1) == (record.status, calls, record.attempt)
    (error,) = record.errors
    assert ("ConnectionError", "call 3") == (error.type, error.message)


@pytest.mark.parametrize("when", ["in the handler", "in the pause"])
@pytest.mark.parametrize("ended_by", ["timeout", "shutdown"])
async def test_a_loop_ends_with_its_timeout_and_its_worker(
    app: PgQueuer, queries: Queries, when: str, ended_by: str
) -> None:
    """Its handler is not called again, whatever it raises when it is interrupted; what a stop ends is given back."""
    calls = 0
    called = anyio.Event()

    @app.entrypoint("fetch", executor_factory=PATIENT, timeout=1 if ended_by == "timeout" else None)
    async def fetch(job: Job) -> None:
        nonlocal calls
        calls += 1
        called.set()
        if when == "in the handler":
            try:
                await anyio.sleep_forever()
            finally:
                raise ConnectionError("interrupted")
        raise ConnectionError("not yet")

    async with running_worker(app, shutdown_grace=0, cancel_grace=GRACE):
        (job_id,) = await queries.enqueue("fetch")
        with anyio.fail_after(10):
            await called.wait()
            await anyio.wait_all_tasks_blocked()
        if ended_by == "timeout":
            await wait_status(queries, job_id, JobStatus.FAILED)
    assert 1 == calls
    record = await queries.get_job(job_id)
    assert record is not None
    if ended_by == "timeout":
        assert "JobTimeout" == record.errors[-1].type
    else:
        assert (JobStatus.QUEUED, 1) == (record.status, record.attempt)
