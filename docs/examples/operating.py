"""What can be seen of a queue: sizes, states, records with errors, and workers."""

import os

import anyio

from pgq_anyio import Job, JobId, JobStatus, PgQueuer, PsycopgDriver, Queries
from pgq_anyio.testing import running_worker

DSN = os.environ["PGQ_ANYIO_DSN"]
ENDED = {JobStatus.SUCCESSFUL, JobStatus.FAILED, JobStatus.CANCELLED}
app = PgQueuer(DSN)


@app.entrypoint("divide")
async def divide(job: Job) -> None:
    print("the result is", 12 / int(job.payload or b"1"))


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        good, bad = await queries.enqueue(["divide"] * 2, [b"4", b"0"])
        await queries.enqueue("nobody_serves_this")
        print("queued:", await queries.queue_size())

        async with running_worker(app):
            with anyio.fail_after(20):
                while not ENDED.issuperset((await queries.job_status([good, bad])).values()):
                    await anyio.sleep(0.02)
            for worker in await queries.workers():
                print("a worker for", *worker.entrypoints, "with a lease of", worker.lease)

        for job_id, status in (await queries.job_status([good, bad, JobId(10**12)])).items():
            print("good" if job_id == good else "bad", "is", status)
        for record in await queries.list_jobs(status=JobStatus.FAILED):
            print(record.entrypoint, record.payload, record.errors[0].type, record.errors[0].message)
        print("requeued:", await queries.requeue(entrypoint="divide", error_type="ZeroDivisionError") == [bad])
        print("workers left:", len(await queries.workers()))


if __name__ == "__main__":
    anyio.run(main)
