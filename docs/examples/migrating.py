"""What PgQueuer's own example becomes: a factory, a handler with its context, and a schedule."""

import os

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries, Schedule

DSN = os.environ["PGQ_ANYIO_DSN"]


async def create_pgqueuer() -> PgQueuer:
    pgq = PgQueuer(DSN)

    @pgq.entrypoint("fetch")
    async def process_message(job: Job) -> None:
        with pgq.get_context(job.id).cancellation:
            print(f"processed message: {job.data!r}")

    @pgq.schedule("scheduled_every_minute", "* * * * *")
    async def scheduled_every_minute(schedule: Schedule) -> None:
        print(f"executed every minute: {schedule.due_at}")

    return pgq


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        await Queries(driver).enqueue("fetch", payload=b"hello", priority=0)
    pgq = await create_pgqueuer()
    await pgq.run(mode="drain")


if __name__ == "__main__":  # or, without this part: pgq-anyio run migrating.create_pgqueuer
    anyio.run(main)
