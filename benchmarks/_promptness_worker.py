"""One measurement of promptness: a child process of ``promptness``."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime, timedelta

import anyio

from pgq_anyio import Job, PgQueuer, ProcessExecutor, PsycopgDriver, Queries, Schedule
from pgq_anyio._executors._process import ProcessPool

from ._children import LOOPS, loop_options
from ._filling import make_tables
from ._server import bench_database, settle

#: How far ahead schedules are due: longer than it takes to register them (in seconds).
LEAD = timedelta(seconds=8)
#: How long a measurement may take (in seconds).
TIMEOUT = 120.0


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("cancel", "schedules", "calls", "jobs"))
    parser.add_argument("dsn")
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("number", type=int)
    args = parser.parse_args()
    with bench_database(args.dsn) as database:
        make_tables(database)
        settle(database)
        measure = {"cancel": _cancel, "schedules": _schedules, "calls": _calls, "jobs": _jobs}[args.what]
        seconds = anyio.run(measure, database, args.number, **loop_options(args.loop))
    print(json.dumps({"ms": seconds * 1000}))


async def _cancel(dsn: str, number: int) -> float:
    """Have jobs run, and cancel all of them; until the last handler is interrupted."""
    app = PgQueuer(dsn)
    started, interrupted = 0, list[float]()
    all_started, all_interrupted = anyio.Event(), anyio.Event()

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        nonlocal started
        started += 1
        if started == number:
            all_started.set()
        try:
            await anyio.sleep_forever()
        finally:
            interrupted.append(time.perf_counter())
            if len(interrupted) == number:
                all_interrupted.set()

    with anyio.fail_after(TIMEOUT):
        async with PsycopgDriver(dsn) as driver, anyio.create_task_group() as tasks:
            queries = Queries(driver)
            ids = await queries.enqueue(["wait"] * number)
            await tasks.start(lambda *, task_status: app.run(max_concurrency=number, task_status=task_status))
            await all_started.wait()
            asked = time.perf_counter()
            await queries.mark_job_as_cancelled(ids)
            await all_interrupted.wait()
            app.stop()
    return max(interrupted) - asked


async def _schedules(dsn: str, number: int) -> float:
    """Let schedules be due at the same time; until the last has started. One clock: all are on this machine."""
    app = PgQueuer(dsn)
    late = list[float]()
    all_started = anyio.Event()
    due_at = (datetime.now(UTC) + LEAD).replace(microsecond=0)

    async def run(schedule: Schedule) -> None:
        late.append((datetime.now(UTC) - schedule.due_at).total_seconds())
        if len(late) == number:
            all_started.set()

    for n in range(number):
        expression = f"{due_at.minute} {due_at.hour} {due_at.day} {due_at.month} * {due_at.second}"
        app.schedule(f"s{n}", expression, timezone="UTC")(run)
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: app.run(task_status=task_status))
            if datetime.now(UTC) > due_at:
                raise SystemExit(f"registering {number} schedules took longer than {LEAD}")
            await all_started.wait()
            app.stop()
    return max(late)


async def _calls(dsn: str, number: int) -> float:
    """Call a function in a warm process, one call after the other."""
    async with ProcessPool(1) as pool:
        await pool.run("os:getpid")
        started = time.perf_counter()
        for _ in range(number):
            await pool.run("os:getpid")
        return (time.perf_counter() - started) / number


async def _jobs(dsn: str, number: int) -> float:
    """Run jobs in processes that are warm, from the queue to the record; from the end of the first tenth."""
    app = PgQueuer(dsn)
    app.entrypoint("noop", executor_factory=ProcessExecutor)(_noop)
    async with PsycopgDriver(dsn) as driver:
        await Queries(driver).enqueue(["noop"] * number)
        await app.run(mode="drain")
        async with driver.connection() as conn:
            cursor = await conn.execute("select finished_at from pgq_anyio.finished order by finished_at")
            ended = [row[0] for row in await cursor.fetchall()]
    warm = number // 10
    seconds: float = (ended[-1] - ended[warm]).total_seconds()
    return seconds / (number - 1 - warm)


def _noop(job: Job) -> None:
    """Do nothing, in a process."""


if __name__ == "__main__":
    main()
