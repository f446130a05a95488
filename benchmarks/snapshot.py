"""Figure 8: what claims cost while somebody elsewhere holds an old snapshot: a report, a dump, a replica.

No vacuum can remove what was there at the time of the snapshot, and every queue leaves dead rows at the front of its
index, job by job. Every contender drains the same queue with and without a ``REPEATABLE READ`` transaction that is as
old as the queue; how its rate develops is the figure, ours the median of several runs. For ours the claim alone is
timed too, without a worker around it. A contender whose drain does not end within its time is judged by how far it
came.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import psycopg

from ._children import MeasurementError
from ._figure import Bench, Chart, Curves, Results, Table, Verdict, at_least, at_most, median, ratio
from ._filling import insert_queued, make_tables
from ._server import bench_database, settle
from .contenders._contender import OURS, Contender, graphile_worker, ours, pgqueuer
from .statements import WARM_UP, claim_and_finish

TITLE = "Under a held snapshot"
HOW = (
    "A queue is drained by one worker while a REPEATABLE READ transaction elsewhere holds a snapshot that is as old as "
    "the queue, and once more without it. The rates are those of each part of the queue."
)
QUICK = {"jobs": 40_000, "rounds": 1, "limit": 20, "peers": 0}
FULL = {"jobs": 500_000, "rounds": 5, "limit": 240, "peers": 1}

CONTENDERS = (ours("uvloop"),)
PEERS = (pgqueuer(100), graphile_worker())
PARTS = 20
#: The rate of one part, of half a second or less, moves by a tenth and more from part to part: quarters are compared.
QUARTER = PARTS // 4
BATCH = 100


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """A transaction elsewhere that keeps everything that is there now."""
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select count(*) from pg_class")
        yield


def measure(bench: Bench) -> Results:
    """The claim alone, then the workers."""
    claims = _time_claims(bench)
    bench.say(f"claims: {_first(claims):.2f} ms at first, {_last(claims):.2f} ms at last, for 100 jobs")
    rates: dict[str, list[list[float]]] = {}
    for one in bench.present(CONTENDERS * bench.size["rounds"] + (PEERS if bench.size["peers"] else ())):
        for held in (False, True):
            name = f"{one.name}, snapshot held" if held else one.name
            try:
                run = _drain(one, bench, held=held)
            except MeasurementError as error:
                bench.lose(name, str(error))
                continue
            rates.setdefault(name, []).append(run)
            bench.say(f"{name}: {run[0]:,.0f} jobs/s at first, {run[-1]:,.0f} at last")
    return {"claim_ms": claims, "rates": rates, "part": bench.size["jobs"] // PARTS}


def _time_claims(bench: Bench) -> list[float]:
    rounds = bench.size["jobs"] // BATCH - WARM_UP
    with bench_database(bench.dsn) as database:
        make_tables(database)
        with psycopg.connect(database, autocommit=True) as conn:
            insert_queued(conn, bench.size["jobs"])
        settle(database)
        with held_snapshot(database):
            times = anyio.run(partial(claim_and_finish, database, BATCH, rounds))
    return [round(claim * 1000, 3) for claim, _ in times]


def _drain(one: Contender, bench: Bench, *, held: bool) -> list[float]:
    """The rate of each part of the queue."""
    jobs = bench.size["jobs"]
    every = jobs // PARTS
    with bench_database(bench.dsn) as database:
        one.step("fill", database, jobs=jobs, chunk=10_000)
        settle(database)
        options = {"jobs": jobs, "every": every, "limit": bench.size["limit"]}
        if held:
            with held_snapshot(database):
                figures = one.step("drain", database, **options)
        else:
            figures = one.step("drain", database, **options)
    times = [figures["started"], *figures["marks"]]
    if len(times) < 3:
        raise MeasurementError(f"fewer than {2 * every} jobs were done within {bench.size['limit']} s")
    return [every / (end - start) for start, end in itertools.pairwise(times)]


def _first(values: list[float]) -> float:
    """Of a tenth of the queue at its start, the median."""
    return median(values[: max(1, len(values) // 10)])


def _last(values: list[float]) -> float:
    return median(values[-max(1, len(values) // 10) :])


def _kept(rates: list[float]) -> float:
    """The rate of the last quarter as a share of the first one's, without the part in which the worker starts."""
    return median(rates[-QUARTER:]) / median(rates[1 : 1 + QUARTER])


def _along(results: Results) -> dict[str, list[float]]:
    """The rate of each part of the queue, medians of the runs."""
    return {
        name: [median(part) for part in zip(*runs, strict=False)] for name, runs in results["rates"].items()
    }  # a run that did not end has fewer parts


def judge(results: Results) -> list[Verdict]:
    """The claim, and the worker's rate."""
    claims = results["claim_ms"]
    runs = results["rates"].get(f"{OURS} uvloop, snapshot held", [])
    jobs = results["part"] * PARTS
    return [
        at_most(8, f"cost of a claim after {jobs:,} jobs under a snapshot", ratio(_last(claims), _first(claims)), 1.2),
        at_least(
            8,
            f"rate of a worker over the last quarter of {jobs:,} jobs under a snapshot, against the first",
            median(_kept(rates) for rates in runs),
            round(1 / 1.2, 3),
        ),
    ]


def tables(results: Results) -> list[Table]:
    """Rates along the queue."""
    part = results["part"]
    rows = []
    for name, rates in _along(results).items():
        middle = rates[len(rates) // 2]
        rows.append((name, f"{rates[1]:,.0f}", f"{middle:,.0f}", f"{rates[-1]:,.0f}", f"{len(rates) * part:,}"))
    claims = results["claim_ms"]
    cost = [("hinted claim of 100 jobs", f"{_first(claims):.2f}", f"{_last(claims):.2f}")]
    return [
        Table(
            "Jobs per second along the queue", ("", "at the start", "in the middle", "at the end", "jobs done"), rows
        ),
        Table("The claim alone, under the snapshot (ms)", ("", "first tenth", "last tenth"), cost),
    ]


def charts(results: Results) -> list[Chart]:
    """Rates along the queue."""
    part = results["part"]
    curves = {
        name: [((number + 1) * part / 1000, rate) for number, rate in enumerate(rates)][1:]
        for name, rates in _along(results).items()
    }
    return [Curves("One worker, with and without a held snapshot", "thousand jobs done", "jobs/s", curves)]
