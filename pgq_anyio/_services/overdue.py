"""Names handlers that ignore their cancellation: a warning with the stack, and a mark in the row.

Nothing else happens to them: the row, the slot and the outcome wait for the handler's end. Whoever cancels a job says
so here. Only the timeout of a job is a scope that fires without any code of ours: the jobs that run are looked at, when
one of them may be overdue, or one that has started since could be. So no timer is set for any job, and jobs without a
timeout cost nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus
from psycopg import Error

from .._db import is_transient, retrying
from .._db.line import Line
from .._doorbell import Doorbell
from .._errors import in_a_line
from .._holdings import Run
from .._scheduled import ScheduledRun
from .._store._sql import Store
from .._store.running import mark_overdue

logger = logging.getLogger("pgq_anyio.overdue")

#: The shortest pause between two looks at timeouts (in seconds).
SHORTEST_PAUSE: Final = 0.5
#: How long to try to say of one job in the database that it is overdue, before others are named, and the pause until it
#: is tried again (in seconds).
LONGEST_MARK: Final = 5.0


@attrs.define(eq=False, kw_only=True)
class OverdueWatch:
    """Whom the watch is waiting for."""

    line: Line
    store: Store
    #: how long after its cancellation a handler is overdue (in seconds)
    grace: float
    #: the shortest timeout that a job can have (in seconds)
    shortest_timeout: float
    #: everything whose handler has not ended
    running: Callable[[], list[Run | ScheduledRun]]
    #: when those who were asked to end are overdue (event loop's clock)
    _due: dict[Run | ScheduledRun, float] = attrs.field(factory=dict, init=False)
    #: those whose timeout has passed, and was seen
    _timed_out: set[Run | ScheduledRun] = attrs.field(factory=set, init=False)
    #: those who were named, but whose rows do not say so yet, and when to try again (event loop's clock)
    _unmarked: dict[Run, float] = attrs.field(factory=dict, init=False)
    #: when to look at the timeouts again (event loop's clock)
    _look_at: float = attrs.field(default=-math.inf, init=False)
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
        """How long there is nothing to report, unless ``expect`` is called (in seconds)."""
        self._due = {run: at for run, at in self._due.items() if not run.ended}
        self._unmarked = {run: at for run, at in self._unmarked.items() if not run.ended}
        return min(self._look_at, *self._due.values(), *self._unmarked.values(), math.inf) - anyio.current_time()

    def take_overdue(self) -> list[Run | ScheduledRun]:
        """Those who are overdue now, each once for every time that it is asked to end."""
        now = anyio.current_time()
        if self._look_at <= now:
            self._look_at_timeouts(now)
        overdue = [run for run, at in self._due.items() if at <= now and not run.ended]
        for run in overdue:
            del self._due[run]
        return overdue

    def next_unmarked(self) -> Run | None:
        """One whose row is to say now that it is overdue."""
        now = anyio.current_time()
        return next((run for run, at in self._unmarked.items() if at <= now and not run.ended), None)

    def mark_soon(self, run: Run) -> None:
        """Its row is to say that it is overdue."""
        self._unmarked[run] = anyio.current_time()

    def mark_later(self) -> None:
        """The database cannot be told now of any of them."""
        self._unmarked = dict.fromkeys(self._unmarked, anyio.current_time() + LONGEST_MARK)

    def has_marked(self, run: Run) -> None:
        """Its row says so, or never will."""
        self._unmarked.pop(run, None)

    def _look_at_timeouts(self, now: float) -> None:
        self._timed_out = {run for run in self._timed_out if not run.ended}
        next_due = self.shortest_timeout + self.grace  # of a job that starts right now
        for run in self.running():
            pause = run.context.times_out_at + self.grace - now
            if pause > 0:
                next_due = min(next_due, pause)
            elif run not in self._timed_out:
                self._timed_out.add(run)
                self._due.setdefault(run, now)
        self._look_at = now + max(next_due, SHORTEST_PAUSE)


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
        if isinstance(run, Run):
            watch.mark_soon(run)
    while (unmarked := watch.next_unmarked()) is not None:
        await _mark(watch, unmarked)
    return len(overdue)


async def _mark(watch: OverdueWatch, run: Run) -> None:
    """Say so in the database, if that can be done soon, else later: others wait to be named."""

    async def mark() -> None:
        await mark_overdue(await watch.line.connection(), watch.store, run.held)

    try:
        await retrying(mark, what="marking a job as overdue", max_time=LONGEST_MARK, patience=LONGEST_MARK)
    except (Error, OSError) as error:
        if is_transient(error):
            watch.mark_later()
            return
        logger.info("the record of %s will not say that it is overdue: %s", run.title, in_a_line(error))
    watch.has_marked(run)
