"""The app of the demonstration, written as a user would write one, against the public API only.

Its handlers say what they do through ``tell``; the process handler cannot, since it runs in another process. Those that
are async and await nothing are so on purpose: a sync handler would run in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio
import anyio.from_thread

from .. import Context, Job, PgQueuer, ProcessExecutor, Retry, Schedule

#: A cron expression with seconds: every one of them.
EVERY_SECOND: Final = "* * * * * *"
#: Attempts that the flaky handler needs.
ATTEMPTS: Final = 3


def text(job: Job) -> str:
    """The payload of the demonstration's jobs."""
    return (job.data or b"").decode()


def crunch(job: Job) -> None:
    """Compute for ever, without ever looking whether it should stop."""
    while True:
        sum(range(100_000))


def make_app(dsn: str, schema: str, tell: Callable[[str], None]) -> PgQueuer:
    """An app with one handler for each thing that is shown.

    :param tell: called with a line of text whenever something happens
    """
    app = PgQueuer(dsn, schema=schema)

    @app.entrypoint("greet")
    async def greet(job: Job) -> None:
        await anyio.sleep(0.1)
        tell(f"greet {job.id}: hello, {text(job)}")

    @app.entrypoint("count_words")
    def count_words(job: Job) -> None:
        time.sleep(0.1)  # blocking is fine: this runs in a thread
        tell(f"count_words {job.id}: {len(text(job).split())} words, counted in a thread")

    @app.entrypoint("download")
    async def download(job: Job, context: Context) -> None:
        with context.cancellation:
            for part in range(1, 101):
                tell(f"download {job.id}: part {part} of 100")
                await anyio.sleep(0.3)
        tell(f"download {job.id}: cancelled in the middle; this line comes after the cancelled block")

    @app.entrypoint("watch")
    def watch(job: Job) -> None:
        while True:
            time.sleep(0.05)
            anyio.from_thread.check_cancelled()

    app.entrypoint("crunch", executor_factory=ProcessExecutor)(crunch)

    @app.entrypoint("unlucky")
    async def unlucky(job: Job) -> None:
        tell(f"unlucky {job.id}: dividing {text(job)} by zero")
        _ = int(text(job)) / 0

    @app.entrypoint("flaky", max_attempts=ATTEMPTS)
    async def flaky(job: Job) -> None:
        if job.attempt < ATTEMPTS:
            tell(f"flaky {job.id}: attempt {job.attempt} fails, again in 0.2 s")
            raise Retry(delay=0.2, reason=f"attempt {job.attempt} had no luck")
        tell(f"flaky {job.id}: attempt {job.attempt} succeeds")

    @app.entrypoint("remind")
    async def remind(job: Job) -> None:
        tell(f"remind {job.id}: {text(job)}")

    @app.entrypoint("nothing")
    async def nothing(job: Job) -> None:
        pass

    @app.schedule("tick", EVERY_SECOND)
    async def tick(schedule: Schedule) -> None:
        tell(f"tick: scheduled for {schedule.due_at.astimezone():%H:%M:%S}")

    return app
