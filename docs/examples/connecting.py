"""The connections of a worker, as PostgreSQL shows them."""

import os

import anyio

from pgq_anyio import Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Schedule
from pgq_anyio.testing import running_worker

DSN = os.environ["PGQ_ANYIO_DSN"]
app = PgQueuer(DSN)


@app.entrypoint("limited", concurrency_limit=1)
@app.entrypoint("nothing")
async def nothing(job: Job) -> None:
    pass


@app.schedule("yearly", "@yearly")
async def yearly(schedule: Schedule) -> None:
    pass


async def main() -> None:
    async with PsycopgDriver(DSN) as driver, running_worker(app):
        queries = Queries(driver)
        ids = await queries.enqueue(["nothing", "limited"])
        with anyio.fail_after(20):
            while set((await queries.job_status(ids)).values()) != {JobStatus.SUCCESSFUL}:
                await anyio.sleep(0.01)

        async with driver.connection() as connection:
            answer = await connection.execute(
                "select application_name, count(*) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and application_name <> 'pgq_anyio maintenance' group by 1 order by 1"  # short-lived
            )
            for name, count in await answer.fetchall():
                print(f"{name}: {count}")


if __name__ == "__main__":
    anyio.run(main)
