"""Connections that go silent without being closed, and answers that are lost on the way."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgq_anyio._db.retrying import PATIENCE
from tests.bounds import BUSY, Within
from tests.worker.away import Journal
from tests.worker.fleet import EVERY_LOOP, Fleet, WorkerProcess, wait_until
from tests.worker.proxy import Loss, Proxy, executes

pytestmark = pytest.mark.heavy

PROGRAM = "tests.worker.away"
LEASE = 4.0


@pytest.fixture(autouse=True)
def nothing_stays_claimed(fleet: Fleet, proxy: Proxy) -> Iterator[None]:
    """Whatever a test did to them, its workers leave nothing behind when they are asked to stop."""
    yield
    proxy.resume()
    alive = [worker for worker in fleet.workers if worker.popen.poll() is None]
    for worker in alive:
        worker.signal(signal.SIGTERM)
    assert [0] * len(alive) == [worker.wait() for worker in alive]
    assert [] == fleet.rows("select job_id, worker_id from {schema}.running")
    assert 0 == fleet.value("select count(*) from {schema}.worker")


def start_behind(proxy: Proxy, fleet: Fleet, backend: str, **options: Any) -> WorkerProcess:
    """A worker that reaches the database through the proxy."""
    settings = {"program": PROGRAM, "lease": LEASE, "shutdown_grace": 0.5, **options}
    return fleet.start(backend, dsn=proxy.dsn, **settings)


def worker_ids(fleet: Fleet) -> list[int]:
    return [row[0] for row in fleet.rows("select worker_id from {schema}.worker order by worker_id")]


def check_no_overlap(journal: Journal, job_id: int, first: WorkerProcess) -> None:
    """All that the first worker's run did, the worker's own process or a child of it, lies before the other one's."""
    entries = [entry for entry in journal.read() if entry.job_id == job_id]
    pids = {first.pid, entries[0].pid}
    theirs = [entry.at for entry in entries if entry.event == "start" and entry.pid not in pids]
    assert theirs, f"nobody else has run job {job_id}"
    assert max(entry.at for entry in entries if entry.pid in pids) < min(theirs)


@pytest.mark.promise(14, 17)
@EVERY_LOOP
@pytest.mark.parametrize("revival", ["resume", "forget"])
def test_a_worker_that_is_cut_off_has_ended_its_jobs_before_others_start_them(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, revival: str, within: Within
) -> None:
    """All its connections go silent. Its async and process jobs are cancelled before its lease is over, and run on the
    other worker after that. When the network is back, for old connections too or for new ones only, it registers anew.
    """
    cut_off = start_behind(proxy, fleet, backend)
    before = worker_ids(fleet)
    ids = [fleet.enqueue(name, b"3600")[0] for name in ("work", "process")]
    wait_until(lambda: all(journal.events(one) for one in ids))
    successor = fleet.start(backend, program=PROGRAM, lease=LEASE, shutdown_grace=0.5)
    proxy.silence()
    silent_at = time.monotonic()
    wait_until(lambda: all(len(journal.find(one, "start")) == 2 for one in ids))
    for job_id in ids:
        check_no_overlap(journal, job_id, cut_off)
    (cancelled,) = journal.find(ids[0], "cancelled:lease_lost")
    assert cancelled.pid == cut_off.pid
    assert cancelled.at - silent_at < LEASE
    getattr(proxy, revival)()
    wait_until(lambda: 2 == len(worker_ids(fleet)))
    assert not set(before) & set(worker_ids(fleet))
    assert [("work", 1, 1), ("process", 1, 1)] == fleet.rows(
        "select entrypoint, attempt, crashes from {schema}.running order by job_id"
    )
    successor.signal(signal.SIGSTOP)  # what follows is for the one that came back
    try:
        (later,) = fleet.enqueue("short", b"0")
        # Whoever was connecting while the network was silent finds out when patience ends.
        wait_until(lambda: journal.find(later, "end"), timeout=within(2, PATIENCE + BUSY))
        assert [cut_off.pid] == [entry.pid for entry in journal.find(later, "end")]
    finally:
        successor.signal(signal.SIGCONT)


