"""A worker is killed in the middle of a job, and another one takes the job over when the lease has ended."""

import os
import subprocess
import sys

import anyio

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries

DSN = os.environ["PGQ_ANYIO_DSN"]
LEASE = 2.0  # seconds; the default is 30
app = PgQueuer(DSN)


@app.entrypoint("long", max_crashes=5)
async def long(job: Job) -> None:
    print(f"attempt {job.attempt}, after {job.crashes} lost workers", flush=True)
    if not job.crashes:
        await anyio.sleep_forever()


async def main() -> None:
    async with PsycopgDriver(DSN) as driver:
        queries = Queries(driver)
        (job_id,) = await queries.enqueue("long")

        worker = subprocess.Popen([sys.executable, __file__, "worker"], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        with anyio.fail_after(30):
            said = await anyio.to_thread.run_sync(worker.stdout.readline, abandon_on_cancel=True)
        print(said, end="", flush=True)  # the handler has started
        (owner,) = await queries.workers()
        print(f"a worker runs {owner.running} job and is killed", flush=True)
        worker.kill()
        worker.wait()
        worker.stdout.close()

        await app.run(mode="drain", lease=LEASE)
        print("the job is", (await queries.job_status([job_id]))[job_id])


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        anyio.run(lambda: app.run(lease=LEASE))
    else:
        anyio.run(main)
