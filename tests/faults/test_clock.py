"""The wall clock of workers jumps by an hour, forward and back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from itertools import cycle, islice, pairwise
from pathlib import Path

import pytest

from tests.faults.clock import ClockFile, can_compile
from tests.faults.conftest import SceneMaker
from tests.faults.producer import producing
from tests.faults.rows import form
from tests.worker.fleet import ROOT

pytestmark = pytest.mark.heavy

HOUR = 3600
#: Where the clock stands, one after the other (in seconds off).
OFFSETS = (HOUR, 0, -HOUR, HOUR, -HOUR, 0)
#: For how long (in seconds).
STAY = 0.6
LEASE = 5.0
#: How far ahead a job is deferred.
LATER = timedelta(seconds=1)

WAYS = pytest.mark.parametrize(
    "way", ["python", pytest.param("libc", marks=pytest.mark.skipif(not can_compile(), reason="needs Linux and cc"))]
)


@pytest.mark.promise(9, 42)
@WAYS
def test_clocks_of_workers_jump_by_an_hour(make_scene: SceneMaker, tmp_path: Path, way: str) -> None:
    """Nobody loses a lease, no run is repeated, deferred jobs and schedules keep to the database's time."""
    times = form(short=4, long=60)
    clock = ClockFile(tmp_path / "clock")
    clock.set(0)
    scene = make_scene(9, f"the clock of two workers jumps by ±1 h ({way})", bound=LEASE)
    workers = [
        scene.start(backend, ready=False, lease=LEASE, ticks=True, environment=clock.environment(way))
        for backend in ("asyncio", "trio")
    ]
    scene.wait_registered(*workers, scene.start("asyncio", ready=False, lease=LEASE, ticks=True))
    registered = scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
    deferred = []
    with producing(scene, "asyncio"):
        for offset in islice(cycle(OFFSETS), times):
            scene.hit()
            clock.set(offset)
            deferred += scene.fleet.rows(
                "select {schema}.enqueue('work', priority => 500, execute_after => %s), clock_timestamp()", LATER
            )
            threading.Event().wait(STAY)  # how long the clock stands there
            scene.recover()
        scene.ids += [row[0] for row in deferred]
    assert registered == scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
    row = scene.finish()
    assert (0, 0) == (row.doubled, row.interrupted)
    starts = {run.job_id: run.started_at for run in scene.log.runs()}
    waits = [(starts[job_id] - enqueued_at).total_seconds() for job_id, enqueued_at in deferred]
    assert LATER.total_seconds() - 0.1 < min(waits)
    assert LATER.total_seconds() + LEASE > max(waits)
    ticks = scene.log.ticks()
    assert len(ticks) >= 2
    assert {timedelta(seconds=1)} == {later - earlier for earlier, later in pairwise(ticks)}


@WAYS
def test_a_clock_is_set(tmp_path: Path, way: str) -> None:
    """What the scenario does to its workers works."""
    clock = ClockFile(tmp_path / "clock")
    clock.set(-HOUR)
    program = (
        "import os, time, datetime; from tests.faults.clock import install; install(os.environ.get('PGQ_TEST_CLOCK'));"
        "print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    )
    right = time.time()
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **clock.environment(way)},
        capture_output=True,
        check=True,
    ).stdout.split()
    wall, monotonic, datetime = map(float, said)
    assert -HOUR == pytest.approx(wall - right, abs=30)
    assert 0 == pytest.approx(monotonic - time.monotonic(), abs=30)
    assert (0 if way == "python" else -HOUR) == pytest.approx(datetime - right, abs=30)
