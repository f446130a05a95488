"""Long jobs under healthy workers run once: a lease is the worker's, and is kept by heartbeats."""

from __future__ import annotations

import signal
import threading
from functools import partial

import psycopg
import pytest
from psycopg import sql

from tests.worker.away import Journal
from tests.worker.fleet import EVERY_LOOP, Fleet, wait_until
from tests.worker.proxy import Proxy

pytestmark = pytest.mark.heavy

PROGRAM = "tests.worker.away"
#: The shortest there is.
LEASE = 2.0


def finished(fleet: Fleet) -> int:
    number: int = fleet.value("select count(*) from {schema}.finished where status = 'successful' and crashes = 0")
    return number


@pytest.mark.promise(13)
@EVERY_LOOP
def test_jobs_longer_than_many_leases_run_once(fleet: Fleet, journal: Journal, backend: str) -> None:
    """An async job of more than 5 leases, a thread and a process of more than 3, while another worker looks on."""
    workers = [fleet.start(backend, program=PROGRAM, lease=LEASE) for _ in range(2)]
    (long,) = fleet.enqueue("work", b"10.5")
    others = [fleet.enqueue(name, b"6.5")[0] for name in ("thread", "process")]
    wait_until(lambda: 3 == finished(fleet))
    assert [["start", "end"]] * 3 == [journal.events(one) for one in (long, *others)]
    assert [None] * 2 == [worker.popen.poll() for worker in workers]
    assert 0 == fleet.value("select count(*) from {schema}.attempt_error")


@pytest.mark.promise(13, 17)
@EVERY_LOOP
def test_two_hundred_long_jobs_outlive_a_failed_heartbeat(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str
) -> None:
    """The heartbeat's connection breaks while they run for more than 5 leases, and another worker looks on: each runs
    once.
    """
    lease = 2 * LEASE  # the next heartbeat needs a new connection, and two hundred jobs start meanwhile
    first = fleet.start(backend, program=PROGRAM, dsn=proxy.dsn, lease=lease, max_concurrency=200, batch_size=200)
    ids = fleet.enqueue("short", b"20.5", times=200)
    wait_until(lambda: 200 == len(journal.read()))
    second = fleet.start(backend, program=PROGRAM, lease=lease)
    (worker_id,) = fleet.rows("select worker_id from {schema}.worker where name like %s", f"%:{first.pid}")[0]
    assert 1 == proxy.cut("heartbeat")
    wait_until(lambda: 200 == finished(fleet), timeout=60)
    assert [["start", "end"]] * 200 == [journal.events(one) for one in ids]
    assert [(worker_id,)] == fleet.rows("select distinct worker_id from {schema}.finished")
    for worker in (first, second):
        worker.signal(signal.SIGTERM)
    assert [0, 0] == [worker.wait() for worker in (first, second)]
    assert 0 == fleet.value("select count(*) from {schema}.running")


@pytest.mark.promise(13)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_heartbeat_that_is_just_committing_saves_its_worker(fleet: Fleet, journal: Journal, backend: str) -> None:
    """The worker has been quiet for longer than its lease when its heartbeat's row is locked and changed, and not yet
    committed: the rescuer that looks at this moment passes it by, and later sees the new beat.
    """
    quiet = fleet.start(backend, program=PROGRAM, lease=LEASE)
    (job_id,) = fleet.enqueue("work", b"3600")
    wait_until(partial(journal.events, job_id))
    (worker_id,) = fleet.rows("select worker_id from {schema}.worker")[0]
    fleet.start(backend, program=PROGRAM, lease=LEASE)
    with psycopg.connect(fleet.dsn) as heartbeat:
        beat = sql.SQL("update {} set beat = beat + 1, heartbeat_at = clock_timestamp() where worker_id = %s")
        table = sql.Identifier(fleet.schema, "worker")
        quiet.signal(signal.SIGSTOP)  # the heartbeats are ours from here on
        for _ in range(3):
            heartbeat.execute(beat.format(table), (worker_id,))
            threading.Event().wait(LEASE * 1.2)  # uncommitted for longer than the lease that others have seen
            assert [(worker_id,)] == fleet.rows("select worker_id from {schema}.running where job_id = %s", job_id)
            heartbeat.commit()
    assert 1 == len(journal.find(job_id, "start"))
    quiet.end()
    wait_until(lambda: 2 == len(journal.find(job_id, "start")))


@pytest.mark.promise(13)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_lease_is_judged_by_who_has_it(fleet: Fleet, journal: Journal, backend: str) -> None:
    """A worker with the shortest lease leaves one with a long lease alone, however rarely that one beats. The one with
    the long lease knows the other's as well: it takes its job over long before its own lease would be over.
    """
    rare = fleet.start(backend, program=PROGRAM, lease=30)
    (first,) = fleet.enqueue("work", b"3600")
    wait_until(partial(journal.events, first))
    frequent = fleet.start(backend, program=PROGRAM, lease=LEASE)
    rare.signal(signal.SIGSTOP)
    threading.Event().wait(3 * LEASE)
    assert 1 == len(journal.find(first, "start"))
    assert 2 == fleet.value("select count(*) from {schema}.worker")
    (second,) = fleet.enqueue("work", b"3600")
    wait_until(partial(journal.events, second))
    rare.signal(signal.SIGCONT)
    frequent.signal(signal.SIGKILL)
    # Found at its next heartbeat, which comes within a third of its lease.
    wait_until(lambda: journal.find(second, "start", but=frequent.pid), timeout=25)
