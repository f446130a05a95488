"""The same drain by PgQueuer, in the environment that it is installed in: nothing of ours is imported here.

``run`` is timed from its call to its return on both sides: connections, registration and the last flush included.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from datetime import timedelta
from importlib.metadata import version

sys.path = [path for path in sys.path if not path.endswith("benchmarks")]  # this directory, which Python puts in front

import asyncpg  # noqa: E402
from pgqueuer import PgQueuer  # noqa: E402
from pgqueuer.db import AsyncpgDriver  # noqa: E402
from pgqueuer.models import Job  # noqa: E402
from pgqueuer.queries import Queries  # noqa: E402
from pgqueuer.types import QueueExecutionMode  # noqa: E402

CHUNK = 10_000


async def drain(args: argparse.Namespace) -> dict[str, object]:
    """Enqueue, drain, count."""
    conn = await asyncpg.connect(host=args.host, user=args.user, database=args.database)
    queries = Queries(AsyncpgDriver(conn))
    if await conn.fetchval("select to_regclass('pgqueuer')") is not None:
        await queries.uninstall()
    await queries.install()
    enqueued = time.perf_counter()
    for start in range(0, args.jobs, CHUNK):
        count = min(CHUNK, args.jobs - start)
        await queries.enqueue(["noop"] * count, [bytes(args.payload)] * count, [0] * count)
    enqueued = time.perf_counter() - enqueued
    await conn.execute("vacuum analyze")
    await conn.execute("checkpoint")

    app = PgQueuer(AsyncpgDriver(conn))
    handled = 0

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal handled
        handled += 1

    started, cpu = time.perf_counter(), _cpu()
    # Reading statistics is no part of the work: the summary of the log is switched off, as its documentation offers.
    await app.run(mode=QueueExecutionMode.drain, batch_size=args.batch_size, log_aggregation_interval=timedelta(0))
    seconds, cpu = time.perf_counter() - started, _cpu() - cpu

    check = await asyncpg.connect(host=args.host, user=args.user, database=args.database)
    recorded = await check.fetchval("select count(distinct job_id) from pgqueuer_log where status = 'successful'")
    await Queries(AsyncpgDriver(check)).uninstall()
    await check.close()
    if recorded != args.jobs or handled != args.jobs:
        raise SystemExit(f"recorded {recorded} successes and ran {handled} handlers instead of {args.jobs}")
    return {
        "seconds": seconds,
        "jobs_per_second": args.jobs / seconds,
        "cpu_us_per_job": cpu / args.jobs * 1e6,
        "handled": handled,
        "enqueue_per_second": args.jobs / enqueued,
        "pgqueuer": version("pgqueuer"),
        "asyncpg": version("asyncpg"),
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("user")
    parser.add_argument("database")
    parser.add_argument("loop", choices=("asyncio", "uvloop"))
    parser.add_argument("jobs", type=int)
    parser.add_argument("payload", type=int)
    parser.add_argument("batch_size", type=int)
    args = parser.parse_args()
    factory = None
    if args.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(drain(args))))


if __name__ == "__main__":
    main()
