"""Producers that have no event loop: blocking code, and plain SQL."""

import os

import anyio
import anyio.to_thread
import psycopg

from pgq_anyio import Job, PgQueuer, SyncQueries

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)


@app.entrypoint("report")
async def report(job: Job) -> None:
    print("report", (job.payload or b"").decode())


def produce() -> None:
    with SyncQueries(DSN) as queries:
        queries.enqueue("report", b"from blocking code")

    with psycopg.connect(DSN) as connection:  # commits when the block ends
        SyncQueries(connection).enqueue("report", b"from a transaction of psycopg's")
        connection.execute("select pgq_anyio.enqueue('report', 'from plain SQL'::bytea, priority => 1)")


async def main() -> None:
    await anyio.to_thread.run_sync(produce)
    await app.run(mode="drain", max_concurrency=1)


if __name__ == "__main__":
    anyio.run(main)
