"""Figure 13, first half: bytes of WAL per job, from its insert to its record.

The difference of ``pg_current_wal_lsn()`` around the bulk enqueue and around the worker's run, each right after a
checkpoint, with full page images as PostgreSQL writes them by default.
"""

from __future__ import annotations

from ._children import MeasurementError
from ._figure import Bars, Bench, Chart, Results, Table, Verdict, at_most, median
from .contenders._contender import OURS, drain, graphile_worker, ours, pgqueuer

TITLE = "WAL per job"
HOW = "Bytes of write-ahead log per job with 100 bytes of payload, from the enqueue in bulk to the recorded outcome."
QUICK = {"jobs": 20_000, "rounds": 1, "peers": 0}
FULL = {"jobs": 200_000, "rounds": 3, "peers": 1}

CONTENDERS = (ours("uvloop"),)
PEERS = (pgqueuer(500), graphile_worker())
GOAL = 1100.0


def measure(bench: Bench) -> Results:
    """Take turns."""
    written: dict[str, list[float]] = {}
    found = bench.present(CONTENDERS + (PEERS if bench.size["peers"] else ()))
    for _ in range(bench.size["rounds"]):
        for one in found:
            try:
                drained = drain(one, bench.dsn, bench.size["jobs"])
            except MeasurementError as error:
                bench.lose(one.name, str(error))
                continue
            written.setdefault(one.name, []).append(drained.wal_bytes)
            bench.say(f"{one.name}: {drained.wal_bytes:,.0f} bytes a job")
    return {"wal_bytes": written}


def _medians(results: Results) -> dict[str, float]:
    return {name: median(values) for name, values in results["wal_bytes"].items()}


def judge(results: Results) -> list[Verdict]:
    """Ours."""
    value = _medians(results).get(f"{OURS} uvloop")
    return [at_most(13, "WAL per job, insert to record", value, GOAL, unit="bytes", digits=0)]


def tables(results: Results) -> list[Table]:
    """Every contender."""
    rows = [(name, f"{value:,.0f}") for name, value in _medians(results).items()]
    return [Table("WAL per job, insert to record", ("", "bytes"), rows)]


def charts(results: Results) -> list[Chart]:
    """Every contender."""
    return [Bars("WAL per job, from insert to record", "bytes", _medians(results), goal=GOAL)]
