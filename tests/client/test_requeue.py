"""Requeueing: which jobs come back, with what, and that one comes back once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgq_anyio import ConfigurationError, JobId, JobRecord, JobStatus, SyncQueries
from tests.client.conftest import Look

HOUR = timedelta(hours=1)


def end(
    look: Look, ids: list[JobId], status: str = "failed", error: str | None = "ValueError", age: float = 60
) -> None:
    """Let queued jobs have ended some seconds ago."""
    look(
        "with gone as (delete from {schema}.queued where job_id = any (%s) returning *) "
        "insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, worker_id, created_at, "
        "claimed_at, finished_at, error_type, error_message, payload) "
        "select job_id, entrypoint, %s, priority, 3, 2, 7, created_at, created_at, "
        "clock_timestamp() - make_interval(secs => %s), %s, 'no', payload from gone",
        ids,
        status,
        age,
        error,
    )


def record_of(queries: SyncQueries, job_id: JobId) -> JobRecord:
    record = queries.get_job(job_id)
    assert record is not None
    return record


@pytest.mark.promise(33)
def test_a_requeued_job_begins_anew(sync_queries: SyncQueries, look: Look) -> None:
    """It keeps id, name, payload, priority, time of creation and errors; attempts and crashes are counted from the
    start, and it goes to the end of the queue.
    """
    (job_id,) = sync_queries.enqueue("fetch", b"payload", 5)
    before = record_of(sync_queries, job_id)
    end(look, [job_id])
    sync_queries.enqueue("fetch", None, 5)
    assert [job_id] == sync_queries.requeue([job_id])
    record = record_of(sync_queries, job_id)
    assert (JobStatus.QUEUED, 1, 0) == (record.status, record.attempt, record.crashes)
    assert (before.entrypoint, before.payload, before.priority, before.created_at) == (
        record.entrypoint,
        record.payload,
        record.priority,
        record.created_at,
    )
    assert [(3, "ValueError", "no")] == [(error.attempt, error.type, error.message) for error in record.errors]
    assert record.errors[0].failed_at > before.created_at - HOUR
    assert job_id == look("select job_id from {schema}.queued order by seq desc limit 1")[0][0]
    assert [] == look("select from {schema}.finished")


@pytest.mark.promise(33)
def test_only_what_ended_badly_comes_back(sync_queries: SyncQueries, look: Look) -> None:
    """Failed and cancelled jobs; for those that are successful, not ended, unknown or named twice nothing changes."""
    ids = sync_queries.enqueue(["fetch"] * 5)
    end(look, ids[:1])
    end(look, ids[1:2], "successful", None)
    sync_queries.mark_job_as_cancelled(ids[2:3])
    sync_queries.enqueue("fetch", execute_after=HOUR)
    assert [ids[2], ids[0]] == sync_queries.requeue([ids[2], *ids, ids[0], JobId(999)])
    assert JobStatus.SUCCESSFUL is record_of(sync_queries, ids[1]).status
    assert [] == sync_queries.requeue(ids)
    assert [] == sync_queries.requeue([])
    assert 4 == look("select count(*) from {schema}.queued")[0][0]


@pytest.mark.promise(33)
def test_filters(sync_queries: SyncQueries, look: Look) -> None:
    """Every filter leaves out what does not match; all that are given must hold. Cancelled jobs only if asked for."""
    a, b, old, cancelled, other = ids = sync_queries.enqueue(["fetch"] * 4 + ["other"])
    end(look, [a])
    end(look, [b], error="KeyError")
    end(look, [old], age=7200)
    sync_queries.mark_job_as_cancelled([cancelled])
    end(look, [other])
    ago = datetime.now(UTC) - HOUR
    filters: list[tuple[dict[str, Any], list[JobId]]] = [
        ({"entrypoint": "fetch"}, [a, b, old]),
        ({"entrypoint": "other"}, [other]),
        ({"status": "failed"}, [a, b, old, other]),
        ({"status": JobStatus.CANCELLED}, [cancelled]),
        ({"error_type": "KeyError"}, [b]),
        ({"finished_after": ago}, [a, b, other]),
        ({"finished_before": ago}, [old]),
        ({"finished_before": ago + 2 * HOUR, "limit": 2}, [a, b]),
        ({"entrypoint": "fetch", "error_type": "ValueError", "finished_after": ago}, [a]),
        ({"entrypoint": "nobody"}, []),
    ]
    for wanted, expected in filters:
        assert expected == sync_queries.requeue(**wanted), wanted
        for job_id in expected:  # and back, as they were
            if job_id == cancelled:
                sync_queries.mark_job_as_cancelled([job_id])
            else:
                end(
                    look, [job_id], error="KeyError" if job_id == b else "ValueError", age=7200 if job_id == old else 60
                )
    assert set(ids) == {record.id for record in sync_queries.list_jobs()}


@pytest.mark.promise(33)
def test_many_by_filter(sync_queries: SyncQueries, look: Look) -> None:
    """Several pages: every one once, and the limit holds over pages."""
    ids = sync_queries.enqueue(["fetch"] * 2500)
    end(look, ids)
    assert ids[:1200] == sync_queries.requeue(status="failed", limit=1200)
    assert ids[1200:] == sync_queries.requeue(status="failed")
    assert {"fetch": 2500} == sync_queries.queue_size()
    assert ids == [row[0] for row in look("select job_id from {schema}.queued order by seq")]


@pytest.mark.promise(33)
def test_wrong_arguments_change_nothing(sync_queries: SyncQueries, look: Look) -> None:
    """Neither ids nor a filter, both, a status that cannot come back, naive times: each is told."""
    (job_id,) = sync_queries.enqueue("fetch")
    end(look, [job_id])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "say which jobs: give their ids, or at least one of entrypoint, status"),
        ({"limit": 5}, "say which jobs"),
        ({"ids": None, "entrypoint": None}, "say which jobs"),
        ({"ids": [job_id], "entrypoint": "fetch"}, "ids or filters, not both: there are ids and entrypoint"),
        ({"ids": [job_id], "limit": 1}, "limit goes with a filter"),
        ({"status": "successful"}, "status must be one of failed, cancelled, not 'successful'"),
        ({"status": "queued"}, "no other jobs can be requeued"),
        ({"finished_after": datetime(2030, 1, 1)}, "finished_after: .* is naive"),
        ({"finished_before": 5}, "finished_before must be an aware datetime, not 5"),
        ({"entrypoint": ""}, "must not be empty"),
        ({"error_type": "a\x00b"}, "NUL"),
        ({"status": "failed", "limit": 0}, "limit must be between 1"),
        ({"ids": 5}, "ids are a list"),
        ({"ids": 0}, "ids are a list"),
    ]
    for arguments, told in wrong:
        with pytest.raises(ConfigurationError, match=told):
            sync_queries.requeue(**arguments)
    assert JobStatus.FAILED is record_of(sync_queries, job_id).status


@pytest.mark.promise(33)
def test_two_requeues_of_the_same_jobs(dsn: str, schema: str, sync_queries: SyncQueries, look: Look) -> None:
    """Each job comes back once, whoever asks: the answers of all callers are disjoint, and together they are all."""
    ids = sync_queries.enqueue(["fetch"] * 300)
    end(look, ids)

    def requeue(number: int) -> list[JobId]:
        with SyncQueries(dsn, schema=schema) as queries:
            return queries.requeue(ids[::-1]) if number % 2 else queries.requeue(entrypoint="fetch")

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(requeue, range(4)))
    assert ids == sorted(job_id for answer in answers for job_id in answer)
    assert 300 == look("select count(*) from {schema}.queued")[0][0]


def test_in_the_transaction_of_the_caller(dsn: str, sync_queries: SyncQueries, look: Look) -> None:
    """What is requeued in a transaction comes back with its commit, and not after a rollback."""
    (job_id,) = sync_queries.enqueue("fetch")
    end(look, [job_id])
    with psycopg.connect(dsn) as connection:
        assert [job_id] == sync_queries.requeue(status="failed", connection=connection)
        assert JobStatus.FAILED is record_of(sync_queries, job_id).status
        connection.rollback()
        assert JobStatus.FAILED is record_of(sync_queries, job_id).status
        assert [job_id] == sync_queries.requeue([job_id], connection=connection)
    assert JobStatus.QUEUED is record_of(sync_queries, job_id).status
