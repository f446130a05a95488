"""``SyncQueries``: no event loop, threads, forks, lost connections."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgq_anyio import ConfigurationError, JobStatus
from pgq_anyio._client import SyncQueries, _sync_queries
from tests.client.conftest import Look


@pytest.mark.promise(7)
def test_every_method_without_an_event_loop(sync_queries: SyncQueries) -> None:
    """Enqueue, cancel and look."""
    job_ids = sync_queries.enqueue("fetch", [b"1", None, b""], [1, 2, 3], [None, timedelta(0), timedelta(hours=1)])
    assert [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.DEFERRED] == list(sync_queries.job_status(job_ids).values())
    assert {"fetch": 2} == sync_queries.queue_size()
    assert [] == sync_queries.workers()
    assert job_ids[1:] == sync_queries.mark_job_as_cancelled(job_ids[1:], "why")
    assert job_ids[:0:-1] == [record.id for record in sync_queries.list_jobs(status="cancelled")]
    record = sync_queries.get_job(job_ids[0])
    assert record is not None
    assert (b"1", 1) == (record.payload, record.priority)
    assert sync_queries.get_job(job_ids[0].__class__(2**70)) is None
    assert [] == sync_queries.enqueue([])


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY"])
def test_any_style_of_dates(
    dsn: str, schema: str, sync_queries: SyncQueries, look: Look, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the server writes dates as text, they are read as they are, and other values too."""
    job_ids = sync_queries.enqueue("fetch", [b"1", None], [1, 2], [None, timedelta(hours=1)])
    sync_queries.mark_job_as_cancelled(job_ids[:1], "why")
    look("insert into {schema}.schedule (name, expression, timezone) values ('report', '0 0 1 1 *', 'Asia/Tokyo')")
    look(
        "insert into {schema}.worker (worker_id, name, entrypoints, max_crashes, lease) "
        "values (1, 'host:1', array['fetch'], array[3], 30)"
    )
    expected = list_all(sync_queries)
    assert all(expected)
    monkeypatch.setenv("PGDATESTYLE", style)
    with SyncQueries(dsn, schema=schema) as queries, psycopg.connect(dsn) as connection:
        assert expected == list_all(queries) == list_all(SyncQueries(connection, schema=schema))
        assert job_ids[:1] == queries.requeue(entrypoint="fetch", status="cancelled", connection=connection)


def list_all(queries: SyncQueries) -> tuple[object, ...]:
    """All reads that have times in them."""
    jobs = queries.list_jobs()
    return jobs, [queries.get_job(job.id) for job in jobs], queries.schedules(), queries.workers()


@pytest.mark.promise(7)
def test_enqueue_imports_no_event_loop(dsn: str, schema: str) -> None:
    """A program that only enqueues runs no event loop, in a process of its own."""
    program = (
        "import sys, pgq_anyio\nfrom pgq_anyio._client import SyncQueries\n"
        "with SyncQueries(sys.argv[1], schema=sys.argv[2]) as queries: print(*queries.enqueue('fetch', [b'x'] * 3))\n"
        "import asyncio.events\nassert asyncio.events._get_running_loop() is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, dsn, schema],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ("1 2 3\n", "") == (done.stdout, done.stderr)


def test_threads_do_not_slip_into_each_others_transactions(sync_queries: SyncQueries, look: Look) -> None:
    """While large batches of one thread fail and are rolled back, single jobs of others stay, on one connection."""
    look("alter table {schema}.queued add check (payload <> 'bad'::bytea)")

    def fail() -> int:
        with pytest.raises(psycopg.errors.CheckViolation):
            sync_queries.enqueue("fetch", [*[b"big"] * 1500, b"bad"])
        return 0

    def succeed() -> int:
        return len(sync_queries.enqueue("fetch", b"small"))

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(call) for _ in range(20) for call in (fail, succeed, succeed)]
        assert 40 == sum(call.result() for call in calls)
    assert [(b"small", 40)] == look("select payload, count(*) from {schema}.queued group by 1")


def test_calls_on_connections_of_their_own_do_not_wait_for_each_other(
    dsn: str, schema: str, sync_queries: SyncQueries, look: Look
) -> None:
    """One waits in the server for the other's transaction, which goes on and ends it."""
    (job_id,) = sync_queries.enqueue("fetch")
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, ThreadPoolExecutor(2) as threads:
        assert [job_id] == sync_queries.mark_job_as_cancelled([job_id], connection=first)
        later = threads.submit(sync_queries.mark_job_as_cancelled, [job_id], connection=second)
        blocked = "select 1 from pg_locks where pid = %s and not granted"
        while not look(blocked, second.info.backend_pid):
            assert not later.done()
        try:
            sooner = threads.submit(sync_queries.enqueue, "next", connection=first)
            assert 1 == len(sooner.result(20))
        finally:
            first.commit()
        assert [] == later.result(20)
    assert {"next": 1} == sync_queries.queue_size()


def test_a_connection_that_was_not_asked_for_its_pooler_is_not_used(
    sync_queries: SyncQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on to prepare statements, which some poolers lose. The next call opens another."""
    asked: list[psycopg.Connection[Any]] = []

    def be_interrupted(connection: psycopg.Connection[Any]) -> bool:
        asked.append(connection)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(_sync_queries, "is_pooled_sync", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync_queries.enqueue("fetch")
    sync_queries.enqueue("fetch")
    first, second = asked
    assert (True, False, None) == (first.closed, second.closed, second.prepare_threshold)


def test_a_lost_connection_is_replaced(sync_queries: SyncQueries, look: Look) -> None:
    """The server closed an idle connection, as at a restart: the next call opens another, and nobody notices."""
    sync_queries.enqueue("fetch")
    assert sync_queries._own is not None
    pid = sync_queries._own.info.backend_pid
    assert [(True,)] == look("select pg_terminate_backend(%s, 5000)", pid)
    assert 1 == len(sync_queries.enqueue("fetch"))
    assert {"fetch": 2} == sync_queries.queue_size()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_connection_of_its_own(sync_queries: SyncQueries) -> None:
    """As under a server that forks its workers: the child enqueues and ends, the parent's session goes on."""
    sync_queries.enqueue("parent")
    assert sync_queries._own is not None
    session = sync_queries._own.info.backend_pid
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sync_queries.enqueue("child")
            sync_queries.close()
            status = 0
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sync_queries.enqueue("parent")
    assert session == sync_queries._own.info.backend_pid
    assert {"parent": 2, "child": 1} == sync_queries.queue_size()


def test_closing_closes_only_what_was_opened_here(dsn: str, schema: str) -> None:
    """The caller's connection stays open; an own one is closed, and opened again when it is needed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        with SyncQueries(connection, schema=schema) as queries:
            queries.enqueue("fetch")
        assert not connection.closed
    queries = SyncQueries(dsn, schema=schema)
    queries.close()
    queries.enqueue("fetch")
    own = queries._own
    queries.close()
    queries.close()
    assert own is not None
    assert own.closed
    with queries:
        assert {"fetch": 2} == queries.queue_size()


def test_nothing_is_opened_before_it_is_needed(schema: str) -> None:
    """Bad arguments are refused without a server; one that is not there is named by the first call that needs it."""
    queries = SyncQueries("host=/nonexistent password=hunter2", schema=schema)
    with pytest.raises(ConfigurationError):
        queries.enqueue("fetch", "text")  # type: ignore[arg-type]
    with pytest.raises(psycopg.OperationalError, match="nonexistent") as error:
        queries.enqueue("fetch")
    assert "hunter2" not in f"{queries!r} {error.value}"
