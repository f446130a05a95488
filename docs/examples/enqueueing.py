"""Jobs one by one, many in one call, by priority, and in a transaction of one's own."""

import os
from contextlib import suppress

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)


@app.entrypoint("mail")
async def mail(job: Job) -> None:
    print("mail to", (job.payload or b"nobody").decode())


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        await queries.enqueue("mail", b"ada")
        await queries.enqueue(["mail"] * 2, [b"bob", None])
        await queries.enqueue("mail", b"eve, first of all", priority=10)

        async with driver.connection() as connection:
            async with connection.transaction():
                # … your own statements …
                await queries.enqueue("mail", b"those who ordered", connection=connection)
            with suppress(LookupError):
                async with connection.transaction():
                    await queries.enqueue("mail", b"nobody: this is rolled back", connection=connection)
                    raise LookupError("there is no such customer")
        print("queued:", await queries.queue_size())

    # One at a time, so that the order can be seen; the worker ends when nothing is left.
    await app.run(mode="drain", max_concurrency=1)


if __name__ == "__main__":
    anyio.run(main)
