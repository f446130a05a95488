"""What is told of jobs and workers."""

from __future__ import annotations

from typing import Any

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import Again, ErrorText, Failed
from pgq_anyio._models import ErrorRecord, JobId, JobRecord, JobStatus
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.reading import get_job, job_status, list_jobs, list_workers, queue_size
from pgq_anyio._store.running import finish_jobs, mark_overdue, settle_jobs
from pgq_anyio._store.worker import count_pending, mark_left, rescue_jobs
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, rows

pytestmark = pytest.mark.anyio


async def record_of(conn: Connection, store: Store, job_id: JobId) -> JobRecord:
    record = await run_steps(conn, get_job(store, job_id))
    assert record is not None
    return record


async def listed(conn: Connection, store: Store, **filters: Any) -> list[JobId]:
    wanted: dict[str, Any] = {"status": None, "entrypoint": None, "limit": 100, "before": None, **filters}
    return [record.id for record in await run_steps(conn, list_jobs(store, **wanted))]


async def all_states(conn: Connection, store: Store) -> dict[JobStatus, JobId]:
    """One job in each state."""
    await add_worker(conn, store)
    successful, failed, cancelled, running = await add_jobs(conn, store, 4)
    held = await claim(conn, store)
    await finish_jobs(conn, store, held[:1])
    await settle_jobs(conn, store, [(held[1], Failed(ErrorText("ValueError", "no", "trace")))])
    await cancel(conn, store, [cancelled], "enough")
    await finish_jobs(conn, store, held[2:3])
    (queued,) = await add_jobs(conn, store, name="other")
    await rows(
        conn,
        store,
        "insert into {schema}.deferred (run_at, entrypoint) values (clock_timestamp() + interval '1 hour', 'other')",
    )
    states = (successful, failed, cancelled, running, queued, JobId(queued + 1))
    names = ("successful", "failed", "cancelled", "running", "queued", "deferred")
    return {JobStatus(name): job_id for name, job_id in zip(names, states, strict=True)}


@pytest.mark.promise(17, 29)
async def test_every_state_has_its_facts(conn: Connection, store: Store) -> None:
    """The record of a job says what its state knows; payloads of successful jobs are gone."""
    states = await all_states(conn, store)
    assert {job_id: status for status, job_id in states.items()} == await run_steps(
        conn, job_status(store, [*states.values(), JobId(999)])
    )
    facts = {}
    for status, job_id in states.items():
        record = await record_of(conn, store, job_id)
        assert (job_id, status) == (record.id, record.status)
        known = {"payload", "run_at", "claimed_at", "finished_at", "worker_id", "cancel_requested_at", "cancel_reason"}
        facts[status.value] = {name for name in known if getattr(record, name) is not None}
    ended = {"claimed_at", "finished_at", "worker_id"}
    assert {
        "successful": ended,
        "failed": ended | {"payload"},
        "cancelled": ended | {"payload", "cancel_reason"},
        "running": {"claimed_at", "worker_id", "payload"},
        "queued": {"payload"},
        "deferred": {"run_at"},
    } == facts
    assert await run_steps(conn, get_job(store, JobId(999))) is None


@pytest.mark.promise(33)
async def test_lists_are_filtered_and_turned_page_by_page(conn: Connection, store: Store) -> None:
    """The newest first; every filter, and pages without gaps or repetitions."""
    states = await all_states(conn, store)
    newest = sorted(states.values(), reverse=True)
    assert newest == await listed(conn, store)
    for status, job_id in states.items():
        assert [job_id] == await listed(conn, store, status=status)
    assert newest[:2] == await listed(conn, store, entrypoint="other")
    assert [states[JobStatus.QUEUED]] == await listed(conn, store, entrypoint="other", status=JobStatus.QUEUED)
    pages, before = [], None
    while page := await listed(conn, store, limit=4, before=before):
        pages.append(page)
        before = page[-1]
    assert [newest[:4], newest[4:]] == pages


