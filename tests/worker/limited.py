"""A worker process with limited entrypoints, for tests: ``python -m tests.worker.limited BACKEND OPTIONS``.

Beside the options of a worker, ``limits`` gives the options of the entrypoint ``limited``. Its payload says what a job
does. What it does is written on one connection of the process, by the server's clock, into the table of ``apps.py``.
"""

from __future__ import annotations

import json
import os
import sys

import anyio
import psycopg
from psycopg import sql

from pgq_anyio import Job, PgQueuer, Retry
from tests.worker import process
from tests.worker.apps import DSN, SCHEMA, app
from tests.worker.away import JOURNAL

_INSERT = sql.SQL("insert into {} (job_id, event, pid) values (%s, %s, %s)").format(sql.Identifier(SCHEMA + "_log"))
_connection = psycopg.connect(DSN, autocommit=True)


def log(job_id: int, event: str) -> None:
    """Write one line."""
    _connection.execute(_INSERT, (job_id, event, os.getpid()))


async def limited(job: Job) -> None:
    """Take 5 ms, and end as the payload says."""
    if job.payload == b"journal":
        # For when the database is away: into a file.
        JOURNAL.write(job.id, "start")
        await anyio.sleep(0.3)
        JOURNAL.write(job.id, "end")
        return
    log(job.id, "start")
    try:
        match job.payload:
            case b"hold":
                await anyio.sleep_forever()
            case b"stubborn":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.3)
            case b"linger":
                try:
                    await anyio.sleep(2)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.3)
            case b"slow":
                await anyio.sleep(4)
            case b"retry" if job.attempt < 3:
                await anyio.sleep(0.005)
                raise Retry(delay=0)
            case b"fail":
                await anyio.sleep(0.005)
                raise ValueError("as asked")
            case b"quick":
                pass
            case _:
                await anyio.sleep(0.005)
    finally:
        log(job.id, "end")


def register(app: PgQueuer, **limits: object) -> None:
    """Register the handler with these limits."""
    app.entrypoint("limited", max_crashes=100, **limits)(limited)  # type: ignore[arg-type]


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    register(app, **options.pop("limits"))
    process.main(sys.argv[1], json.dumps(options))
