"""Cancelling what runs in worker processes, handlers of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest

from pgq_anyio import JobId, SyncQueries
from tests.bounds import Within
from tests.worker.fleet import EVERY_LOOP, Fleet, wait_until

pytestmark = pytest.mark.heavy


@pytest.fixture
def queries(fleet: Fleet) -> Iterator[SyncQueries]:
    with SyncQueries(fleet.dsn, schema=fleet.schema) as queries:
        yield queries


def enqueue(fleet: Fleet, *names: str) -> list[JobId]:
    """One job for each name; they have started."""
    ids = [JobId(fleet.enqueue(name)[0]) for name in names]
    wait_until(lambda: all(fleet.events(one) for one in ids))
    return ids


def process_of(fleet: Fleet, job_id: JobId) -> int:
    ((_, pid),) = fleet.events(job_id)
    return pid


@pytest.mark.promise(23)
@EVERY_LOOP
def test_handlers_of_every_kind(fleet: Fleet, queries: SyncQueries, backend: str, within: Within) -> None:
    """An async one stops within a second; a thread's flag turns true; a process is ended, long before any grace is."""
    worker = fleet.start(backend, cancel_grace=3600)
    ids = enqueue(fleet, "sleep", "thread", "process")
    child = process_of(fleet, ids[2])
    assert child != worker.pid
    asked_at = fleet.value("select clock_timestamp()")
    assert ids == queries.mark_job_as_cancelled(ids)
    wait_until(lambda: ["cancelled"] * 3 == [fleet.status(one) for one in ids])
    ended = dict(fleet.rows("select job_id, finished_at - %s from {schema}.finished", asked_at))
    assert ended[ids[0]] < timedelta(seconds=within(1))
    assert [["cancelled", "start"]] * 2 == [sorted(event for event, _ in fleet.events(one)) for one in ids[:2]]
    assert [("start", child)] == fleet.events(ids[2])
    assert not psutil.pid_exists(child)


@pytest.mark.promise(23)
@EVERY_LOOP
def test_a_process_that_ignores_it_is_killed_after_the_grace(
    fleet: Fleet, queries: SyncQueries, backend: str, within: Within
) -> None:
    """Until then it keeps its row, and is asked; then its job is recorded as cancelled."""
    fleet.start(backend, cancel_grace=1)
    (job_id,) = enqueue(fleet, "deaf")
    child = process_of(fleet, job_id)
    asked_at = fleet.value("select clock_timestamp()")
    assert [job_id] == queries.mark_job_as_cancelled([job_id])
    wait_until(lambda: fleet.status(job_id) == "cancelled")
    took = fleet.value("select finished_at - %s from {schema}.finished", asked_at)
    assert timedelta(seconds=1) <= took < timedelta(seconds=within(3, 5))  # which is the default
    assert not psutil.pid_exists(child)


@pytest.mark.promise(28)
@EVERY_LOOP
def test_a_process_that_takes_too_long(fleet: Fleet, backend: str) -> None:
    """It is ended, and the record says that it was the timeout."""
    fleet.start(backend)
    (job_id,) = enqueue(fleet, "bounded")
    child = process_of(fleet, job_id)
    wait_until(lambda: fleet.status(job_id))
    assert [("failed", "JobTimeout")] == fleet.rows("select status, error_type from {schema}.finished")
    assert not psutil.pid_exists(child)
