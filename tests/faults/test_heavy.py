"""Heavy jobs: large payloads, and many errors with a lot to say. A worker's memory stays bounded."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgq_anyio._lifecycle import MAX_MESSAGE, MAX_TRACEBACK
from tests.faults.heavy import TALK
from tests.faults.rows import Row, form
from tests.faults.scene import BACKENDS
from tests.worker.fleet import Fleet, WorkerProcess, open_fleet, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to see how much memory was used at most")

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


def run_all(fleet: Fleet, worker: WorkerProcess, *, timeout: float) -> int:
    """Wait until nothing is left, stop the worker, and tell how much memory it has used at most (in MB)."""
    left = "select not exists (select from {schema}.queued) and not exists (select from {schema}.running)"
    wait_until(lambda: fleet.value(left), timeout=timeout, what="all jobs have ended")
    status = Path(f"/proc/{worker.pid}/status").read_text()
    (peak,) = [int(line.split()[1]) // 1000 for line in status.splitlines() if line.startswith("VmHWM:")]
    worker.signal(signal.SIGTERM)
    assert 0 == worker.wait()
    return peak


def save(title: str, jobs: int) -> None:
    Row(
        number=13,
        title=title,
        times=jobs,
        jobs=jobs,
        lost=0,
        doubled=0,
        allowed="",
        interrupted=0,
        recovered=0.0,
        bound=0.0,
    ).save()


def test_errors_with_a_lot_to_say(fleet: Fleet) -> None:
    """Each is cut to its bound and says so, and begins and ends with its own words."""
    jobs = form(short=300, long=10_000)
    for backend in BACKENDS:
        worker = fleet.start(backend, program=PROGRAM)
        fleet.enqueue("talk", times=jobs)
        assert run_all(fleet, worker, timeout=600) < TALK_LIMIT
    sizes: list[tuple[Any, ...]] = fleet.rows(
        "select count(*), max(length(error_message)), max(length(error_traceback)),"
        " bool_and(error_message like '<' || job_id || '>%%' and error_message like '%%<' || job_id || '>'),"
        " bool_and(error_message like %s) from {schema}.finished where status = 'failed'",
        "%characters left out%",
    )
    ((count, message, trace, has_both_ends, is_noted),) = sizes
    assert (2 * jobs, True, True) == (count, has_both_ends, is_noted)
    assert message < MAX_MESSAGE + 100 < TALK
    assert trace < MAX_TRACEBACK + 100 < TALK
    save(f"jobs fail with a text of 1 MB each; workers stay below {TALK_LIMIT} MB", 2 * jobs)


def test_large_payloads(fleet: Fleet) -> None:
    """Identical bytes arrive, one after the other, and are not kept."""
    jobs = form(short=6, long=40)
    for backend in BACKENDS:
        worker = fleet.start(backend, program=PROGRAM, max_concurrency=1)
        for _ in range(jobs):
            fleet.rows(
                "select {schema}.enqueue('carry', convert_to(lpad(%s, 12, '0'), 'UTF8')"
                " || decode(repeat('ff', %s), 'hex'))",
                str(LOAD),
                LOAD - 12,
            )
        assert run_all(fleet, worker, timeout=600) < LOAD_LIMIT
    assert [("successful", 2 * jobs)] == fleet.rows("select status, count(*) from {schema}.finished group by 1")
    save(f"payloads of 50 MB, one at a time; workers stay below {LOAD_LIMIT} MB", 2 * jobs)
