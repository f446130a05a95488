"""The app that the workers of fault scenarios run: every handler logs its start and its end.

``python -m tests.faults.app BACKEND OPTIONS``, as ``tests.worker.fleet`` starts it. The log goes its own way to a
server of its own (see ``job_log``), whatever the worker's database is going through.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio

from pgq_anyio import Context, Job, PgQueuer, Schedule
from tests.backends import run_on
from tests.faults import clock
from tests.faults.job_log import JobLog
from tests.faults.later import expect_later

clock.install(os.environ.get("PGQ_TEST_CLOCK"))

#: What a scenario enqueues by default, in turn. One of ten fails by itself: failures have to survive faults, too.
MIX = ("work", "work", "work", "thread", "work", "limited", "work", "work", "thread", "fail")
#: How many ``limited`` jobs may run at once in the whole fleet.
LIMIT = 3

app = PgQueuer(os.environ.get("PGQ_TEST_WORKER_DSN"), schema=os.environ.get("PGQ_TEST_SCHEMA", "pgq_anyio"))
log = JobLog(os.environ.get("PGQ_TEST_LOG_DSN", ""), os.environ.get("PGQ_TEST_LOG_TABLE", ""))


class IntendedError(Exception):
    """What ``fail`` jobs end with."""


@contextmanager
def logged(job: Job, context: Context) -> Iterator[None]:
    """Log the start, and the end with how it came."""
    write = partial(log.write, log.next_run(), job.id, job.entrypoint)
    write("start")
    try:
        yield
    except IntendedError:
        write("failed")
        raise
    except BaseException:
        write(f"cancelled:{context.cancel_reason}")
        raise
    write("end")


def seconds(job: Job) -> float:
    """How long the payload says that the job is to last."""
    return float(job.payload or b"0.01")


@app.entrypoint("work", max_crashes=1000)
async def work(job: Job, context: Context) -> None:
    """Last for the seconds of the payload."""
    with logged(job, context):
        await anyio.sleep(seconds(job))


@app.entrypoint("thread", max_crashes=1000)
def thread(job: Job, context: Context) -> None:
    """As ``work``, in a thread."""
    with logged(job, context):
        time.sleep(seconds(job))


@app.entrypoint("limited", max_crashes=1000, concurrency_limit=LIMIT)
async def limited(job: Job, context: Context) -> None:
    """As ``work``, a few at a time in the whole fleet."""
    with logged(job, context):
        await anyio.sleep(seconds(job))


@app.entrypoint("fail", max_crashes=1000)
async def fail(job: Job, context: Context) -> None:
    """As ``work``, and fail then."""
    with logged(job, context):
        await anyio.sleep(seconds(job))
        raise IntendedError(str(job.id))


@app.entrypoint("block", max_crashes=1000)
async def block(job: Job, context: Context) -> None:
    """Block the event loop for the seconds of the payload, unless another worker has suffered that before."""
    with logged(job, context):
        time.sleep(0 if job.crashes else seconds(job))  # noqa: ASYNC251  (what no handler should do)
        await anyio.lowlevel.checkpoint()


@app.entrypoint("hold", max_crashes=1000)
async def hold(job: Job, context: Context) -> None:
    """Hold a slot until it is cancelled."""
    with logged(job, context):
        await anyio.sleep_forever()


async def versioned(job: Job, context: Context) -> None:
    """A job that only one version of the app serves."""
    with logged(job, context):
        await anyio.sleep(seconds(job))


async def tick(schedule: Schedule) -> None:
    """Log which occurrence this is."""
    log.write(log.next_run(), None, "tick", schedule.due_at.isoformat())


def main(backend: str, text: str) -> None:
    """Run the worker until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    logging.getLogger("pgq_anyio.runner").setLevel(logging.ERROR)  # jobs that fail are no news here
    options = json.loads(text)
    if options.pop("ticks", False):
        app.schedule("tick", "* * * * * *")(tick)
    if version := options.pop("version", None):
        app.entrypoint(f"version_{version}")(versioned)
    expect_later(options.pop("migrations", 0))
    run = partial(PgQueuer.run, app, signals=(signal.SIGTERM, signal.SIGINT), **options)
    run_on(backend, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
