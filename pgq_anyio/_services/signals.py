"""Turns signals into requests to stop: the first is graceful, the second is not, the third does not wait.

Received in the outermost group, so that the second and third are heard while everything inside is ending.

What handled them before does so again afterwards. asyncio's loops put Python's own handlers there instead, and those
would break the program around the worker off while it closes what it has opened.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import anyio
from anyio.abc import TaskStatus

from .._stop import Stop

logger = logging.getLogger("pgq_anyio.signals")


async def run_signals(
    signals: Sequence[signal.Signals], stop: Stop, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Listen for signals until cancelled."""
    with _received(signals) as received:
        task_status.started()
        count = 0
        async for number in received:
            if count and number == signal.SIGHUP:
                continue  # of a terminal that is closed its shell tells, and then the kernel
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


@contextmanager
def _received(numbers: Sequence[signal.Signals]) -> Iterator[AsyncIterator[signal.Signals]]:
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with anyio.open_signal_receiver(*numbers) as received:
            yield received
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's, and cannot be put back by it
                signal.signal(number, handler)
