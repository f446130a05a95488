"""Requeued jobs run again, as new ones do."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import Job, JobId, JobRecord, JobStatus, PgQueuer, Queries, RetryPolicy
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within

pytestmark = pytest.mark.anyio


@pytest.mark.promise(33)
async def test_requeued_jobs_start_at_once(app: PgQueuer, queries: Queries, within: Within) -> None:
    """An idle worker that would look at the queue in half a minute starts it within a second, by id and by filter; one
    that fails again at once is requeued once; all errors stay.
    """
    started = anyio.Event()

    @app.entrypoint("fail")
    async def fail(job: Job) -> None:
        started.set()
        raise ValueError(f"attempt {job.attempt}")

    async def ended(job_id: JobId, errors: int) -> JobRecord:
        with anyio.fail_after(20):
            while True:
                record = await queries.get_job(job_id)
                if record is not None and record.status is JobStatus.FAILED and len(record.errors) == errors:
                    return record
                await anyio.sleep(0.01)

    (job_id,) = await queries.enqueue("fail")
    await drain(app)
    async with running_worker(app):
        with anyio.fail_after(10):  # it looks again a few times before it trusts to be woken
            while not [worker for worker in await queries.workers() if worker.is_sleeping]:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            await anyio.sleep(1.5)  # now only a notification brings it to look within the next 28 seconds
        for errors, wanted in ((2, {"ids": [job_id]}), (3, {"error_type": "ValueError"})):
            started = anyio.Event()
            assert [job_id] == await queries.requeue(**wanted)
            with anyio.fail_after(within(1)):
                await started.wait()
            record = await ended(job_id, errors)
            assert ["attempt 1"] * errors == [error.message for error in record.errors]


async def test_attempts_are_counted_anew(app: PgQueuer, queries: Queries) -> None:
    """A job whose attempts were used up has all of them again."""
    attempts = []

    @app.entrypoint("fail", max_attempts=2, retry_policy=RetryPolicy(initial_delay=0))
    async def fail(job: Job) -> None:
        attempts.append(job.attempt)
        raise ValueError

    (job_id,) = await queries.enqueue("fail")
    await drain(app)
    assert [job_id] == await queries.requeue(entrypoint="fail")
    await drain(app)
    assert [1, 2, 1, 2] == attempts
