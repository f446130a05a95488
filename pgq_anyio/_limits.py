"""What an entrypoint allows the whole fleet: how many of its jobs at once, and how many starts a second."""

from __future__ import annotations

import math
from typing import Final

import attrs

from ._durations import LONGEST, count
from ._errors import ConfigurationError, shown

#: The highest rate that can be kept (in starts a second): PostgreSQL's intervals are whole microseconds.
FASTEST: Final = 1_000_000


@attrs.frozen
class Limits:
    """The limits of one entrypoint, as they stand in the database."""

    #: how many of its jobs may run at once, 0 for any number
    concurrency_limit: int = 0
    #: how many of its jobs may start in a second, ``inf`` for any number
    requests_per_second: float = math.inf
    #: one at a time, strictly by priority and then in the order of enqueueing
    serialized: bool = False

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.concurrency_limit > 0 or self.requests_per_second < math.inf

    def __str__(self) -> str:
        if not self.is_limited:
            return "no limits"
        words = ["serialized_dispatch"] if self.serialized else []
        if self.concurrency_limit and not self.serialized:
            words.append(f"concurrency_limit={self.concurrency_limit}")
        if self.requests_per_second < math.inf:
            words.append(f"requests_per_second={self.requests_per_second:g}")
        return ", ".join(words)


UNLIMITED: Final = Limits()


def check_limits(*, requests_per_second: float, concurrency_limit: int, serialized_dispatch: bool) -> Limits:
    """Check what a person typed.

    :raises ConfigurationError: if an option cannot be used; the message names it
    """
    limit = count("concurrency_limit", concurrency_limit, at_least=0)
    rate = requests_per_second
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigurationError(f"requests_per_second must be a number, not {shown(rate)}")
    # Below this, the pause after a start is longer than any duration that PostgreSQL could add to its clock.
    if not rate >= 1 / LONGEST:
        raise ConfigurationError(
            f"requests_per_second must be greater than 0 (0.5 is one every 2 s), not {shown(rate)}"
        )
    if not isinstance(serialized_dispatch, bool):
        raise ConfigurationError(f"serialized_dispatch must be True or False, not {shown(serialized_dispatch)}")
    if serialized_dispatch and limit > 1:
        raise ConfigurationError(
            f"serialized_dispatch runs one job at a time: it excludes concurrency_limit={limit} (leave it out)"
        )
    # Starts that are closer together than PostgreSQL's clock can tell have no pace; and a whole number may be too large
    # for a float.
    rate = math.inf if rate > FASTEST else float(rate)
    return Limits(1 if serialized_dispatch else limit, rate, serialized_dispatch)
