"""The app of workers whose jobs are heavy: large payloads, and errors with a lot to say. Every handler logs its runs.

``python -m tests.faults.heavy BACKEND OPTIONS``, as ``tests.worker.fleet`` starts it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import partial

import anyio

from pgq_anyio import Job, PgQueuer
from tests.backends import run_on
from tests.faults.job_log import JobLog

#: Characters of an error's text.
TALK = 1_000_000

app = PgQueuer(os.environ.get("PGQ_TEST_WORKER_DSN"), schema=os.environ.get("PGQ_TEST_SCHEMA", "pgq_anyio"))
log = JobLog(os.environ.get("PGQ_TEST_LOG_DSN", ""), os.environ.get("PGQ_TEST_LOG_TABLE", ""))


@app.entrypoint("carry")
async def carry(job: Job) -> None:
    """Fail unless the payload is what it was."""
    run = log.next_run()
    log.write(run, job.id, "carry", "start")
    assert job.payload is not None
    size = int(job.payload[:12])
    if len(job.payload) != size or job.payload.count(b"\xff") != size - 12:
        raise ValueError("the payload has changed")
    await anyio.lowlevel.checkpoint()
    log.write(run, job.id, "carry", "end")


@app.entrypoint("talk")
async def talk(job: Job) -> None:
    """Fail with a text of its own, which begins and ends with the number of the job."""
    run = log.next_run()
    log.write(run, job.id, "talk", "start")
    log.write(run, job.id, "talk", "failed")
    raise ValueError(f"<{job.id}>".ljust(TALK, "ä") + f"<{job.id}>")


def main(backend: str, options: str) -> None:
    """Run the worker until a signal ends it."""
    logging.basicConfig(level=logging.ERROR)
    run = partial(PgQueuer.run, app, signals=(signal.SIGTERM, signal.SIGINT), **json.loads(options))
    run_on(backend, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
