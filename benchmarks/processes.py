"""Figure 9: several worker processes on one queue: the more, the more jobs, and no error and no deadlock.

The workers run and wait for jobs when all of these appear at once, in one commit. The rate is that between the fifth
and the 95th of a hundred jobs, of all workers together.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack

import psycopg

from pgq_anyio import SyncQueries

from ._children import MeasurementError
from ._figure import Bench, Chart, Curves, Results, Table, Verdict, at_least, at_most, median, ratio
from ._filling import insert_queued, make_tables
from ._server import ask, bench_database, settle
from .contenders._contender import ours

TITLE = "Several worker processes"
HOW = (
    "1, 2, 4 and 8 worker processes wait on one queue when all jobs appear in it at once; jobs per second of all of "
    "them together, between the fifth and the 95th of a hundred jobs."
)
QUICK = {"jobs": 40_000, "most": 4, "rounds": 1}
FULL = {"jobs": 400_000, "most": 8, "rounds": 5}

NUMBERS = (1, 2, 4, 8)
EVERY = 500
#: What is taken for noise.
NOISE = 0.05
TIMEOUT = 300.0


def measure(bench: Bench) -> Results:
    """Take turns."""
    rates: dict[str, list[float]] = {}
    deadlocks, problems = 0, []
    for number in range(1, bench.size["rounds"] + 1):
        for workers in (one for one in NUMBERS if one <= bench.size["most"]):
            rate, dead, said = _run(bench, workers)
            rates.setdefault(str(workers), []).append(rate)
            deadlocks += dead
            problems += said
            bench.say(f"round {number}: {workers} workers: {rate:,.0f} jobs/s, {dead} deadlocks, {len(said)} warnings")
    return {"rates": rates, "deadlocks": deadlocks, "problems": problems[:20]}


def _run(bench: Bench, workers: int) -> tuple[float, int, list[str]]:
    jobs, contender = bench.size["jobs"], ours("uvloop")
    with bench_database(bench.dsn) as database, ExitStack() as stack:
        make_tables(database)
        settle(database)
        children = [stack.enter_context(contender.serve(database, every=EVERY)) for _ in range(workers)]
        for child in children:
            child.wait_ready()
        with psycopg.connect(database) as conn:
            insert_queued(conn, jobs - 1)
            SyncQueries(conn).enqueue("noop", bytes(100))  # wakes the workers at the commit
        deadline = time.monotonic() + TIMEOUT
        while sum(child.handled for child in children) < jobs:
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise MeasurementError(f"{workers} workers did not run {jobs} jobs within {TIMEOUT:g} s")
            time.sleep(0.05)
        for child in children:
            child.ask_to_leave()
        figures = [child.leave() for child in children]
        recorded = contender.count_recorded(database)
        with psycopg.connect(database, autocommit=True) as conn:
            dead = int(ask(conn, "select deadlocks from pg_stat_database where datname = current_database()"))
    handled = sum(one["handled"] for one in figures)
    if handled != jobs or recorded != jobs:
        raise MeasurementError(
            f"{workers} workers ran {handled} handlers and recorded {recorded} successes, not {jobs}"
        )
    problems = [problem for one in figures for problem in one["problems"]]
    return _rate([one["marks"] for one in figures]), dead, problems


def _rate(marks: Sequence[Sequence[float]]) -> float:
    """Of all workers together, without the first and the last jobs."""
    times = sorted(itertools.chain.from_iterable(marks))
    first, last = len(times) // 20, len(times) - 1 - len(times) // 20
    return (last - first) * EVERY / (times[last] - times[first])


def judge(results: Results) -> list[Verdict]:
    """Each step, and that nothing went wrong."""
    rates = {int(number): median(values) for number, values in results["rates"].items()}
    verdicts = [
        at_least(9, f"rate of {more} workers, against {fewer}", ratio(rates[more], rates[fewer]), 1 - NOISE)
        for fewer, more in itertools.pairwise(sorted(rates))
    ]
    verdicts.append(at_most(9, "deadlocks with several workers", float(results["deadlocks"]), 0, unit="", digits=0))
    verdicts.append(
        at_most(9, "warnings and errors with several workers", float(len(results["problems"])), 0, unit="", digits=0)
    )
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every number of workers."""
    rows = [
        (number, f"{median(values):,.0f}", f"{min(values):,.0f} … {max(values):,.0f}")
        for number, values in results["rates"].items()
    ]
    return [Table("Worker processes on one queue", ("workers", "jobs/s", "lowest … highest"), rows)]


def charts(results: Results) -> list[Chart]:
    """All of them together."""
    curve = [(float(number), median(values)) for number, values in results["rates"].items()]
    return [Curves("Worker processes on one queue", "worker processes", "jobs/s", {"all together": curve})]
