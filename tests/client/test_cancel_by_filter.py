"""Cancelling by filter, and the record of who asked and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import psycopg
import pytest

from pgq_anyio import Cancel, ConfigurationError, JobId, JobStatus, PgQueuer, PsycopgDriver, SyncQueries
from pgq_anyio._client import Queries
from pgq_anyio._models import Job
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import Fetch, run_steps_sync
from pgq_anyio._store.cancelling import UnfinishedFilter, cancel_matching
from pgq_anyio.testing import drain, running_worker
from tests.client.conftest import Look

HOUR = timedelta(hours=1)


def age(look: Look, ids: list[JobId], seconds: float = 7200) -> None:
    """Let waiting jobs be older."""
    for table in ("queued", "deferred"):
        look(
            "update {schema}." + table + " set created_at = created_at - make_interval(secs => %s) "
            "where job_id = any (%s)",
            seconds,
            ids,
        )


@pytest.mark.promise(24)
def test_filters(sync_queries: SyncQueries, look: Look) -> None:
    """Every filter leaves out what does not match, and all that are given must hold."""
    filters: list[tuple[dict[str, Any], list[int]]] = [
        ({"entrypoint": "fetch"}, [0, 1, 2]),
        ({"status": "queued"}, [0, 1, 3]),
        ({"status": JobStatus.DEFERRED}, [2]),
        ({"status": "running"}, []),
        ({"older_than": HOUR}, [1, 3]),
        ({"older_than": datetime.now(UTC) - HOUR}, [1, 3]),
        ({"older_than": timedelta(0)}, [0, 1, 2, 3]),
        ({"entrypoint": "fetch", "older_than": HOUR, "status": "queued"}, [1]),
        ({"entrypoint": "nobody"}, []),
    ]
    for wanted, expected in filters:
        ids = sync_queries.enqueue(["fetch", "fetch", "fetch", "other"], execute_after=[None, None, HOUR, None])
        age(look, [ids[1], ids[3]])
        assert [ids[place] for place in expected] == sync_queries.mark_job_as_cancelled(**wanted, reason="why"), wanted
        found = sync_queries.job_status(ids)
        assert expected == [place for place in range(4) if found[ids[place]] is JobStatus.CANCELLED]
        sync_queries.mark_job_as_cancelled(ids)


def test_wrong_arguments_cancel_nothing(sync_queries: SyncQueries) -> None:
    """A call without ids and filters, or with ``None`` for all of them, never means all jobs."""
    ids = sync_queries.enqueue(["fetch"] * 3)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "say which jobs: give their ids, or at least one of entrypoint, status, older_than"),
        ({"ids": None, "reason": "why"}, "say which jobs"),
        ({"entrypoint": None, "status": None}, "say which jobs"),
        ({"ids": ids, "status": "queued"}, "ids or filters, not both: there are ids and status"),
        ({"ids": [], "status": "queued"}, "not both"),
        ({"status": "failed"}, "status must be one of deferred, queued, running, not 'failed'"),
        ({"older_than": 60}, "older_than must be a timedelta or an aware datetime, not 60"),
        ({"older_than": -HOUR}, "older_than must be at least 0 s"),
        ({"older_than": datetime(2030, 1, 1)}, "older_than: .* is naive"),
        ({"entrypoint": ""}, "must not be empty"),
    ]
    for arguments, told in wrong:
        with pytest.raises(ConfigurationError, match=told):
            sync_queries.mark_job_as_cancelled(**arguments)
    assert [] == sync_queries.mark_job_as_cancelled([])
    assert {"fetch": 3} == sync_queries.queue_size()


@pytest.mark.promise(24)
def test_a_job_that_was_started_meanwhile_is_not_interrupted(
    dsn: str, schema: str, sync_queries: SyncQueries, look: Look
) -> None:
    """Who cancels queued jobs does not interrupt one that a worker claims after it was found, and before its turn."""
    ids = sync_queries.enqueue(["fetch"] * 2)
    wanted = UnfinishedFilter(states=(JobStatus.QUEUED,), entrypoint="fetch", older_than=None, created_before=None)
    with psycopg.connect(dsn, autocommit=True) as connection:
        steps = cancel_matching(Store(schema), connection, wanted, None)
        step = next(steps)
        assert isinstance(step, Fetch)

        def found() -> Any:
            rows = yield step
            look(
                "with gone as (delete from {schema}.queued where job_id = %s returning *) "
                "insert into {schema}.running (job_id, worker_id, claim_no, seq, entrypoint, priority, attempt, "
                "crashes, created_at, claimed_at)"
                " select job_id, 1, 1, seq, entrypoint, 0, 1, 0, now(), now() from gone",
                ids[0],
            )
            step_now = steps.send(rows)
            while True:
                answer = yield step_now
                try:
                    step_now = steps.send(answer)
                except StopIteration as end:
                    return end.value

        assert ids[1:] == run_steps_sync(connection, found())
    assert [JobStatus.RUNNING, JobStatus.CANCELLED] == list(sync_queries.job_status(ids).values())
    assert [(None,)] == look("select cancel_requested_at from {schema}.running")


@pytest.mark.promise(23)
def test_the_record_says_who_and_why(dsn: str, schema: str, sync_queries: SyncQueries, look: Look) -> None:
    """The user and the application of the connection, as they were; nobody for a job that nobody cancelled, and for one
    that was requeued.
    """
    first, second, third = sync_queries.enqueue(["fetch"] * 3)
    with psycopg.connect(dsn, autocommit=True, application_name="backoffice") as connection:
        user = connection.info.user
        SyncQueries(connection, schema=schema).mark_job_as_cancelled([first], "a customer called")
    with psycopg.connect(dsn, autocommit=True, application_name="") as connection:
        SyncQueries(connection, schema=schema).mark_job_as_cancelled(entrypoint="fetch", status="queued")
    records = {record.id: record for record in sync_queries.list_jobs()}
    assert (f"{user} (backoffice)", "a customer called") == (records[first].cancelled_by, records[first].cancel_reason)
    assert (user, None) == (records[second].cancelled_by, records[second].cancel_reason)
    assert records[third].status is JobStatus.CANCELLED
    assert [] == sync_queries.mark_job_as_cancelled([first, second, third], "too late")
    assert 3 == look("select count(*) from {schema}.cancel_request")[0][0]
    sync_queries.requeue([first])
    record = sync_queries.get_job(first)
    assert record is not None
    assert (None, None) == (record.cancelled_by, record.cancel_reason)
    assert 2 == look("select count(*) from {schema}.cancel_request")[0][0]


@pytest.mark.anyio
@pytest.mark.promise(23)
async def test_running_jobs_of_a_name(driver: PsycopgDriver, dsn: str, schema: str) -> None:
    """Handlers of that name are interrupted, others go on; the record has who and why when the handler has ended."""
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)

    @app.entrypoint("slow")
    @app.entrypoint("other")
    async def slow(job: Job) -> None:
        await anyio.sleep(3600)

    ids = await queries.enqueue(["slow", "slow", "other"])

    async def wait_for(wanted: list[JobStatus]) -> None:
        with anyio.fail_after(10):
            while wanted != list((await queries.job_status(ids)).values()):  # noqa: ASYNC110  (a fact of the database)
                await anyio.sleep(0.01)

    async with running_worker(app):
        await wait_for([JobStatus.RUNNING] * 3)
        assert ids[:2] == await queries.mark_job_as_cancelled(entrypoint="slow", status="running", reason="too slow")
        await wait_for([JobStatus.CANCELLED] * 2 + [JobStatus.RUNNING])
        record = await queries.get_job(ids[0])
        assert record is not None
        assert record.cancel_reason == "too slow"
        assert record.cancelled_by is not None
        await queries.mark_job_as_cancelled(ids)
        await wait_for([JobStatus.CANCELLED] * 3)


@pytest.mark.anyio
async def test_a_handler_that_cancels_itself(driver: PsycopgDriver, dsn: str, schema: str) -> None:
    """Its record has a reason, and nobody who asked."""
    app, queries = PgQueuer(dsn, schema=schema), Queries(driver, schema=schema)

    @app.entrypoint("no")
    async def no(job: Job) -> None:
        raise Cancel("nothing to do")

    (job_id,) = await queries.enqueue("no")
    await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.CANCELLED, "nothing to do", None) == (record.status, record.cancel_reason, record.cancelled_by)
