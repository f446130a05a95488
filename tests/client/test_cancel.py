"""Cancelling many jobs while workers move them."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import JobId, JobStatus, PsycopgDriver
from pgq_anyio._client import Queries
from pgq_anyio._lifecycle import GIVEN_BACK
from pgq_anyio._store._sql import Store
from pgq_anyio._store.running import finish_jobs, settle_jobs
from tests.store.scenes import add_worker, claim

pytestmark = pytest.mark.anyio


@pytest.mark.promise(24)
async def test_5000_ids_in_one_call_while_workers_claim_and_finish(
    queries: Queries, driver: PsycopgDriver, schema: str
) -> None:
    """Every id that had not ended is cancelled, the answer says which, and there is no deadlock."""
    store = Store(schema)
    job_ids = await queries.enqueue("fetch", [b"x"] * 5000)
    done = anyio.Event()
    claimed = anyio.Event()

    async def work(number: int) -> None:
        claim_no = number * 1_000_000
        async with driver.connection() as connection:
            while not done.is_set():
                claim_no += 1
                held = await claim(connection, store, claim_no, limit=20)
                claimed.set()
                await finish_jobs(connection, store, held[::2])
                if rest := held[1::2]:
                    await settle_jobs(connection, store, [(h, GIVEN_BACK) for h in rest])

    async with driver.connection() as connection:
        await add_worker(connection, store)
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(work, number)
            await claimed.wait()
            affected = await queries.mark_job_as_cancelled([*reversed(job_ids), JobId(job_ids[-1] + 1)])
            done.set()
    statuses = await queries.job_status(job_ids)
    assert affected == [n for n in reversed(job_ids) if n in set(affected)]
    # What ran when it was cancelled has ended by its worker, which stores it as cancelled.
    assert set(affected) == {n for n, status in statuses.items() if status is not JobStatus.SUCCESSFUL}
    assert set(statuses.values()) <= {JobStatus.CANCELLED, JobStatus.SUCCESSFUL}
    assert [] == await queries.mark_job_as_cancelled(job_ids)
    assert {} == await queries.queue_size()
