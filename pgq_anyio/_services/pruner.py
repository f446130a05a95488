"""Keeps the record of finished jobs bounded: makes its days ahead and drops those that are older than the retention.

Every worker does it, each the more rarely the more there are, so that the fleet as a whole looks once per interval.
It has a connection of its own only while it works.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from .._db import retrying
from .._db.line import Line
from .._retention import Retention
from .._store._sql import Store
from .._store.finished import ensure_partitions, prune_finished, prune_leftovers, sweep_finished

logger = logging.getLogger("pgq_anyio.pruner")

#: The longest and the shortest pause between two passes of the whole fleet (in seconds).
INTERVAL: Final = 3600.0
SHORTEST_INTERVAL: Final = 60.0
#: How long a worker that starts waits for its first pass (in seconds): work does not wait for a table that is locked,
#: the default partition takes the records meanwhile.
PATIENCE: Final = 2.0
#: Pause after a first pass that had to be given up (in seconds).
SOON: Final = 60.0
#: After this time without an end (in seconds) the connection is taken to have gone silent; twice as long the next time.
SILENCE: Final = 600.0


@attrs.define(eq=False, kw_only=True)
class Pruner:
    """What a pruner knows."""

    line: Line
    store: Store
    #: how many workers live, this one included
    workers: Callable[[], int]
    retention: Retention = attrs.field(factory=Retention)
    #: days from which everything has been removed that is to go before the day does
    swept: set[str] = attrs.field(factory=set, init=False)

    @property
    def interval(self) -> float:
        """Pause between two passes of the whole fleet (in seconds)."""
        shortest = min(self.retention.swept, default=INTERVAL)
        return min(max(shortest / 4, SHORTEST_INTERVAL), INTERVAL)


async def run_pruner(pruner: Pruner, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Prune until cancelled; started once the days ahead have been made, or cannot be made now."""
    pause = SOON
    with anyio.move_on_after(PATIENCE):
        await _prune(pruner)
        pause = pruner.interval
    task_status.started()
    while True:
        await anyio.sleep(pause * pruner.workers() * random.uniform(0.5, 1.5))  # noqa: S311  (jitter, not a secret)
        await _prune(pruner)
        pause = pruner.interval


async def _prune(pruner: Pruner) -> None:
    await retrying(partial(prune_once, pruner), what="pruning the record of finished jobs", patience=SILENCE)


async def prune_once(pruner: Pruner) -> int:
    """Make the days ahead and drop what is too old; how many partitions and rows went."""
    try:
        conn = await pruner.line.connection()
        made = await ensure_partitions(conn, pruner.store)
        dropped = await prune_finished(conn, pruner.store, retention=pruner.retention)
        dropped += await sweep_finished(conn, pruner.store, retention=pruner.retention, swept=pruner.swept)
        dropped += await prune_leftovers(conn, pruner.store, retention=pruner.retention)
    finally:
        pruner.line.close()
    if made or dropped:
        logger.debug("made %d days of the record of finished jobs, dropped %d", made, dropped)
    return dropped
