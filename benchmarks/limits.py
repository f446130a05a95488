"""Figure 14: what limits cost: no-op jobs per second under a limit or a rate, and the CPU of a full name.

The second compares a full limit with many jobs behind it to one with nothing behind it, in the worker and in the
server's processes that serve it. Each claim of a limited name is waited for until it is on disk.
"""

from __future__ import annotations

from typing import Final

from ._children import LOOPS
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_least, at_most, median

TITLE = "Limits"
HOW = (
    "No-op jobs of a name with a `concurrency_limit`, or with a rate that it never reaches, drained by one worker. And "
    "a name whose 50 slots are taken, with and without jobs that wait behind them: the CPU of the worker and of its "
    "sessions on the server."
)
QUICK = {"jobs": 4_000, "backlog": 0, "seconds": 0, "rounds": 1, "loops": 1}
FULL = {"jobs": 30_000, "backlog": 100_000, "seconds": 30, "rounds": 3, "loops": 3}

LIMITS: Final = (1, 50, 1000)
#: In place of a limit of concurrency: a rate.
RATED: Final = 0
#: The limit that the goals are about.
LIMIT: Final = 50
#: A limit of one takes so much longer for each job.
SERIAL_SHARE: Final = 20


def measure(bench: Bench) -> Results:
    """The limits in turns, then the full name."""
    drained: dict[str, dict[str, list[float]]] = {}
    for number in range(1, bench.size["rounds"] + 1):
        for loop in LOOPS[: bench.size["loops"]]:
            for limit in (*LIMITS, RATED):
                jobs = bench.size["jobs"] // (SERIAL_SHARE if limit == 1 else 1)
                name = f"{_named(limit)}, {loop}"
                measured = "drain", bench.dsn, loop, str(jobs), str(limit)
                if (figures := bench.measure_module(name, "_limits_worker", *measured)) is None:
                    continue
                drained.setdefault(loop, {}).setdefault(str(limit), []).append(figures["jobs_per_second"])
                bench.say(f"round {number}: {name}: {figures['jobs_per_second']:,.0f} jobs/s")
    return {"drained": drained, "full": _measure_full(bench)}


def _named(limit: int) -> str:
    return f"limit {limit}" if limit else "a rate"


def _measure_full(bench: Bench) -> dict[str, dict[str, dict[str, float]]]:
    """In turns, as the noise of the machine is larger than what is measured; the median of each."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    if not bench.size["backlog"]:
        return {}
    seconds = f"--seconds={bench.size['seconds']}"
    for number in range(1, bench.size["rounds"] + 1):
        for loop in LOOPS:
            for behind in (0, bench.size["backlog"]):
                name = f"full, {behind:,} behind, {loop}"
                measured = "full", bench.dsn, loop, str(LIMIT + behind), str(LIMIT), seconds
                if (figures := bench.measure_module(name, "_limits_worker", *measured)) is None:
                    continue
                found.setdefault(loop, {}).setdefault(str(behind), []).append(figures)
                bench.say(f"round {number}: {name}: {_describe(figures)}")
    return {
        loop: {
            behind: {key: median([one[key] for one in rounds]) or 0.0 for key in rounds[0]}
            for behind, rounds in by.items()
        }
        for loop, by in found.items()
    }


def _describe(figures: dict[str, float]) -> str:
    return f"worker {figures['worker_cpu_percent']:.2f} %, server {figures['server_cpu_percent']:.2f} %"


def judge(results: Results) -> list[Verdict]:
    """The rate, and what the jobs behind add."""
    verdicts = []
    for loop in LOOPS:
        for limit, what in (
            (LIMIT, f"no-op jobs under a limit of {LIMIT}"),
            (RATED, "no-op jobs of a name with a rate"),
        ):
            rates = results["drained"].get(loop, {}).get(str(limit), [])
            verdicts.append(at_least(14, f"{what}, {loop}", median(rates), 3000, unit="jobs/s", digits=0))
    for loop in LOOPS:
        full = results["full"].get(loop, {})
        for who in ("worker", "server"):
            added = None
            if len(full) == 2:
                bare, behind = (one[f"{who}_cpu_percent"] for one in full.values())
                added = behind - bare
            what = f"what jobs behind a full limit add to the {who}, {loop}"
            verdicts.append(at_most(14, what, added, 1.0, unit="% of a core"))
    return verdicts


def tables(results: Results) -> list[Table]:
    """Every limit, and the full name."""
    drained = [
        (f"{_named(int(limit))}, {loop}", f"{median(rates):,.0f}", f"{min(rates):,.0f} … {max(rates):,.0f}")
        for loop, by_limit in results["drained"].items()
        for limit, rates in by_limit.items()
    ]
    full = [
        (f"{loop}, {int(behind):,} behind", f"{one['worker_cpu_percent']:.2f}", f"{one['server_cpu_percent']:.2f}")
        for loop, by_behind in results["full"].items()
        for behind, one in by_behind.items()
    ]
    found = [Table("No-op jobs of a limited name, drained by one worker", ("", "jobs/s", "lowest … highest"), drained)]
    if full:
        found.append(Table(f"A full limit of {LIMIT}", ("", "worker, % of a core", "server, % of a core"), full))
    return found


def charts(results: Results) -> list[Chart]:
    """The rates under the limit of the goal."""
    rates = {loop: median(by_limit.get(str(LIMIT), [])) for loop, by_limit in results["drained"].items()}
    return [Bars(f"No-op jobs under a limit of {LIMIT}", "jobs/s", rates, goal=3000)]
