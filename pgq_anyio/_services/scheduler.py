"""Starts scheduled runs at their times, each occurrence once in the whole fleet.

There is no leader: every worker sleeps until the next time in its timetable and then asks for everything that is due,
in one statement. Whoever comes too late learns from the same answer what the rows say now. The occurrences are computed
from the rows and in the database's time (``_timetable.py``), which the event loop's clock tells between two answers
(``_database_clock.py``).

What others change is heard by the notification ``schedule`` (a pause, a resumption, a removal, a run that was given
back, a rescue), read again whenever the listener had to reconnect, and found at the latest at the schedule's next
occurrence, which is asked for even while its row is believed to be paused or taken. So no statement is spent on
watching, and a worker without schedules sends none.

Taking an occurrence is a commit point, as a claim is: the stretch until the run has started is shielded. If the answer
is lost, the rows are read until it is known what became of it: a row that names us as its owner and that we do not run
is given back, and nobody has run that occurrence yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio
import attrs
from anyio import CancelScope
from anyio.abc import TaskStatus
from psycopg import OperationalError

from .._database_clock import DatabaseClock
from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._lifecycle import GIVEN_BACK, GivenBack, Outcome
from .._registry import ScheduleEntry
from .._scheduled import ScheduledRun
from .._store._sql import Store
from .._store.schedule import (
    Rows,
    Taken,
    fire_schedules,
    read_schedules,
    register_schedules,
    release_schedules,
    serve_schedules,
)
from .._timetable import HeldSchedule, ScheduleKey, ScheduleState, Timetable, Wanted, next_claim_no

logger = logging.getLogger("pgq_anyio.scheduler")

#: An occurrence that is taken is not lost, even if the server loses its memory the moment after.
SCHEDULE_SETTINGS: Final = {"synchronous_commit": "on", "plan_cache_mode": "force_generic_plan", "jit": "off"}
#: How long the start of a worker waits for its schedules to be registered (in seconds): a lock on their table is no
#: reason not to run jobs.
START_PATIENCE: Final = 2.0
#: The longest sleep without a look at the clocks (in seconds).
LONGEST_SLEEP: Final = 3600.0


@attrs.define(eq=False, kw_only=True)
class Scheduler:
    """What a scheduler knows."""

    line: Line
    store: Store
    worker_id: int
    entries: Mapping[ScheduleKey, ScheduleEntry]
    #: opens a shielded scope for one claim
    shield: Callable[[], CancelScope]
    #: called with whether a claim was answered in time
    on_answer: Callable[[bool], None]
    #: starts the run of an occurrence that was taken; never waits
    start_run: Callable[[ScheduleEntry, HeldSchedule, Wanted], None]
    #: called with a run whose row is not ours any more
    on_lost_run: Callable[[ScheduledRun], None]
    clock: DatabaseClock = attrs.field(factory=DatabaseClock, init=False)
    timetable: Timetable = attrs.field(init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: whether rows may have changed without our doing
    _stale: bool = attrs.field(default=True, init=False)
    #: whether the answer to a claim was lost: it may still be committed, however late
    _unresolved: bool = attrs.field(default=False, init=False)
    _runs: dict[ScheduleKey, ScheduledRun] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        plans = {key: (entry.cron, entry.missed) for key, entry in self.entries.items()}
        self.timetable = Timetable(self.worker_id, plans)

    def look(self) -> None:
        """Read the rows again: somebody has changed one, or may have."""
        self._stale = True
        self._bell.ring()

    def observe(self, clock: float, asked_at: float) -> None:
        """Take in the database's clock (in seconds since 1970) from an answer that has just come.

        :param asked_at: when it was asked for (event loop's clock)
        """
        self.clock.observe(clock, asked_at=asked_at, answered_at=anyio.current_time())
        self._stale = self._stale or self._unresolved
        self._bell.ring()

    async def wait_due(self) -> None:
        """Wait until a schedule is due, or until there is something to read."""
        while not self._stale and (pause := self.clock.until(self.timetable.next_look())) > 0:
            await self._bell.wait(min(pause, LONGEST_SLEEP))

    # -- runs ------------------------------------------------------------------------------------------------------

    def add(self, run: ScheduledRun) -> None:
        """A run begins."""
        self._runs[run.held.key] = run

    def handler_ended(self, run: ScheduledRun) -> None:
        """The handler has ended; its row is still ours until that is stored."""
        run.ended = True
        self._runs.pop(run.held.key, None)

    @property
    def is_busy(self) -> bool:
        """Whether a run's handler has not ended."""
        return bool(self._runs)

    def running(self) -> list[ScheduledRun]:
        """Runs whose handler has not ended."""
        return list(self._runs.values())

    def find_lost_runs(self, states: Sequence[ScheduleState]) -> None:
        """Compare what runs here with all rows, which have just been read. A failover may have lost the claim of a run,
        or its schedule was removed: the next one who looks starts an occurrence beside it.
        """
        owners = {state.key: (state.worker_id, state.claim_no) for state in states}
        for run in self.running():
            if owners.get(run.held.key) != (self.worker_id, run.held.claim_no):
                self.on_lost_run(run)

    def released(self, held: HeldSchedule, outcome: Outcome) -> None:
        """The end of a run has been stored: its next occurrence may be due already."""
        self.timetable.release(held, given_back=isinstance(outcome, GivenBack), now=self.clock.now())
        self._bell.ring()


async def run_scheduler(scheduler: Scheduler, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Start runs until cancelled; without schedules, do nothing at all. Started once they are known to the database,
    or cannot be made known now.
    """
    if not scheduler.entries:
        task_status.started()
        return
    register = partial(retrying, partial(register_once, scheduler), what="registering schedules", patience=PATIENCE)
    try:
        with anyio.move_on_after(START_PATIENCE) as patience:
            await register()
        task_status.started()
        if patience.cancelled_caught:
            await register()
        while True:
            await scheduler.wait_due()
            await retrying(partial(look_once, scheduler), what="starting scheduled runs", patience=PATIENCE)
    finally:
        scheduler.line.close()


async def register_once(scheduler: Scheduler) -> None:
    """Make all schedules known to the database, and read what it knows of them."""
    await _register(scheduler)
    await read_once(scheduler)


async def _register(scheduler: Scheduler) -> None:
    conn = await scheduler.line.connection()
    known = [(entry.name, entry.expression, entry.cron.timezone) for entry in scheduler.entries.values()]
    await serve_schedules(conn, scheduler.store, scheduler.timetable.keys, worker_id=scheduler.worker_id)
    await register_schedules(conn, scheduler.store, sorted(known))


async def look_once(scheduler: Scheduler) -> int:
    """Read what has changed and take what is due; how many runs were started."""
    if scheduler._stale:
        await read_once(scheduler)
    wanted = scheduler.timetable.due(scheduler.clock.now())
    return await fire_once(scheduler, wanted) if wanted else 0


async def read_once(scheduler: Scheduler) -> None:
    """Take in what the rows say, and give back what they say that we run and do not. Rows that were removed are made
    again: the code is still here.
    """
    scheduler._stale = False  # what is changed while the statement is under way must not be missed
    try:
        asked_at, rows = await _read(scheduler)
        if len(rows.states) < len(scheduler.entries):
            await _register(scheduler)
            asked_at, rows = await _read(scheduler)
        # Not by observe(): with a claim whose answer was lost this reading would ask for the next one.
        scheduler.clock.observe(rows.clock, asked_at=asked_at, answered_at=anyio.current_time())
        scheduler.find_lost_runs(rows.states)
        unknown = scheduler.timetable.learn(rows.states, now=scheduler.clock.now())
        await _give_back(scheduler, unknown)
    except BaseException:
        scheduler._stale = True
        raise


async def _read(scheduler: Scheduler) -> tuple[float, Rows]:
    """When the rows were asked for (event loop's clock), and what they say."""
    asked_at = anyio.current_time()
    conn = await scheduler.line.connection()
    return asked_at, await read_schedules(conn, scheduler.store, scheduler.timetable.keys)


async def fire_once(scheduler: Scheduler, wanted: list[Wanted]) -> int:
    """Ask for occurrences and start those that are ours.

    :raises psycopg.OperationalError: if the answer did not come in time
    """
    claim_no = next_claim_no()
    conn = await scheduler.line.connection()
    taken: Taken | None = None
    try:
        with scheduler.shield():
            asked_at = anyio.current_time()
            taken = await fire_schedules(
                conn, scheduler.store, wanted, worker_id=scheduler.worker_id, claim_no=claim_no
            )
            _start(scheduler, wanted, taken, claim_no)
            scheduler.observe(taken.clock, asked_at)
    finally:
        if taken is None:
            scheduler._stale = scheduler._unresolved = True
    scheduler.on_answer(taken is not None)
    if taken is None:
        scheduler.line.close()
        raise OperationalError("the claim of scheduled runs was not answered in time")
    now = scheduler.clock.now()
    unknown = scheduler.timetable.learn(taken.states, now=now)
    await _give_back(scheduler, unknown)
    if len(taken.states) < len(wanted):
        # Rows were removed, and we had not heard of it.
        await register_once(scheduler)
    scheduler.timetable.refused([one for one in wanted if one.state.key not in taken.fired], now=now)
    return len(taken.fired)


def _start(scheduler: Scheduler, wanted: list[Wanted], taken: Taken, claim_no: int) -> None:
    asked = {one.state.key: one for one in wanted}
    for key in taken.fired:
        held = HeldSchedule(*key, scheduler.worker_id, claim_no)
        scheduler.timetable.hold(held, asked[key].due_at)
        scheduler.start_run(scheduler.entries[key], held, asked[key])


async def _give_back(scheduler: Scheduler, unknown: list[HeldSchedule]) -> None:
    """Give back what was taken by claims whose answer was lost."""
    if not unknown:
        return
    scheduler._stale = True  # whether this succeeds or not, the rows are to be read again
    conn = await scheduler.line.connection()
    released = await release_schedules(conn, scheduler.store, [(held, GIVEN_BACK) for held in unknown])
    if released:
        names = [name for name, _, _ in released]
        logger.warning("gave back scheduled runs that were taken without an answer: %s", names)
