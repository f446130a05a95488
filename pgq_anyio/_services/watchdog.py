"""Names what blocks the event loop: a warning with the stack, from a thread that the loop cannot stop.

A blocked loop sends no heartbeats and delivers no cancellation; if it lasts longer than the lease, the fence alone
protects the jobs. The loop stamps the time a few times per limit, the thread compares: nothing of this is on the path
of a job.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

logger = logging.getLogger("pgq_anyio.watchdog")

#: Looks per limit, of the loop and of the thread.
LOOKS: Final = 4


@attrs.define(eq=False)
class Watchdog:
    """What the loop and the watching thread share."""

    #: a loop that did not run for this long is blocked (in seconds)
    limit: float
    loop_thread: int = attrs.field(factory=threading.get_ident, init=False)
    stamped_at: float = attrs.field(factory=time.monotonic, init=False)
    ended: threading.Event = attrs.field(factory=threading.Event, init=False)

    def watch(self) -> None:
        """Compare until the end (the thread's function)."""
        pause = self.limit / LOOKS
        looked_at = time.monotonic()
        reported_at = None
        while not self.ended.wait(pause):
            now = time.monotonic()
            # A pause that took much too long: the whole process was stopped, not the loop alone.
            stopped = now - looked_at > pause + self.limit / 2
            looked_at = now
            if now - self.stamped_at > self.limit and not stopped and reported_at != self.stamped_at:
                reported_at = self.stamped_at
                self.report()

    def report(self) -> None:
        """Log where the loop's thread is now."""
        frame = sys._current_frames().get(self.loop_thread)
        if frame is not None:
            logger.warning(
                "the event loop has been blocked for more than %g s: no heartbeat is sent and nothing is cancelled."
                " Sync code belongs into a sync handler, which runs in a thread. It is here:\n%s",
                self.limit,
                "".join(traceback.format_stack(frame)),
            )


async def run_watchdog(limit: float, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Watch until cancelled.

    :param limit: a loop that does not run for this long is blocked (in seconds)
    """
    watchdog = Watchdog(limit)
    threading.Thread(target=watchdog.watch, name="pgq_anyio watchdog", daemon=True).start()
    task_status.started()
    try:
        while True:
            watchdog.stamped_at = time.monotonic()
            await anyio.sleep(limit / LOOKS)
    finally:
        watchdog.ended.set()