@pytest.mark.promise(13, 14)
@EVERY_LOOP
@pytest.mark.parametrize("trouble", ["silent", "cut", "locked"])
def test_one_bad_heartbeat_connection_costs_no_lease(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, trouble: str
) -> None:
    """It goes silent, is cut, or its statement waits for a lock for longer than a heartbeat: another one is in time."""
    start_behind(proxy, fleet, backend)
    before = worker_ids(fleet)
    ids = fleet.enqueue("work", b"5.2", times=3)
    wait_until(lambda: all(journal.events(one) for one in ids))
    if trouble == "silent":
        proxy.silence("heartbeat", new=False)
    elif trouble == "cut":
        assert 1 == proxy.cut("heartbeat")
    else:
        with psycopg.connect(fleet.dsn) as locker:
            locker.execute(sql.SQL("select 1 from {} for update").format(sql.Identifier(fleet.schema, "worker")))
            waiting = (
                "select 1 from pg_stat_activity"
                " where application_name = 'pgq_anyio heartbeat' and wait_event_type = 'Lock'"
            )
            wait_until(lambda: fleet.rows(waiting))
            threading.Event().wait(0.6 * LEASE / 3)
    wait_until(lambda: 3 == fleet.value("select count(*) from {schema}.finished where status = 'successful'"))
    assert [["start", "end"]] * 3 == [journal.events(one) for one in ids]
    assert before == worker_ids(fleet)


@pytest.mark.promise(14)
@EVERY_LOOP
def test_a_worker_that_only_cannot_beat_loses_its_lease(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str
) -> None:
    """Peer's bug: the lease is lost with one connection and the job goes on. Everything else of this worker still
    works; its jobs end before its lease does, and are back in the queue at once.
    """
    lame = start_behind(proxy, fleet, backend)
    (job_id,) = fleet.enqueue("work", b"3600")
    wait_until(lambda: journal.events(job_id))
    fleet.start(backend, program=PROGRAM, lease=LEASE, shutdown_grace=0.5)
    proxy.silence("heartbeat")
    wait_until(lambda: 2 == len(journal.find(job_id, "start")))
    check_no_overlap(journal, job_id, lame)
    assert ["start", "cancelled:lease_lost", "start"] == journal.events(job_id)
    proxy.forget()
    wait_until(lambda: 2 == len(worker_ids(fleet)))


@pytest.mark.promise(15, 17)
@EVERY_LOOP
@pytest.mark.parametrize("loss", ["cut", "silent"])
@pytest.mark.parametrize("statement", ["claim_sweep", "claim_hinted"])
def test_a_claim_whose_answer_was_lost_is_given_back(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, statement: str, loss: Loss, within: Within
) -> None:
    """The claim is committed, its answer never comes: the jobs are given back within one heartbeat, as if nothing had
    been; nobody else has to declare anybody dead for that.
    """
    lease = 9.0
    start_behind(proxy, fleet, backend, lease=lease)
    proxy.lose_answer(executes(statement), loss)
    # Many batches: a busy worker's claims are hinted, but for those that look for jobs in processes besides.
    ids = fleet.enqueue("short", b"0", times=1000)
    wait_until(lambda: proxy.has_lost)
    lost_at = time.monotonic()
    wait_until(
        lambda: len(ids) == fleet.value("select count(*) from {schema}.finished where status = 'successful'"),
        timeout=lease,
    )
    assert time.monotonic() - lost_at < within(lease / 3 + 1, lease - 1)
    entries = journal.read()
    for event in ("start", "end"):
        assert Counter(ids) == Counter(one.job_id for one in entries if one.event == event)
    assert [(1, 0)] == fleet.rows("select distinct attempt, crashes from {schema}.finished")


@pytest.mark.promise(15)
@EVERY_LOOP
@pytest.mark.parametrize("kind", ["claim_(?:sweep|hinted)", "claim_limited"], ids=["claim", "claim_limited"])
def test_no_claim_is_waited_for_longer_than_a_heartbeat(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, kind: str, within: Within
) -> None:
    """Three answers in a row are lost on a network that goes silent. Patience grows from one claim to the next, but
    what the third took is given back within a heartbeat too.
    """
    lease, limits = 12.0, {"concurrency_limit": 1}
    if kind == "claim_limited":
        start_behind(proxy, fleet, backend, program="tests.worker.limited", lease=lease, limits=limits)
        name, asleep = "limited", "select dozing <> '{{}}' from {schema}.worker"
    else:
        start_behind(proxy, fleet, backend, lease=lease)
        name, asleep = "short", "select sleeping from {schema}.worker"
    wait_until(lambda: fleet.value(asleep))
    proxy.lose_answer(executes(kind), "silent")
    ids = fleet.enqueue(name, b"0")
    claimed, losses = "select 1 from {schema}.running", 0
    while True:
        wait_until(lambda: proxy.has_lost)
        lost_at = time.monotonic()
        if fleet.rows(claimed):
            losses += 1
        elif all(fleet.status(one) == "successful" for one in ids):
            ids += fleet.enqueue(name, b"0")  # this test was so late that the one before has run meanwhile
        if losses == 3:
            break
        proxy.lose_answer(executes(kind), "silent")
    wait_until(lambda: not fleet.rows(claimed), timeout=lease)
    assert time.monotonic() - lost_at < within(lease / 3 + 2, lease - 2)
    wait_until(lambda: all(fleet.status(one) == "successful" for one in ids))


