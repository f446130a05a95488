"""Moves deferred jobs into the queue when they are due, by the database's clock.

It sleeps until the next one: its own last look, every heartbeat and a notification tell it when that is. Many workers
may look at the same moment: rows that one of them moves are skipped by the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import attrs

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._store._sql import Store
from .._store.deferred import promote_due

#: Jobs per pass.
BATCH: Final = 1000


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

    def alarm(self, delay: float | None) -> None:
        """Learn that a deferred job is due in ``delay`` seconds (``None``: there is none)."""
        if delay is None:
            return
        due_at = anyio.current_time() + delay
        if due_at < self._due_at:
            self._due_at = due_at
            self._bell.ring()

    def look(self) -> None:
        """Look at once: something has been deferred."""
        self._due_at = -math.inf
        self._bell.ring()

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
    promotion = await promote_due(conn, promoter.store, limit=BATCH)
    if promotion.moved == BATCH:
        promoter.look()
    else:
        promoter.alarm(promotion.next_due)
    if promotion.moved:
        promoter.on_promoted(promotion.entrypoints)
    return promotion.moved
