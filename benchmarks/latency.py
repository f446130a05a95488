"""From the call of ``enqueue`` to the first line of the handler, on a worker that has nothing else to do.

One job at a time, with a pause between that leaves the worker idle. The enqueue's own commit, synced to disk, is part
of the figure. Producer and worker share a process and its clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._children import LOOPS, MeasurementError, measure_module
from ._report import print_table, write_json
from ._server import bench_server, describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every loop and print percentiles; 1 if one gave no figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--dsn", help="a server of your own instead of the embedded one")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    args = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Any]]] = {loop: [] for loop in args.loops}
    missing: dict[str, str] = {}
    with bench_server(args.dsn) as dsn:
        facts = describe(dsn)
        for _ in range(args.rounds):
            for loop in args.loops:
                try:
                    results[loop].append(measure_module("_latency_worker", dsn, loop, str(args.jobs)))
                except MeasurementError as error:
                    missing[loop] = str(error)
    rows = [
        (loop, *(f"{statistics.median(one[key] for one in rounds):.2f}" for key in ("p50_ms", "p99_ms", "worst_ms")))
        for loop, rounds in results.items()
        if rounds
    ]
    print_table("Enqueue to handler start, idle worker (ms, medians of rounds)", ("", "p50", "p99", "worst"), rows)
    for loop, reason in missing.items():
        print(f"missing: {loop}: {reason}")
    write_json(args.json, {"facts": facts, "results": results, "missing": missing})
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
