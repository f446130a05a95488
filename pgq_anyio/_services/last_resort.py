"""Bounds the end of a program of its own: handlers that ignore their cancellation are left behind with the process.

``run()`` inside somebody else's program never does this: it waits for every handler.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from .._db import retrying
from .._endings import Endings
from .._errors import in_a_line
from .._holdings import Run
from .._scheduled import ScheduledRun
from .._stop import Stop

logger = logging.getLogger("pgq_anyio.last_resort")

#: How long the last outcomes and the last words to the database may take (in seconds), each.
LAST_OUTCOMES: Final = 0.4
LAST_WORDS: Final = 0.4
#: How long what was printed may take to be written (in seconds).
LAST_PRINTS: Final = 0.2
#: How long the rest may take once it is hurried and no handler runs any more (in seconds): the farewell and the last
#: outcomes, which have bounds of their own, and the exit of the lifespan, which has none.
REST: Final = 10.0


@attrs.define(eq=False, kw_only=True)
class LastResort:
    """What is left to do before the process ends."""

    stop: Stop
    #: how long running jobs may go on after a request to stop (in seconds)
    shutdown_grace: float
    #: how long a handler may take to end after it was cancelled (in seconds)
    cancel_grace: float
    running: Callable[[], list[Run | ScheduledRun]]
    endings: Endings
    #: tells the database that this worker goes although handlers of its own still run, and to give their jobs back
    mark_left: Callable[[], Awaitable[None]]
    #: ends the process
    exit: Callable[[int], object] = os._exit


async def run_last_resort(resort: LastResort, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Wait for the end of all patience, then end the process with exit code 1.

    Started with the worker and not when its end begins: signals may come so fast one after the other that nothing that
    would have to be started in between is, and an error leaves nobody to start anything.
    """
    task_status.started()
    await resort.stop.wait_begun()
    await resort.stop.wait_hurried(resort.shutdown_grace)
    await resort.stop.wait_given_up(resort.cancel_grace)
    if not resort.running():
        # All jobs have ended. What is left of a peaceful stop may take its time.
        await resort.stop.wait_hurried(math.inf)
        await resort.stop.wait_given_up(REST)
    await leave_behind(resort)


async def leave_behind(resort: LastResort) -> None:
    """Name what still runs, save what can be saved, and end the process."""
    running = resort.running()
    for run in running:
        logger.error(
            "%s still runs and is left behind; another worker will run it again. It was here:\n%s",
            run.title,
            run.context.stack() or "(its stack is in another process)",
        )
    if not running:
        logger.error("no job runs any more, but the worker does not end: does its lifespan hang while it closes?")
    with anyio.move_on_after(LAST_OUTCOMES, shield=True):
        await resort.endings.wait_stored()
    # All that may take a moment comes before: others may take over the jobs as soon as they hear that this worker goes.
    logging.shutdown()
    _flush()
    with anyio.move_on_after(LAST_WORDS, shield=True):
        try:
            # If the last handler ends at this very moment, the run goes on to its end and closes the connection.
            await retrying(resort.mark_left, what="telling that this worker leaves", max_time=LAST_WORDS)
        except Exception as error:  # the process ends whatever the database says
            logger.error(
                "the database could not be told that this worker leaves (%s); its lease will end by itself",
                in_a_line(error),
                exc_info=logger.isEnabledFor(logging.DEBUG),
            )
    resort.exit(1)


def _flush() -> None:
    """Write out what handlers have printed: a pipe gets it in blocks, and this end of the process writes none. It has a
    moment, for the other end may not be read.
    """

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(LAST_PRINTS)
