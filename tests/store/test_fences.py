"""Rescue, fences and reads beside other transactions, in the order in which things once went wrong."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import GIVEN_BACK, Again, ErrorText, Failed, Outcome
from pgq_anyio._models import Held, JobStatus
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.reading import get_job, job_status
from pgq_anyio._store.running import finish_jobs, give_back_claims, settle_jobs
from pgq_anyio._store.worker import beat_worker, mark_left, rescue_jobs
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, rows, status, value

pytestmark = pytest.mark.anyio


@pytest.mark.promise(13)
async def test_a_heartbeat_that_is_committing_saves_its_worker(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """A rescue that looks while the beat has not committed passes the worker by, and afterwards sees a newer beat."""
    worker, rescuer = await connect(), await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    await claim(conn, store)
    async with worker.transaction():
        assert await beat_worker(worker, store, worker_id=WORKER) is not None
        with anyio.fail_after(20):
            assert ([], []) == await rescue_jobs(rescuer, store, [(WORKER, 0)], max_crashes=5)
    assert ([], []) == await rescue_jobs(rescuer, store, [(WORKER, 0)], max_crashes=5)
    assert ([WORKER], [job_id]) == await rescue_jobs(rescuer, store, [(WORKER, 1)], max_crashes=5)
    assert await beat_worker(worker, store, worker_id=WORKER) is None


@pytest.mark.promise(12)
async def test_a_claim_that_commits_after_its_worker_was_buried_is_found(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """The claim saw the worker alive; its rows have no owner when they appear, and the next rescue takes them."""
    claimer = await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    async with claimer.transaction():
        assert 1 == len(await claim(claimer, store))
        assert ([WORKER], []) == await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    assert JobStatus.RUNNING is await status(conn, store, job_id)
    assert ([], [job_id]) == await rescue_jobs(conn, store, [], max_crashes=5)
    assert JobStatus.QUEUED is await status(conn, store, job_id)
    assert [] == await claim(conn, store)  # and a worker that is no more claims nothing


@pytest.mark.promise(35)
async def test_the_jobs_of_a_worker_that_left_do_not_count_as_crashed(conn: Connection, store: Store) -> None:
    """They go back to their old place with crashes and attempts as they were."""
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    seq = await value(conn, store, "select seq from {schema}.queued")
    await claim(conn, store)
    await mark_left(conn, store, worker_id=WORKER)
    assert ([WORKER], [job_id]) == await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    assert [(seq, 1, 0)] == await rows(conn, store, "select seq, attempt, crashes from {schema}.queued")


@pytest.mark.promise(14)
@pytest.mark.parametrize("outcome", [GIVEN_BACK, Failed(ErrorText("E", "late", None))])
async def test_an_outcome_sent_twice_does_not_hit_the_next_run(
    conn: Connection, store: Store, outcome: Outcome
) -> None:
    """The answer to a give-back was lost; it is sent again after the same worker has claimed the job anew."""
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    first = await claim(conn, store, 1)
    assert [(job_id, "back")] == await settle_jobs(conn, store, [(first[0], GIVEN_BACK)])
    second = await claim(conn, store, 2)
    assert [] == await settle_jobs(conn, store, [(first[0], outcome)])
    assert [] == await finish_jobs(conn, store, first)
    assert [] == await give_back_claims(conn, store, worker_id=WORKER, unknown=[(job_id, 1), (None, 1)])
    assert [(job_id, 2)] == await rows(conn, store, "select job_id, claim_no from {schema}.running")
    assert [job_id] == await finish_jobs(conn, store, second)


@pytest.mark.promise(14)
async def test_a_stale_worker_with_the_same_claim_number(conn: Connection, store: Store) -> None:
    """Claim numbers are each worker's own, and two may have the same: the other worker's job is not touched."""
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    stale = await claim(conn, store, 1)
    await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    await add_worker(conn, store, 12)
    owned = await claim(conn, store, 1, worker_id=12)
    assert [] == await finish_jobs(conn, store, stale)
    for outcome in (GIVEN_BACK, Again(0, counted=True, error=None), Failed(ErrorText("E", "late", None))):
        assert [] == await settle_jobs(conn, store, [(stale[0], outcome)])
    assert [] == await give_back_claims(conn, store, worker_id=WORKER, unknown=[(job_id, 1), (None, 1)])
    assert [(job_id, 12, 1)] == await rows(conn, store, "select job_id, worker_id, claim_no from {schema}.running")
    assert [job_id] == await finish_jobs(conn, store, owned)


@pytest.mark.promise(26)
async def test_the_row_decides_whether_the_job_is_cancelled(conn: Connection, store: Store) -> None:
    """A request in the row beats every outcome that the worker asks for, and the payload is kept."""
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 5)
    held = await claim(conn, store)
    assert job_ids == await cancel(conn, store, job_ids, "enough")
    assert job_ids[:1] == await finish_jobs(conn, store, held[:1])
    failed = Failed(ErrorText("ValueError", "x", None))
    endings: list[tuple[Held, Outcome]] = [
        (held[1], GIVEN_BACK),
        (held[2], Again(5, counted=True, error=None)),
        (held[3], failed),
    ]
    assert {(job_id, "cancelled") for job_id in job_ids[1:4]} == set(await settle_jobs(conn, store, endings))
    assert ([WORKER], [job_ids[4]]) == await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    for job_id in job_ids:
        record = await run_steps(conn, get_job(store, job_id))
        assert record is not None
        assert (JobStatus.CANCELLED, "enough", b"payload") == (record.status, record.cancel_reason, record.payload)


@pytest.mark.promise(17)
async def test_a_moving_job_is_always_in_exactly_one_state(conn: Connection, connect: Connect, store: Store) -> None:
    """A reader asks while a job goes from queued to running and back: it is never gone, never twice there."""
    mover = await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    seen: set[JobStatus] = set()
    done = anyio.Event()

    async def move() -> None:
        claim_no = 0
        while not done.is_set():
            claim_no += 1
            held = await claim(mover, store, claim_no)
            await settle_jobs(mover, store, [(held[0], GIVEN_BACK)])

    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move)
            reads = 0
            while reads < 300 or len(seen) < 2:
                reads += 1
                (found,) = (await run_steps(conn, job_status(store, [job_id]))).values()
                record = await run_steps(conn, get_job(store, job_id))
                assert record is not None
                assert (record.worker_id is None) == (record.status is JobStatus.QUEUED)
                seen |= {found, record.status}
            done.set()
    assert {JobStatus.QUEUED, JobStatus.RUNNING} == seen
