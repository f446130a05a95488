"""The program of worker processes that crash their server: ``python -m tests.worker.undone BACKEND OPTIONS``.

All its names are without limits and in no process, and so are claimed without waiting for the disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial

import attrs

from pgq_anyio import Context, Job, PgQueuer
from tests.backends import run_on
from tests.worker.away import JOURNAL, work

app = PgQueuer(os.environ["PGQ_TEST_WORKER_DSN"], schema=os.environ["PGQ_TEST_SCHEMA"])
app.entrypoint("work")(work)


@app.entrypoint("crash")
async def crash(job: Job, context: Context) -> None:
    """Kill the process of the payload, in the first run; then work for 6 s."""
    if not JOURNAL.events(job.id):
        os.kill(int(job.payload or b""), signal.SIGKILL)
    await work(attrs.evolve(job, payload=b"6"), context)


def main(backend: str, options: str) -> None:
    """Run the worker until a signal ends it."""
    run_on(backend, partial(app.run, signals=(signal.SIGTERM, signal.SIGINT), **json.loads(options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
