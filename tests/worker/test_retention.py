"""What workers keep of jobs that have ended."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import timedelta

import anyio
import pytest

from pgq_anyio import Cancel, Job, JobStatus, PgQueuer, Queries, Retry, RetryPolicy, Snooze
from pgq_anyio._services import pruner
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio


def add_outcomes(app: PgQueuer, runs: Counter[int]) -> None:
    """A handler whose payload says how the job ends."""

    @app.entrypoint("end", max_attempts=3, retry_policy=RetryPolicy(initial_delay=0))
    async def end(job: Job) -> None:
        runs[job.id] += 1
        match job.payload:
            case b"fail":
                raise ValueError(f"attempt {job.attempt}")
            case b"cancel":
                raise Cancel("enough")
            case b"retry" if job.attempt == 1:
                raise Retry(timedelta(milliseconds=20))
            case b"snooze" if runs[job.id] == 1:
                raise Snooze(timedelta(milliseconds=20))
            case b"wait":
                await anyio.sleep(3600)


async def counts(queries: Queries) -> Counter[JobStatus]:
    """How many jobs are in each state."""
    return Counter(record.status for record in await queries.list_jobs(limit=10_000))


@pytest.mark.promise(46)
async def test_outcome_counts_add_up(app: PgQueuer, queries: Queries) -> None:
    """Every job that was enqueued has ended once, as its handler or whoever cancelled it decided: successes, failures
    and cancels together are the jobs that ended.
    """
    add_outcomes(app, Counter())
    ways = [b"succeed", b"fail", b"cancel", b"retry", b"snooze"]
    ids = await queries.enqueue(["end"] * 400, [way for way, _ in zip(itertools.cycle(ways), range(400), strict=False)])
    cancelled = await queries.mark_job_as_cancelled(ids[::7])
    await drain(app)
    assert ids[::7] == cancelled
    expected = Counter(
        JobStatus.CANCELLED
        if place % 7 == 0 or ways[place % 5] == b"cancel"
        else JobStatus.FAILED
        if ways[place % 5] == b"fail"
        else JobStatus.SUCCESSFUL
        for place in range(400)
    )
    assert expected == await counts(queries)
    requeued = await queries.requeue(status="failed")
    await drain(app)
    assert expected[JobStatus.FAILED] == len(requeued)
    assert expected == await counts(queries)


@pytest.mark.promise(46)
async def test_no_retention_under_load(app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are removed all the time while jobs are enqueued, tried again, snoozed, cancelled and fail: a job runs
    as often as it should, those that run and wait stay, and of those that have ended nothing is left at the end.
    """
    monkeypatch.setattr(pruner, "SHORTEST_INTERVAL", 0.01)
    runs: Counter[int] = Counter()
    add_outcomes(app, runs)
    ways = {b"succeed": 1, b"fail": 3, b"cancel": 1, b"retry": 2, b"snooze": 2}
    async with running_worker(app, retention=0):
        waits = await queries.enqueue("end", b"wait")
        later = await queries.enqueue("end", b"succeed", execute_after=timedelta(hours=1))
        expected: Counter[int] = Counter()
        for _ in range(20):
            for way, times in ways.items():
                expected.update(dict.fromkeys(await queries.enqueue(["end"] * 10, way), times))
            await queries.mark_job_as_cancelled(await queries.enqueue("nobody"))
        with anyio.fail_after(30):
            while [job.id for job in await queries.list_jobs()] != [*later, *waits]:  # noqa: ASYNC110
                await anyio.sleep(0.02)
            while await left_behind(queries):  # noqa: ASYNC110
                await anyio.sleep(0.02)
        del runs[waits[0]]
        assert expected == runs
        statuses = await queries.job_status([*waits, *later])
        assert [JobStatus.RUNNING, JobStatus.DEFERRED] == list(statuses.values())
        await queries.mark_job_as_cancelled([*waits, *later])


async def left_behind(queries: Queries) -> int:
    """Errors of attempts and requests to cancel that are still there."""
    async with queries._driver.connection() as conn:
        cursor = await conn.execute(
            queries._store.bind(
                "select (select count(*) from {schema}.attempt_error) + (select count(*) from {schema}.cancel_request)"
            )
        )
        ((number,),) = await cursor.fetchall()
        return int(number)


@pytest.mark.promise(46)
async def test_each_worker_has_its_retention(app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Successes go at once and failures stay, as the option says."""
    monkeypatch.setattr(pruner, "SHORTEST_INTERVAL", 0.01)
    add_outcomes(app, Counter())
    await queries.enqueue(["end"] * 3, [b"succeed", b"fail", b"cancel"])
    async with running_worker(app, retention={"successful": 0, "cancelled": timedelta(0)}):
        with anyio.fail_after(20):
            while await counts(queries) != {JobStatus.FAILED: 1}:  # noqa: ASYNC110  (a fact of the database)
                await anyio.sleep(0.02)
