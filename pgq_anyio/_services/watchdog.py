"""Names what blocks the event loop: a warning with the stack, from a thread that the loop cannot stop.

A blocked loop sends no heartbeats and delivers no cancellation; if it lasts longer than the lease, the fence alone
protects the jobs. The loop stamps the time twice per limit, the thread wakes when a stamp is overdue by a whole limit:
nothing of this is on the path of a job, and both sleep as long as they can, for an idle worker does little else. What
blocks for less than the limit is never named, what blocks for half as long again always is.
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

#: How often the loop stamps the time, in parts of the limit. A stamp may be older by as much when something begins to
#: block.
INTERVAL: Final = 0.5


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
        overdue = self.limit * (1 + INTERVAL)
        reported_at = None
        while True:
            began_at = time.monotonic()
            pause = self.stamped_at + overdue - began_at
            if pause <= 0:
                pause = self.limit * INTERVAL
            if self.ended.wait(pause):
                return
            now = time.monotonic()
            if now - began_at > pause + self.limit * INTERVAL:
                # The whole process was stopped, not the loop alone, which may only now go on.
                self.stamped_at = now
            elif now - self.stamped_at >= overdue and reported_at != self.stamped_at:
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
            await anyio.sleep(limit * INTERVAL)
    finally:
        watchdog.ended.set()
