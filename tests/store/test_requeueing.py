"""Requeueing against the order of other statements, and what it reads."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._lifecycle import ErrorText, Failed
from pgq_anyio._models import JobId, JobStatus
from pgq_anyio._retention import Retention
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import Steps, run_steps
from pgq_anyio._store.requeueing import EndedFilter, requeue_jobs, requeue_matching
from pgq_anyio._store.running import settle_jobs
from tests.store.conftest import Connect
from tests.store.scenes import add_jobs, add_worker, claim, rows, status, value, wait_blocked
from tests.store.test_plans import plan_of
from tests.store.test_sweeping import prune

pytestmark = pytest.mark.anyio

ALL_FAILED = EndedFilter(
    statuses=(JobStatus.FAILED,),
    entrypoint=None,
    error_type=None,
    finished_after=None,
    finished_before=None,
    limit=None,
)


async def fail_all(conn: Connection, store: Store, claim_no: int) -> None:
    """Claim what is queued, and let it fail."""
    held = await claim(conn, store, claim_no)
    await settle_jobs(conn, store, [(one, Failed(ErrorText("ValueError", "no", None))) for one in held])


@pytest.mark.promise(33)
async def test_a_job_that_fails_again_meanwhile_is_not_requeued_twice(
    conn: Connection, connect: Connect, store: Store
) -> None:
    """Between the look and the statement somebody else requeues one of the jobs, and it fails again: that failure is
    younger than the call, and stays.
    """
    other = await connect()
    await add_worker(conn, store)
    first, second = await add_jobs(conn, store, 2)
    await fail_all(conn, store, 1)
    steps = requeue_matching(store, ALL_FAILED)
    now = await run_steps(conn, one_step(steps, None))
    found = await run_steps(conn, one_step(steps, now))
    assert [(first,), (second,)] == found
    assert [first] == await run_steps(other, requeue_jobs(store, [first]))
    await fail_all(other, store, 2)
    moved = await run_steps(conn, one_step(steps, found))
    assert [second] == moved[0][0]
    assert JobStatus.FAILED is await status(conn, store, first)
    assert 1 == await value(conn, store, "select count(*) from {schema}.attempt_error where job_id = %s", first)
    steps.send(moved)
    with pytest.raises(StopIteration) as end:
        steps.send([])
    assert [second] == end.value.value


def one_step(steps: Steps[list[JobId]], answer: object) -> Steps[Any]:
    """The next step alone; its answer."""
    answer = yield steps.send(answer)
    return answer


@pytest.mark.promise(33)
async def test_of_two_requeues_the_later_finds_nothing(conn: Connection, connect: Connect, store: Store) -> None:
    """It waits for the first, and then there is no record any more; after a rollback of the first there is."""
    first, second = await connect(), await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    await fail_all(conn, store, 1)
    answers: list[list[JobId]] = []

    async def requeue() -> None:
        answers.append(await run_steps(second, requeue_jobs(store, [job_id])))

    for roll_back in (True, False):
        async with anyio.create_task_group() as tasks, first.transaction(force_rollback=roll_back):
            assert [job_id] == await run_steps(first, requeue_jobs(store, [job_id]))
            tasks.start_soon(requeue)
            await wait_blocked(conn, second)
        if roll_back:
            await fail_all(conn, store, 2)
    assert [[job_id], []] == answers
    assert 1 == await value(conn, store, "select count(*) from {schema}.queued")


@pytest.mark.promise(33)
async def test_a_job_that_is_being_requeued_is_not_pruned(conn: Connection, connect: Connect, store: Store) -> None:
    """A pruner passes by what a requeue has locked, without waiting."""
    operator = await connect()
    await add_worker(conn, store)
    (job_id,) = await add_jobs(conn, store)
    await fail_all(conn, store, 1)
    async with operator.transaction():
        assert [job_id] == await run_steps(operator, requeue_jobs(store, [job_id]))
        with anyio.fail_after(5):
            assert 0 == await prune(conn, store, Retention.of(0))
    assert JobStatus.QUEUED is await status(conn, store, job_id)
    assert 0 == await prune(conn, store, Retention.of(0))


@pytest.mark.promise(33, 47)
async def test_failures_are_found_among_many_successes(conn: Connection, store: Store) -> None:
    """What is read does not grow with the successes."""
    await rows(
        conn,
        store,
        "insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, created_at) "
        "select n, 'fetch', case n % 1000 when 0 then 'failed' else 'successful' end, 0, 1, 0, now() "
        "from generate_series(1, 30000) n",
    )
    await rows(conn, store, "analyze {schema}.finished")
    parameters = {
        "statuses": ["failed"],
        "after": -1,
        "finished_before": (await rows(conn, store, "select clock_timestamp()"))[0][0],
        "finished_after": None,
        "entrypoint": "fetch",
        "error_type": None,
        "limit": 1000,
    }
    plan = await plan_of(conn, store, "find_requeueable", parameters)
    assert 30 == plan["Actual Rows"]
    read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert read < 100, f"{read} blocks for 30 of 30,000 records"
    assert 30 == len(await run_steps(conn, requeue_matching(store, ALL_FAILED)))
