"""Names handlers that ignore their cancellation: a warning with the stack, and a mark in the row.

Nothing else happens to them: the row, the slot and the outcome wait for the handler's end. Whoever cancels a job says
so here. A watch that asks the clock only while somebody is being cancelled costs the others nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

import anyio
import attrs
from anyio.abc import TaskStatus

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
    #: when those who were asked to end are overdue (event loop's clock)
    _due: dict[Run | ScheduledRun, float] = attrs.field(factory=dict, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)

    def expect(self, run: Run | ScheduledRun) -> None:
        """A handler has been asked to end. If it was before, and has not been reported yet, that counts."""
        self._due.setdefault(run, anyio.current_time() + self.grace)
        self._bell.ring()

    def expect_all(self) -> None:
        """All handlers that run have been asked to end."""
        for run in self.running():
            self.expect(run)

    def wait_time(self) -> float:
        """How long nobody can be overdue, unless ``expect`` is called (in seconds)."""
        self._due = {run: at for run, at in self._due.items() if not run.ended}
        return min(self._due.values(), default=math.inf) - anyio.current_time()

    def take_overdue(self) -> list[Run | ScheduledRun]:
        """Those who are overdue now, each once for every time that it is asked to end."""
        now = anyio.current_time()
        overdue = [run for run, at in self._due.items() if at <= now and not run.ended]
        for run in overdue:
            del self._due[run]
        return overdue


async def run_overdue_watch(watch: OverdueWatch, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Watch until cancelled."""
    task_status.started()
    while True:
        pause = watch.wait_time()
        if pause > 0:
            await watch._bell.wait(None if math.isinf(pause) else pause)
        else:
            await report_once(watch)


async def report_once(watch: OverdueWatch) -> int:
    """Report every handler that is overdue now; how many there are."""
    overdue = watch.take_overdue()
    for run in overdue:
        logger.warning(
            "%s ignores its cancellation (%s) for more than %g s; it keeps its row and slot:\n%s",
            run.title,
            run.context.cancel_reason,
            watch.grace,
            run.context.stack() or "(its stack is in another process)",
        )
    for run in overdue:
        if isinstance(run, Run) and not run.ended:
            await retrying(partial(_mark, watch, run), what="marking a job as overdue", patience=PATIENCE)
    return len(overdue)


async def _mark(watch: OverdueWatch, run: Run) -> None:
    conn = await watch.line.connection()
    await mark_overdue(conn, watch.store, run.held)
