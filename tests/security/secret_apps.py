"""Handlers that meet a database with a password."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg

from pgq_anyio import Job, PgQueuer, ProcessExecutor, PsycopgDriver

app = PgQueuer()


@app.entrypoint("unreachable", executor_factory=ProcessExecutor)
def unreachable(job: Job) -> None:
    """Fail as libpq does."""
    psycopg.connect(os.environ["PGQ_ANYIO_DSN"], host="127.0.0.1", port=1, connect_timeout=2)


@app.entrypoint("unreadable")
async def unreadable(job: Job) -> None:
    """Fail as we do, with a DSN whose password was not escaped."""
    PsycopgDriver(os.environ["PGQ_TEST_TORN_DSN"])


@app.entrypoint("wait", executor_factory=ProcessExecutor)
def wait(job: Job) -> None:
    """Be seen in the list of processes."""
    Path(os.environ["PGQ_TEST_PID_FILE"]).write_text(str(os.getpid()), "utf-8")
    time.sleep(60)


def fresh() -> PgQueuer:
    """Make an app that has not been told yet where its database is."""
    app = PgQueuer()
    app.entrypoint("unreadable")(unreadable)
    return app
