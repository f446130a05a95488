"""The database's clock, told by the event loop's: what a schedule is due by, without asking the database.

Every answer that carries the database's clock was made between its question and its arrival, so the difference of the
two clocks lies in an interval. The intervals of all answers are cut with each other: the fastest answer is the best
one. Where nothing is left one of the clocks has stepped or drifted, and the newest answer counts alone. The lower end
is used: by it the database's clock has certainly come so far, so that nobody asks for what is not due yet.

The client's wall clock has no part in this: it may be wrong by hours.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import anyio
import attrs


@attrs.define(eq=False)
class DatabaseClock:
    """What is known of the difference between the database's clock and the event loop's."""

    #: bounds of (database's clock - event loop's clock), in seconds
    _least: float = attrs.field(default=-math.inf, init=False)
    _most: float = attrs.field(default=math.inf, init=False)

    def observe(self, clock: float, *, asked_at: float, answered_at: float) -> None:
        """Take in an answer.

        :param clock: the database's clock (in seconds since 1970)
        :param asked_at: when the statement was sent (event loop's clock)
        :param answered_at: when its answer was here (event loop's clock)
        """
        least, most = clock - answered_at, clock - asked_at
        cut = max(least, self._least), min(most, self._most)
        self._least, self._most = cut if cut[0] <= cut[1] else (least, most)

    def now(self) -> datetime:
        """The database's time, or a little less."""
        return datetime.fromtimestamp(anyio.current_time() + self._least, UTC)

    def until(self, moment: datetime) -> float:
        """Seconds until the database's clock shows ``moment``; not positive if it does."""
        return moment.timestamp() - self._least - anyio.current_time()
