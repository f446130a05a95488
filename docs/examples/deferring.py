"""Jobs for later: after a time, at a moment, and one that is cancelled while it waits."""

import os
from datetime import UTC, datetime, timedelta

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)


@app.entrypoint("remind")
async def remind(job: Job) -> None:
    print("remind", (job.payload or b"").decode())


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        await queries.enqueue("remind", b"after two seconds", execute_after=timedelta(seconds=2))
        await queries.enqueue("remind", b"at a moment", execute_after=datetime.now(UTC) + timedelta(seconds=1))
        await queries.enqueue("remind", b"at once: that moment is past", execute_after=timedelta(seconds=-1))
        tomorrow = await queries.enqueue("remind", b"tomorrow", execute_after=timedelta(days=1))

        print("tomorrow's:", *(await queries.job_status(tomorrow)).values())
        await queries.mark_job_as_cancelled(tomorrow, "no longer needed")
        print("tomorrow's:", *(await queries.job_status(tomorrow)).values())

    # Waits for deferred jobs too. Without the cancellation it would wait until tomorrow.
    await app.run(mode="drain")


if __name__ == "__main__":
    anyio.run(main)
