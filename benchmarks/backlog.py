"""Figure 7: the rate of a worker with many jobs queued, and behind many deferred jobs of higher priority.

Each run drains 10,000 jobs and stops; its rate is that of the last 8,000, so that start and stop do not count. The
queues exist side by side, each in a database of its own, and the runs take turns. The first queue holds exactly what a
run takes. What an earlier run left behind is vacuumed before the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg

from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, median, ratio
from ._filling import insert_deferred, insert_queued, make_tables
from ._server import bench_database, settle
from .contenders._contender import ours

TITLE = "With a backlog"
HOW = (
    "The rate of one worker over 8,000 no-op jobs (after the first 2,000) with 10 thousand, 1 million and 10 million "
    "jobs queued, and with 1 million deferred jobs of higher priority."
)
QUICK = {"million": 200_000, "millions": 0, "rounds": 2}
FULL = {"million": 1_000_000, "millions": 10_000_000, "rounds": 15}

RUN = 10_000
EVERY = 1000
#: Marks before which nothing counts.
SKIPPED = 1
SMALL = "10 k queued"


def measure(bench: Bench) -> Results:
    """Make the queues, then take turns."""
    million, millions = bench.size["million"], bench.size["millions"]
    queues = {
        SMALL: (0, 0),
        f"{million:,} queued": (million, 0),
        f"{million:,} deferred, of higher priority": (0, million),
    }
    if millions:
        queues[f"{millions:,} queued"] = (millions, 0)
    rates: dict[str, list[float]] = {name: [] for name in queues}
    with _databases(bench, list(queues.values())) as databases:
        for number in range(1, bench.size["rounds"] + 1):
            for name, database in zip(queues, databases, strict=True):
                rates[name].append(_rate(database))
                bench.say(f"round {number}: {name}: {rates[name][-1]:,.0f} jobs/s")
    return {"rates": rates}


@contextmanager
def _databases(bench: Bench, queues: Sequence[tuple[int, int]]) -> Iterator[list[str]]:
    with ExitStack() as stack:
        databases = []
        for number, (queued, deferred) in enumerate(queues):
            databases.append(stack.enter_context(bench_database(bench.dsn, f"_{number}")))
            make_tables(databases[-1])
            with psycopg.connect(databases[-1], autocommit=True) as conn:
                insert_queued(conn, queued)
                insert_deferred(conn, deferred, priority=10)
            bench.say(f"{queued:,} queued, {deferred:,} deferred: ready")
        yield databases


def _rate(database: str) -> float:
    """Add what the run will take, so that the backlog stays as it is."""
    with psycopg.connect(database, autocommit=True) as conn:
        insert_queued(conn, RUN)
    settle(database)
    figures = ours("uvloop").step("drain", database, jobs=RUN, every=EVERY)
    marks = figures["marks"]
    rate: float = (len(marks) - 1 - SKIPPED) * EVERY / (marks[-1] - marks[SKIPPED])
    return rate


def judge(results: Results) -> list[Verdict]:
    """Against the small queue."""
    rates = {name: median(values) for name, values in results["rates"].items()}
    return [
        at_least(7, f"drain rate with {name}, against 10 k", ratio(rate, rates[SMALL]), 0.9)
        for name, rate in rates.items()
        if name != SMALL
    ]


def tables(results: Results) -> list[Table]:
    """Every queue."""
    rows = [
        (name, f"{median(values):,.0f}", f"{min(values):,.0f} … {max(values):,.0f}")
        for name, values in results["rates"].items()
    ]
    return [Table("The rate of one worker with a backlog", ("", "jobs/s", "lowest … highest"), rows)]


def charts(results: Results) -> list[Chart]:
    """Every queue."""
    rates = {name: median(values) for name, values in results["rates"].items()}
    return [Bars("The rate of one worker with a backlog", "jobs/s", rates)]
