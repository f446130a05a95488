"""Turns signals into requests to stop: the first is graceful, the second is not, the third does not wait.

Received in the outermost group, so that the second and third are heard while everything inside is ending.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

import anyio
from anyio.abc import TaskStatus

from .._stop import Stop

logger = logging.getLogger("pgq_anyio.signals")


async def run_signals(
    signals: Sequence[signal.Signals], stop: Stop, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Listen for signals until cancelled."""
    with anyio.open_signal_receiver(*signals) as received:
        task_status.started()
        count = 0
        async for number in received:
            count += 1
            name = signal.Signals(number).name
            if count == 1:
                logger.info("%s: stopping; running jobs may end", name)
                stop.request()
            elif count == 2:
                logger.warning("%s again: cancelling the jobs that still run", name)
                stop.hurry()
            else:
                logger.warning("%s for the third time: not waiting any longer", name)
                stop.give_up()
