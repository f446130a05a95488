"""Outcomes reach the database, the odd ones too."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import anyio
import psycopg
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._lifecycle import GIVEN_BACK, SUCCEEDED, Again, ErrorText, Failed, Outcome
from pgq_anyio._models import Held
from pgq_anyio._retry import RetryPolicy
from pgq_anyio._services import completer
from pgq_anyio._services.completer import store_batch
from pgq_anyio._store._sql import Store
from pgq_anyio._store.queued import claim_sweep
from pgq_anyio._store.worker import register_worker
from pgq_anyio.testing import running_worker

pytestmark = pytest.mark.anyio

#: The module: the package gives its function by the same name.
retrying_module = import_module("pgq_anyio._db.retrying")


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


@pytest.mark.promise(16)
async def test_a_heartbeat_that_gets_through_ends_the_pause_of_an_outcome(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long outage pauses are long: here an hour. What has ended is stored once a heartbeat is answered."""
    failures, stored, store_it = 3, anyio.Event(), completer.store_batch

    async def fail_at_first(*arguments: Any, **options: Any) -> int:
        nonlocal failures
        if failures:
            failures -= 1
            raise psycopg.OperationalError("the server is away")
        number = await store_it(*arguments, **options)
        stored.set()
        return number

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        pass

    monkeypatch.setattr(retrying_module, "_POLICY", RetryPolicy(initial_delay=3600, max_delay=3600))
    monkeypatch.setattr(completer, "store_batch", fail_at_first)
    async with running_worker(app, lease=2):
        (job_id,) = await queries.enqueue("fetch")
        with anyio.fail_after(30):
            await stored.wait()
        assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    assert 0 == failures
