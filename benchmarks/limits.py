"""What limits cost: no-op jobs per second under a limit of concurrency, and the CPU of a full name with a backlog.

The first figure is to be 3,000 or more for one worker with a limit of 50, each claim waited for until it is on disk.
The second compares a full limit with 100,000 jobs behind it to one with nothing behind it: the difference is to be less
than 1 % of a CPU, in the worker and in the server.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._children import LOOPS, measure_module
from ._report import print_table, write_json
from ._server import bench_server, describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--limits", type=int, nargs="+", default=[1, 50, 1000])
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--dsn", help="a server of your own, on this machine, instead of the embedded one")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    args = parser.parse_args(arguments)
    with bench_server(args.dsn) as dsn:
        facts = describe(dsn)
        print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        drained = _drain(args, dsn)
        full = _full(args, dsn)
    write_json(args.json, {"facts": facts, "drained": drained, "full": full})
    return 0


def _drain(args: argparse.Namespace, dsn: str) -> dict[str, list[float]]:
    drained: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for limit in args.limits:
            for loop in args.loops:
                jobs = str(args.jobs if limit > 1 else args.jobs // 20)
                figures = measure_module("_limits_worker", "drain", dsn, loop, jobs, str(limit))
                drained.setdefault(f"limit {limit}, {loop}", []).append(figures["jobs_per_second"])
    rows = [(name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}") for name, rates in drained.items()]
    print_table("No-op jobs of a limited name, drained by one worker", ("", "jobs/s (median)", "lowest"), rows)
    return drained


def _full(args: argparse.Namespace, dsn: str) -> dict[str, dict[str, Any]]:
    full: dict[str, dict[str, Any]] = {}
    for loop in args.loops:
        for backlog in (0, args.backlog):
            jobs = str(50 + backlog)
            full[f"{loop}, {backlog:,} queued"] = measure_module("_limits_worker", "full", dsn, loop, jobs, "50")
    rows = [(n, f"{f['worker_cpu_percent']:.2f}", f"{f['server_cpu_percent']:.2f}") for n, f in full.items()]
    print_table("A full name (limit 50)", ("", "worker, % of a CPU", "server, % of a CPU"), rows)
    return full


if __name__ == "__main__":
    sys.exit(main())
