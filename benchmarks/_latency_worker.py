"""One worker, one job at a time. A child process of ``latency``."""

from __future__ import annotations

import argparse
import json
import time

import anyio
import psycopg

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._store.migrations import migrate_sync, uninstall_sync

from ._children import LOOPS, loop_options

SCHEMA = "bench_latency"
WARM_UP = 50
#: Between two jobs (in seconds): longer than a claim takes, so that the worker waits for a notification again.
PAUSE = 0.02


async def measure(dsn: str, jobs: int) -> list[float]:
    """Delays in seconds."""
    app = PgQueuer(dsn, schema=SCHEMA)
    delays: list[float] = []
    started_at = 0.0
    started = anyio.Event()

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal started_at
        started_at = time.perf_counter()
        started.set()

    async with PsycopgDriver(dsn) as driver, anyio.create_task_group() as tasks:
        await tasks.start(app.run)
        queries = Queries(driver, schema=SCHEMA)
        for number in range(WARM_UP + jobs):
            await anyio.sleep(PAUSE)
            started = anyio.Event()
            asked_at = time.perf_counter()
            await queries.enqueue("noop", b"x" * 100)
            with anyio.fail_after(60):
                await started.wait()
            if number >= WARM_UP:
                delays.append(started_at - asked_at)
        app.stop()
    return delays


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("jobs", type=int)
    args = parser.parse_args()
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        uninstall_sync(conn, SCHEMA)
        migrate_sync(conn, SCHEMA)
    delays = sorted(anyio.run(measure, args.dsn, args.jobs, **loop_options(args.loop)))
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        uninstall_sync(conn, SCHEMA)
    figures = {"p50_ms": delays[len(delays) // 2], "p99_ms": delays[len(delays) * 99 // 100], "worst_ms": delays[-1]}
    print(json.dumps({name: value * 1000 for name, value in figures.items()}))


if __name__ == "__main__":
    main()
