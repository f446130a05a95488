"""Workers that die, freeze, or are cut off: nothing is lost, and the last word is the new owner's."""

from __future__ import annotations

import signal
import time
from functools import partial

import psycopg
import pytest
from psycopg import sql

from tests.bounds import Within
from tests.worker.fleet import EVERY_LOOP, Fleet, wait_until

pytestmark = pytest.mark.heavy

LEASE = 2.0


@pytest.mark.promise(12)
@EVERY_LOOP
def test_the_job_of_a_killed_worker_runs_on_another(fleet: Fleet, backend: str, within: Within) -> None:
    """Not before the lease is over since the last heartbeat, nor later than 5 s after that; the crash is counted."""
    first = fleet.start(backend, lease=LEASE)
    (job_id,) = fleet.enqueue("sleep")
    wait_until(lambda: fleet.events(job_id))
    second = fleet.start(backend, lease=LEASE)
    first.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    last_beat = fleet.value("select heartbeat_at from {schema}.worker where name like %s", f"%:{first.pid}")
    wait_until(lambda: ("start", second.pid) in fleet.events(job_id))
    assert time.monotonic() - killed_at < within(LEASE + 5, LEASE + 30)
    started_again = fleet.value(
        "select at from {log} where job_id = %s and event = 'start' and pid = %s", job_id, second.pid
    )
    assert (started_again - last_beat).total_seconds() >= LEASE
    assert [(1, 1)] == fleet.rows("select attempt, crashes from {schema}.running where job_id = %s", job_id)


@pytest.mark.promise(12)
@EVERY_LOOP
def test_a_job_that_kills_its_workers_ends_as_failed(fleet: Fleet, backend: str) -> None:
    """After max_crashes (2 for this entrypoint) it is not tried again."""
    (job_id,) = fleet.enqueue("killer")
    for _ in range(2):
        worker = fleet.start(backend, ready=False, lease=LEASE)
        assert 9 == worker.wait()
    fleet.start(backend, lease=LEASE)
    wait_until(lambda: fleet.status(job_id) == "failed")
    assert [("WorkerDied", "worker died", 2)] == fleet.rows(
        "select error_type, error_message, crashes from {schema}.finished where job_id = %s", job_id
    )
    assert 2 == len(fleet.events(job_id))


@pytest.mark.promise(14)
@EVERY_LOOP
def test_a_frozen_worker_that_comes_back_changes_nothing(fleet: Fleet, backend: str, within: Within) -> None:
    """SIGSTOP for longer than the lease, SIGCONT while another runs the job: the handler is cancelled as soon as its
    process runs again, and there is one outcome, the new owner's.
    """
    stale = fleet.start(backend, lease=LEASE)
    (job_id,) = fleet.enqueue("sleep", b"3")
    wait_until(lambda: fleet.events(job_id))
    stale.signal(signal.SIGSTOP)
    owner = fleet.start(backend, lease=LEASE)
    wait_until(lambda: ("start", owner.pid) in fleet.events(job_id))
    continued_at = fleet.value("select clock_timestamp()")
    stale.signal(signal.SIGCONT)
    wait_until(lambda: ("cancelled", stale.pid) in fleet.events(job_id))
    cancelled_at = fleet.value("select at from {log} where event = 'cancelled'")
    assert (cancelled_at - continued_at).total_seconds() < within(1)
    wait_until(lambda: fleet.status(job_id) == "successful")
    assert [("start", stale.pid), ("start", owner.pid), ("cancelled", stale.pid), ("end", owner.pid)] == fleet.events(
        job_id
    )
    assert 1 == fleet.value("select count(*) from {schema}.finished where job_id = %s", job_id)
    # The stale worker has registered anew and goes on working.
    wait_until(lambda: 2 == fleet.value("select count(*) from {schema}.worker"))
    owner.signal(signal.SIGTERM)
    assert 0 == owner.wait()
    (next_id,) = fleet.enqueue("quick")
    wait_until(lambda: fleet.status(next_id) == "successful")
    assert [("run", stale.pid)] == fleet.events(next_id)


@pytest.mark.promise(15)
@EVERY_LOOP
def test_a_crash_before_the_outcome_is_stored_runs_the_job_again(fleet: Fleet, backend: str) -> None:
    """The handler has ended and its outcome waits for a locked table when the worker is killed: never lost."""
    first = fleet.start(backend, lease=LEASE)
    with psycopg.connect(fleet.dsn) as locker:
        locker.execute(
            sql.SQL("lock table {} in access exclusive mode").format(sql.Identifier(fleet.schema, "finished"))
        )
        (job_id,) = fleet.enqueue("quick")
        wait_until(lambda: fleet.events(job_id))
        waiting = (
            "select pid from pg_stat_activity"
            " where application_name = 'pgq_anyio completion' and wait_event_type = 'Lock'"
        )
        wait_until(lambda: fleet.rows(waiting))
        first.signal(signal.SIGKILL)
        first.wait()
        fleet.rows(f"select pg_terminate_backend(pid) from ({waiting}) as w")
        wait_until(lambda: not fleet.rows(waiting))
        locker.rollback()
    second = fleet.start(backend, lease=LEASE)
    wait_until(lambda: fleet.status(job_id) == "successful")
    assert [("run", first.pid), ("run", second.pid)] == fleet.events(job_id)


@pytest.mark.promise(17)
@EVERY_LOOP
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_claimed_after_a_signal(fleet: Fleet, backend: str, number: signal.Signals) -> None:
    """Jobs of every kind of handler go back to the queue, uncounted, and the worker row goes."""
    worker = fleet.start(backend, shutdown_grace=0.1, cancel_grace=2)
    ids = [fleet.enqueue(name)[0] for name in ("sleep", "thread", "process")]
    for job_id in ids:
        wait_until(partial(fleet.events, job_id))
    worker.signal(number)
    assert 0 == worker.wait()
    assert 0 == fleet.value("select count(*) from {schema}.running")
    assert 0 == fleet.value("select count(*) from {schema}.worker")
    assert [(job_id, 1, 0) for job_id in ids] == fleet.rows(
        "select job_id, attempt, crashes from {schema}.queued order by seq"
    )
