"""A worker process with schedules, for tests: ``python -m tests.worker.scheduled BACKEND OPTIONS``.

Beside the options of a worker: ``serve`` lists schedules as (name, handler, expression), for workers may run different
code under the same name; ``missed`` is what all of them do about missed occurrences. Handlers write into the table of
``apps.py``; an occurrence goes by its seconds since 1970.
"""

from __future__ import annotations

import json
import sys

import anyio

from pgq_anyio import Schedule
from tests.worker import process
from tests.worker.apps import app, log


async def tick(schedule: Schedule) -> None:
    """One line per occurrence."""
    log(int(schedule.due_at.timestamp()), "run")


async def long(schedule: Schedule) -> None:
    """Go on for ever."""
    number = int(schedule.due_at.timestamp())
    log(number, "start")
    try:
        await anyio.sleep_forever()
    finally:
        log(number, "cancelled")


async def slow(schedule: Schedule) -> None:
    """Take longer than the period of a schedule of every second."""
    number = int(schedule.due_at.timestamp())
    log(number, "start")
    await anyio.sleep(1.5)
    log(number, "end")


HANDLERS = {"tick": tick, "long": long, "slow": slow}

if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    missed = options.pop("missed", "coalesce")
    for name, handler, expression in options.pop("serve"):
        app.schedule(name, expression, missed=missed)(HANDLERS[handler])
    process.main(sys.argv[1], json.dumps(options))
