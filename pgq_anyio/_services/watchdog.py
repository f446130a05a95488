"""Names what blocks the event loop: a warning with the stack, from a thread that the loop cannot stop.

A blocked loop sends no heartbeats and delivers no cancellation; if it lasts longer than the lease, the fence alone
protects the jobs. The loop stamps the time twice per limit, the thread wakes when a stamp is overdue by a whole limit:
nothing of this is on the path of a job. What blocks for less than the limit is never named, what blocks for half as
long again always is.

While nothing of the user's runs, both sleep without a timer: three wakes in a second cost more than all else that an
idle worker does. Whoever starts a handler wakes them first, by a call that does not wait.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from .._doorbell import Doorbell

logger = logging.getLogger("pgq_anyio.watchdog")

#: How often the loop stamps the time, in parts of the limit. A stamp may be older by as much when something begins to
#: block.
INTERVAL: Final = 0.5


@attrs.define(eq=False)
class Watchdog:
    """What the loop and the watching thread share."""

    #: a loop that did not run for this long is blocked (in seconds)
    limit: float
    #: whether anything runs that may block the loop; asked in the loop, twice per limit
    is_needed: Callable[[], bool]
    loop_thread: int = attrs.field(factory=threading.get_ident, init=False)
    stamped_at: float = attrs.field(factory=time.monotonic, init=False)
    #: whether the loop stamps nothing until it is woken
    _rests: bool = attrs.field(default=False, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    _has_ended: bool = attrs.field(default=False, init=False)
    #: ends the thread's pause: it is woken, or is to end
    _alarm: threading.Event = attrs.field(factory=threading.Event, init=False)

    def wake(self) -> None:
        """Something starts that may block the loop, perhaps before any other task has its turn."""
        if self._rests:
            self.stamp()
            self._rests = False
            self._alarm.set()
            self._bell.ring()

    def stamp(self) -> None:
        """The loop runs."""
        self.stamped_at = time.monotonic()

    async def rest(self) -> None:
        """Wait until it is woken."""
        self._rests = True
        await self._bell.wait()

    def end(self) -> None:
        """Let the thread end."""
        self._has_ended = True
        self._alarm.set()

    def watch(self) -> None:
        """Compare until the end (the thread's function)."""
        overdue = self.limit * (1 + INTERVAL)
        reported_at = None
        while True:
            self._alarm.clear()  # before the looks: whoever sets it has changed what they see
            if self._has_ended:
                return
            if self._rests:
                self._alarm.wait()
                continue
            began_at = time.monotonic()
            pause = self.stamped_at + overdue - began_at
            if pause <= 0:
                pause = self.limit * INTERVAL
            if self._alarm.wait(pause):
                continue
            now = time.monotonic()
            if now - began_at > pause + self.limit * INTERVAL:
                # The whole process was stopped, not the loop alone, which may only now go on.
                self.stamped_at = now
            elif self._is_late(now - overdue) and reported_at != self.stamped_at:
                reported_at = self.stamped_at
                self.report()

    def _is_late(self, stamp_is_due: float) -> bool:
        return not self._rests and self.stamped_at <= stamp_is_due

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


async def run_watchdog(watchdog: Watchdog, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Watch until cancelled."""
    watchdog.stamp()
    threading.Thread(target=watchdog.watch, name="pgq_anyio watchdog", daemon=True).start()
    task_status.started()
    try:
        while True:
            watchdog.stamp()
            if watchdog.is_needed():
                await anyio.sleep(watchdog.limit * INTERVAL)
            else:
                await watchdog.rest()
    finally:
        watchdog.end()
