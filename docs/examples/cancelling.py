"""How handlers of every kind are cancelled, and what they can do about it."""

import os
import time

import anyio
import anyio.from_thread

from pgq_anyio import Context, Job, JobId, JobStatus, PgQueuer, ProcessExecutor, PsycopgDriver, Queries, current_context
from pgq_anyio.testing import running_worker

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)
started: set[JobId] = set()


@app.entrypoint("plain")
async def plain(job: Job) -> None:
    started.add(job.id)
    try:
        await anyio.sleep_forever()
    finally:
        # The scope around the handler is cancelled: cleanup that awaits needs a shield, and a shield a deadline.
        with anyio.move_on_after(1, shield=True):
            await anyio.sleep(0)
            print("plain: cleaned up")


@app.entrypoint("cooperative")
async def cooperative(job: Job, context: Context) -> None:
    started.add(job.id)
    with context.cancellation as cancellation:
        await anyio.sleep_forever()
    # Only the block was cancelled. There are ``cancel_grace`` seconds for what comes after it.
    if cancellation.cancel_called:
        await anyio.sleep(0)
        print("cooperative: went on after the block, reason:", context.cancel_reason)


@app.entrypoint("thread")
def thread(job: Job) -> None:
    started.add(job.id)
    while not current_context().cancellation.cancel_called:
        time.sleep(0.01)  # a step of the work
    print("thread: saw the flag")


@app.entrypoint("checking_thread")
def checking_thread(job: Job) -> None:
    started.add(job.id)
    try:
        while True:
            time.sleep(0.01)  # a step of the work
            anyio.from_thread.check_cancelled()
    finally:
        print("checking_thread: was unwound by check_cancelled()")


@app.entrypoint("process", executor_factory=ProcessExecutor)
def process(job: Job) -> None:
    while True:  # ended by SIGTERM
        sum(range(100_000))


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        waiting = await queries.enqueue("plain")
        print("queued ones never run:", await queries.mark_job_as_cancelled(waiting) == waiting)

        async with running_worker(app):
            for name in ("plain", "cooperative", "thread", "checking_thread", "process"):
                (job_id,) = await queries.enqueue(name)
                await wait_for(queries, job_id, JobStatus.RUNNING)
                if name != "process":
                    # A job that is cancelled between its claim and its start never starts.
                    await wait_started(job_id)
                await queries.mark_job_as_cancelled([job_id], "the customer left")
                await wait_for(queries, job_id, JobStatus.CANCELLED)
                record = await queries.get_job(job_id)
                print(f"{name}: {record and record.cancel_reason}")


async def wait_started(job_id: JobId) -> None:
    with anyio.fail_after(20):
        while job_id not in started:
            await anyio.sleep(0.01)


async def wait_for(queries: Queries, job_id: JobId, status: JobStatus) -> None:
    with anyio.fail_after(20):
        while (await queries.job_status([job_id]))[job_id] is not status:
            await anyio.sleep(0.02)


if __name__ == "__main__":
    anyio.run(main)
