"""Heavy jobs: large payloads, and many errors with a lot to say. A worker's memory stays bounded."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio._lifecycle import MAX_MESSAGE, MAX_TRACEBACK
from tests.faults.heavy import TALK
from tests.faults.job_log import JobLog, open_job_log
from tests.faults.rows import Row, form
from tests.faults.scene import BACKENDS
from tests.worker.fleet import Fleet, WorkerProcess, open_fleet, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to see how much memory was used at most"),
    pytest.mark.heavy,
]

PROGRAM = "tests.faults.heavy"
#: Bytes of a large payload.
LOAD = 50_000_000
#: In MB; a worker that has nothing to do takes 45. Errors add what 100 handlers and the outcomes on their way take. A
#: payload is there in libpq's buffer, which doubles as it grows, in the server's answer, and as the bytes of the job,
#: and the next one may come before it is gone. Idle machines were seen to
#: take 150 and 375 MB; on a busy one the outcomes wait for longer. Unbounded ones took 775 MB.
TALK_LIMIT, LOAD_LIMIT = 320, 450


@pytest.fixture
def fleet(server_dsn: str, schema: str) -> Iterator[Fleet]:
    with open_fleet(server_dsn, schema) as fleet:
        yield fleet


@pytest.fixture
def log(server_dsn: str, schema: str) -> Iterator[JobLog]:
    with open_job_log(server_dsn, schema + "_jobs") as log:
        yield log


def start(fleet: Fleet, log: JobLog, backend: str, **options: Any) -> WorkerProcess:
    """Start a worker whose handlers log what they do."""
    environment = {"PGQ_TEST_LOG_DSN": log.dsn, "PGQ_TEST_LOG_TABLE": log.table}
    return fleet.start(backend, program=PROGRAM, environment=environment, **options)


def run_all(fleet: Fleet, worker: WorkerProcess, *, timeout: float) -> int:
    """Wait until nothing is left, stop the worker, and tell how much memory it has used at most (in MB)."""
    left = "select not exists (select from {schema}.queued) and not exists (select from {schema}.running)"
    wait_until(lambda: fleet.value(left), timeout=timeout, what="all jobs have ended")
    status = Path(f"/proc/{worker.pid}/status").read_text()
    (peak,) = [int(line.split()[1]) // 1000 for line in status.splitlines() if line.startswith("VmHWM:")]
    worker.signal(signal.SIGTERM)
    assert 0 == worker.wait()
    return peak


def save(title: str, fleet: Fleet, log: JobLog, ids: list[int]) -> None:
    """Compare the records with the log; there was no fault, so nothing is lost or runs twice."""
    recorded = [job_id for (job_id,) in fleet.rows("select job_id from {schema}.finished")]
    assert len(recorded) == len(set(recorded)), "a job has two records"
    through = Counter(run.job_id for run in log.runs() if run.is_through)
    lost = set(ids) - set(recorded) | set(ids) - set(through)
    doubled = [job_id for job_id, times in through.items() if times > 1]
    assert ([], []) == (sorted(lost), doubled)
    Row(
        number=13,
        title=title,
        times=len(ids),
        jobs=len(recorded),
        lost=len(lost),
        doubled=len(doubled),
        allowed="",
        interrupted=0,
        recovered=0.0,
        bound=0.0,
    ).save()


def test_errors_with_a_lot_to_say(fleet: Fleet, log: JobLog) -> None:
    """Each is cut to its bound and says so, and begins and ends with its own words."""
    jobs = form(short=300, long=10_000)
    ids = []
    for backend in BACKENDS:
        worker = start(fleet, log, backend)
        ids += fleet.enqueue("talk", times=jobs)
        assert run_all(fleet, worker, timeout=600) < TALK_LIMIT
    sizes: list[tuple[Any, ...]] = fleet.rows(
        "select count(*), max(length(error_message)), max(length(error_traceback)),"
        " bool_and(error_message like '<' || job_id || '>%%' and error_message like '%%<' || job_id || '>'),"
        " bool_and(error_message like %s), bool_and(error_traceback like %s),"
        " bool_and(error_traceback like 'Traceback%%' and error_traceback like '%%<' || job_id || '>%%')"
        " from {schema}.finished where status = 'failed'",
        *["%characters left out%"] * 2,
    )
    ((count, message, trace, has_both_ends, is_noted, is_trace_noted, is_trace_its_own),) = sizes
    assert (2 * jobs, True, True) == (count, has_both_ends, is_noted)
    assert (True, True) == (is_trace_noted, is_trace_its_own)
    assert message < MAX_MESSAGE + 100 < TALK
    assert trace < MAX_TRACEBACK + 100 < TALK
    save(f"jobs fail with a text of 1 MB each; workers stay below {TALK_LIMIT} MB", fleet, log, ids)


def test_large_payloads(fleet: Fleet, log: JobLog) -> None:
    """Identical bytes arrive, one after the other, and are not kept."""
    jobs = form(short=6, long=40)
    query = "select {schema}.enqueue('carry', convert_to(lpad(%s, 12, '0'), 'UTF8') || decode(repeat('ff', %s), 'hex'))"
    ids = []
    for backend in BACKENDS:
        worker = start(fleet, log, backend, max_concurrency=1)
        ids += [fleet.value(query, str(LOAD), LOAD - 12) for _ in range(jobs)]
        assert run_all(fleet, worker, timeout=600) < LOAD_LIMIT
    assert [("successful", 2 * jobs)] == fleet.rows("select status, count(*) from {schema}.finished group by 1")
    save(f"payloads of 50 MB, one at a time; workers stay below {LOAD_LIMIT} MB", fleet, log, ids)
