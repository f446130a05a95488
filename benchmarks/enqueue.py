"""Figure 5: jobs enqueued per second in bulk, and what a single enqueue costs beside a bare INSERT.

In bulk every contender has calls of 1,000 and of 10,000 jobs and is judged by the better. One by one, our call takes
turns with an INSERT of the same row on a connection of the same kind, both prepared and both committed to disk: the
difference is what checking the arguments, waking a sleeping worker and the larger statement cost.
"""

from __future__ import annotations

from ._children import MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, at_most, median, ratio
from ._server import bench_database, settle
from .contenders._contender import OURS, graphile_worker, ours, pgqueuer

TITLE = "Enqueueing"
HOW = (
    "In bulk: calls of 1,000 and of 10,000 jobs with 100 bytes of payload, from one producer, each call committed. One "
    "by one: in turns with a bare INSERT of the same row on a connection of the same kind."
)
QUICK = {"jobs": 30_000, "single": 300, "rounds": 1}
FULL = {"jobs": 500_000, "single": 5000, "rounds": 5}

CHUNKS = (1000, 10_000)
PRODUCERS = ("sync", "uvloop", "trio")
CONTENDERS = (*(ours(loop) for loop in PRODUCERS), pgqueuer(100), graphile_worker())


def measure(bench: Bench) -> Results:
    """Take turns."""
    found = bench.present(CONTENDERS)
    rates: dict[str, dict[str, list[float]]] = {}
    single: dict[str, list[dict[str, float]]] = {}
    for number in range(1, bench.size["rounds"] + 1):
        for one in found:
            for chunk in CHUNKS:
                with bench_database(bench.dsn) as database:
                    try:
                        one.step("fill", database, jobs=0, chunk=1)
                        settle(database)
                        seconds = one.step("fill", database, jobs=bench.size["jobs"], chunk=chunk)["seconds"]
                    except MeasurementError as error:
                        bench.lose(one.name, str(error))
                        continue
                rate = bench.size["jobs"] / seconds
                rates.setdefault(one.name, {}).setdefault(str(chunk), []).append(rate)
                bench.say(f"round {number}: {one.name}: {rate:,.0f} jobs/s in calls of {chunk:,}")
        for loop in PRODUCERS:
            with bench_database(bench.dsn) as database:
                times = ours(loop).step("single", database, jobs=bench.size["single"])
            figures = {"enqueue": median(times["enqueue_us"]), "insert": median(times["insert_us"])}
            single.setdefault(f"{OURS} {loop}", []).append(figures)
            told = ", ".join(f"{what} {microseconds:.0f} µs" for what, microseconds in figures.items())
            bench.say(f"round {number}: {OURS} {loop}: {told}")
    return {"rates": rates, "single": single}


def _best(results: Results) -> dict[str, float]:
    return {name: max(median(rates) for rates in sizes.values()) for name, sizes in results["rates"].items()}


def _single(results: Results, name: str) -> float | None:
    """How many times an INSERT a single enqueue costs."""
    rounds = results["single"].get(name, [])
    return median(one["enqueue"] / one["insert"] for one in rounds) if rounds else None


def judge(results: Results) -> list[Verdict]:
    """Bulk by the producer on uvloop, single by every producer."""
    best = _best(results)
    rate = best.get(f"{OURS} uvloop")
    return [
        at_least(5, "bulk enqueue, uvloop", rate, 150_000, unit="jobs/s", digits=0),
        at_least(5, "bulk enqueue, against graphile-worker", ratio(rate, best.get("graphile-worker")), 1.5),
        *(
            at_most(5, f"single enqueue, against a bare INSERT, {loop}", _single(results, f"{OURS} {loop}"), 1.15)
            for loop in PRODUCERS
        ),
    ]


def tables(results: Results) -> list[Table]:
    """Every producer."""
    bulk = [
        (name, *(f"{median(sizes.get(str(chunk), [])):,.0f}" for chunk in CHUNKS))
        for name, sizes in results["rates"].items()
    ]
    single = [
        (name, f"{median(one['enqueue'] for one in rounds):.0f}", f"{median(one['insert'] for one in rounds):.0f}")
        for name, rounds in results["single"].items()
    ]
    return [
        Table("Jobs enqueued per second", ("", *(f"calls of {chunk:,}" for chunk in CHUNKS)), bulk),
        Table("One job in a call (µs)", ("", "enqueue", "bare INSERT"), single),
    ]


def charts(results: Results) -> list[Chart]:
    """Bulk."""
    return [Bars("Jobs enqueued in bulk by one producer", "jobs/s", _best(results), goal=150_000)]
