"""Stops the worker once nothing is left for its names: queued, deferred, or running anywhere in the fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from .._db import retrying
from .._db.line import Line
from .._db.retrying import PATIENCE
from .._doorbell import Doorbell
from .._store._sql import Store
from .._store.worker import has_pending

logger = logging.getLogger("pgq_anyio.drain")

#: Pause between looks while others, or the clock, still have what we wait for (in seconds).
PAUSE: Final = 0.25


@attrs.define(eq=False, kw_only=True)
class Drain:
    """What a draining worker waits for."""

    line: Line
    store: Store
    entrypoints: Sequence[str]
    #: how many handlers run here, and how many outcomes are on their way
    unfinished: Callable[[], int]
    #: called once nothing is left
    on_drained: Callable[[], None]
    bell: Doorbell = attrs.field(factory=Doorbell, init=False)


async def run_drain(drain: Drain) -> None:
    """Wait until nothing is left, then say so and end."""
    while drain.unfinished() or await retrying(
        partial(_pending, drain), what="looking for jobs that are left", patience=PATIENCE
    ):
        await drain.bell.wait(PAUSE)
    logger.info("nothing is left to do")
    drain.on_drained()


async def _pending(drain: Drain) -> bool:
    return await has_pending(await drain.line.connection(), drain.store, drain.entrypoints)
