"""What becomes of the jobs of workers that were killed: when they run again, where in the queue, and how often."""

from __future__ import annotations

import signal
from functools import partial

import pytest

from pgq_anyio import JobId, SyncQueries
from tests.bounds import Within
from tests.worker.fleet import BACKENDS, Fleet, wait_until

pytestmark = pytest.mark.heavy

LEASE = 2.0


@pytest.mark.promise(12)
@pytest.mark.timeout(120)
def test_without_any_configuration(fleet: Fleet, within: Within) -> None:
    """With default settings the lease is 30 s: not before it is over since the last heartbeat, nor later than 5 s after
    that. A worker of each backend is killed, and one of each is left: one test for all, for it takes so long.
    """
    victims, ids = [], []
    for backend in ("asyncio", "uvloop", "trio"):
        victims.append(fleet.start(backend))
        ids += fleet.enqueue("sleep")
        wait_until(partial(fleet.events, ids[-1]))
        victims[-1].signal(signal.SIGSTOP)  # the next job is for the next one
    for backend in ("asyncio", "uvloop", "trio"):
        fleet.start(backend)
    for victim in victims:
        victim.signal(signal.SIGKILL)
        victim.wait()
    killed_at = fleet.value("select clock_timestamp()")
    names = [f"%:{victim.pid}" for victim in victims]
    beats = "select split_part(name, ':', -1)::integer, heartbeat_at from {schema}.worker where name like any (%s)"
    last_beats = dict(fleet.rows(beats, names))
    assert 3 == len(last_beats)
    wait_until(lambda: all(len(fleet.events(one)) == 2 for one in ids), timeout=45)
    starts = fleet.rows(
        "select min(pid) filter (where pid = any (%s)), max(at) from {log} group by job_id", list(last_beats)
    )
    assert 3 == len(starts)
    for victim_pid, again_at in starts:
        assert (again_at - last_beats[victim_pid]).total_seconds() >= 30
        assert (again_at - killed_at).total_seconds() < within(35, 45)
    assert [(1, 1)] * 3 == fleet.rows("select attempt, crashes from {schema}.running")


@pytest.mark.promise(12)
@BACKENDS
def test_a_job_has_five_crashes(fleet: Fleet, backend: str) -> None:
    """Unless its entrypoint says otherwise. Six workers are there: it kills five, and the sixth records the failure."""
    workers = [fleet.start(backend, ready=False, lease=LEASE) for _ in range(6)]
    for worker in workers:
        wait_until(worker.is_registered)
    (job_id,) = fleet.enqueue("deadly")
    wait_until(lambda: fleet.status(job_id) == "failed", timeout=70)
    assert [("WorkerDied", "worker died", 5, 1)] == fleet.rows(
        "select error_type, error_message, crashes, attempt from {schema}.finished where job_id = %s", job_id
    )
    assert 5 == len(fleet.events(job_id))
    assert [9] * 5 == [code for code in (worker.popen.poll() for worker in workers) if code is not None]


@pytest.mark.promise(5, 25)
@BACKENDS
def test_the_place_of_rescued_jobs(fleet: Fleet, backend: str) -> None:
    """One comes before what was enqueued later with the same priority, and after what has a higher one. One that was
    cancelled before it was rescued never runs again.
    """

    def enqueue(name: str, payload: bytes | None, priority: int) -> int:
        number: int = fleet.value("select {schema}.enqueue(%s, %s, priority => %s)", name, payload, priority)
        return number

    first = fleet.start(backend, lease=LEASE)
    cancelled, rescued = enqueue("sleep", None, 5), enqueue("sleep", None, 5)
    wait_until(lambda: fleet.events(cancelled) and fleet.events(rescued))
    first.signal(signal.SIGKILL)
    first.wait()
    with SyncQueries(fleet.dsn, schema=fleet.schema) as queries:
        assert [cancelled] == queries.mark_job_as_cancelled([JobId(cancelled)], "not needed")
        holder, later = enqueue("sleep", None, 9), [enqueue("quick", None, priority) for priority in (5, 4, 6, 5)]
        second = fleet.start(backend, lease=LEASE, max_concurrency=1)
        wait_until(lambda: fleet.status(cancelled) == "cancelled")
        assert ["start"] == [event for event, _ in fleet.events(holder)]
        # The holder of the only slot ends now that all are in the queue, and so does the rescued one once it runs.
        for holding, number in ((holder, 1), (rescued, 2)):
            wait_until(lambda: number == len(fleet.events(holding)))  # noqa: B023  (it is called at once)
            assert [holding] == queries.mark_job_as_cancelled([JobId(holding)])
        wait_until(lambda: 7 == fleet.value("select count(*) from {schema}.finished"))
    order = fleet.rows("select job_id from {log} where pid = %s and event in ('start', 'run') order by at", second.pid)
    assert [holder, later[2], rescued, later[0], later[3], later[1]] == [row[0] for row in order]
    assert [("start", first.pid)] == fleet.events(cancelled)
    assert [("not needed", 1)] == fleet.rows(
        "select cancel_reason, crashes from {schema}.finished where job_id = %s", cancelled
    )
