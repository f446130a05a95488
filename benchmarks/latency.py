"""Figure 6: from the call of ``enqueue`` to the first line of the handler, on a worker that has nothing else to do.

One job at a time, with a pause between that leaves the worker idle. The enqueue's own commit, synced to disk, is part
of the figure. Producer and worker share a process and its clock, and have a connection each; the peers the same. What
the disk and the server take for the least that any queue of this kind does is measured beside them.
"""

from __future__ import annotations

import attrs

from ._children import LOOPS, MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_most, median, percentile
from ._server import bench_database
from .contenders._contender import OURS, graphile_worker, ours, pgqueuer

TITLE = "From enqueue to handler"
HOW = (
    "On an idle worker, from the call of enqueue to the first line of the handler, the commit included: one job at a "
    "time, 20 ms apart, producer and worker in one process. PostgreSQL alone: an INSERT with a NOTIFY, and as soon as "
    "it is heard, a DELETE of the row, without a queue and without an event loop."
)
QUICK = {"jobs": 50, "rounds": 1}
FULL = {"jobs": 1000, "rounds": 3}

BARE = attrs.evolve(ours("asyncio"), name="PostgreSQL alone")
CONTENDERS = (*(ours(loop) for loop in LOOPS), pgqueuer(100), graphile_worker(), BARE)
PERCENTS = (50, 90, 99)


def measure(bench: Bench) -> Results:
    """Take turns."""
    found = bench.present(CONTENDERS)
    rounds: dict[str, list[dict[str, float]]] = {}
    for number in range(1, bench.size["rounds"] + 1):
        for one in found:
            with bench_database(bench.dsn) as database:
                step = "bare" if one is BARE else "latency"
                try:
                    delays = one.step(step, database, jobs=bench.size["jobs"])["delays_ms"]
                except MeasurementError as error:
                    bench.lose(one.name, str(error))
                    continue
            figures = {f"p{percent}": percentile(delays, percent) for percent in PERCENTS} | {"worst": max(delays)}
            rounds.setdefault(one.name, []).append(figures)
            bench.say(f"round {number}: {one.name}: p50 {figures['p50']:.2f} ms, p99 {figures['p99']:.2f} ms")
    return {"delays_ms": rounds}


def _medians(results: Results, key: str) -> dict[str, float]:
    return {name: median(one[key] for one in rounds) for name, rounds in results["delays_ms"].items()}


def judge(results: Results) -> list[Verdict]:
    """Half and 99 of 100, on every loop."""
    p50, p99 = _medians(results, "p50"), _medians(results, "p99")
    verdicts = []
    for loop in LOOPS:
        name = f"{OURS} {loop}"
        verdicts += [
            at_most(6, f"enqueue to handler, p50, {loop}", p50.get(name), 2.0, unit="ms"),
            at_most(6, f"enqueue to handler, p99, {loop}", p99.get(name), 4.5, unit="ms"),
        ]
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every contender."""
    keys = (*(f"p{percent}" for percent in PERCENTS), "worst")
    rows = [
        (name, *(f"{median(one[key] for one in rounds):.2f}" for key in keys))
        for name, rounds in results["delays_ms"].items()
    ]
    return [Table("Enqueue to handler start on an idle worker (ms, medians of the rounds)", ("", *keys), rows)]


def charts(results: Results) -> list[Chart]:
    """Two percentiles."""
    return [
        Bars("Enqueue to handler start, half of all jobs", "ms", _medians(results, "p50")),
        Bars("Enqueue to handler start, 99 of 100 jobs", "ms", _medians(results, "p99")),
    ]
