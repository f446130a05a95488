"""Outcomes on their way into the database: the hand-over from jobs and scheduled runs that have ended.

An outcome counts for more than one if it is large, as with a long traceback or payload: batches, and what may wait for
the database, are bounded in memory too. Ten thousand jobs that fail with long errors would take 800 MB otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import anyio
import attrs

from ._doorbell import Doorbell
from ._lifecycle import Again, Failed, Outcome
from ._models import Held
from ._timetable import HeldSchedule

Ending = tuple[Held | HeldSchedule, Outcome]

#: Bytes of a payload, or characters of an error, that count like one more outcome.
UNIT: Final = 10_000

#: How many are worth a batch of their own, and how long the first may wait for them (in seconds).
WORTHWHILE: Final = 100
PATIENCE: Final = 0.005
#: So many outcomes have to come within that time, or it is not worth it.
BUSY: Final = 8


def weigh(ending: Ending) -> int:
    """For how many outcomes this one counts."""
    held, outcome = ending
    size = len(held.job.payload) if isinstance(held, Held) and held.job.payload else 0
    if isinstance(outcome, Failed | Again) and outcome.error is not None:
        size += len(outcome.error.message) + len(outcome.error.traceback or "")
    return 1 + size // UNIT


@attrs.define(eq=False)
class Endings:
    """Gathers what ended while the last batch was being stored, and under load a little longer: a batch of ten costs
    as much as one of a hundred. At low load nothing ever waits, nor does an outcome that others wait for.
    """

    _gathered: list[Ending] = attrs.field(factory=list, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _unstored: int = attrs.field(default=0, init=False)
    #: weights of those that were gathered, of the batch that was taken, and of all that are not stored
    _gathered_weight: int = attrs.field(default=0, init=False)
    _taken_weight: int = attrs.field(default=0, init=False)
    _weight: int = attrs.field(default=0, init=False)
    _all_stored: anyio.Event | None = attrs.field(default=None, init=False)
    #: whether there is nobody any more who stores them
    _abandoned: bool = attrs.field(default=False, init=False)
    #: whether somebody waits for one of those that were gathered
    _urgent: bool = attrs.field(default=False, init=False)
    #: how many have come so far, and when that was last looked at, with how many by then
    _came: int = attrs.field(default=0, init=False)
    _looked_at: float = attrs.field(default=-math.inf, init=False)
    _had_come: int = attrs.field(default=0, init=False)
    #: whether they come so fast that it is worth waiting for more
    _is_busy: bool = attrs.field(default=False, init=False)
    #: ends a wait for more
    _worthwhile: anyio.Event | None = attrs.field(default=None, init=False)

    @property
    def unstored(self) -> int:
        """How many outcomes are not in the database yet."""
        return self._unstored

    @property
    def weight(self) -> int:
        """As ``unstored``, with large ones counted for more."""
        return self._weight

    def put(self, held: Held | HeldSchedule, outcome: Outcome, *, urgent: bool = False) -> None:
        """Hand over the outcome of what has ended. Never waits, never fails.

        :param urgent: whether others wait for it to be stored, as for the slot of a limited name
        """
        ending = (held, outcome)
        weight = weigh(ending)
        self._gathered.append(ending)
        self._gathered_weight += weight
        self._weight += weight
        self._unstored += 1
        self._came += 1
        self._bell.ring()
        if urgent:
            self._urgent = True
        if self._worthwhile is not None and (urgent or self._gathered_weight >= WORTHWHILE):
            self._worthwhile.set()

    def close(self) -> None:
        """Let the completer end once everything is stored."""
        self._closed = True
        self._bell.ring()
        if self._worthwhile is not None:
            self._worthwhile.set()

    async def wait_worthwhile(self) -> None:
        """If outcomes come fast, wait for a batch that is worth it, but not for long."""
        self._look(anyio.current_time())
        if self._is_busy and self._gathered_weight < WORTHWHILE and not self._urgent and not self._closed:
            self._worthwhile = anyio.Event()
            with anyio.move_on_after(PATIENCE):
                await self._worthwhile.wait()
            self._worthwhile = None

    def _look(self, now: float) -> None:
        """Learn how fast they come, from no less than the time that one may wait."""
        elapsed = now - self._looked_at
        if elapsed >= PATIENCE:
            self._is_busy = (self._came - self._had_come) * PATIENCE >= BUSY * elapsed
            self._looked_at, self._had_come = now, self._came

    async def take(self, most: int) -> list[Ending]:
        """Up to ``most`` outcomes, fewer if they are large, as soon as there are any; an empty list once the queue is
        closed and empty.
        """
        while not self._gathered:
            if self._closed:
                return []
            await self._bell.wait()
        count = weight = 0
        if self._gathered_weight <= most:
            count, weight = len(self._gathered), self._gathered_weight
        else:
            for ending in self._gathered:
                more = weigh(ending)
                if count and weight + more > most:
                    break
                count, weight = count + 1, weight + more
        batch = self._gathered[:count]
        del self._gathered[:count]
        self._urgent = self._urgent and bool(self._gathered)
        self._gathered_weight -= weight
        self._taken_weight = weight
        return batch

    def stored(self, batch: Sequence[Ending]) -> None:
        """Note that the batch that was taken has reached the database (or has been refused by it for good)."""
        self._unstored -= len(batch)
        self._weight -= self._taken_weight
        if not self._unstored and self._all_stored is not None:
            self._all_stored.set()
            self._all_stored = None

    def abandon(self) -> None:
        """Nobody stores outcomes any more: they are not waited for."""
        self._abandoned = True
        if self._all_stored is not None:
            self._all_stored.set()
            self._all_stored = None

    async def wait_stored(self) -> None:
        """Wait until no outcome is on its way, or none will arrive any more."""
        if self._unstored and not self._abandoned:
            if self._all_stored is None:
                self._all_stored = anyio.Event()
            await self._all_stored.wait()
