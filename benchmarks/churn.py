"""Figure 13, second half: whether tables and indexes stay bounded while millions of jobs pass through.

A producer keeps a short queue filled and a worker empties it. The sizes of all tables but the records of finished jobs,
which are kept as long as retention says, are read once a second, indexes included. Vacuuming is left to PostgreSQL,
whose autovacuum comes once a minute: tables are as large as the jobs of a busy minute make them, and no larger however
many jobs follow. Minutes differ by how busy the machine is, and so do sizes; what must not happen is growth with the
number of jobs.
"""

from __future__ import annotations

import time

import psutil
import psycopg

from pgq_anyio import SyncQueries

from ._children import Child, MeasurementError
from ._figure import Bench, Chart, Curves, Results, Table, Verdict, at_most
from ._filling import make_tables
from ._server import bench_database, settle
from .contenders._contender import ours

TITLE = "Tables and indexes over millions of jobs"
HOW = (
    "One producer keeps about 20 thousand jobs queued and one worker empties the queue, for 10 million jobs. Sizes of "
    "tables with their indexes, once a second; vacuuming is left to PostgreSQL."
)
QUICK = {"jobs": 100_000}
FULL = {"jobs": 10_000_000}

QUEUED = 20_000
CHUNK = 5000
PAYLOAD = b"x" * 100
TIMEOUT = 60.0
#: What the last quarter of the jobs may take more than those before; without a bound it would be a third. Not halves:
#: the first half may be over before PostgreSQL has looked for the first time.
BOUNDED = 1.1
LAST = 3 / 4
#: So often PostgreSQL must have vacuumed the tables that all jobs pass: of fewer times nothing can be said.
ENOUGH = 3
PASSED = ("queued", "running")
VACUUMS = "select autovacuum_count from pg_stat_all_tables where schemaname = 'pgq_anyio' and relname = any (%s)"
SIZES = """
    select c.relname::text, pg_total_relation_size(c.oid), pg_indexes_size(c.oid)
    from pg_class c where c.relnamespace = 'pgq_anyio'::regnamespace and c.relkind = 'r'
"""


def measure(bench: Bench) -> Results:
    """One worker, one producer."""
    jobs = bench.size["jobs"]
    contender = ours("uvloop")
    with bench_database(bench.dsn) as database:
        make_tables(database)
        settle(database)
        started = time.monotonic()
        with contender.serve(database, limit=3600.0) as child:
            child.wait_ready()
            samples = _churn(bench, database, child, jobs)
            memory = psutil.Process(child.pid).memory_info().rss / 2**20
            figures = child.leave()
        seconds = time.monotonic() - started
        recorded = contender.count_recorded(database)
        with psycopg.connect(database, autocommit=True) as conn:
            kept = sum(row[1] for row in conn.execute(SIZES) if row[0].startswith("finished"))
            vacuums = min(row[0] for row in conn.execute(VACUUMS, [list(PASSED)]))
    if recorded != jobs or figures["problems"]:
        raise MeasurementError(f"{recorded} of {jobs} jobs were recorded; warnings: {figures['problems']}")
    return {
        "samples": samples,
        "jobs_per_second": jobs / seconds,
        "finished_bytes_per_job": kept / jobs,
        "worker_mb": memory,
        "vacuums": vacuums,
    }


def _churn(bench: Bench, database: str, child: Child, jobs: int) -> list[dict[str, float]]:
    """Sizes (in MB) of each table, again and again."""
    samples: list[dict[str, float]] = []
    enqueued, sampled, moved, told = 0, 0.0, time.monotonic(), 0
    with psycopg.connect(database, autocommit=True) as conn, SyncQueries(database) as queries:
        while child.handled < jobs:
            now = time.monotonic()
            if now - sampled > 1:
                sampled = now
                sizes = {name: size / 2**20 for name, size, _ in conn.execute(SIZES) if not name.startswith("finished")}
                samples.append({"jobs": float(child.handled), **sizes})
            if child.handled * 10 // jobs > told:
                told = child.handled * 10 // jobs
                bench.say(f"{child.handled:,} jobs: {_total(samples[-1]):.0f} MB")
            if enqueued < jobs and enqueued - child.handled < QUEUED:
                count = min(CHUNK, jobs - enqueued)
                queries.enqueue("noop", [PAYLOAD] * count)
                enqueued += count
                moved = now
            else:
                child.check()
                if now - moved > TIMEOUT:
                    raise MeasurementError(f"nothing moved for {TIMEOUT:g} s, after {child.handled:,} jobs")
                time.sleep(0.02)
    return samples


def _total(sample: dict[str, float]) -> float:
    return sum(size for name, size in sample.items() if name != "jobs")


def judge(results: Results) -> list[Verdict]:
    """The last quarter of the jobs against those before."""
    totals = [(sample["jobs"], _total(sample)) for sample in results["samples"]]
    border = totals[-1][0] * LAST
    before = max((size for done, size in totals if done <= border), default=0.0)
    last = max((size for done, size in totals if done > border), default=None)
    if results["vacuums"] < ENOUGH:
        last = None
    what = "tables and indexes over the last quarter of the jobs, against those before"
    return [at_most(13, what, None if last is None or not before else last / before, BOUNDED)]


def tables(results: Results) -> list[Table]:
    """Every table that was ever larger than a megabyte."""
    samples = results["samples"]
    names = [name for name in samples[-1] if name != "jobs"]
    rows = [
        (name, f"{max(sample[name] for sample in samples):.1f}", f"{samples[-1][name]:.1f}")
        for name in names
        if max(sample[name] for sample in samples) > 1
    ]
    rows.append(("finished, bytes a job", "", f"{results['finished_bytes_per_job']:.0f}"))
    rows.append(("times that each was vacuumed, at least", "", str(results["vacuums"])))
    title = f"Tables with their indexes (MB), at {results['jobs_per_second']:,.0f} jobs/s"
    return [Table(title, ("", "at most", "at last"), rows)]


def charts(results: Results) -> list[Chart]:
    """Sizes over jobs."""
    curves = {name: [(sample["jobs"] / 1000, sample[name]) for sample in results["samples"]] for name in PASSED}
    return [Curves("Tables with their indexes", "thousand jobs done", "MB", curves)]
