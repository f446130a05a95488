"""The app of the soak test's workers: one handler of each kind, and each writes its start and its end (see journal)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from pgq_anyio import Job, PgQueuer, ProcessExecutor, Retry, Schedule, Snooze
from tests.soak.journal import Event, Journal

#: How many ``limited`` jobs may run at once in the whole fleet.
LIMIT = 3
#: How many ``rated`` jobs may start in a second.
RATE = 100.0
#: How long after their enqueueing snoozed jobs run to their end, and how long a retry waits (in seconds).
PAUSE = 0.3

app = PgQueuer(os.environ.get("PGQ_TEST_WORKER_DSN"), schema=os.environ.get("PGQ_TEST_SCHEMA", "pgq_anyio"))
#: The worker's own, whose child processes find it in the environment as well.
journal = Journal(Path(os.environ.get("PGQ_TEST_JOURNAL", os.devnull)))


class IntendedError(Exception):
    """What ``fail`` jobs end with."""


@contextmanager
def noted(job: Job) -> Iterator[None]:
    """Write the start, and the end with how it came."""
    run, kind = journal.next_run(), job.entrypoint
    is_first = job.attempt == 1 and not job.crashes
    latency = time.time() - job.created_at.timestamp() if is_first else -1.0
    journal.write(job.id, run, kind, Event.START, latency)
    try:
        yield
    except IntendedError:
        journal.write(job.id, run, kind, Event.FAILED)
        raise
    except (Retry, Snooze):
        journal.write(job.id, run, kind, Event.AGAIN)
        raise
    except BaseException:
        journal.write(job.id, run, kind, Event.CANCELLED)
        raise
    journal.write(job.id, run, kind, Event.END)


@app.entrypoint("work", max_crashes=1000)
async def work(job: Job) -> None:
    """Every tenth waits a little, the others do not wait at all."""
    with noted(job):
        if job.id % 10 == 0:
            await anyio.sleep(0.01)


@app.entrypoint("thread", max_crashes=1000)
def thread(job: Job) -> None:
    """Wait a little, in a thread."""
    with noted(job):
        threading.Event().wait(0.002)


@app.entrypoint("process", max_crashes=1000, executor_factory=ProcessExecutor)
def process(job: Job) -> None:
    """Wait a little, in a child process."""
    with noted(job):
        time.sleep(0.005)


@app.entrypoint("fail", max_crashes=1000)
async def fail(job: Job) -> None:
    """Fail for good."""
    with noted(job):
        await anyio.lowlevel.checkpoint()
        raise IntendedError(str(job.id))


@app.entrypoint("retry", max_crashes=1000)
async def retry(job: Job) -> None:
    """Ask for a second attempt, which comes to its end."""
    with noted(job):
        await anyio.lowlevel.checkpoint()
        if job.attempt == 1:
            raise Retry(PAUSE, "once more")


@app.entrypoint("snooze", max_crashes=1000)
async def snooze(job: Job) -> None:
    """Put off until a while after the enqueueing."""
    with noted(job):
        await anyio.lowlevel.checkpoint()
        if time.time() < job.created_at.timestamp() + PAUSE:
            raise Snooze(PAUSE)


@app.entrypoint("later", max_crashes=1000)
async def later(job: Job) -> None:
    """Enqueued for later."""
    with noted(job):
        await anyio.lowlevel.checkpoint()


@app.entrypoint("held", max_crashes=1000)
async def held(job: Job) -> None:
    """Run until cancelled."""
    with noted(job):
        await anyio.sleep_forever()


@app.entrypoint("limited", max_crashes=1000, concurrency_limit=LIMIT)
async def limited(job: Job) -> None:
    """A few at a time in the whole fleet."""
    with noted(job):
        await anyio.sleep(0.005)


@app.entrypoint("rated", max_crashes=1000, requests_per_second=RATE)
async def rated(job: Job) -> None:
    """So many in a second."""
    with noted(job):
        await anyio.lowlevel.checkpoint()


@app.entrypoint("serial", max_crashes=1000, serialized_dispatch=True)
async def serial(job: Job) -> None:
    """One at a time."""
    with noted(job):
        await anyio.lowlevel.checkpoint()


@app.schedule("tick", "* * * * * *")
async def tick(schedule: Schedule) -> None:
    """Once a second; the occurrence stands in the place of the job."""
    journal.write(int(schedule.due_at.timestamp()), journal.next_run(), "tick", Event.START)
