"""Outcomes on their way into the database: the hand-over from jobs and scheduled runs that have ended."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs

from ._doorbell import Doorbell
from ._lifecycle import Outcome
from ._models import Held
from ._timetable import HeldSchedule

Ending = tuple[Held | HeldSchedule, Outcome]


@attrs.define(eq=False)
class Endings:
    """Gathers what ended while the last batch was being stored. No timer: at low load nothing ever waits."""

    _gathered: list[Ending] = attrs.field(factory=list, init=False)
    _bell: Doorbell = attrs.field(factory=Doorbell, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _unstored: int = attrs.field(default=0, init=False)
    _all_stored: anyio.Event | None = attrs.field(default=None, init=False)

    @property
    def unstored(self) -> int:
        """How many outcomes are not in the database yet."""
        return self._unstored

    def put(self, held: Held | HeldSchedule, outcome: Outcome) -> None:
        """Hand over the outcome of what has ended. Never waits, never fails."""
        self._gathered.append((held, outcome))
        self._unstored += 1
        self._bell.ring()

    def close(self) -> None:
        """Let the completer end once everything is stored."""
        self._closed = True
        self._bell.ring()

    async def take(self, most: int) -> list[Ending]:
        """Up to ``most`` outcomes, as soon as there are any; an empty list once the queue is closed and empty."""
        while not self._gathered:
            if self._closed:
                return []
            await self._bell.wait()
        batch = self._gathered[:most]
        del self._gathered[:most]
        return batch

    def stored(self, batch: Sequence[object]) -> None:
        """Note that a batch has reached the database (or has been refused by it for good)."""
        self._unstored -= len(batch)
        if not self._unstored and self._all_stored is not None:
            self._all_stored.set()
            self._all_stored = None

    async def wait_stored(self) -> None:
        """Wait until no outcome is on its way."""
        if self._unstored:
            if self._all_stored is None:
                self._all_stored = anyio.Event()
            await self._all_stored.wait()
