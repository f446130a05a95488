"""Outcomes reach the database, the odd ones too."""

from __future__ import annotations

import pytest

from pgq_anyio import JobStatus, PsycopgDriver, Queries
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED, Again, ErrorText, Failed, Outcome
from pgq_anyio._models import Held
from pgq_anyio._services.completer import store_batch
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import claim_sweep
from pgq_anyio._store.worker import register_worker

pytestmark = pytest.mark.anyio


async def hold(conn: Connection, store: Store, queries: Queries, number: int) -> list[Held]:
    """Claim jobs as worker 1."""
    await queries.enqueue(["fetch"] * number, None)
    await register_worker(conn, store, worker_id=1, name="one", entrypoints=["fetch"], max_crashes=[5], lease=30.0)
    claim = await claim_sweep(conn, store, ["fetch"], worker_id=1, claim_no=1, limit=number, reach=number)
    return [Held(job, 1, 1) for job, _ in claim.jobs]


async def test_an_outcome_that_cannot_be_stored_fails_its_job_alone(
    conn: Connection, driver: PsycopgDriver, queries: Queries, schema: str
) -> None:
    """PostgreSQL refuses the whole statement; the other outcomes of the batch must get through."""
    store = Store(schema)
    fine, odd, back, failed = await hold(conn, store, queries, 4)
    line = Line(driver, "completion")
    batch: list[tuple[Held, Outcome]] = [
        (fine, SUCCEEDED),
        (odd, Again(1e18, counted=True, error=None)),
        (back, GIVEN_BACK),
        (failed, Failed(ErrorText.of(ValueError("x")))),
    ]
    assert 4 == await store_batch(line, store, batch)
    assert {
        fine.job.id: JobStatus.SUCCESSFUL,
        odd.job.id: JobStatus.FAILED,
        back.job.id: JobStatus.QUEUED,
        failed.job.id: JobStatus.FAILED,
    } == await queries.job_status([held.job.id for held, _ in batch])
    record = await queries.get_job(odd.job.id)
    assert record is not None
    assert "out of range" in record.errors[0].message
    line.close()


async def test_a_batch_that_is_sent_again_changes_nothing(
    conn: Connection, driver: PsycopgDriver, queries: Queries, schema: str
) -> None:
    """The answer to the first may have been lost; the fence makes the second harmless."""
    store = Store(schema)
    first, second = await hold(conn, store, queries, 2)
    line = Line(driver, "completion")
    batch: list[tuple[Held, Outcome]] = [(first, SUCCEEDED), (second, GIVEN_BACK)]
    assert 2 == await store_batch(line, store, batch)
    claim = await claim_sweep(conn, store, ["fetch"], worker_id=1, claim_no=2, limit=5, reach=5)
    assert [second.job.id] == [job.id for job, _ in claim.jobs]
    assert 0 == await store_batch(line, store, batch)
    assert {first.job.id: JobStatus.SUCCESSFUL, second.job.id: JobStatus.RUNNING} == await queries.job_status(
        [first.job.id, second.job.id]
    )
    line.close()
