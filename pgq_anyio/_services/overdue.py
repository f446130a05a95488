"""Names handlers that ignore their cancellation: a warning with the stack, and a mark in the row.

Nothing else happens to them: the row, the slot and the outcome wait for the handler's end. A watch that asks the
clock only while somebody is being cancelled costs the others nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

import anyio
import attrs

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._holdings import Run
from .._scheduled import ScheduledRun
from .._store._sql import Store
from .._store.running import mark_overdue

logger = logging.getLogger("pgq_anyio.overdue")


@attrs.define(eq=False, kw_only=True)
class OverdueWatch:
    """Whom the watch is waiting for."""

    line: Line
    store: Store
    #: how long after its cancellation a handler is overdue (in seconds)
    grace: float
    #: everything whose handler has not ended
    running: Callable[[], list[Run | ScheduledRun]]
    _waiting: list[tuple[float, Run | ScheduledRun]] = attrs.field(factory=list, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)

    def expect(self, run: Run | ScheduledRun) -> None:
        """A handler has been asked to end."""
        self._waiting.append((anyio.current_time() + self.grace, run))
        self._bell.ring()

    def expect_all(self, cancelled_at: float) -> None:
        """All handlers that still run at ``cancelled_at`` (event loop's clock) are asked to end then."""
        self._waiting.extend((cancelled_at + self.grace, run) for run in self.running())
        self._bell.ring()


async def run_overdue_watch(watch: OverdueWatch) -> None:
    """Watch until cancelled."""
    while True:
        watch._waiting = [(at, run) for at, run in watch._waiting if not run.ended]
        pause = min((at for at, _ in watch._waiting), default=math.inf) - anyio.current_time()
        if pause > 0:
            await watch._bell.wait(None if math.isinf(pause) else pause)
        else:
            await report_once(watch)


async def report_once(watch: OverdueWatch) -> int:
    """Report every handler that is overdue now; how many there are."""
    now = anyio.current_time()
    overdue = {id(run): run for at, run in watch._waiting if at <= now and not run.ended}
    watch._waiting = [(at, run) for at, run in watch._waiting if at > now]
    for run in overdue.values():
        logger.warning(
            "%s ignores its cancellation (%s) for more than %g s; it keeps its row and slot:\n%s",
            run.title,
            run.context.cancel_reason,
            watch.grace,
            run.context.stack() or "(its stack is in another process)",
        )
        if isinstance(run, Run):
            await retrying(partial(_mark, watch, run), what="marking a job as overdue", patience=PATIENCE)
    return len(overdue)


async def _mark(watch: OverdueWatch, run: Run) -> None:
    conn = await watch.line.connection()
    await mark_overdue(conn, watch.store, run.held)
