"""How many no-op jobs per second one worker drains, 100,000 of them with exactly 100,000 recorded outcomes.

On asyncio, uvloop and trio, beside PgQueuer on the same server in the same run. The contenders take turns, round by
round, and the medians are compared: machines are noisy, and a ratio from two different hours says nothing. PgQueuer
has what it runs best with: asyncpg, uvloop, and batches of 100 and 500.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ._children import LOOPS, MeasurementError, measure_module
from ._peer import measure_peer, peer_python
from ._report import print_table, write_json
from ._server import bench_server, describe

PEER_LOOPS = ("asyncio", "uvloop")
PEER_BATCHES = (100, 500)
PEER_PACKAGES = ("pgqueuer", "asyncpg")
#: As it comes, and with the large batches that PgQueuer is given. PgQueuer has no limit of concurrency by default.
OUR_OPTIONS = {"": (), ", batch 500": ("--batch-size", "500", "--max-concurrency", "1000")}

Contender = Callable[[], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and tell by the exit status whether every contender gave figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drain", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--payload", type=int, default=100, help="bytes per job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--dsn", help="a server of your own instead of the embedded one")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    args = parser.parse_args(arguments)
    with bench_server(args.dsn) as dsn:
        facts = describe(dsn)
        print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
        contenders, missing = _contenders(args, dsn)
        results = _run_rounds(contenders, args.rounds, missing)
    _print(results, missing)
    write_json(args.json, {"facts": facts, "results": results, "missing": missing, "jobs": args.jobs})
    return 1 if missing else 0


def _contenders(args: argparse.Namespace, dsn: str) -> tuple[dict[str, Contender], dict[str, str]]:
    size = (str(args.jobs), str(args.payload))
    contenders: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for loop in args.loops:
        for title, options in OUR_OPTIONS.items():
            contenders[f"pgq_anyio {loop}{title}"] = partial(
                measure_module, "_drain_worker", dsn, loop, *size, *options
            )
    if args.no_peer:
        return contenders, missing
    try:
        python = peer_python()
    except MeasurementError as error:
        missing["PgQueuer"] = str(error)
        return contenders, missing
    for loop in PEER_LOOPS:
        for batch in PEER_BATCHES:
            peer_arguments = (loop, *size, str(batch))
            contenders[f"PgQueuer {loop}, batch {batch}"] = partial(measure_peer, python, dsn, peer_arguments)
    return contenders, missing


def _run_rounds(
    contenders: dict[str, Contender], rounds: int, missing: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, contender in contenders.items():
            try:
                figures = contender()
            except MeasurementError as error:
                missing[name] = str(error)
                print(f"round {number}: {name}: no figures: {error}", flush=True)
                continue
            results[name].append(figures)
            print(f"round {number}: {name}: {figures['jobs_per_second']:,.0f} jobs/s", flush=True)
    return results


def _print(results: dict[str, list[dict[str, Any]]], missing: dict[str, str]) -> None:
    medians = {
        name: statistics.median(one["jobs_per_second"] for one in figures)
        for name, figures in results.items()
        if figures
    }
    best = max((rate for name, rate in medians.items() if name.startswith("PgQueuer")), default=None)
    rows = []
    for name, rate in medians.items():
        figures = results[name]
        rows.append(
            (
                name,
                f"{rate:,.0f}",
                f"{min(one['jobs_per_second'] for one in figures):,.0f}",
                f"{max(one['jobs_per_second'] for one in figures):,.0f}",
                f"{statistics.median(one['cpu_us_per_job'] for one in figures):.1f}",
                "-" if best is None else f"{rate / best:.2f}",
            )
        )
    print_table(
        "No-op jobs drained by one worker",
        ("", "jobs/s (median)", "lowest", "highest", "CPU µs/job", "x best PgQueuer"),
        rows,
    )
    versions = {f"{p} {one[p]}" for figures in results.values() for one in figures for p in PEER_PACKAGES if p in one}
    print(", ".join(sorted(versions)))
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
