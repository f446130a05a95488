"""A worker that was stopped for longer than its lease, and whose handlers end when it comes back: nothing of what it
says counts any more.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.worker.away import Journal
from tests.worker.fleet import Fleet, wait_until

LEASE = 2.0


@pytest.mark.promise(14)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
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
    wait_until(lambda: all(len(journal.find(one, "start")) == 2 for one in ids), timeout=LEASE + 10)
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