@pytest.mark.promise(29, 31)
async def test_all_errors_are_told_oldest_first(conn: Connection, store: Store) -> None:
    """Each failed attempt, a lost worker, and the last error, with texts that PostgreSQL cannot store made storable."""
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    error = ErrorText.of(ValueError("nul \x00, half a pair \ud800, wide 🎺"))
    for claim_no in (1, 2):
        (held,) = await claim(conn, store, claim_no)
        assert claim_no == held.job.attempt
        await settle_jobs(conn, store, [(held, Again(0, counted=True, error=error))])
    await claim(conn, store, 3)
    await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    await add_worker(conn, store)
    (held,) = await claim(conn, store, 4)
    await settle_jobs(conn, store, [(held, Failed(ErrorText("KeyError", "last", "trace")))])
    record = await record_of(conn, store, job_id)
    assert (JobStatus.FAILED, 3, 1) == (record.status, record.attempt, record.crashes)
    assert [
        (1, "ValueError", "nul \\x00, half a pair \\ud800, wide 🎺"),
        (2, "ValueError", "nul \\x00, half a pair \\ud800, wide 🎺"),
        (3, "WorkerDied", "worker died"),
        (3, "KeyError", "last"),
    ] == [(e.attempt, e.type, e.message) for e in record.errors]
    times = [e.failed_at for e in record.errors]
    assert times == sorted(times)
    assert ErrorRecord(3, times[3], "KeyError", "last", "trace") == record.errors[3]
    assert [record] == await run_steps(conn, list_jobs(store, status=None, entrypoint=None, limit=5, before=None))


@pytest.mark.promise(12)
async def test_a_job_that_kills_its_workers_fails(conn: Connection, store: Store) -> None:
    """The last crash that its entrypoint allows makes it failed, with the lost worker as its error."""
    (job_id,) = await add_jobs(conn, store)
    for crash in (1, 2):
        await add_worker(conn, store, max_crashes=2)
        assert 1 == len(await claim(conn, store, crash))
        await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    record = await record_of(conn, store, job_id)
    assert (JobStatus.FAILED, 2, b"payload") == (record.status, record.crashes, record.payload)
    assert ["WorkerDied", "WorkerDied"] == [error.type for error in record.errors]


@pytest.mark.promise(23)
async def test_an_overdue_handler_is_told(conn: Connection, store: Store) -> None:
    """The row says since when, and only the holder of the present claim can say so."""
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    (held,) = await claim(conn, store)
    await cancel(conn, store, [job_id], None)
    assert (await record_of(conn, store, job_id)).overdue_at is None
    assert 1 == await mark_overdue(conn, store, held)
    record = await record_of(conn, store, job_id)
    assert record.overdue_at is not None
    assert record.cancel_requested_at is not None
    assert record.overdue_at >= record.cancel_requested_at


async def test_counts_and_workers(conn: Connection, store: Store) -> None:
    """Only what could start now is counted, or all that has not ended; workers tell what they serve and hold, and that
    they have left.
    """
    await add_worker(conn, store, names=("fetch", "other"))
    await add_jobs(conn, store, 3)
    await add_jobs(conn, store, 2, name="other")
    await claim(conn, store, limit=1)
    assert {"fetch": 2, "other": 2} == await run_steps(conn, queue_size(store, limit=None))
    await rows(conn, store, "insert into {schema}.deferred (run_at, entrypoint) values (now() + '1 day', 'fetch')")
    assert [4, 6, 0] == [await count_pending(conn, store, names) for names in (["fetch"], ["fetch", "other"], ["no"])]
    (worker,) = await run_steps(conn, list_workers(store))
    assert (WORKER, "test", ("fetch", "other"), 30.0, 1) == (
        worker.id,
        worker.name,
        worker.entrypoints,
        worker.lease,
        worker.running,
    )
    assert worker.left_at is None
    await mark_left(conn, store, worker_id=WORKER)
    (worker,) = await run_steps(conn, list_workers(store))
    assert worker.left_at is not None
