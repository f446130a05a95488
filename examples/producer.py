"""A producer: jobs with a priority, for later, and cancelled again. Workers run elsewhere, or not yet.

::

    PGQ_ANYIO_DSN=postgresql://localhost/shop python producer.py
"""

import os
import sys
from datetime import timedelta

import anyio

from pgq_anyio import PsycopgDriver, Queries


async def main() -> None:
    async with PsycopgDriver(os.environ["PGQ_ANYIO_DSN"]) as driver:
        queries = Queries(driver)

        # Not before a minute has passed, by the database's clock; until then it is deferred.
        later = await queries.enqueue("my_task", payload=None, priority=0, execute_after=timedelta(minutes=1))

        # The higher the priority, the sooner. Lists enqueue many jobs in one round trip.
        urgent = await queries.enqueue("task_entrypoint", b"Job data", priority=5)
        many = await queries.enqueue("task_entrypoint", [b"%d" % number for number in range(1000)])

        # What has not started never will; what runs is cancelled where it is. The answer: which ids it affected.
        cancelled = await queries.mark_job_as_cancelled(many)
        cancelled += await queries.mark_job_as_cancelled(later, "a demonstration")  # the reason is kept with the job

        print(f"enqueued {len(later) + len(urgent) + len(many)} jobs, cancelled {len(cancelled)}")
        print(
            *[f"job {job_id}: {status}" for job_id, status in (await queries.job_status(later + urgent)).items()],
            sep="\n",
        )


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
