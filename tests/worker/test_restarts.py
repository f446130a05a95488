"""The server is restarted, or crashes, or is no longer the primary, under load: nothing is lost, workers go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import partial

import psycopg
import pytest

from pgq_anyio import JobId, SyncQueries
from pgq_anyio._embedded._binaries import StopMode
from tests.bounds import BUSY, Within
from tests.worker.away import Journal
from tests.worker.fleet import EVERY_LOOP, Fleet, WorkerProcess, wait_until
from tests.worker.own_server import WAL_WRITER, OwnServer

pytestmark = pytest.mark.heavy

PROGRAM = "tests.worker.away"
#: How long the server is away (in seconds).
AWAY = 3.0


def restart(server: OwnServer, fleet: Fleet, mode: StopMode, *, away: float = AWAY) -> None:
    """Stop the server, and start it again after a while."""
    server.stop(mode)
    threading.Event().wait(away)  # the time that it is away is what the tests are about
    server.start()
    fleet.reconnect()


def has_another_wal_writer(fleet: Fleet, last: int) -> bool:
    """Whether the server has started anew, and takes connections."""
    try:
        fleet.reconnect()
        return fleet.rows(WAL_WRITER) not in ([], [(last,)])
    except psycopg.OperationalError:
        return False


def stop_and_check(fleet: Fleet, *workers: WorkerProcess) -> None:
    """Workers that have been through something leave nothing behind."""
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        assert 0 == worker.wait()
    assert [] == fleet.rows("select job_id, worker_id from {schema}.running")
    assert 0 == fleet.value("select count(*) from {schema}.worker")


@pytest.mark.promise(15, 17)
@EVERY_LOOP
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_under_load_loses_no_outcome(
    own_fleet: Fleet, own_server: OwnServer, journal: Journal, backend: str, mode: StopMode, within: Within
) -> None:
    """Peer's bug: nothing recovers after a PostgreSQL restart. Three seconds away, two workers, half of the jobs done:
    within 10 s everybody works again under the old registration, every job ends once, and all slots are usable.
    """
    workers = [
        own_fleet.start(backend, program=PROGRAM, max_concurrency=10, batch_size=10, shutdown_grace=0.2)
        for _ in range(2)
    ]
    registered = own_fleet.rows("select worker_id from {schema}.worker order by worker_id")
    ids = own_fleet.enqueue("short", b"0.02", times=800)
    wait_until(lambda: len(journal.read()) > 400)
    restart(own_server, own_fleet, mode)
    (later,) = own_fleet.rows("select {schema}.enqueue('short', '0', priority => 1)")[0]
    wait_until(lambda: journal.find(later, "end"), timeout=within(10, 30))
    wait_until(
        lambda: len(ids) + 1 == own_fleet.value("select count(*) from {schema}.finished"),
        timeout=30,
    )
    assert [("successful", len(ids) + 1)] == own_fleet.rows("select status, count(*) from {schema}.finished group by 1")
    assert [(0, 1)] == own_fleet.rows("select distinct crashes, attempt from {schema}.finished")
    runs: dict[int, int] = {}
    for entry in journal.read():
        runs[entry.job_id] = runs.get(entry.job_id, 0) + (entry.event == "start")
    assert {*ids, later} == set(runs)
    if mode == "fast":  # a crash may undo claims, and then the job runs twice; it is recorded once all the same
        assert {1} == set(runs.values())
    assert registered == own_fleet.rows("select worker_id from {schema}.worker order by worker_id")
    check_capacity(own_fleet, journal, 20)
    stop_and_check(own_fleet, *workers)


def check_capacity(fleet: Fleet, journal: Journal, slots: int) -> None:
    """No slot was lost: as many jobs as there are slots run at once. They are given back when the workers stop."""
    ids = fleet.enqueue("work", b"3600", times=slots)
    wait_until(lambda: all("start" in journal.events(one) for one in ids))


@pytest.mark.promise(15)
@EVERY_LOOP
def test_a_claim_that_a_crash_has_undone_is_noticed(
    own_fleet: Fleet, own_server: OwnServer, journal: Journal, backend: str
) -> None:
    """The job is in the queue again after the crash: its handler is cancelled (its lease on it is lost), and it runs
    anew. The claims of the time before, which were on disk, go on.
    """
    worker = own_fleet.start(backend, program="tests.worker.undone")
    (safe,) = own_fleet.enqueue("work", b"6")
    wait_until(lambda: journal.events(safe))
    wal_writer = own_server.halt_wal_writer()
    own_fleet.rows("create table {schema}.flush ()")  # flushes the log up to here
    with contextlib.suppress(psycopg.OperationalError):  # the crash may come before the answer
        own_fleet.enqueue("crash", b"%d" % wal_writer)
    wait_until(partial(has_another_wal_writer, own_fleet, wal_writer))
    (undone,) = {entry.job_id for entry in journal.read()} - {safe}
    wait_until(lambda: 2 == own_fleet.value("select count(*) from {schema}.finished"))
    assert ["start", "end"] == journal.events(safe)
    # The new run may be claimed before or after the old one has heard.
    assert ["cancelled:lease_lost", "end", "start", "start"] == sorted(journal.events(undone))
    assert "end" == journal.events(undone)[-1]
    assert [("successful", 1, 0)] * 2 == own_fleet.rows("select status, attempt, crashes from {schema}.finished")
    stop_and_check(own_fleet, worker)


@pytest.mark.promise(10)
@EVERY_LOOP
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_deferral_survives_the_server(
    own_fleet: Fleet, own_server: OwnServer, journal: Journal, backend: str, mode: StopMode
) -> None:
    """The server goes down just after the answer to the enqueue, and with it nothing: not before its time the job
    runs, on the worker that was there all the time, or on one that came later; the one that was cancelled never does.
    """
    there = own_fleet.start(backend, program=PROGRAM)
    enqueue = "select {schema}.enqueue('short', '0', execute_after => %s::interval), clock_timestamp()"
    ((during, asked_at),) = own_fleet.rows(enqueue, "0.2 s")
    ((after, _),) = own_fleet.rows(enqueue, "3 s")
    ((cancelled, _),) = own_fleet.rows(enqueue, "3 s")
    with SyncQueries(own_server.dsn, schema=own_fleet.schema) as queries:
        assert [cancelled] == queries.mark_job_as_cancelled([JobId(cancelled)])
    restart(own_server, own_fleet, mode, away=0.5)
    wait_until(lambda: own_fleet.status(during) and own_fleet.status(after))
    assert [["start", "end"]] * 2 == [journal.events(one) for one in (during, after)]
    claimed = own_fleet.rows("select claimed_at from {schema}.finished where worker_id is not null order by job_id")
    for (claimed_at,), delay in zip(claimed, (0.2, 3.0), strict=True):
        assert (claimed_at - asked_at).total_seconds() >= delay
    ((later, asked_at),) = own_fleet.rows(enqueue, "1.5 s")
    stop_and_check(own_fleet, there)
    came_later = own_fleet.start(backend, program=PROGRAM)
    wait_until(lambda: journal.find(later, "end"))
    assert [came_later.pid] == [one.pid for one in journal.find(later, "start")]
    assert [] == journal.events(cancelled)
    stop_and_check(own_fleet, came_later)


@pytest.mark.promise(6)
@EVERY_LOOP
def test_a_sleeper_is_woken_although_a_crash_has_undone_its_mark(
    own_fleet: Fleet, own_server: OwnServer, journal: Journal, backend: str
) -> None:
    """Nobody notifies a worker whose row does not say that it sleeps: it says so again on each new connection."""
    worker = own_fleet.start(backend, program=PROGRAM)
    wait_until(lambda: own_fleet.value("select sleeping from {schema}.worker"))
    own_fleet.rows("update {schema}.worker set sleeping = false")  # as the crash would leave it
    restart(own_server, own_fleet, "immediate", away=0.2)
    wait_until(lambda: own_fleet.value("select sleeping from {schema}.worker"))
    # The looks that follow falling asleep are over; from here on only the notification can be in time.
    threading.Event().wait(2)
    (job_id,) = own_fleet.enqueue("short", b"0")
    wait_until(lambda: journal.find(job_id, "end"), timeout=BUSY)
    stop_and_check(own_fleet, worker)


@pytest.mark.promise(15)
@EVERY_LOOP
def test_a_demoted_server_is_left(own_fleet: Fleet, journal: Journal, backend: str) -> None:
    """Peer's bug: a worker goes on against a demoted, read-only database. Nothing is claimed while it is read-only, the
    outcome of what ran is stored when there is a primary again.
    """
    worker = own_fleet.start(backend, program=PROGRAM)
    (before,) = own_fleet.enqueue("work", b"1")
    wait_until(lambda: journal.events(before))
    try:
        own_fleet.rows("alter system set default_transaction_read_only = on")
        own_fleet.rows("select pg_reload_conf()")
        wait_until(lambda: journal.find(before, "end"))
        own_fleet.rows("set default_transaction_read_only = off")
        (during,) = own_fleet.enqueue("short", b"0")
        threading.Event().wait(1)
        assert [] == journal.events(during)
        assert own_fleet.status(before) is None
    finally:
        own_fleet.rows("alter system reset default_transaction_read_only")
        own_fleet.rows("select pg_reload_conf()")
    wait_until(lambda: {"successful"} == {own_fleet.status(before), own_fleet.status(during)})
    assert ["start", "end"] == journal.events(before)
    stop_and_check(own_fleet, worker)
