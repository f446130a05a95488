"""Cancels that meet movers, in the order in which things went wrong before the statement was right."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import GIVEN_BACK, Again, Outcome
from pgq_anyio._models import JobId, JobStatus
from pgq_anyio._services.completer import COMPLETION_SETTINGS
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.deferred import promote_due
from pgq_anyio._store.reading import job_status
from pgq_anyio._store.running import finish_jobs, give_back_claims, settle_jobs
from pgq_anyio._store.worker import leave, rescue_jobs
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, add_worker, cancel, claim, forbid_indexes, rows, status, wait_blocked

pytestmark = pytest.mark.anyio


@pytest.mark.promise(24)
async def test_a_cancel_catches_a_claim_under_way(conn: Connection, connect: Connect, store: Store) -> None:
    """A claim commits while the cancel waits for its row: the job is in no table that the cancel's snapshot shows as it
    is now, and is cancelled all the same.
    """
    claimer, canceller = await connect(), await connect()
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 3)
    affected: list[JobId] = []

    async def cancel_all() -> None:
        affected.extend(await cancel(canceller, store, job_ids))

    async with anyio.create_task_group() as tasks, claimer.transaction():
        assert 2 == len(await claim(claimer, store, limit=2))
        tasks.start_soon(cancel_all)
        await wait_blocked(conn, canceller)
    assert job_ids == affected
    requested = await rows(conn, store, "select job_id, cancel_reason from {schema}.running order by job_id")
    assert [(job_ids[0], "test"), (job_ids[1], "test")] == requested
    assert JobStatus.CANCELLED is await status(conn, store, job_ids[2])


@pytest.mark.promise(24, 25)
@pytest.mark.parametrize(
    "outcome", [GIVEN_BACK, Again(0, counted=False, error=None), Again(60, counted=False, error=None)]
)
async def test_a_cancel_catches_a_job_on_its_way_back(
    conn: Connection, connect: Connect, store: Store, outcome: Outcome
) -> None:
    """A job that is given back, retried or snoozed while the cancel waits for its row never runs again."""
    worker, canceller = await connect(), await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    (held,) = await claim(conn, store)
    async with anyio.create_task_group() as tasks, worker.transaction():
        await settle_jobs(worker, store, [(held, outcome)])
        tasks.start_soon(cancel, canceller, store, [job_id])
        await wait_blocked(conn, canceller)
    assert JobStatus.CANCELLED is await status(conn, store, job_id)


@pytest.mark.promise(24)
async def test_a_cancel_catches_a_promotion_under_way(conn: Connection, connect: Connect, store: Store) -> None:
    """A deferred job that becomes queued while the cancel waits for its row is cancelled."""
    promoter, canceller = await connect(), await connect()
    (job_id,) = await add_jobs(conn, store)
    await rows(
        conn,
        store,
        "with gone as (delete from {schema}.queued returning job_id, entrypoint) "
        "insert into {schema}.deferred (run_at, job_id, entrypoint) "
        "select clock_timestamp(), job_id, entrypoint from gone",
    )
    async with anyio.create_task_group() as tasks, promoter.transaction():
        assert 1 == (await promote_due(promoter, store, limit=10)).moved
        tasks.start_soon(cancel, canceller, store, [job_id])
        await wait_blocked(conn, canceller)
    assert JobStatus.CANCELLED is await status(conn, store, job_id)


@pytest.mark.promise(24)
async def test_a_job_that_ends_first_has_ended(conn: Connection, connect: Connect, store: Store) -> None:
    """A completion that commits while the cancel waits for the row wins; the cancel says that it changed nothing."""
    worker, canceller = await connect(), await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    held = await claim(conn, store)
    answers: list[list[JobId]] = []

    async def cancel_it() -> None:
        answers.append(await cancel(canceller, store, [job_id]))

    async with anyio.create_task_group() as tasks, worker.transaction():
        assert [job_id] == await finish_jobs(worker, store, held)
        tasks.start_soon(cancel_it)
        await wait_blocked(conn, canceller)
    assert [[]] == answers
    assert JobStatus.SUCCESSFUL is await status(conn, store, job_id)


@pytest.mark.promise(24)
@pytest.mark.parametrize("what", ["cancel", "finish", "settle", "rescue", "give_back", "leave"])
async def test_running_rows_are_locked_in_the_order_of_their_ids(
    conn: Connection, connect: Connect, store: Store, what: str
) -> None:
    """Rows lie in another order than their ids: while the first id is locked elsewhere, no later one is. Whoever
    locks in one order cannot deadlock.
    """
    mover, holder, observer = await connect(), await connect(), await connect()
    await forbid_indexes(mover)
    if what == "finish":  # the one that leaves the order to the settings, which stand above those of a role
        for name, setting in COMPLETION_SETTINGS.items():
            await mover.execute("select set_config(%s, %s, false)", (name, setting))
    await add_worker(conn, store)
    # The claim stores them by priority: the higher the id, the earlier.
    job_ids = await add_jobs(conn, store, 10, priorities=range(10))
    held = await claim(conn, store)
    assert job_ids[::-1] == [h.job.id for h in held]
    moves: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "cancel": lambda: cancel(mover, store, job_ids[::-1]),
        "finish": lambda: finish_jobs(mover, store, held),
        "settle": lambda: settle_jobs(mover, store, [(h, GIVEN_BACK) for h in held]),
        "rescue": lambda: rescue_jobs(mover, store, [(WORKER, 0)], max_crashes=5),
        "leave": lambda: leave(mover, store, worker_id=WORKER),
        "give_back": lambda: give_back_claims(mover, store, worker_id=WORKER, unknown=[(None, 1)]),
    }
    async with anyio.create_task_group() as tasks, holder.transaction():
        await rows(holder, store, "select from {schema}.running where job_id = %s for update", job_ids[0])
        tasks.start_soon(moves[what])
        await wait_blocked(observer, mover)
        free = await rows(observer, store, "select job_id from {schema}.running for update skip locked")
        assert set(job_ids[1:]) == {row[0] for row in free}


@pytest.mark.promise(24)
async def test_waiting_rows_are_locked_in_the_order_of_their_ids(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """Two cancels of the same queued jobs cannot deadlock."""
    canceller, holder, observer = await connect(), await connect(), await connect()
    await forbid_indexes(canceller)
    job_ids = await add_jobs(conn, store, 10)
    # Turn their order in the table round.
    for job_id in job_ids[-2::-1]:
        await rows(conn, store, "update {schema}.queued set crashes = 0 where job_id = %s", job_id)
    async with anyio.create_task_group() as tasks, holder.transaction():
        await rows(holder, store, "select from {schema}.queued where job_id = %s for update", job_ids[0])
        tasks.start_soon(cancel, canceller, store, job_ids[::-1])
        await wait_blocked(observer, canceller)
        free = await rows(observer, store, "select job_id from {schema}.queued for update skip locked")
        assert set(job_ids[1:]) == {row[0] for row in free}


@pytest.mark.promise(24)
async def test_cancels_completions_and_claims_at_once(conn: Connection, connect: Connect, store: Store) -> None:
    """500 jobs are claimed, finished, given back and cancelled by eight connections at once: no deadlock, and what a
    cancel says it has affected is cancelled.
    """
    await add_worker(conn, store)
    job_ids = await add_jobs(conn, store, 500)
    affected: set[JobId] = set()
    done = anyio.Event()

    async def work(claimer: Connection, completer: Connection, first_claim_no: int) -> None:
        claim_no = first_claim_no
        while not done.is_set():
            claim_no += 1
            held = await claim(claimer, store, claim_no, limit=20)
            await finish_jobs(completer, store, held[::-2])
            if rest := held[-2::-2]:
                await settle_jobs(completer, store, [(h, GIVEN_BACK) for h in rest])

    async def cancel_some(canceller: Connection, ids: list[JobId]) -> None:
        for start in range(0, len(ids), 25):
            affected.update(await cancel(canceller, store, ids[start : start + 25]))

    with anyio.fail_after(40):
        async with anyio.create_task_group() as workers:
            for number in range(3):
                workers.start_soon(work, await connect(), await connect(COMPLETION_SETTINGS), number * 1_000_000)
            async with anyio.create_task_group() as cancellers:
                cancellers.start_soon(cancel_some, await connect(), job_ids)
                cancellers.start_soon(cancel_some, await connect(), job_ids[::-1])
            done.set()
    await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5)
    statuses = await run_steps(conn, job_status(store, job_ids))
    assert affected == {job_id for job_id, found in statuses.items() if found is JobStatus.CANCELLED}
    assert set(statuses.values()) <= {JobStatus.SUCCESSFUL, JobStatus.CANCELLED}
    assert len(job_ids) == len(statuses)


async def test_a_cancel_needs_read_committed(conn: Connection, store: Store) -> None:
    """In a transaction with one snapshot a cancel would miss what moves: it is refused and changes nothing."""
    (job_id,) = await add_jobs(conn, store)
    for isolation in ("repeatable read", "serializable"):
        async with conn.transaction():
            await conn.execute(f"set transaction isolation level {isolation}".encode())
            with pytest.raises(RuntimeError, match=isolation.upper()):
                await cancel(conn, store, [job_id])
    assert JobStatus.QUEUED is await status(conn, store, job_id)
    # Where every statement has a snapshot of its own, the level does not matter.
    await conn.execute("set default_transaction_isolation = 'repeatable read'")
    assert [job_id] == await cancel(conn, store, [job_id])
