"""What PostgreSQL and the driver cost without a worker around them: claims and completions in a tight loop."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import psycopg

from pgq_anyio import PsycopgDriver, SyncQueries
from pgq_anyio._db import Connection
from pgq_anyio._db.line import Line
from pgq_anyio._hints import Hints
from pgq_anyio._models import Held
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._services.completer import COMPLETION_SETTINGS
from pgq_anyio._store._sql import DEFAULT_SCHEMA, Store
from pgq_anyio._store.migrations import migrate_sync, uninstall_sync
from pgq_anyio._store.queued import claim_hinted, claim_sweep
from pgq_anyio._store.running import finish_jobs
from pgq_anyio._store.worker import register_worker

from ._children import LOOPS, loop_options
from ._report import print_table, write_json
from ._server import bench_server, settle

SCHEMA = "bench_statements"
WORKER_ID = 1
WARM_UP = 3


async def claim_and_finish(dsn: str, size: int, rounds: int, schema: str = DEFAULT_SCHEMA) -> list[tuple[float, float]]:
    """Seconds of each claim and of each completion, for batches of ``size``. The jobs are there already."""
    store, hints = Store(schema), Hints(("noop",))
    times: list[tuple[float, float]] = []
    async with PsycopgDriver(dsn) as driver:
        dispatch = Line(driver, "dispatch", dict(DISPATCH_SETTINGS))
        completion = Line(driver, "completion", dict(COMPLETION_SETTINGS))
        claiming, finishing = await dispatch.connection(), await completion.connection()
        await register_worker(
            claiming, store, worker_id=WORKER_ID, name="bench", entrypoints=("noop",), max_crashes=[5], lease=900.0
        )
        for number in range(WARM_UP + rounds):
            started = time.perf_counter()
            held = await _claim(claiming, store, hints, number + 1, size)
            claimed = time.perf_counter()
            assert len(await finish_jobs(finishing, store, held)) == size
            if number >= WARM_UP:
                times.append((claimed - started, time.perf_counter() - claimed))
        dispatch.close()
        completion.close()
    return times


async def _claim(conn: Connection, store: Store, hints: Hints, number: int, size: int) -> list[Held]:
    lanes = hints.lanes(0.0) if number > 1 else None  # a clock that stands still: the first claim sweeps, no other does
    options = {"worker_id": WORKER_ID, "claim_no": number, "limit": size, "reach": size}
    if lanes is None:
        claim = await claim_sweep(conn, store, ["noop"], **options)
        hints.swept(0.0, 0.0)
    else:
        claim = await claim_hinted(conn, store, lanes, **options)
    hints.learn(claim.jobs)
    return [Held(job, WORKER_ID, number) for job, _ in claim.jobs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure batches of several sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statements", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="claims of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=(100, 300, 1000))
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--dsn", help="a server of your own instead of the embedded one")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    args = parser.parse_args(arguments)
    results: dict[str, dict[str, float]] = {}
    with bench_server(args.dsn) as dsn:
        for size in args.sizes:
            with psycopg.connect(dsn, autocommit=True) as conn:
                uninstall_sync(conn, SCHEMA)
                migrate_sync(conn, SCHEMA)
                with SyncQueries(conn, schema=SCHEMA) as queries:
                    for _ in range(WARM_UP + args.rounds):
                        queries.enqueue("noop", [bytes(100)] * size)
            settle(dsn)
            times = anyio.run(claim_and_finish, dsn, size, args.rounds, SCHEMA, **loop_options(args.loop))
            claims, finishes = zip(*times, strict=True)
            scale = 1000 * 100 / size  # milliseconds per 100 jobs
            results[str(size)] = {
                "claim": statistics.median(claims) * scale,
                "finish": statistics.median(finishes) * scale,
            }
        with psycopg.connect(dsn, autocommit=True) as conn:
            uninstall_sync(conn, SCHEMA)
    rows = [(size, f"{one['claim']:.2f}", f"{one['finish']:.2f}") for size, one in results.items()]
    print_table(
        "Statements in a loop, rows read and written by Python (ms per 100 jobs)", ("batch", "claim", "finish"), rows
    )
    write_json(args.json, {"loop": args.loop, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
