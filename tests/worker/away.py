"""The program of worker processes that lose their database: handlers write into a file, which no server takes away.

``python -m tests.worker.away BACKEND OPTIONS``. Each line of the journal is ``job_id event pid time``, by the machine's
monotonic clock: lines of several processes compare.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import anyio
import attrs

from pgq_anyio import Context, Job, PgQueuer, ProcessExecutor
from tests.backends import run_on

TICK = 0.02


@attrs.frozen(order=False)
class Entry:
    """One line of the journal."""

    job_id: int
    event: str
    pid: int
    at: float


@attrs.frozen
class Journal:
    """What handlers have done."""

    path: Path

    def write(self, job_id: int, event: str) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(f"{job_id} {event} {os.getpid()} {time.monotonic()!r}\n")

    def read(self) -> list[Entry]:
        """All lines, in order."""
        if not self.path.exists():
            return []
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [Entry(int(job_id), event, int(pid), float(at)) for job_id, event, pid, at in lines]

    def events(self, job_id: int) -> list[str]:
        """What happened to a job, ticks left out."""
        return [one.event for one in self.read() if one.job_id == job_id and one.event != "tick"]

    def find(self, job_id: int, event: str, *, but: int | None = None) -> list[Entry]:
        """Lines of one kind, of other processes than ``but``."""
        return [one for one in self.read() if (one.job_id, one.event) == (job_id, event) and one.pid != but]


JOURNAL = Journal(Path(os.environ.get("PGQ_TEST_JOURNAL", os.devnull)))

app = PgQueuer(os.environ.get("PGQ_TEST_WORKER_DSN"), schema=os.environ.get("PGQ_TEST_SCHEMA", "pgq_anyio"))


def _seconds(job: Job) -> float:
    return float(job.payload or b"3600")


@app.entrypoint("work")
async def work(job: Job, context: Context) -> None:
    """Run for the seconds of the payload; say how it ended."""
    JOURNAL.write(job.id, "start")
    until = time.monotonic() + _seconds(job)
    try:
        while time.monotonic() < until:
            await anyio.sleep(max(0.0, min(TICK, until - time.monotonic())))
            JOURNAL.write(job.id, "tick")
    except anyio.get_cancelled_exc_class():
        JOURNAL.write(job.id, f"cancelled:{context.cancel_reason}")
        raise
    JOURNAL.write(job.id, "end")


@app.entrypoint("short")
async def short(job: Job) -> None:
    """As ``work``, and without ticks."""
    JOURNAL.write(job.id, "start")
    await anyio.sleep(_seconds(job))
    JOURNAL.write(job.id, "end")


def _tick(job: Job) -> None:
    JOURNAL.write(job.id, "start")
    until = time.monotonic() + _seconds(job)
    while time.monotonic() < until:
        time.sleep(TICK)
        JOURNAL.write(job.id, "tick")
    JOURNAL.write(job.id, "end")


@app.entrypoint("thread")
def thread(job: Job) -> None:
    """As ``work``, in a thread."""
    _tick(job)


@app.entrypoint("process", executor_factory=ProcessExecutor)
def process(job: Job) -> None:
    """As ``work``, in a process."""
    _tick(job)


def main(backend: str, options: str) -> None:
    """Run the worker until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    run = partial(PgQueuer.run, app, signals=(signal.SIGTERM, signal.SIGINT), **json.loads(options))
    run_on(backend, run)


if __name__ == "__main__":
    # By its real name: children of the process handler import it.
    from tests.worker.away import main as run_main

    run_main(*sys.argv[1:])
