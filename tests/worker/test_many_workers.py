"""Many worker processes on one queue: each job runs once, work is shared, no cancel is missed, and idling is cheap."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from pgq_anyio import JobId, JobStatus, SyncQueries
from tests.worker.away import Journal
from tests.worker.fleet import BACKENDS, Fleet, WorkerProcess, wait_until
from tests.worker.own_server import OwnServer

pytestmark = pytest.mark.heavy

PROGRAM = "tests.worker.away"


def start(fleet: Fleet, backend: str, number: int, **options: Any) -> list[WorkerProcess]:
    """Start workers at once; all of them are ready."""
    workers = [fleet.start(backend, ready=False, program=PROGRAM, **options) for _ in range(number)]
    for worker in workers:
        wait_until(worker.is_registered, what="the worker is registered")
    return workers


@pytest.fixture
def processes() -> Iterator[int]:
    """How many processes for handlers each worker has that is started in the test."""
    usable = os.sched_getaffinity(0)
    given = sorted(usable)[:2]
    os.sched_setaffinity(0, given)
    yield len(given)
    os.sched_setaffinity(0, usable)


def count_ended(fleet: Fleet) -> int:
    ended: int = fleet.value("select count(*) from {schema}.finished")
    return ended


@pytest.mark.promise(11)
@BACKENDS
def test_eight_workers_run_each_of_ten_thousand_jobs_once(fleet: Fleet, journal: Journal, backend: str) -> None:
    """As the handlers themselves say, in a file: the records in the database could not tell of a second run."""
    workers = start(fleet, backend, 8)
    ids = fleet.enqueue("short", b"0", times=10_000)
    wait_until(lambda: len(ids) == count_ended(fleet), timeout=60)
    entries = journal.read()
    for event in ("start", "end"):
        assert Counter(ids) == Counter(one.job_id for one in entries if one.event == event)
    assert {worker.pid for worker in workers} == {one.pid for one in entries}, "some worker had no part in it"
    assert [("successful", 1, 0)] == fleet.rows("select distinct status, attempt, crashes from {schema}.finished")


@pytest.mark.promise(16)
@BACKENDS
def test_two_workers_share_a_small_backlog_of_long_jobs(fleet: Fleet, journal: Journal, backend: str) -> None:
    """Neither holds more than it can run at once, whatever its batches may bring: the rest waits for who is free."""
    workers = start(fleet, backend, 2, max_concurrency=3, batch_size=100, shutdown_grace=0)
    ids = fleet.enqueue("work", times=4)
    wait_until(lambda: all(journal.events(one) for one in ids))
    assert {worker.pid for worker in workers} == {one.pid for one in journal.read()}, "one of them had no part in it"
    ids += fleet.enqueue("work", times=8)
    wait_until(lambda: 6 == fleet.value("select count(*) from {schema}.running"))
    wait_until(lambda: 6 == sum(bool(journal.events(one)) for one in ids))
    by_owner = fleet.rows("select worker_id, count(*) from {schema}.running group by 1")
    assert [3, 3] == [number for _, number in by_owner]
    assert ids[6:] == [row[0] for row in fleet.rows("select job_id from {schema}.queued order by seq")]
    # What waits is for whoever is free: a slot of the one goes to the job that is next.
    with SyncQueries(fleet.dsn, schema=fleet.schema) as queries:
        assert [ids[0]] == queries.mark_job_as_cancelled([JobId(ids[0])])
    wait_until(lambda: journal.events(ids[6]))
    assert ids[7:] == [row[0] for row in fleet.rows("select job_id from {schema}.queued order by seq")]


@pytest.mark.promise(16)
@BACKENDS
def test_two_workers_share_a_small_backlog_of_jobs_in_processes(
    fleet: Fleet, journal: Journal, backend: str, processes: int
) -> None:
    """Neither holds more than it has processes for, however many slots it has."""
    workers = start(fleet, backend, 2, shutdown_grace=0)
    ids = fleet.enqueue("process", times=3 * processes)
    wait_until(lambda: 2 * processes == sum(bool(journal.events(one)) for one in ids))
    by_owner = fleet.rows("select worker_id, count(*) from {schema}.running group by 1")
    assert [processes, processes] == [number for _, number in by_owner]
    assert ids[2 * processes :] == [row[0] for row in fleet.rows("select job_id from {schema}.queued order by seq")]
    # What the one gives back the other has no process for: it stays in the queue.
    workers[0].signal(signal.SIGTERM)
    assert 0 == workers[0].wait()
    assert processes == fleet.value("select count(*) from {schema}.running")
    assert 2 * processes == fleet.value("select count(*) from {schema}.queued")


@pytest.mark.promise(24)
@BACKENDS
def test_five_thousand_ids_in_one_call_while_workers_run_them(fleet: Fleet, journal: Journal, backend: str) -> None:
    """Two callers name all ids, in opposite orders, while three workers claim and finish them: every job that had not
    ended is cancelled, none slips through, nobody waits for ever, and what was cancelled in the queue never ran.
    """
    start(fleet, backend, 3, max_concurrency=20, batch_size=20)
    ids = [JobId(number) for number in fleet.enqueue("short", b"0.02", times=5_000)]
    wait_until(lambda: count_ended(fleet) > 100)
    with (
        SyncQueries(fleet.dsn, schema=fleet.schema) as first,
        SyncQueries(fleet.dsn, schema=fleet.schema) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        calls = [
            threads.submit(first.mark_job_as_cancelled, ids),
            threads.submit(second.mark_job_as_cancelled, ids[::-1]),
        ]
        affected = [job_id for call in calls for job_id in call.result(30)]
        answered_at = fleet.value("select clock_timestamp()")
        wait_until(lambda: len(ids) == count_ended(fleet))
        statuses = first.job_status(ids)
    assert Counter(affected) == Counter(one for one, status in statuses.items() if status is JobStatus.CANCELLED)
    assert {JobStatus.CANCELLED, JobStatus.SUCCESSFUL} == set(statuses.values())
    late = "select job_id from {schema}.finished where status = 'successful' and finished_at > %s"
    assert [] == fleet.rows(late, answered_at), "these had not ended, and slipped through"
    started = Counter(one.job_id for one in journal.read() if one.event == "start")
    assert {1} == set(started.values())
    never = {row[0] for row in fleet.rows("select job_id from {schema}.finished where worker_id is null")}
    assert never
    assert not never & set(started)


@pytest.mark.promise(48)
@BACKENDS
def test_ten_idle_workers_and_one_enqueue_a_second(
    own_server: OwnServer, own_fleet: Fleet, journal: Journal, backend: str
) -> None:
    """Below 50 statements a second together. Peer's bug: every worker wakes for every enqueue."""
    seconds = 6
    start(own_fleet, backend, 10)
    wait_until(lambda: own_fleet.value("select bool_and(sleeping) from {schema}.worker"))
    time.sleep(2)  # what is promised begins after the first two seconds of idling
    since = own_server.log.stat().st_size
    for _ in range(seconds):
        (job_id,) = own_fleet.enqueue("short", b"0")
        wait_until(partial(journal.find, job_id, "end"))
        time.sleep(1)  # the rate of the enqueues
    wait_until(lambda: seconds == count_ended(own_fleet))
    counts = own_server.count_statements(since)
    assert seconds == counts["finish_jobs"]
    assert counts.total() < 50 * seconds
