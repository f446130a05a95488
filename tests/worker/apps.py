"""The app that worker processes of the tests run. Its handlers write what they do into a table of their own.

The table is ``<schema>_log(job_id, event, pid, at)``: times are the server's, so that entries of several processes
compare.
"""

from __future__ import annotations

import os
import signal
import time

import anyio
import psycopg
from psycopg import sql

from pgq_anyio import Context, Job, PgQueuer, ProcessExecutor, Retry

DSN = os.environ["PGQ_TEST_DSN"]
SCHEMA = os.environ["PGQ_TEST_SCHEMA"]

_INSERT = sql.SQL("insert into {} (job_id, event, pid) values (%s, %s, %s)").format(sql.Identifier(SCHEMA + "_log"))


def log(job_id: int, event: str) -> None:
    """Write one line, on a connection of its own: nothing of the worker's is used."""
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(_INSERT, (job_id, event, os.getpid()))


#: The worker may come through a proxy; what its handlers write does not.
app = PgQueuer(os.environ.get("PGQ_TEST_WORKER_DSN", DSN), schema=SCHEMA)


@app.entrypoint("quick")
async def quick(job: Job) -> None:
    """One line per run."""
    log(job.id, "run")


@app.entrypoint("count")
def count(job: Job) -> None:
    """As ``quick``, in a thread."""
    log(job.id, "run")


@app.entrypoint("sleep")
async def sleep(job: Job) -> None:
    """Sleep for the seconds that the payload says; say how it ended."""
    log(job.id, "start")
    try:
        await anyio.sleep(float(job.payload or b"3600"))
    except anyio.get_cancelled_exc_class():
        log(job.id, "cancelled")
        raise
    log(job.id, "end")


@app.entrypoint("thread")
def thread(job: Job, context: Context) -> None:
    """Sleep in a thread, looking at the flag."""
    log(job.id, "start")
    until = time.monotonic() + float(job.payload or b"3600")
    while time.monotonic() < until:
        if context.cancellation.cancel_called:
            log(job.id, "cancelled")
            return
        time.sleep(0.02)
    log(job.id, "end")


@app.entrypoint("process", executor_factory=ProcessExecutor)
def process(job: Job) -> None:
    """Sleep in a process."""
    log(job.id, "start")
    time.sleep(float(job.payload or b"3600"))
    log(job.id, "end")


@app.entrypoint("deaf", executor_factory=ProcessExecutor)
def deaf(job: Job) -> None:
    """Ignore SIGTERM in a process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log(job.id, "start")
    time.sleep(3600)


@app.entrypoint("bounded", executor_factory=ProcessExecutor, timeout=2)
def bounded(job: Job) -> None:
    """Take longer than allowed, in a process."""
    log(job.id, "start")
    time.sleep(3600)


@app.entrypoint("stubborn")
async def stubborn(job: Job) -> None:
    """Ignore every cancellation for the seconds that the payload says."""
    log(job.id, "start")
    with anyio.CancelScope(shield=True):
        await anyio.sleep(float(job.payload or b"3600"))
    log(job.id, "end")


@app.entrypoint("deaf_thread")
def deaf_thread(job: Job) -> None:
    """Look at nothing in a thread, for the seconds that the payload says."""
    log(job.id, "start")
    time.sleep(float(job.payload or b"3600"))
    log(job.id, "end")


@app.entrypoint("again")
async def again(job: Job) -> None:
    """Ask for a second attempt after the seconds of the payload."""
    log(job.id, f"attempt {job.attempt}")
    if job.attempt == 1:
        raise Retry(float(job.payload or b"0"))


@app.entrypoint("deadly")
@app.entrypoint("killer", max_crashes=2)
async def killer(job: Job) -> None:
    """End the worker without a word."""
    log(job.id, "start")
    os._exit(9)
