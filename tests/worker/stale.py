"""The program of workers whose handlers end when a test says so: ``python -m tests.worker.stale BACKEND OPTIONS``.

``PGQ_TEST_GATES`` names two files. The first run of a job waits for the first one, and then ends as the payload says;
the run after a crash waits for the second one and returns.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import anyio

from pgq_anyio import Cancel, Discard, Job, PgQueuer, Retry, Snooze
from tests.worker import process
from tests.worker.apps import DSN, SCHEMA
from tests.worker.away import JOURNAL

FIRST, SECOND = (Path(name) for name in os.environ["PGQ_TEST_GATES"].split(":"))

app = PgQueuer(DSN, schema=SCHEMA)


@app.entrypoint("thread")
def in_a_thread(job: Job) -> None:
    """Wait in a thread, which nobody can interrupt."""
    JOURNAL.write(job.id, "start")
    gate = SECOND if job.crashes else FIRST
    while not gate.exists():
        time.sleep(0.01)
    end(job)


@app.entrypoint("loop")
async def in_the_loop(job: Job) -> None:
    """The first run holds the event loop: nothing reaches it."""
    JOURNAL.write(job.id, "start")
    if job.crashes:
        while not SECOND.exists():  # noqa: ASYNC110  (a fact of another process)
            await anyio.sleep(0.01)
    else:
        while not FIRST.exists():
            time.sleep(0.01)  # noqa: ASYNC251  (it is what this handler is for)
    end(job)


def end(job: Job) -> None:
    """Do as the payload says, unless another worker did before."""
    JOURNAL.write(job.id, "end")
    if job.crashes:
        return
    match job.payload:
        case b"fail":
            raise ValueError("as asked")
        case b"retry":
            raise Retry(delay=0)
        case b"snooze":
            raise Snooze(0)
        case b"discard":
            raise Discard("as asked")
        case b"cancel":
            raise Cancel("as asked")


if __name__ == "__main__":
    process.main(sys.argv[1], sys.argv[2], app)
