"""Delays between attempts: exponential, capped, jittered. Pure arithmetic, shared by every kind of retry.

Jitter is "full jitter of the upper half": a delay lies between half its nominal value and the whole of it, so that jobs
that failed together do not come back together and a delay never shrinks to nothing.
"""

from __future__ import annotations

import random

import attrs


@attrs.frozen
class RetryPolicy:
    """A recipe for when to try again."""

    #: nominal delay after the first failure (in seconds)
    initial_delay: float = 1.0
    #: factor from one delay to the next
    multiplier: float = 2.0
    #: no delay is longer (in seconds)
    max_delay: float = 300.0
    #: whether to spread delays over the upper half of their nominal value
    jitter: bool = True
    #: only these exceptions are worth another attempt
    retry_on: tuple[type[BaseException], ...] = (BaseException,)

    def delay(self, attempt: int) -> float:
        """The pause after the ``attempt``-th failure, counted from 1 (in seconds)."""
        # The exponent is bounded: 2.0 ** 1100 would overflow a float long after the cap is reached.
        nominal = min(self.max_delay, self.initial_delay * self.multiplier ** min(attempt - 1, 64))
        return nominal * random.uniform(0.5, 1.0) if self.jitter else nominal  # noqa: S311  (jitter, not a secret)

    def retries(self, error: BaseException) -> bool:
        """Whether this error is worth another attempt."""
        return isinstance(error, self.retry_on)
