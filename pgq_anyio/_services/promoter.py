"""Moves deferred jobs into the queue when they are due, by the database's clock.

It sleeps until the next one: its own last look, every heartbeat and a notification tell it when that is. Many workers
may look at the same moment: one of them moves what is due and goes on until nothing is, the others look again a little
later, in case that it could not.

A look starts behind the last job before which all were moved, for the entries of moved jobs stay in the index as long
as any transaction holds an old snapshot. What is committed late lies in front of that: each notification and each
heartbeat says from when on to look, and a new connection starts from the beginning.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio
import attrs

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._models import JobId
from .._store._sql import Store
from .._store.deferred import START, Place, promote_due
from .._store.worker import Pulse

#: Pause before a look that another worker did not let us have is made again (in seconds, jittered).
NOT_OURS: Final = 0.5
#: What a time may have lost on its way through numbers (in seconds).
CLOCK_PRECISION: Final = 0.001


@attrs.define(eq=False, kw_only=True)
class Promoter:
    """What a promoter knows."""

    line: Line
    store: Store
    #: called when jobs of these names have become queued
    on_promoted: Callable[[list[str]], None]
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: when the next deferred job is due (event loop's clock)
    _due_at: float = attrs.field(default=-math.inf, init=False)
    #: behind which job to look
    _behind: Place = attrs.field(default=START, init=False)
    #: the earliest time from which on somebody has asked to look since the last look began (database's clock)
    _asked_from: float = attrs.field(default=math.inf, init=False)
    #: which of the line's connections made the last look
    _connection_no: int = attrs.field(default=0, init=False)

    def observe(self, pulse: Pulse) -> None:
        """Take in the answer to a heartbeat that has just come."""
        if pulse.next_due is not None:
            self._step_back(pulse.clock + pulse.next_due)
            self.alarm(pulse.next_due)

    def alarm(self, delay: float | None) -> None:
        """Learn that a deferred job is due in ``delay`` seconds (``None``: there is none)."""
        if delay is None:
            return
        due_at = anyio.current_time() + delay
        if due_at < self._due_at:
            self._due_at = due_at
            self._bell.ring()

    def look(self, run_at: float | None = None) -> None:
        """Look at once: something has been deferred.

        :param run_at: until when (in seconds since 1970, by the database's clock), or ``None`` if that is not known
        """
        self._step_back(-math.inf if run_at is None else run_at)
        self._due_at = -math.inf
        self._bell.ring()

    def _step_back(self, run_at: float) -> None:
        """A job of this time may not have been moved."""
        self._asked_from = min(self._asked_from, run_at)
        if run_at == -math.inf:
            self._behind = START
        elif run_at <= self._behind[0].timestamp() + CLOCK_PRECISION:
            self._behind = (datetime.fromtimestamp(run_at - CLOCK_PRECISION, UTC), JobId(0))

    async def wait_due(self) -> None:
        """Wait until a deferred job is due, or may be."""
        while (pause := self._due_at - anyio.current_time()) > 0:
            await self._bell.wait(None if math.isinf(pause) else pause)

    def schedule(self, next_due: float | None) -> None:
        """Set the alarm for the next job."""
        self._due_at = math.inf if next_due is None else anyio.current_time() + next_due


async def run_promoter(promoter: Promoter) -> None:
    """Promote until cancelled."""
    while True:
        await promoter.wait_due()
        await retrying(partial(promote_once, promoter), what="promoting deferred jobs", patience=PATIENCE)


async def promote_once(promoter: Promoter) -> int:
    """One pass; how many jobs were moved."""
    promoter.schedule(None)  # an alarm that rings while the statement is under way must not be lost
    conn = await promoter.line.connection()
    if promoter.line.opened != promoter._connection_no:
        # A server that crashed, or another one in its place, may have forgotten what was moved.
        promoter._connection_no, promoter._behind = promoter.line.opened, START
    promoter._asked_from = math.inf
    promotion = await promote_due(conn, promoter.store, behind=promoter._behind)
    # Whoever has locked some may roll that back: they are looked at again. Not before all others, which they must not
    # hold up; then the next heartbeat tells of them.
    looks_again = promotion.passed_by and not promotion.has_more
    if promotion.last is not None and not looks_again:
        promoter._behind = promotion.last
        promoter._step_back(promoter._asked_from)  # what somebody has told of meanwhile may have come too late for it
    promoter.alarm(0.0 if promotion.has_more else promotion.next_due)
    if not promotion.is_ours or looks_again:
        promoter.alarm(NOT_OURS * random.uniform(0.5, 1.0))  # noqa: S311  (jitter, not a secret)
    if promotion.moved:
        promoter.on_promoted(promotion.entrypoints)
    return promotion.moved
