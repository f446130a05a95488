"""Figure 15: how soon a worker does what it is asked to when it is asked for much at once."""

from __future__ import annotations

from typing import Final

from ._children import LOOPS
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_most, median

TITLE = "Much at once"
HOW = (
    "Running jobs that are all cancelled by one call: until the last handler is interrupted. Schedules that are all "
    "due in the same second: until the last has started. Calls of a handler in a warm process, one after the other. "
    "And jobs of handlers in warm processes, from the queue to their records: the time of all through their number."
)
QUICK = {"running": 1000, "schedules": 200, "calls": 200, "rounds": 1, "loops": 1}
FULL = {"running": 5000, "schedules": 1000, "calls": 2000, "rounds": 3, "loops": 3}

#: By what is measured: what it is called, and the goal (in ms).
GOALS: Final = {
    "cancel": ("cancel of {running:,} running jobs, until the last handler is interrupted", 2000.0),
    "schedules": ("{schedules:,} schedules due in one second, until the last has started", 1000.0),
    "calls": ("a call of a warm process", 1.0),
    "jobs": ("a job in a warm process, from the queue to its record", 1.0),
}


def measure(bench: Bench) -> Results:
    """Take turns."""
    took: dict[str, dict[str, list[float]]] = {what: {} for what in GOALS}
    size = {"cancel": bench.size["running"], "schedules": bench.size["schedules"], "calls": bench.size["calls"]}
    size["jobs"] = size["calls"]
    for number in range(1, bench.size["rounds"] + 1):
        for loop in LOOPS[: bench.size["loops"]]:
            for what, values in took.items():
                name = f"{what}, {loop}"
                measured = what, bench.dsn, loop, str(size[what])
                if (figures := bench.measure_module(name, "_promptness_worker", *measured)) is None:
                    continue
                values.setdefault(loop, []).append(figures["ms"])
                bench.say(f"round {number}: {name}: {figures['ms']:,.2f} ms")
    return {"took": took, "size": dict(bench.size)}


def judge(results: Results) -> list[Verdict]:
    """On every loop."""
    return [
        at_most(
            15,
            f"{text.format(**results['size'])}, {loop}",
            median(results["took"].get(what, {}).get(loop, [])),
            goal,
            unit="ms",
        )
        for what, (text, goal) in GOALS.items()
        for loop in LOOPS
    ]


def tables(results: Results) -> list[Table]:
    """Every loop."""
    rows = [
        (text.format(**results["size"]), *(_shown(results["took"].get(what, {}).get(loop, [])) for loop in LOOPS))
        for what, (text, _) in GOALS.items()
    ]
    return [Table("Much at once (ms)", ("", *LOOPS), rows)]


def _shown(values: list[float]) -> str:
    return f"{median(values):,.2f}" if values else "-"


def charts(results: Results) -> list[Chart]:
    """What takes long enough to be seen."""
    return [
        Bars(GOALS[what][0].format(**results["size"]), "ms", {loop: median(v) for loop, v in by_loop.items()})
        for what, by_loop in results["took"].items()
        if what not in ("calls", "jobs")
    ]
