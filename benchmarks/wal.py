"""Figure 13, first half: bytes of WAL per job, from its insert to its record.

The difference of ``pg_current_wal_lsn()`` around the bulk enqueue and around the worker's run. The figure is that of
jobs that are done within one cycle of checkpoints, as those of a queue that is not behind. A checkpoint between makes
PostgreSQL write whole pages of the queue once more; that is measured beside it.
"""

from __future__ import annotations

from ._children import MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_most, median
from .contenders._contender import OURS, drain, graphile_worker, ours, pgqueuer

TITLE = "WAL per job"
HOW = (
    "Bytes of write-ahead log per job with 100 bytes of payload, from the enqueue in bulk to the recorded record: once "
    "within one cycle of checkpoints, and once with a checkpoint between enqueue and worker."
)
QUICK = {"jobs": 20_000, "rounds": 1, "peers": 0}
FULL = {"jobs": 200_000, "rounds": 3, "peers": 1}

CONTENDERS = (ours("uvloop"),)
PEERS = (pgqueuer(500), graphile_worker())
GOAL = 1100.0
WITHIN, BETWEEN = "within one cycle of checkpoints", "with a checkpoint between"


def measure(bench: Bench) -> Results:
    """Take turns."""
    written: dict[str, dict[str, list[float]]] = {}
    found = bench.present(CONTENDERS + (PEERS if bench.size["peers"] else ()))
    for _ in range(bench.size["rounds"]):
        for one in found:
            for which in (WITHIN, BETWEEN):
                try:
                    drained = drain(one, bench.dsn, bench.size["jobs"], checkpoint=which == BETWEEN)
                except MeasurementError as error:
                    bench.lose(one.name, str(error))
                    continue
                written.setdefault(one.name, {}).setdefault(which, []).append(drained.wal_bytes)
                bench.say(f"{one.name}: {drained.wal_bytes:,.0f} bytes a job, {which}")
    return {"wal_bytes": written}


def _medians(results: Results) -> dict[str, float]:
    return {name: median(values[WITHIN]) for name, values in results["wal_bytes"].items()}


def judge(results: Results) -> list[Verdict]:
    """Ours."""
    value = _medians(results).get(f"{OURS} uvloop")
    return [
        at_most(
            13, "WAL per job, insert to record, within one cycle of checkpoints", value, GOAL, unit="bytes", digits=0
        )
    ]


def tables(results: Results) -> list[Table]:
    """Every contender."""
    rows = [
        (name, *(f"{median(values[which]):,.0f}" for which in (WITHIN, BETWEEN)))
        for name, values in results["wal_bytes"].items()
    ]
    return [Table("WAL per job, insert to record (bytes)", ("", WITHIN, BETWEEN), rows)]


def charts(results: Results) -> list[Chart]:
    """Every contender."""
    return [Bars("WAL per job, from insert to record", "bytes", _medians(results), goal=GOAL)]
