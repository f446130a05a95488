"""A worker as a program usually has one: a function makes the driver and the app, and the command line runs it.

::

    pgq-anyio migrate
    pgq-anyio run create_pgqueuer.main --dequeue-timeout 10s
    pgq-anyio enqueue fetch --payload https://example.org
"""

import os
from datetime import UTC, datetime

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Schedule


async def main() -> PgQueuer:
    driver = PsycopgDriver(os.environ["PGQ_ANYIO_DSN"])
    pgq = PgQueuer(driver)

    @pgq.entrypoint("fetch")
    async def process_message(job: Job) -> None:
        print(f"processed message: {job.data!r}", flush=True)

    @pgq.schedule("scheduled_every_minute", "* * * * *")
    async def scheduled_every_minute(schedule: Schedule) -> None:
        print(f"executed every minute: {schedule.name}, {datetime.now(UTC):%H:%M}", flush=True)

    return pgq
