"""Limits that hold for a whole fleet, as the handlers see it: by rows that they write with the server's time."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from datetime import datetime, timedelta
from functools import partial

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, Queries
from pgq_anyio.testing import running_worker
from tests.bounds import Within
from tests.worker.away import Journal
from tests.worker.fleet import BACKENDS, Fleet, wait_until
from tests.worker.limited_fleet import LEASE, count_ended, enqueue, highest_overlap, pids, start, trickle, wait_for
from tests.worker.own_server import OwnServer

pytestmark = pytest.mark.heavy


@pytest.mark.promise(18)
@BACKENDS
@pytest.mark.parametrize("limit", [1, 5])
def test_four_workers_reach_the_limit_and_never_exceed_it(fleet: Fleet, backend: str, limit: int) -> None:
    """Jobs of 5 ms: each runs once. The first ones come one by one, so that each wakes all four, and all four run
    some.
    """
    workers = start(fleet, backend, 4, {"concurrency_limit": limit})
    ids = trickle(fleet, 100, runners=workers)
    ids += enqueue(fleet, [b""] * 400)
    wait_until(lambda: len(ids) == count_ended(fleet), timeout=60)
    assert limit == highest_overlap(fleet)
    assert {worker.pid for worker in workers} == pids(fleet)
    assert sorted(ids) == [
        row[0] for row in fleet.rows("select job_id from {log} where event = 'start' order by job_id")
    ]


@pytest.mark.promise(18, 26)
@BACKENDS
def test_nothing_that_happens_to_jobs_lets_the_limit_be_exceeded(fleet: Fleet, backend: str) -> None:
    """Retries, failures, cancelled jobs that ignore it, and jobs given back by a worker that stops."""
    first, *_ = start(fleet, backend, 3, {"concurrency_limit": 4}, shutdown_grace=0.05)
    kinds = [b"", b"retry", b"fail", b"stubborn"]
    ids = enqueue(fleet, [kinds[number % 4] for number in range(160)])
    wait_until(lambda: count_ended(fleet) >= 10)
    first.signal(signal.SIGTERM)
    cancelling = (
        "with r as (update {schema}.running set cancel_requested_at = clock_timestamp() "
        "where cancel_requested_at is null and payload = 'stubborn' returning worker_id, job_id, claim_no) "
        "select pg_notify('pgq_anyio.' || %s, 'cancel:' || worker_id || ':' || job_id || '.' || claim_no) from r"
    )

    def is_done() -> bool:
        fleet.rows(cancelling, fleet.schema)
        return len(ids) == count_ended(fleet)

    wait_until(is_done, timeout=60)
    assert 0 == first.wait()
    assert 4 == highest_overlap(fleet)
    ends = dict(fleet.rows("select status, count(*) from {schema}.finished group by status"))
    assert 40 == ends["failed"]
    assert 80 <= ends["successful"]
    assert ends.get("cancelled", 0) > 0


@pytest.mark.promise(18, 35)
@BACKENDS
def test_jobs_given_back_hold_their_slots_until_they_have_cleaned_up(fleet: Fleet, backend: str) -> None:
    """Two of four workers are stopped while they run jobs, which take a while to end: others start them again, within
    the limit.
    """
    workers = {one.pid: one for one in start(fleet, backend, 4, {"concurrency_limit": 3}, shutdown_grace=0)}
    ids = enqueue(fleet, [b"linger"] * 9)
    began = (
        "select pid, job_id from {log} where event = 'start' and pid = any (%s) and not exists ("
        " select from {log} as later where (later.job_id, later.event) = ({log}.job_id, 'end'))"
    )
    given_back = set()
    for _ in range(2):
        pid, _ = wait_until(lambda: fleet.rows(began, list(workers)))[-1]
        given_back |= {job_id for one, job_id in fleet.rows(began, list(workers)) if one == pid}
        stopping = workers.pop(pid)
        stopping.signal(signal.SIGTERM)
        assert 0 == stopping.wait(40)
    wait_until(lambda: len(ids) == count_ended(fleet), timeout=60)
    assert 3 == highest_overlap(fleet)
    twice = "select job_id from {log} where event = 'start' group by job_id having count(*) = 2 order by job_id"
    assert given_back & {row[0] for row in fleet.rows(twice)}
    assert [("successful", 1, len(ids))] == fleet.rows(
        "select status, attempt, count(*) from {schema}.finished group by 1, 2"
    )


@pytest.mark.promise(18)
@BACKENDS
def test_a_limit_that_a_dead_worker_fills(fleet: Fleet, backend: str) -> None:
    """Its jobs hold the slots until its lease is over; then the others go on, within the limit."""
    (dying,) = start(fleet, backend, 1, {"concurrency_limit": 3})
    held = enqueue(fleet, [b"hold"] * 3)
    wait_until(lambda: 3 == fleet.value("select count(*) from {log}"))
    start(fleet, backend, 2, {"concurrency_limit": 3})
    enqueue(fleet, [b""] * 30)
    dying.signal(signal.SIGKILL)
    dying.wait()
    last_beat = fleet.value("select heartbeat_at from {schema}.worker where name like %s", f"%:{dying.pid}")
    wait_until(lambda: fleet.value("select count(*) from {log}") > 3)
    began = fleet.value("select min(at) from {log} where pid <> %s", dying.pid)
    assert began - last_beat >= timedelta(seconds=LEASE)
    # They come back with the payload that they had; cancelled, they leave their slots to the others.
    wait_until(lambda: set(held) == {row[0] for row in fleet.rows("select job_id from {schema}.running")})
    cancelled = fleet.rows("update {schema}.running set cancel_requested_at = clock_timestamp() returning job_id")
    assert 3 == len(cancelled)
    wait_until(lambda: 33 == count_ended(fleet))
    assert 3 == highest_overlap(fleet, but=dying.pid)


@pytest.mark.promise(18)
@BACKENDS
def test_a_crash_of_the_server_at_the_limit(
    own_fleet: Fleet, own_server: OwnServer, journal: Journal, backend: str
) -> None:
    """What a crash would undo was never believed to be claimed: no job starts twice, and the limit holds throughout."""
    start(own_fleet, backend, 2, {"concurrency_limit": 3}, lease=6)
    ids = enqueue(own_fleet, [b"journal"] * 50)
    wait_until(lambda: len(journal.read()) > 20)
    own_server.stop("immediate")
    threading.Event().wait(0.5)  # the time that it is away is what the test is about
    own_server.start()
    own_fleet.reconnect()
    wait_until(lambda: len(ids) == count_ended(own_fleet))
    now = highest = 0
    for entry in sorted(journal.read(), key=lambda entry: entry.at):
        now += 1 if entry.event == "start" else -1
        highest = max(highest, now)
    assert 3 == highest
    assert ids == sorted(entry.job_id for entry in journal.read() if entry.event == "start")


@pytest.mark.promise(18)
@BACKENDS
def test_a_slot_freed_by_a_worker_that_stops_wakes_another(fleet: Fleet, backend: str) -> None:
    """Long before its next poll."""
    both = start(fleet, backend, 2, {"concurrency_limit": 1}, shutdown_grace=20)
    (running,) = enqueue(fleet, [b"slow"])
    wait_until(lambda: fleet.events(running))
    ((_, pid),) = fleet.events(running)
    stopping, other = both if both[0].pid == pid else both[::-1]
    (waiting,) = enqueue(fleet, [b"quick"])
    stopping.signal(signal.SIGTERM)
    assert 0 == stopping.wait()
    wait_until(lambda: fleet.status(waiting))
    assert [("end", other.pid), ("start", other.pid)] == sorted(fleet.events(waiting))
    ended, began = fleet.rows(
        "select at from {log} where (job_id, event) in ((%s, 'end'), (%s, 'start')) order by at", running, waiting
    )
    assert began[0] - ended[0] < timedelta(seconds=20)


def last_statements(fleet: Fleet) -> list[datetime]:
    """When each connection that claims began its last statement."""
    rows = fleet.rows(
        "select query_start from pg_stat_activity where application_name like 'pgq_anyio dispatch%' "
        "and datname = current_database() order by pid"
    )
    return [row[0] for row in rows]


def assert_silence(fleet: Fleet) -> None:
    """Nothing is asked for a while, once the looks that follow falling asleep are over."""
    before = last_statements(fleet)
    assert before
    quiet_since = began_at = time.monotonic()
    while time.monotonic() - quiet_since < 3:  # what does not happen meanwhile is the fact
        assert time.monotonic() - began_at < 20, "they never fall silent"
        time.sleep(0.05)
        if before != (now := last_statements(fleet)):
            before, quiet_since = now, time.monotonic()


@pytest.mark.promise(19, 48)
@BACKENDS
def test_nobody_polls_at_the_limit_or_when_idle(fleet: Fleet, backend: str) -> None:
    """10,000 queued jobs behind a full limit, then none: no statements but heartbeats."""
    start(fleet, backend, 2, {"concurrency_limit": 2}, lease=30)
    held = enqueue(fleet, [b"hold"] * 2)
    wait_until(lambda: 2 == fleet.value("select count(*) from {log}"))
    enqueue(fleet, [b""] * 10_000)
    assert_silence(fleet)
    fleet.rows("delete from {schema}.queued")
    fleet.rows("update {schema}.running set cancel_requested_at = clock_timestamp() where job_id = any (%s)", held)
    wait_until(lambda: 2 == count_ended(fleet))
    assert_silence(fleet)


@pytest.mark.anyio
@pytest.mark.promise(19)
async def test_a_full_name_does_not_delay_others(app: PgQueuer, queries: Queries, within: Within) -> None:
    """Beside a full limit with a backlog, jobs of another name start at once, and take all the room they want."""
    started: dict[int, float] = {}
    overlap = highest = 0

    @app.entrypoint("full", concurrency_limit=2)
    async def full(job: Job) -> None:
        await anyio.sleep_forever()

    @app.entrypoint("free")
    async def free(job: Job) -> None:
        nonlocal overlap, highest
        started[job.id] = time.monotonic()
        overlap += 1
        highest = max(highest, overlap)
        await anyio.sleep(0.05 if job.payload else 0)
        overlap -= 1

    await queries.enqueue(["full"] * 1000)
    async with running_worker(app, shutdown_grace=0, max_concurrency=20):
        delays = []
        for _ in range(30):
            enqueued_at = time.monotonic()
            (job_id,) = await queries.enqueue("free")
            await wait_for(partial(started.__contains__, job_id))
            delays.append(started[job_id] - enqueued_at)
        assert sorted(delays)[15] < within(0.1, 2)
        ids = await queries.enqueue(["free"] * 100, [b"wait"] * 100)
        await wait_for(lambda: started.keys() >= set(ids))
    assert 18 == highest


@pytest.mark.promise(19)
@BACKENDS
def test_names_with_limits_delay_no_other_in_a_fleet(fleet: Fleet, backend: str, within: Within) -> None:
    """Three workers, beside a full name, one whose slots change hands all the time, a serialized and a rated one, each
    with a backlog: every single job of another name starts at once.
    """
    for _ in range(3):
        fleet.start(backend, program="tests.worker.beside")
    fleet.enqueue("full", times=2)
    wait_until(lambda: 2 == fleet.value("select count(*) from {schema}.running where entrypoint = 'full'"))
    for name in ("full", "rated", "serial", "churn"):
        fleet.enqueue(name, times=10_000)
    for _ in range(100):
        (job_id,) = fleet.enqueue("free")
        wait_until(partial(fleet.events, job_id), pause=0.002)
    left = dict(fleet.rows("select entrypoint, count(*) from {schema}.queued group by entrypoint"))
    assert {"full", "rated", "serial", "churn"} == left.keys()
    assert left["churn"] < 10_000
    wait_until(lambda: 100 == fleet.value("select count(*) from {schema}.finished where entrypoint = 'free'"))
    delays = fleet.rows(
        "select extract(epoch from at - created_at)::float8 as delay from {log} join {schema}.finished using (job_id) "
        "order by delay desc"
    )
    assert 100 == len(delays)
    assert delays[5][0] < within(0.05, 2), delays[:10]
    assert delays[0][0] < within(0.25), delays[:10]


@pytest.mark.anyio
@pytest.mark.promise(18)
async def test_two_workers_with_different_limits(
    dsn: str, schema: str, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one to start decides for both, and each says so with both definitions."""
    running = highest = done = 0

    async def handler(job: Job) -> None:
        nonlocal running, highest, done
        running += 1
        highest = max(highest, running)
        await anyio.sleep(0.01)
        running -= 1
        done += 1

    first, second = PgQueuer(dsn, schema=schema), PgQueuer(dsn, schema=schema)
    first.entrypoint("limited")(handler)
    second.entrypoint("limited", concurrency_limit=3)(handler)
    others = []

    @first.entrypoint("other")
    async def other(job: Job) -> None:
        others.append(job.id)

    with caplog.at_level(logging.WARNING):
        async with running_worker(first), running_worker(second):
            await wait_for(lambda: "limited" in caplog.text)
            await queries.enqueue(["limited"] * 60 + ["other"])
            await wait_for(lambda: 60 == done and 1 == len(others))
    assert 3 == highest
    # On a busy machine they were seen to warn of other things, too.
    (message,) = [record.getMessage() for record in caplog.records if record.name == "pgq_anyio.limits"]
    assert "no limits" in message
    assert "concurrency_limit=3" in message


@pytest.mark.anyio
@pytest.mark.promise(18)
async def test_both_definitions_are_named(dsn: str, schema: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the worker that starts and by the one that was there, each with who has the other one."""

    async def handler(job: Job) -> None:
        """Never called."""

    first, second = PgQueuer(dsn, schema=schema), PgQueuer(dsn, schema=schema)
    first.entrypoint("limited", concurrency_limit=5)(handler)
    second.entrypoint("limited", concurrency_limit=3)(handler)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    theirs, ours = "concurrency_limit=5", "concurrency_limit=3"
    by_second = (
        f"the entrypoint 'limited' is registered with {ours} here ({worker}), and with {theirs} by {worker}, "
        "which still runs; the database keeps the last definition, ours"
    )
    by_first = (
        f"the entrypoint 'limited' was registered here with {theirs}, but {worker} started later and "
        f"registered it with {ours}; the database keeps the last definition"
    )

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if "limited" in record.getMessage()]

    with caplog.at_level(logging.WARNING):
        async with running_worker(first), running_worker(second):
            # In either order: the first one may hear of the definition before the second one is told that it is stored.
            await wait_for(lambda: len(said()) >= 2)
    assert sorted([by_second, by_first]) == sorted(said())
