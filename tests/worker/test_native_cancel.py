"""What asyncio's own means do to a worker: ``Task.cancel()``, and code in callbacks of the loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, Queries
from tests.worker.test_cancel import wait_status
from tests.worker.test_slots import ON_ASYNCIO, going_on

#: How a program without AnyIO asks for the stop, once its handler runs.
WAYS = {
    "callback": "loop.call_soon(app.stop)",
    "timer": "loop.call_later(0.01, app.stop)",
    "signal of the loop": "loop.add_signal_handler(signal.SIGUSR1, app.stop); os.kill(os.getpid(), signal.SIGUSR1)",
    "signal": "signal.signal(signal.SIGUSR1, lambda *_: app.stop()); os.kill(os.getpid(), signal.SIGUSR1)",
    "thread": "threading.Thread(target=app.stop).start()",
    "task": "app.stop()",
}
PROGRAM = """
import asyncio, os, signal, sys, threading
from pgq_anyio import Job, PgQueuer, SyncQueries

app = PgQueuer(sys.argv[1], schema=sys.argv[2])

@app.entrypoint("fetch")
async def fetch(job: Job) -> None:
    loop = asyncio.get_running_loop()
    {way}

SyncQueries(sys.argv[1], schema=sys.argv[2]).enqueue("fetch")
{run}(app.run())
print("stopped")
"""
RUNS = ["asyncio.run", "import uvloop; uvloop.run"]


@pytest.mark.heavy
@pytest.mark.promise(34)
@pytest.mark.parametrize("run", RUNS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_from_anywhere(dsn: str, schema: str, way: str, run: str) -> None:
    """In a program of the loop's own, where AnyIO is not asked to run anything."""
    program = PROGRAM.format(way=WAYS[way], run=run)
    done = subprocess.run(
        [sys.executable, "-c", program, dsn, schema],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert (0, "stopped\n") == (done.returncode, done.stdout), done.stderr


@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.promise(18, 23)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_thread_outlives_the_cancellation_of_its_task(app: PgQueuer, queries: Queries, times: int) -> None:
    """By somebody who cancels tasks that are not his: the job runs, and holds its place, until its thread has ended."""
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    @app.entrypoint("thread", concurrency_limit=1)
    def thread(job: Job) -> None:
        if job.payload == b"next":
            assert ended.is_set()
            return
        started.set()
        release.wait(20)
        ended.set()

    async with going_on(app):
        (job_id, after) = await queries.enqueue(["thread"] * 2, [None, b"next"])
        assert await anyio.to_thread.run_sync(started.wait, 20)
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == f"job:thread:{job_id}")
        for _ in range(times):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not task.done()
        assert {job_id: JobStatus.RUNNING, after: JobStatus.QUEUED} == await queries.job_status([job_id, after])
        release.set()
        await wait_status(queries, job_id, JobStatus.FAILED)
        await wait_status(queries, after, JobStatus.SUCCESSFUL)
    record = await queries.get_job(job_id)
    assert record is not None
    assert ["CancelledError"] == [error.type for error in record.errors]
