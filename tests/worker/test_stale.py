"""A worker that was stopped for longer than its lease, and whose handlers end when it comes back: nothing of what it
says counts any more.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.bounds import Within
from tests.worker.away import Journal
from tests.worker.fleet import EVERY_LOOP, Fleet, wait_until
from tests.worker.limited_fleet import enqueue as enqueue_limited
from tests.worker.limited_fleet import start as start_limited

pytestmark = pytest.mark.heavy

LEASE = 2.0


@pytest.mark.promise(14)
@EVERY_LOOP
def test_whatever_a_stale_worker_says_changes_nothing(
    fleet: Fleet, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """SIGSTOP for longer than the lease; another worker runs the jobs. After SIGCONT the first one's handlers return,
    fail, ask for a retry, snooze, or discard their jobs, in threads and (without having heard of anything) in the
    event loop. Its outcomes and heartbeats match no row: the jobs go on as the other's, and end by its word.
    """
    gates = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("PGQ_TEST_GATES", ":".join(map(str, gates)))
    stale = fleet.start(backend, program="tests.worker.stale", lease=LEASE)
    answers = (b"return", b"fail", b"retry", b"snooze", b"discard", b"cancel")
    ids = [fleet.enqueue("thread", answer)[0] for answer in answers]
    wait_until(lambda: all(journal.events(one) for one in ids))
    (blocking,) = fleet.enqueue("loop", b"fail")
    ids.append(blocking)
    wait_until(lambda: journal.events(blocking))
    (before,) = fleet.rows("select worker_id from {schema}.worker")
    stale.signal(signal.SIGSTOP)
    gates[0].touch()
    owner = fleet.start(backend, program="tests.worker.stale", lease=LEASE)
    wait_until(lambda: all(len(journal.find(one, "start")) == 2 for one in ids))
    claims = fleet.rows("select * from {schema}.running order by job_id")
    assert len(ids) == len(claims)
    stale.signal(signal.SIGCONT)
    wait_until(lambda: all(journal.find(one, "end", but=owner.pid) for one in ids))
    # It registers anew once all that it had to say has been said.
    wait_until(lambda: 2 == fleet.value("select count(*) from {schema}.worker"))
    assert before not in fleet.rows("select worker_id from {schema}.worker")
    assert claims == fleet.rows("select * from {schema}.running order by job_id")
    for table in ("queued", "deferred", "finished"):
        assert [] == fleet.rows("select * from {schema}." + table), table
    errors = fleet.rows("select error_type, count(*) from {schema}.attempt_error group by 1")
    assert [("WorkerDied", len(ids))] == errors
    gates[1].touch()
    wait_until(lambda: len(ids) == fleet.value("select count(*) from {schema}.finished"))
    (owner_id,) = {row[1] for row in claims}
    assert [(one, "successful", 1, 1, owner_id) for one in ids] == fleet.rows(
        "select job_id, status, attempt, crashes, worker_id from {schema}.finished order by job_id"
    )
    assert [2] * len(ids) == [len(journal.find(one, "start")) for one in ids]


@pytest.mark.promise(14, 18)
@EVERY_LOOP
def test_a_limit_of_one_holds_while_a_stale_worker_comes_back(fleet: Fleet, backend: str, within: Within) -> None:
    """SIGSTOP for longer than the lease, with a job that fills the limit: it runs on another worker, after which the
    first one continues. Its handler honours its cancellation; apart from that end nothing runs beside anything else,
    neither while the job runs again nor when others follow.
    """
    (stale,) = start_limited(fleet, backend, 1, {"concurrency_limit": 1}, lease=LEASE)
    (job_id,) = enqueue_limited(fleet, [b"slow"])
    wait_until(lambda: fleet.events(job_id))
    stale.signal(signal.SIGSTOP)
    stopped_at = fleet.value("select clock_timestamp()")
    (owner,) = start_limited(fleet, backend, 1, {"concurrency_limit": 1}, lease=LEASE)
    ids = [job_id, *enqueue_limited(fleet, [b""] * 100)]
    wait_until(lambda: ("start", owner.pid) in fleet.events(job_id))
    continued_at = fleet.value("select clock_timestamp()")
    stale.signal(signal.SIGCONT)
    wait_until(lambda: ("end", stale.pid) in fleet.events(job_id))
    wait_until(lambda: len(ids) == fleet.value("select count(*) from {schema}.finished"), timeout=45)
    # The stale run: from its start to the stop, and from SIGCONT to the end that its cancellation brings.
    runs = fleet.rows(
        "select job_id, pid, min(at), max(at), count(*) from {log} group by job_id, pid order by min(at), job_id"
    )
    assert [2] * (len(ids) + 1) == [number for *_, number in runs]
    (stale_end,) = [end for one, pid, _, end, _ in runs if (one, pid) == (job_id, stale.pid)]
    assert (stale_end - continued_at).total_seconds() < within(2)
    ends = [stopped_at if (one, pid) == (job_id, stale.pid) else end for one, pid, _, end, _ in runs]
    starts = [start for _, _, start, _, _ in runs]
    assert all(before <= after for before, after in zip(ends, starts[1:], strict=False)), "two ran at once"
    assert [("successful", len(ids))] == fleet.rows("select status, count(*) from {schema}.finished group by 1")
