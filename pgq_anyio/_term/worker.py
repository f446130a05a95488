"""What all terms of a worker share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from .._db import PsycopgDriver
from .._doorbell import Doorbell
from .._endings import Endings
from .._errors import in_a_line
from .._lifespan import Lifespan
from .._models import Held
from .._registry import Registry
from .._run_settings import RunSettings
from .._services.completer import Batch
from .._services.last_resort import LastResort
from .._services.watchdog import Watchdog
from .._stop import Stop
from .._store._sql import Store
from .._timetable import HeldSchedule

if TYPE_CHECKING:
    from .term import Term

logger = logging.getLogger("pgq_anyio.worker")


@attrs.define(eq=False, kw_only=True)
class Worker:
    """What all terms of a worker share."""

    registry: Registry
    driver: PsycopgDriver
    store: Store
    settings: RunSettings
    stop: Stop
    lifespan: Lifespan
    endings: Endings = attrs.field(factory=Endings, init=False)
    #: rings with every answer to a heartbeat
    heard: Doorbell = attrs.field(factory=Doorbell, init=False)
    #: what the lifespan gave
    resources: Any = attrs.field(default=None, init=False)
    #: whether the lifespan is opening or closing
    in_lifespan: bool = attrs.field(default=True, init=False)
    #: the present term, once there is one
    term: Term | None = attrs.field(default=None, init=False)
    #: whether the caller of ``tg.start(app.run)`` has been told that we are ready
    reported: bool = attrs.field(default=False, init=False)
    #: whether the limits have been put into the database: later terms leave them as they are
    has_defined: bool = attrs.field(default=False, init=False)
    last_resort: LastResort = attrs.field(init=False)
    #: names what blocks the loop; ``None`` if that is not wanted
    watchdog: Watchdog | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if self.settings.block_warning is not None:
            self.watchdog = Watchdog(self.settings.block_warning, self.runs_others_code)
        self.last_resort = LastResort(
            stop=self.stop,
            shutdown_grace=self.settings.shutdown_grace,
            cancel_grace=self.settings.cancel_grace,
            running=lambda: [] if self.term is None else self.term.handlers.running(),
            endings=self.endings,
            mark_left=self._mark_left,
        )

    def runs_others_code(self) -> bool:
        """Whether anything runs in the loop that its user has written: a handler, or the lifespan."""
        return self.in_lifespan or (self.term is not None and self.term.handlers.are_running)

    def watch(self) -> None:
        """Something of the user's is about to run."""
        if self.watchdog is not None:
            self.watchdog.wake()

    @contextmanager
    def outside_lifespan(self) -> Iterator[None]:
        """The lifespan has opened; it closes after this block."""
        self.in_lifespan = False
        try:
            yield
        finally:
            self.in_lifespan = True
            self.watch()

    async def _mark_left(self) -> None:
        if self.term is not None:
            await self.term.registration.mark_left()

    def service_failed(self, name: str, error: Exception) -> None:
        """A service has met an error that no retry can mend. It ends the run; ``run()`` raises it, but not before the
        last handler has ended, and that may take a while.
        """
        logger.error("the %s has failed, which ends the worker: %s", name, in_a_line(error))
        self.stop.fail()

    def is_leaving(self) -> bool:
        """Whether slots that become free are left to other workers, because this one stops or is being stopped."""
        return self.stop.requested or (self.term is not None and self.term.limited.has_ended)

    def on_reopened(self) -> None:
        """The connection for outcomes had to be replaced."""
        if self.term is not None:
            self.term.heart.compare_soon()

    def on_stored(self, batch: Batch) -> None:
        """Outcomes are in the database: their jobs are no longer held."""
        if self.term is not None:
            jobs = [held for held, _ in batch if isinstance(held, Held)]
            self.term.holdings.release(jobs)
            self.term.limited.freed(Counter(held.job.entrypoint for held in jobs))
            for held, outcome in batch:
                if isinstance(held, HeldSchedule):
                    self.term.scheduler.released(held, outcome)
            self.term.drain.bell.ring()
