"""One measurement of limits: a child process of ``limits``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import anyio
import psycopg

from pgq_anyio import Job, PgQueuer, SyncQueries

from ._children import LOOPS, loop_options
from ._filling import make_tables
from ._server import bench_database, settle

CHUNK = 10_000
#: Starts in a second.
RATE = 100_000.0
#: How long a worker that falls asleep looks for what it may have missed (in seconds).
FALLING_ASLEEP = 3.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("drain", "full"))
    parser.add_argument("dsn")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("jobs", type=int)
    parser.add_argument("limit", type=int, help="of concurrency; 0 for a rate instead")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    with bench_database(args.dsn) as args.dsn:
        make_tables(args.dsn)
        with SyncQueries(args.dsn) as queries:
            for start in range(0, args.jobs, CHUNK):
                queries.enqueue("limited", [None] * min(CHUNK, args.jobs - start))
        settle(args.dsn)
        figures = _drain(args) if args.what == "drain" else _full(args)
    print(json.dumps(figures))


def _drain(args: argparse.Namespace) -> dict[str, Any]:
    """Drain no-op jobs."""
    app = PgQueuer(args.dsn)
    handled = running = highest = 0

    # A rate that is never reached costs what any rate costs.
    limits: dict[str, Any] = {"concurrency_limit": args.limit} if args.limit else {"requests_per_second": RATE}

    @app.entrypoint("limited", **limits)
    async def limited(job: Job) -> None:
        nonlocal handled, running, highest
        running += 1
        highest = max(highest, running)
        handled += 1
        running -= 1

    started = time.perf_counter()
    anyio.run(lambda: app.run(mode="drain", max_concurrency=max(args.limit, 100)), **loop_options(args.loop))
    seconds = time.perf_counter() - started
    if handled != args.jobs or (args.limit and highest > args.limit):
        raise SystemExit(f"{handled} handlers ran, {highest} at once")
    return {"jobs_per_second": args.jobs / seconds}


def _full(args: argparse.Namespace) -> dict[str, Any]:
    """Hold the limit full, with the rest of the jobs queued behind it."""
    app = PgQueuer(args.dsn)

    @app.entrypoint("limited", concurrency_limit=args.limit)
    async def limited(job: Job) -> None:
        await anyio.sleep_forever()

    figures: dict[str, Any] = {}

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: app.run(shutdown_grace=0, task_status=task_status))
            await anyio.sleep(FALLING_ASLEEP)
            worker, server, started = _worker_cpu(), _server_cpu(args.dsn), time.perf_counter()
            await anyio.sleep(args.seconds)
            seconds = time.perf_counter() - started
            figures["worker_cpu_percent"] = (_worker_cpu() - worker) / seconds * 100
            figures["server_cpu_percent"] = (_server_cpu(args.dsn) - server) / seconds * 100
            app.stop()

    anyio.run(run, **loop_options(args.loop))
    return figures


def _worker_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _server_cpu(dsn: str) -> float:
    """CPU seconds of the backends that serve this worker; only a server on this machine can be measured."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        pids = conn.execute("select pid from pg_stat_activity where application_name like 'pgq\\_anyio %'").fetchall()
    total = 0
    for (pid,) in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


if __name__ == "__main__":
    main()
