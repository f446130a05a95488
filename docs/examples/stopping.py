"""A worker stops: one job may end, one is interrupted and given back, and another worker runs it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from pgq_anyio import Context, Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio.testing import running_worker

DSN = os.environ["PGQ_ANYIO_DSN"]


@asynccontextmanager
async def lifespan() -> AsyncIterator[str]:
    """Entered before the first job of a worker, left after its last one."""
    print("lifespan: open")
    yield "a connection pool, say"
    print("lifespan: closed")


app = PgQueuer(DSN, lifespan=lifespan)
stops = 0
started = anyio.Event()


@app.entrypoint("short")
async def short(job: Job, context: Context) -> None:
    await anyio.sleep(0.2)
    print("short: ended, with", context.resources)


@app.entrypoint("long")
async def long(job: Job, context: Context) -> None:
    if stops:
        print("long: runs again, attempt", job.attempt)
        return
    started.set()
    try:
        await anyio.sleep_forever()
    finally:
        print("long: interrupted, reason:", context.cancel_reason)


async def main() -> None:
    global stops
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        ids = await queries.enqueue(["short", "long"], None)

        async with running_worker(app, shutdown_grace=1):
            await started.wait()
            # What SIGTERM does under the command line. The end of the block would do it, too.
            app.stop()
        stops += 1
        print("long is", (await queries.job_status(ids))[ids[1]])

        await app.run(mode="drain")


if __name__ == "__main__":
    anyio.run(main)
