"""Figures 1, 2 and 4: how many no-op jobs per second one worker drains, and what CPU they cost, beside the peers.

The contenders take turns, round by round, on the same server, and medians are compared: machines are noisy, and a ratio
from two different hours says nothing. All features of ours are on, because none can be switched off for speed: a scope
and a context for each job, recorded outcomes, heartbeats. The goals are judged on the defaults of ``PgQueuer.run``;
what larger batches give is measured beside them, because PgQueuer is given large batches too. So is what a scope or a
task for each job would cost: by default a scope that nobody has cancelled serves the next job.
"""

from __future__ import annotations

from ._children import LOOPS, MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, at_most, median, ratio
from .contenders._contender import OURS, drain, graphile_worker, ours, pgqueuer, with_own

TITLE = "Jobs per second, and CPU per job"
HOW = (
    "A queue of no-op jobs with 100 bytes of payload is drained by one worker process. Timed from the call that runs "
    "the worker to its return; every job must have been handled and its success recorded. CPU is that of the worker "
    "and of all processes of the server meanwhile."
)
QUICK = {"jobs": 20_000, "rounds": 1}
FULL = {"jobs": 200_000, "rounds": 5}

LARGE = {"batch_size": 500, "max_concurrency": 1000}
CONTENDERS = (
    *(ours(loop) for loop in LOOPS),
    ours("uvloop", ", 500 a claim, 1,000 at once", **LARGE),
    ours("trio", ", 500 a claim, 1,000 at once", **LARGE),
    with_own("scope", "uvloop"),
    with_own("scope", "trio"),
    with_own("task", "uvloop"),
    with_own("task", "trio"),
    pgqueuer(100),
    pgqueuer(500),
    pgqueuer(500, pool=4),
    pgqueuer(500, pool=4, autovac=True),
    graphile_worker(),
)


def measure(bench: Bench) -> Results:
    """Take turns."""
    found = bench.present(CONTENDERS)
    results: Results = {one.name: [] for one in found}
    for number in range(1, bench.size["rounds"] + 1):
        for one in found:
            try:
                drained = drain(one, bench.dsn, bench.size["jobs"])
            except MeasurementError as error:
                bench.lose(one.name, str(error))
                continue
            results[one.name].append(drained.as_dict())
            cpu = drained.worker_cpu_us + drained.server_cpu_us
            bench.say(f"round {number}: {one.name}: {drained.jobs_per_second:,.0f} jobs/s, {cpu:.0f} µs of CPU a job")
    return {
        "drained": {name: rounds for name, rounds in results.items() if rounds},
        "settings": {one.name: one.settings for one in found},
    }


def rates(results: Results) -> dict[str, float]:
    """Jobs per second, medians of the rounds."""
    return {name: median(one["jobs_per_second"] for one in rounds) for name, rounds in results["drained"].items()}


def cpu(results: Results) -> dict[str, float]:
    """CPU time per job of worker and server (in microseconds), medians of the rounds."""
    return {
        name: median(one["worker_cpu_us"] + one["server_cpu_us"] for one in rounds)
        for name, rounds in results["drained"].items()
    }


def judge(results: Results) -> list[Verdict]:
    """Figures 1, 2 and 4."""
    fast, costly = rates(results), cpu(results)
    peers = {name: rate for name, rate in fast.items() if name.startswith("PgQueuer")}
    best = max(peers, key=peers.__getitem__, default="")
    uvloop, trio, node = fast.get(f"{OURS} uvloop"), fast.get(f"{OURS} trio"), fast.get("graphile-worker")
    return [
        at_least(1, "drain on asyncio+uvloop, against PgQueuer", ratio(uvloop, fast.get(best)), 2.5),
        at_least(1, "drain on asyncio+uvloop, against graphile-worker", ratio(uvloop, node), 1.3),
        at_least(2, "drain on trio, against PgQueuer", ratio(trio, fast.get(best)), 2.0),
        at_most(
            4,
            "CPU per job, worker and server, asyncio+uvloop, against PgQueuer's least",
            ratio(costly.get(f"{OURS} uvloop"), min((costly[name] for name in peers), default=None)),
            0.5,
        ),
    ]


def tables(results: Results) -> list[Table]:
    """Every contender."""
    fast, costly = rates(results), cpu(results)
    rows = []
    for name, rounds in results["drained"].items():
        every = [one["jobs_per_second"] for one in rounds]
        worker = median(one["worker_cpu_us"] for one in rounds)
        memory = max(one["max_rss_mb"] for one in rounds)
        spread = f"{min(every):,.0f} … {max(every):,.0f}"
        figures = (f"{fast[name]:,.0f}", spread, f"{worker:.1f}", f"{costly[name] - worker:.1f}", f"{memory:.0f}")
        rows.append((name, *figures, results["settings"][name]))
    header = ("", "jobs/s", "lowest … highest", "worker µs/job", "server µs/job", "peak RSS, MB", "settings")
    return [Table("No-op jobs drained by one worker process", header, rows)]


def charts(results: Results) -> list[Chart]:
    """Rates and CPU."""
    return [
        Bars("Jobs drained by one worker process", "jobs/s", rates(results)),
        Bars("CPU per job, worker and server", "µs", cpu(results)),
    ]
