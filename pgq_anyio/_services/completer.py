"""Stores outcomes: everything that ended while the last batch was under way goes into the next one, and when that is
much, what ends within the next few milliseconds too.

The task is shielded: outcomes are stored even while everything around is being cancelled. It ends once its queue is
closed and empty; whoever closes the queue bounds the rest with ``CompleterShield.limit``. Outcomes are fenced, so a
batch whose answer was lost is simply sent again: rows that are gone do not match.

Pauses between attempts grow while the database is away, up to ten seconds. A heartbeat that gets through ends the
pause: what has ended must not wait once the database is back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import anyio
import attrs
from anyio import CancelScope
from psycopg import DataError

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._endings import Ending, Endings
from .._lifecycle import ErrorText, Failed, Outcome, Succeeded
from .._models import Held
from .._store._sql import Store
from .._store.limiter import notify_slots
from .._store.running import finish_jobs, settle_jobs
from .._store.schedule import release_schedules
from .._timetable import HeldSchedule

logger = logging.getLogger("pgq_anyio.completer")

#: Jobs per statement: large enough to be cheap, small enough not to hold locks for long.
BATCH: Final = 1000

#: Settings of the connection: outcomes are durable, and plans do not depend on what ANALYZE or VACUUM happened to see
#: of tables that fill and empty within a second. Rows are found by their keys, and two lists are joined by hashing: of
#: lists that seem short PostgreSQL would compare each item with each.
COMPLETION_SETTINGS: Final = {
    "synchronous_commit": "on",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_indexscan": "on",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
}

Batch = Sequence[Ending]
HeldT = TypeVar("HeldT", bound=Held | HeldSchedule)


@attrs.define(eq=False)
class CompleterShield:
    """Bounds how long the last outcomes may take."""

    _scope: CancelScope = attrs.field(factory=lambda: CancelScope(shield=True), init=False)

    @property
    def scope(self) -> CancelScope:
        """The scope that the completer runs in."""
        return self._scope

    def limit(self, timeout: float) -> None:
        """Give the completer this long from now (in seconds)."""
        self._scope.deadline = min(self._scope.deadline, anyio.current_time() + timeout)


async def run_completer(
    line: Line,
    store: Store,
    endings: Endings,
    shield: CompleterShield,
    *,
    on_stored: Callable[[Batch], None],
    leaving: Callable[[], bool],
    heard: Doorbell,
) -> None:
    """Store outcomes until the queue is closed and empty, or until the shield's limit has passed.

    :param on_stored: called with every batch that the database has answered for
    :param leaving: whether this worker starts nothing any more, so that others are to be told what they may start
    :param heard: rings when a heartbeat has got through
    """
    with shield.scope:
        try:
            while batch := await endings.take(BATCH):
                store_it = partial(store_batch, line, store, batch, leaving=leaving)
                await retrying(store_it, what="storing outcomes", patience=PATIENCE, hurry=heard)
                endings.stored(batch)
                on_stored(batch)
                await endings.wait_worthwhile()
        finally:
            endings.abandon()
            line.close()
    if endings.unstored:
        logger.error(
            "%d outcomes could not be stored before the worker had to go; they run again after the lease",
            endings.unstored,
        )


async def store_batch(line: Line, store: Store, batch: Batch, *, leaving: Callable[[], bool] = lambda: False) -> int:
    """Store one batch; how many outcomes were still ours to write."""
    conn = await line.connection()
    jobs = [(held, outcome) for held, outcome in batch if isinstance(held, Held)]
    successes = [held for held, outcome in jobs if isinstance(outcome, Succeeded)]
    others = [(held, outcome) for held, outcome in jobs if not isinstance(outcome, Succeeded)]
    matched = 0
    if len(jobs) < len(batch):
        runs = [(held, outcome) for held, outcome in batch if isinstance(held, HeldSchedule)]
        matched += await _store_all(partial(release_schedules, conn, store, leaving=leaving()), runs)
    if successes:
        matched += len(await finish_jobs(conn, store, successes))
    if others:
        matched += await _store_all(partial(settle_jobs, conn, store), others)
    if leaving() and jobs:
        # A slot that becomes free here is not taken by this worker any more. Looked at last: a worker that is not
        # leaving yet hears of the slot when this returns.
        await notify_slots(conn, store, sorted({held.job.entrypoint for held, _ in jobs}))
    if matched < len(batch):
        logger.info("%d outcomes were dropped: they were no longer held by this worker", len(batch) - matched)
    return matched


async def _store_all(
    store: Callable[[Sequence[tuple[HeldT, Outcome]]], Awaitable[Sequence[object]]],
    endings: Sequence[tuple[HeldT, Outcome]],
) -> int:
    """Store outcomes; how many were still ours. One that PostgreSQL cannot store must not keep the others out, or end
    the worker: it becomes the failure of its job, or of its run.
    """
    try:
        return len(await store(endings))
    except DataError as error:
        if len(endings) > 1:
            return sum([await _store_all(store, [ending]) for ending in endings])
        held, outcome = endings[0]
        title = f"job {held.job.id}" if isinstance(held, Held) else repr(held.name)
        logger.error("the outcome of %s cannot be stored, it fails instead: %s: %s", title, outcome, error)
        return len(await store([(held, Failed(ErrorText.of(error).in_ascii()))]))
