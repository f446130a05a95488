"""Figure 10: jobs that wait: 1 ms of sleep each, 500 at once, and 50 ms each, with every slot taken.

With jobs of 1 ms and 500 slots the CPU is the limit, not the slots. Its bound is what a no-op job costs the worker,
with the same options in the same run, and in addition what the sleep itself costs: that is measured without a queue, in
500 tasks that do nothing but sleep. With jobs of 50 ms the slots are the limit: 500 of them can start 10,000 jobs per
second, and every moment that a slot is free while jobs wait is missing there.
"""

from __future__ import annotations

import psycopg

from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, median
from ._filling import insert_queued, make_tables
from ._server import bench_database, settle
from .contenders._contender import OURS, ours

TITLE = "Jobs that wait"
HOW = (
    "Jobs that sleep, 500 at once. 1 ms: against the bound that the CPU sets (the rate of no-op jobs, slowed by what "
    "the sleep costs without a queue). 50 ms: against 500 slots that are never free."
)
QUICK = {"jobs": 5000, "long": 2500, "rounds": 1}
FULL = {"jobs": 100_000, "long": 100_000, "rounds": 5}

SLOTS = 500
SHORT, LONG = 0.001, 0.05
LOOPS = ("uvloop", "trio")
MARKS = 20


def measure(bench: Bench) -> Results:
    """Take turns."""
    figures: dict[str, list[dict[str, float]]] = {}
    for number in range(1, bench.size["rounds"] + 1):
        for loop in LOOPS:
            noop, noop_us = _rate(bench, loop, bench.size["jobs"], 0.0)
            cost = ours(loop).step("sleeps", bench.dsn, times=100, tasks=SLOTS, sleep=SHORT)["cpu_us"]
            bound = 1 / (1 / noop + cost / 1e6)
            short, short_us = _rate(bench, loop, bench.size["jobs"], SHORT)
            occupied = _rate(bench, loop, bench.size["long"], LONG)[0] / (SLOTS / LONG)
            found = {"noop": noop, "noop_us": noop_us, "sleep_us": cost, "bound": bound}
            found |= {"short": short, "short_us": short_us, "occupied": occupied}
            figures.setdefault(f"{OURS} {loop}", []).append(found)
            bench.say(
                f"round {number}: {loop}: no-op {noop:,.0f}, bound {bound:,.0f}, 1 ms {short:,.0f} jobs/s; "
                f"50 ms: {occupied:.1%} of the slots"
            )
    return {"figures": figures}


def _rate(bench: Bench, loop: str, jobs: int, sleep: float) -> tuple[float, float]:
    """Jobs per second, without the first and the last tenth, and CPU of the worker per job (in microseconds)."""
    every = jobs // MARKS
    with bench_database(bench.dsn) as database:
        make_tables(database)
        with psycopg.connect(database, autocommit=True) as conn:
            insert_queued(conn, jobs)
        settle(database)
        contender = ours(loop, max_concurrency=SLOTS, batch_size=SLOTS)
        figures = contender.step("drain", database, jobs=jobs, every=every, sleep=sleep)
    marks = figures["marks"]
    return (MARKS - 4) * every / (marks[-3] - marks[1]), figures["cpu_seconds"] / jobs * 1e6


def judge(results: Results) -> list[Verdict]:
    """Every loop."""
    verdicts = []
    for name, rounds in results["figures"].items():
        short = median(one["short"] / one["bound"] for one in rounds)
        occupied = median(one["occupied"] for one in rounds)
        verdicts += [
            at_least(10, f"1 ms jobs, 500 at once, against the CPU's bound, {name}", short, 0.9),
            at_least(10, f"50 ms jobs: share of 500 slots in use, {name}", occupied, 0.95),
        ]
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every loop."""
    rows = []
    for name, rounds in results["figures"].items():
        middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
        rates = (f"{middle[key]:,.0f}" for key in ("noop", "bound", "short"))
        costs = (f"{middle[key]:.1f}" for key in ("noop_us", "sleep_us", "short_us"))
        rows.append((name, *rates, *costs, f"{middle['occupied']:.1%}"))
    rated = ("no-op, jobs/s", "bound for 1 ms", "1 ms, jobs/s")
    header = ("", *rated, "CPU of a no-op, µs", "of a sleep", "of a job of 1 ms", "50 ms: slots in use")
    return [Table("Jobs that wait, 500 at once", header, rows)]


def charts(results: Results) -> list[Chart]:
    """Rate and bound."""
    values = {}
    for name, rounds in results["figures"].items():
        values[f"{name}, bound"] = median(one["bound"] for one in rounds)
        values[f"{name}, measured"] = median(one["short"] for one in rounds)
    return [Bars("Jobs of 1 ms, 500 at once", "jobs/s", values)]
