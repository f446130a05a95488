"""Bounds the stop of a program of its own: handlers that ignore their cancellation are left behind with the process.

``run()`` inside somebody else's program never does this: it waits for every handler.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

import anyio
import attrs

from .._db.line import Line
from .._endings import Endings
from .._holdings import Run
from .._scheduled import ScheduledRun
from .._stop import Stop
from .._store._sql import Store
from .._store.worker import mark_left

logger = logging.getLogger("pgq_anyio.last_resort")

#: How long the last words to the database may take (in seconds).
LAST_WORDS: Final = 0.8


@attrs.define(eq=False, kw_only=True)
class LastResort:
    """What is left to do before the process ends."""

    line: Line
    store: Store
    worker_id: int
    stop: Stop
    #: how long running jobs may go on after a request to stop (in seconds)
    shutdown_grace: float
    #: how long a handler may take to end after it was cancelled (in seconds)
    cancel_grace: float
    running: Callable[[], list[Run | ScheduledRun]]
    endings: Endings
    #: ends the process
    exit: Callable[[int], object] = os._exit


async def run_last_resort(resort: LastResort) -> None:
    """Wait for the end of all patience, then end the process with exit code 1.

    Started with the term and not when the stop begins: signals may come so fast one after the other that nothing that
    would have to be started in between is.
    """
    await resort.stop.wait_requested()
    await resort.stop.wait_hurried(resort.shutdown_grace)
    await resort.stop.wait_given_up(resort.cancel_grace)
    for run in resort.running():
        logger.error(
            "%s still runs and is left behind; another worker will run it again. It was here:\n%s",
            run.title,
            run.context.stack() or "(its stack is in another process)",
        )
    with anyio.move_on_after(LAST_WORDS, shield=True):
        try:
            await resort.endings.wait_stored()
            conn = await resort.line.connection()
            await mark_left(conn, resort.store, worker_id=resort.worker_id)
        except Exception:  # the process ends whatever the database says
            logger.exception("the database could not be told that this worker leaves")
    logging.shutdown()
    resort.exit(1)
