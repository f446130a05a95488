"""The steps of PgQueuer, in the environment that it is installed in: nothing of ours is imported here.

It has what it runs best with: asyncpg, batches given by whoever starts this, no limit of concurrency (its default), and
no periodic reading of its statistics, which its documentation offers to switch off.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
import time
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

PAYLOAD = b"x" * 100
WARM_UP = 20
PAUSE = 0.02
REPORT = 0.1


class Meter:
    """Counts handlers, and knows when to stop."""

    def __init__(self, app: PgQueuer, options: dict[str, Any]) -> None:
        self.app = app
        self.jobs = 0 if options.get("whole") else options.get("jobs", 0)
        self.every = options.get("every", 0)
        self.limit = options.get("limit", 600.0)
        self.next = self.every or self.jobs or -1
        self.handled = 0
        self.started = time.perf_counter()
        self.marks: list[float] = []

    async def handle(self, job: Job) -> None:
        """The handler."""
        self.handled += 1
        if self.handled == self.next:
            self.mark()

    def mark(self) -> None:
        """Note the time, and stop if it is time."""
        now = time.perf_counter()
        if self.every:
            self.marks.append(now)
            self.next += self.every
        if (self.jobs and self.handled >= self.jobs) or now - self.started > self.limit:
            self.app.shutdown.set()

    def figures(self) -> dict[str, Any]:
        """For the answer."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "handled": self.handled,
            "started": self.started,
            "marks": self.marks,
            "problems": [],
            "max_rss_mb": usage.ru_maxrss / 1024,
        }


def cpu() -> float:
    """CPU time of this process (in seconds)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def connect(options: dict[str, Any]) -> asyncpg.Connection:
    """A connection of asyncpg."""
    where = options["where"]
    return await asyncpg.connect(host=where["host"], user=where["user"], database=where["dbname"], port=where["port"])


async def connect_worker(options: dict[str, Any]) -> AsyncpgDriver | AsyncpgPoolDriver:
    """The driver of a worker: with one connection, or with a pool of them."""
    if not options["pool"]:
        return AsyncpgDriver(await connect(options))
    where = options["where"]
    size = {"min_size": options["pool"], "max_size": options["pool"]}
    address = {"host": where["host"], "user": where["user"], "database": where["dbname"], "port": where["port"]}
    return AsyncpgPoolDriver(await asyncpg.create_pool(**address, **size))


async def run(app: PgQueuer, options: dict[str, Any], mode: QueueExecutionMode) -> None:
    """With its best settings."""
    await app.run(mode=mode, batch_size=options["batch"], log_aggregation_interval=timedelta(0))


async def drain(options: dict[str, Any]) -> dict[str, Any]:
    """Run until the jobs are done."""
    app = PgQueuer(await connect_worker(options))
    meter = Meter(app, options)
    mode = QueueExecutionMode.drain if options.get("whole") else QueueExecutionMode.continuous
    app.entrypoint("noop")(meter.handle)
    meter.started, before = time.perf_counter(), cpu()
    await run(app, options, mode)
    return {"seconds": time.perf_counter() - meter.started, "cpu_seconds": cpu() - before, **meter.figures()}


async def fill(options: dict[str, Any]) -> dict[str, Any]:
    """Make the tables, and enqueue."""
    conn = await connect(options)
    queries = Queries(AsyncpgDriver(conn))
    if await conn.fetchval("select to_regclass('pgqueuer')") is None:
        await queries.install()
        if options["autovac"]:
            await queries.optimize_autovacuum()
    started = time.perf_counter()
    for at in range(0, options["jobs"], options["chunk"]):
        count = min(options["chunk"], options["jobs"] - at)
        await queries.enqueue(["noop"] * count, [PAYLOAD] * count, [0] * count)
    return {"seconds": time.perf_counter() - started}


async def latency(options: dict[str, Any]) -> dict[str, Any]:
    """Enqueue one, wait for its handler, pause, and again."""
    app = PgQueuer(await connect_worker(options))
    queries = Queries(AsyncpgDriver(await connect(options)))
    await queries.install()
    delays: list[float] = []
    started_at, started = 0.0, asyncio.Event()

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal started_at
        started_at = time.perf_counter()
        started.set()

    worker = asyncio.create_task(run(app, options, QueueExecutionMode.continuous))
    await asyncio.sleep(1)
    for number in range(WARM_UP + options["jobs"]):
        await asyncio.sleep(PAUSE)
        started.clear()
        asked_at = time.perf_counter()
        await queries.enqueue("noop", PAYLOAD)
        await asyncio.wait_for(started.wait(), 60)
        if number >= WARM_UP:
            delays.append((started_at - asked_at) * 1000)
    app.shutdown.set()
    await worker
    return {"delays_ms": delays}


async def serve(options: dict[str, Any]) -> dict[str, Any]:
    """Run until SIGTERM."""
    app = PgQueuer(await connect_worker(options))
    meter = Meter(app, {"limit": options.get("limit", 600.0)})
    app.entrypoint("noop")(meter.handle)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.shutdown.set)
    worker = asyncio.create_task(run(app, options, QueueExecutionMode.continuous))
    await asyncio.sleep(1)
    print(json.dumps({"ready": True}), flush=True)
    told = 0
    while not worker.done():
        await asyncio.wait([worker], timeout=options.get("report", REPORT))
        if meter.handled != told:
            told = meter.handled
            print(json.dumps({"handled": told}), flush=True)
    await worker
    return {"cpu_seconds": cpu(), **meter.figures()}


def main() -> None:
    """Do one step."""
    options = json.loads(sys.argv[1])
    steps = {"drain": drain, "fill": fill, "latency": latency, "serve": serve}
    factory = None
    if options["loop"] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(steps[options["step"]](options))))


if __name__ == "__main__":
    main()
