"""Schedules in a fleet of worker processes: each occurrence once, and what becomes of it when its worker goes."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.bounds import Within
from tests.worker.fleet import BACKENDS, Fleet, WorkerProcess, wait_until

pytestmark = pytest.mark.heavy

LEASE = 2.0
SECONDLY = "* * * * * *"
YEARLY = "0 0 1 1 *"
NEW_YEAR = int(datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC).timestamp())


def start(
    fleet: Fleet, backend: str, handler: str, expression: str, *, name: str = "report", **options: Any
) -> WorkerProcess:
    """Start a worker that serves a schedule with this handler."""
    program = "tests.worker.wrong_clock" if "clock_offset" in options else "tests.worker.scheduled"
    return fleet.start(backend, program=program, serve=[(name, handler, expression)], **options)


def add_yearly(fleet: Fleet) -> None:
    """Let the schedule have missed the last New Year."""
    fleet.rows(
        "insert into {schema}.schedule (name, expression, timezone, last_due_at)"
        " values ('report', %s, 'UTC', clock_timestamp() - interval '1 year')",
        YEARLY,
    )


@pytest.mark.promise(42)
@BACKENDS
def test_five_workers_run_each_occurrence_once(fleet: Fleet, backend: str, figures: bool) -> None:
    """Twenty occurrences without a gap, none early, none late, although one of the workers has a wrong clock."""
    # A busy machine may be more than a second late: what came due meanwhile is then not one run, but as many.
    missed = "coalesce" if figures else "catch_up"
    for number in range(5):
        wrong: dict[str, Any] = {"clock_offset": 1.0} if number == 4 else {}
        start(fleet, backend, "tick", SECONDLY, missed=missed, **wrong)
    counted = "select count(distinct job_id) from {log}"
    before = fleet.value(counted)
    wait_until(lambda: fleet.value(counted) >= before + 20, timeout=70)
    rows = fleet.rows("select job_id, extract(epoch from at)::float8 - job_id from {log} order by job_id")
    seconds = [second for second, _ in rows]
    # Once all of them were there: the start of a process takes the processors from the others for a while.
    assert list(range(seconds[before], seconds[before] + len(seconds) - before)) == seconds[before:]
    late = sorted(by for _, by in rows[before:])
    assert late[0] >= 0.0
    # With the handler's own connection to the database; the median, for other programs may have the processors.
    assert late[len(late) // 2] < (0.1 if figures else 5.0)


@pytest.mark.promise(42)
@BACKENDS
def test_only_the_servers_clock_counts(fleet: Fleet, backend: str, within: Within) -> None:
    """A worker whose clock is an hour ahead and one whose clock is an hour behind, each alone with its schedule."""
    workers = [
        start(fleet, backend, "tick", SECONDLY, name=name, clock_offset=offset)
        for name, offset in (("ahead", 3600.0), ("behind", -3600.0))
    ]
    lateness = "select extract(epoch from at)::float8 - job_id as by from {log} where pid = %s order by by"
    for worker in workers:
        wait_until(lambda: len(fleet.rows(lateness, worker.pid)) >= 5)  # noqa: B023  (it is called at once)
        late = [by for (by,) in fleet.rows(lateness, worker.pid)]
        assert late[0] >= 0.0
        assert late[len(late) // 2] < within(0.1)


@pytest.mark.promise(43)
@BACKENDS
def test_a_run_that_is_longer_than_its_period_overlaps_none(fleet: Fleet, backend: str) -> None:
    """Whichever worker runs it: the others wait for its end, although occurrences come meanwhile."""
    for _ in range(3):
        start(fleet, backend, "slow", SECONDLY)
    wait_until(lambda: fleet.value("select count(*) from {log} where event = 'end'") >= 4, timeout=70)
    events = [event for (event,) in fleet.rows("select event from {log} order by at, event")]
    assert ["start", "end"] * (len(events) // 2) == events[: len(events) // 2 * 2]


@pytest.mark.promise(44)
@BACKENDS
def test_the_schedule_of_a_killed_worker_goes_on(fleet: Fleet, backend: str, within: Within) -> None:
    """Not before the lease is over, and without the occurrence whose run was killed."""
    first = start(fleet, backend, "long", SECONDLY, lease=LEASE)
    wait_until(lambda: fleet.rows("select 1 from {log}"))
    start(fleet, backend, "tick", SECONDLY, lease=LEASE)
    first.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    last_beat = fleet.value("select heartbeat_at from {schema}.worker where name like %s", f"%:{first.pid}")
    wait_until(lambda: fleet.value("select count(*) from {log} where event = 'run'") >= 2)
    assert time.monotonic() - killed_at < within(LEASE + 5 + 2, 45)
    assert fleet.value(
        "select min(at) - %s >= make_interval(secs => %s) from {log} where event = 'run'", last_beat, LEASE
    )
    assert [] == fleet.rows("select job_id from {log} group by job_id having count(*) > 1")


@pytest.mark.promise(44)
@BACKENDS
def test_a_run_that_a_signal_interrupts_is_run_again(fleet: Fleet, backend: str, within: Within) -> None:
    """SIGTERM, and the grace is over: the handler is cancelled, and another worker runs this occurrence within 2 s."""
    add_yearly(fleet)
    first = start(fleet, backend, "long", YEARLY, shutdown_grace=0.2)
    wait_until(lambda: [(NEW_YEAR, "start")] == fleet.rows("select job_id, event from {log}"))
    second = start(fleet, backend, "tick", YEARLY)
    first.signal(signal.SIGTERM)
    assert 0 == first.wait()
    ended = time.monotonic()
    wait_until(lambda: fleet.events(NEW_YEAR)[2:])
    assert time.monotonic() - ended < within(2.0, 20)
    assert [("start", first.pid), ("cancelled", first.pid), ("run", second.pid)] == fleet.events(NEW_YEAR)


@pytest.mark.promise(44)
@BACKENDS
def test_a_frozen_worker_that_comes_back_changes_nothing(fleet: Fleet, backend: str) -> None:
    """SIGSTOP for longer than the lease: the schedule goes on elsewhere, and the end of the stale run is dropped."""
    stale = start(fleet, backend, "long", SECONDLY, lease=LEASE)
    wait_until(lambda: fleet.rows("select 1 from {log}"))
    ((first_run, _),) = fleet.rows("select job_id, event from {log}")
    stale.signal(signal.SIGSTOP)
    try:
        owner = start(fleet, backend, "tick", SECONDLY, lease=LEASE)
        wait_until(lambda: fleet.rows("select 1 from {log} where pid = %s", owner.pid))
    finally:
        stale.signal(signal.SIGCONT)
    wait_until(lambda: ("cancelled", stale.pid) in fleet.events(first_run))
    # It registers anew, and one of the two runs the next occurrence.
    wait_until(lambda: 2 == fleet.value("select count(*) from {schema}.worker"))
    latest = fleet.value("select max(job_id) from {log}")
    wait_until(lambda: fleet.rows("select 1 from {log} where job_id > %s", latest))
    assert [] == fleet.rows("select job_id from {log} where event <> 'cancelled' group by job_id having count(*) > 1")
    assert [(None,)] == fleet.rows("select given_back_due_at from {schema}.schedule")
