"""One drain: enqueue, run a worker until nothing is left, count the outcomes. A child process of ``drain``."""

from __future__ import annotations

import argparse
import json
import resource
import time

import anyio
import psycopg
from psycopg import sql

from pgq_anyio import Job, PgQueuer, SyncQueries
from pgq_anyio._store.migrations import migrate_sync, uninstall_sync

from ._children import LOOPS, loop_options
from ._server import settle

SCHEMA = "bench_drain"
CHUNK = 10_000


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("jobs", type=int)
    parser.add_argument("payload", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-concurrency", type=int)
    args = parser.parse_args()
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        uninstall_sync(conn, SCHEMA)
        migrate_sync(conn, SCHEMA)
        enqueued = time.perf_counter()
        with SyncQueries(conn, schema=SCHEMA) as queries:
            for start in range(0, args.jobs, CHUNK):
                queries.enqueue("noop", [bytes(args.payload)] * min(CHUNK, args.jobs - start))
        enqueued = time.perf_counter() - enqueued
    settle(args.dsn)
    figures = _drain(args)
    figures["enqueue_per_second"] = args.jobs / enqueued
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        query = sql.SQL("select status, count(*), count(distinct job_id) from {}.finished group by 1")
        outcomes = conn.execute(query.format(sql.Identifier(SCHEMA))).fetchall()
        uninstall_sync(conn, SCHEMA)
    expected = [("successful", args.jobs, args.jobs)]
    if outcomes != expected or figures["handled"] != args.jobs:
        raise SystemExit(f"recorded {outcomes}, expected {expected}; {figures['handled']} handlers ran")
    print(json.dumps(figures))


def _drain(args: argparse.Namespace) -> dict[str, float]:
    app = PgQueuer(args.dsn, schema=SCHEMA)
    handled = 0
    figures: dict[str, float] = {}

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal handled
        handled += 1

    options = {"batch_size": args.batch_size, "max_concurrency": args.max_concurrency}
    options = {name: value for name, value in options.items() if value is not None}

    async def run() -> None:
        started, cpu = time.perf_counter(), _cpu()
        await app.run(mode="drain", **options)
        figures["seconds"] = time.perf_counter() - started
        figures["cpu_us_per_job"] = (_cpu() - cpu) / args.jobs * 1e6

    anyio.run(run, **loop_options(args.loop))
    return {**figures, "handled": handled, "jobs_per_second": args.jobs / figures["seconds"]}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
