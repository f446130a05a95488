"""Figure 11: the memory of a worker while it runs job after job, read from outside, twice a second."""

from __future__ import annotations

import time

import psutil
import psycopg

from ._children import MeasurementError
from ._figure import Bench, Chart, Curves, Results, Table, Verdict, at_most, median
from ._filling import insert_queued, make_tables
from ._server import bench_database, settle
from .contenders._contender import OURS, ours

TITLE = "Memory of a worker"
HOW = "Resident memory of a worker while it runs 2 million no-op jobs, read twice a second from outside."
QUICK = {"jobs": 60_000}
FULL = {"jobs": 2_000_000}

LOOPS = ("uvloop", "trio")
PAUSE = 0.5
#: A worker that does nothing for this long will not get further (in seconds).
TIMEOUT = 60.0
#: What may come and go (in MB).
FLAT = 2.0
#: With fewer jobs than this a tenth of them is no warm-up.
ENOUGH = 500_000


def measure(bench: Bench) -> Results:
    """One loop after the other."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for loop in LOOPS:
        curves[f"{OURS} {loop}"] = curve = _watch(bench, loop)
        bench.say(f"{loop}: {curve[0][1]:.0f} MB at first, {max(rss for _, rss in curve):.0f} MB at most")
    return {"curves": curves}


def _watch(bench: Bench, loop: str) -> list[tuple[float, float]]:
    """(Jobs done, MB) again and again."""
    jobs, contender = bench.size["jobs"], ours(loop)
    curve: list[tuple[float, float]] = []
    with bench_database(bench.dsn) as database:
        make_tables(database)
        with psycopg.connect(database, autocommit=True) as conn:
            insert_queued(conn, jobs)
        settle(database)
        with contender.serve(database, limit=1800.0) as child:
            worker = psutil.Process(child.pid)
            child.wait_ready()
            moved = time.monotonic()
            while child.handled < jobs:
                time.sleep(PAUSE)
                child.check()
                if not curve or child.handled > curve[-1][0]:
                    moved = time.monotonic()
                elif time.monotonic() - moved > TIMEOUT:
                    raise MeasurementError(f"no job was run for {TIMEOUT:g} s, after {child.handled:,} of {jobs:,}")
                curve.append((float(child.handled), worker.memory_info().rss / 2**20))
            figures = child.leave()
        recorded = contender.count_recorded(database)
    if recorded != jobs or figures["problems"]:
        raise MeasurementError(f"{recorded} of {jobs} jobs were recorded; warnings: {figures['problems']}")
    return curve


def _growth(curve: list[tuple[float, float]]) -> float:
    """From the second tenth of the jobs to the last one (in MB)."""
    jobs = curve[-1][0]
    early = [rss for done, rss in curve if 0.1 * jobs <= done <= 0.2 * jobs] or [curve[0][1]]
    return median(rss for done, rss in curve if done >= 0.9 * jobs) - median(early)


def judge(results: Results) -> list[Verdict]:
    """Every loop."""
    verdicts = []
    for name, curve in results["curves"].items():
        growth = _growth(curve) if curve[-1][0] >= ENOUGH else None
        verdicts += [
            at_most(11, f"growth after warm-up, {name}", growth, FLAT, unit="MB", digits=1),
            at_most(11, f"resident memory at most, {name}", max(rss for _, rss in curve), 80, unit="MB", digits=0),
        ]
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every loop."""
    rows = []
    for name, curve in results["curves"].items():
        most = max(rss for _, rss in curve)
        rows.append((name, f"{curve[0][1]:.1f}", f"{most:.1f}", f"{_growth(curve):+.1f}", f"{curve[-1][0]:,.0f}"))
    return [
        Table("Resident memory of a worker (MB)", ("", "at first", "at most", "growth after warm-up", "jobs"), rows)
    ]


def charts(results: Results) -> list[Chart]:
    """Memory over jobs."""
    curves = {name: [(done / 1000, rss) for done, rss in curve] for name, curve in results["curves"].items()}
    return [Curves("Resident memory of a worker", "thousand jobs done", "MB", curves)]
