"""How many jobs may be claimed that run in processes: as many as there are children without a handler.

A job that was claimed and waits for a child is one that no other worker can run, although it may have a process to
spare. So jobs that need one are claimed when it is there, as those of limited names are when there is a slot
(``_services/limited``).

A child must not stand idle for the time of a claim either, so as many more are held as end within the next moment
(``_pace.py``): none if they take a second, some if they take milliseconds. What turns out to wait for longer goes back
into the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from ._pace import LONGEST_MOMENT, Pace

#: The most jobs that are held beyond those that have a child, for each child.
MOST_AHEAD: Final = 20


@attrs.define(eq=False)
class ProcessRoom:
    """What is known of the children of one worker; nothing here waits."""

    #: called when there is room for one more
    on_free: Callable[[], None]
    #: how many children there may be
    size: int = attrs.field(default=0, init=False)
    #: handlers that were given one, or wait for it
    _taken: int = attrs.field(default=0, init=False)
    #: how many have ended so far
    _ended: int = attrs.field(default=0, init=False)
    _pace: Pace = attrs.field(factory=lambda: Pace(shortest_moment=LONGEST_MOMENT, fewest=1), init=False)
    _ahead: int = attrs.field(default=0, init=False)

    @property
    def free(self) -> int:
        """How many more handlers could start at once."""
        return max(self.size - self._taken, 0)

    @property
    def room(self) -> int:
        """How many more jobs may be claimed, those included that will start in a moment."""
        return max(self.size + self._ahead - self._taken, 0)

    def look_ahead(self, now: float) -> None:
        """Decide how many jobs to hold beyond those that have a child.

        :param now: any steady clock (in seconds)
        """
        self._pace.look(now, self._ended, 0.0)
        self._ahead = self._pace.ahead(MOST_AHEAD * self.size)

    def take(self) -> None:
        """A job was claimed, or an occurrence of a schedule taken, that runs in a process."""
        self._taken += 1

    def give_back(self, *, started: bool) -> None:
        """Its handler has ended, or will never start: then it was claimed too early, or the worker stops."""
        self._taken -= 1
        if started:
            self._ended += 1
        else:
            self._pace.forget()
            self._ahead = 0
        self.on_free()
