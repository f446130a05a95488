"""The steps that the benchmarks are made of, in sizes that say nothing about speed."""

from __future__ import annotations

import os

import pytest

from benchmarks._figure import Bench
from benchmarks._server import bench_database
from benchmarks.ceiling import run_pgbench
from benchmarks.contenders._contender import drain, ours
from benchmarks.processes import measure

pytestmark = [
    pytest.mark.skipif("PGQ_ANYIO_TEST_DSN" in os.environ, reason="reads what the server's processes use"),
    pytest.mark.heavy,
]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_drain_runs_and_records_every_job(server_dsn: str, loop: str) -> None:
    """It has figures from inside and outside, and says so if a job was lost on the way."""
    drained = drain(ours(loop), server_dsn, 200)
    assert 200 == drained.figures["handled"]
    assert not drained.figures["problems"]
    for figure in (drained.jobs_per_second, drained.worker_cpu_us, drained.wal_bytes, drained.enqueued_per_second):
        assert figure > 0


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_single_enqueues_and_delays_are_timed_one_by_one(server_dsn: str, loop: str) -> None:
    """One time for each job, and none for the jobs of the warm-up."""
    with bench_database(server_dsn) as database:
        assert 5 == len(ours(loop).step("latency", database, jobs=5)["delays_ms"])
        times = ours(loop).step("single", database, jobs=5)
    assert {"enqueue_us": 5, "insert_us": 5} == {name: len(values) for name, values in times.items()}


def test_pgbench_runs_the_statements_of_a_worker(server_dsn: str) -> None:
    """All of them: as many records as jobs, or there is no figure."""
    assert run_pgbench(server_dsn, 400, 100) > 0


def test_workers_that_share_a_queue_run_every_job_once(server_dsn: str) -> None:
    """And say of themselves that they have run all of them, with nothing to warn of."""
    bench = Bench(server_dsn, {"jobs": 10_000, "most": 2, "rounds": 1})
    results = measure(bench)
    assert ["1", "2"] == list(results["rates"])
    assert (0, []) == (results["deadlocks"], results["problems"])
