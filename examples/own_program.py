"""A worker as one task of a program of one's own, beside whatever else the program does.

::

    PGQ_ANYIO_DSN=postgresql://localhost/shop python own_program.py
"""

import os
import sys
from datetime import timedelta
from functools import partial

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries

driver = PsycopgDriver(os.environ["PGQ_ANYIO_DSN"])
app = PgQueuer(driver)
watching = anyio.Event()
asked = anyio.Event()


@app.entrypoint("watch")
async def watch(job: Job) -> None:
    try:
        watching.set()
        await anyio.sleep_forever()
    finally:
        print("no longer watching", flush=True)


@app.entrypoint("ask_later")
async def ask_later(job: Job) -> None:
    # The worker has opened the driver, so its handlers can enqueue, too.
    await Queries(driver).enqueue("my_task", payload=None, priority=0, execute_after=timedelta(minutes=1))
    asked.set()


@app.entrypoint("my_task")
async def my_task(job: Job) -> None:
    print("a minute later", flush=True)


async def main() -> None:
    async with anyio.create_task_group() as tasks:
        # The worker looks for jobs every ten seconds even if nothing wakes it; start() returns once it listens.
        await tasks.start(partial(app.run, dequeue_timeout=10))
        queries = Queries(driver)

        job_ids = await queries.enqueue("watch")
        await watching.wait()
        await queries.mark_job_as_cancelled(job_ids)

        await queries.enqueue("ask_later")
        await asked.wait()
        print(f"deferred: {[job.entrypoint for job in await queries.list_jobs(status='deferred')]}")
        app.stop()  # and app.run() returns, when its jobs have ended or were given back


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
