"""How many jobs a worker claims ahead: as many as end within the next moment.

A slot must not stand empty for the time of a round trip, and a claim of five hundred jobs costs the server half of what
five claims of a hundred do. Besides, the next claim is to be under way while the jobs of the last one run: with room
for one claim at a time, worker and server wait for each other (42,000 no-op jobs in a second instead of 55,000). But a
job that is held without running is one that no other worker can run. So the number follows what this worker has just
done: how many of its jobs end in a second, times a moment. It is nothing for jobs of a second, and hundreds for jobs of
some microseconds.

It looks back for as long as it looks forward. Of long jobs, a few that end together are many in their millisecond: a
worker with three slots then took ten jobs more, while others stood idle or ran what was less urgent.

What turns out to be held too long is given back (``_services/slots.py``).
"""

from __future__ import annotations

import math
from typing import Final

import attrs

#: The moment (in seconds): two claims, one on its way while the jobs of the other run, if that is within these bounds.
TRIPS: Final = 2
SHORTEST_MOMENT: Final = 0.02
LONGEST_MOMENT: Final = 0.1
#: Fewer are not worth it: jobs so long leave their slots empty for no part of their time that counts.
FEWEST: Final = 5


@attrs.define(eq=False)
class Pace:
    """What a claimer knows of how fast its jobs end."""

    #: what the moment is at least (in seconds)
    shortest_moment: float = SHORTEST_MOMENT
    #: the least that is worth holding ahead
    fewest: int = FEWEST
    _looked_at: float = attrs.field(default=-math.inf, init=False)
    _ended: int = attrs.field(default=0, init=False)
    _per_second: float = attrs.field(default=0.0, init=False)
    _moment: float = attrs.field(default=attrs.Factory(lambda self: self.shortest_moment, takes_self=True), init=False)

    def look(self, now: float, ended: int, took: float) -> None:
        """Take in how far the jobs have come: half of what is known comes from the last look.

        A look that comes sooner than a moment after the last one is none.

        :param now: any steady clock (in seconds)
        :param ended: how many jobs have ended so far
        :param took: how long a claim takes (in seconds)
        """
        self._moment = min(max(took * TRIPS, self.shortest_moment), LONGEST_MOMENT)
        elapsed = now - self._looked_at
        if elapsed >= self._moment:
            self._per_second = (self._per_second + (ended - self._ended) / elapsed) / 2
            self._looked_at, self._ended = now, ended

    def ahead(self, most: int) -> int:
        """How many jobs to hold beyond those that run.

        :param most: the largest answer
        """
        count = min(int(self._per_second * self._moment), most)
        return count if count >= self.fewest else 0

    def forget(self) -> None:
        """What was held ahead did not start in time: begin anew."""
        self._per_second = 0.0