@pytest.mark.promise(15, 21)
@EVERY_LOOP
@pytest.mark.parametrize("loss", ["cut", "silent"])
def test_a_claim_of_a_limited_name_whose_answer_was_lost(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, loss: Loss, within: Within
) -> None:
    """It took the one slot that there is, and a token of a rate of one in 20 s: both are free again within a heartbeat,
    as the job is, for nobody has started it.
    """
    limits = {"concurrency_limit": 1, "requests_per_second": 0.05}
    lease = 9.0
    start_behind(proxy, fleet, backend, program="tests.worker.limited", lease=lease, limits=limits)
    wait_until(lambda: fleet.value("select dozing <> '{{}}' from {schema}.worker"))
    proxy.lose_answer(executes("claim_limited"), loss)
    (job_id,) = fleet.enqueue("limited", b"quick")
    wait_until(lambda: proxy.has_lost)
    lost_at = time.monotonic()
    wait_until(lambda: fleet.status(job_id), timeout=lease)
    assert time.monotonic() - lost_at < within(lease / 3 + 1, lease - 1)
    assert ["end", "start"] == sorted(event for event, _ in fleet.events(job_id))
    assert [("successful", 1, 0)] == fleet.rows("select status, attempt, crashes from {schema}.finished")


@pytest.mark.promise(15)
@EVERY_LOOP
@pytest.mark.parametrize("loss", ["cut", "silent"])
def test_an_outcome_whose_answer_was_lost_is_stored_once(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, loss: Loss, within: Within
) -> None:
    """It is in the database, the worker does not know: sent again, it matches nothing. A cut is noticed at once.
    Silence is when patience ends, and the heartbeats and claims of this worker are well meanwhile.
    """
    start_behind(proxy, fleet, backend)
    proxy.lose_answer(executes("finish_jobs"), loss)
    (job_id,) = fleet.enqueue("short", b"0")
    wait_until(lambda: proxy.has_lost)
    wait_until(lambda: fleet.status(job_id) == "successful")
    (later,) = fleet.enqueue("short", b"0")
    wait_until(lambda: fleet.status(later) == "successful", timeout=PATIENCE + within(3))
    assert [["start", "end"]] * 2 == [journal.events(one) for one in (job_id, later)]
    assert 2 == fleet.value("select count(*) from {schema}.finished")


@pytest.mark.promise(6)
@EVERY_LOOP
def test_a_deaf_listener_is_noticed(fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, within: Within) -> None:
    """Peer's bug: a half-open connection is not noticed; LISTEN silently dead. Jobs are found within the poll interval,
    and once the silence has been noticed (within a lease) at once again.
    """
    poll = 2.0
    start_behind(proxy, fleet, backend, lease=3, dequeue_timeout=poll)
    wait_until(lambda: fleet.rows("select sleeping from {schema}.worker") == [(True,)])
    proxy.silence("listen", new=False)
    (job_id,) = fleet.enqueue("short", b"0")
    wait_until(lambda: journal.find(job_id, "end"), timeout=poll + within(1))
    # The silent one lies at the proxy for ever; a second one means that it was replaced.
    wait_until(lambda: proxy.roles().count("listen") == 2, timeout=3 + within(2))
    wait_until(lambda: fleet.rows("select sleeping from {schema}.worker") == [(True,)])
    delays = []
    for _ in range(5):
        enqueued_at = time.monotonic()
        (job_id,) = fleet.enqueue("short", b"0")
        (started,) = wait_until(partial(journal.find, job_id, "start"))
        delays.append(started.at - enqueued_at)
    assert sorted(delays)[2] < within(0.2, 1)


@pytest.mark.promise(6)
@EVERY_LOOP
def test_work_does_not_wait_for_a_listener_that_cannot_be(
    fleet: Fleet, proxy: Proxy, journal: Journal, backend: str, within: Within
) -> None:
    """LISTEN is never answered, from the start on: jobs are found within the poll interval."""
    proxy.silence("listen")
    start_behind(proxy, fleet, backend, dequeue_timeout=1)
    (first,) = fleet.enqueue("short", b"0")
    wait_until(lambda: journal.find(first, "end"), timeout=within(5, 45))
    (second,) = fleet.enqueue("short", b"0")
    wait_until(lambda: journal.find(second, "end"), timeout=1 + within(1))
