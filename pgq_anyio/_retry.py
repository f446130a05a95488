"""Delays between attempts: exponential, capped, jittered. Pure arithmetic, shared by every kind of retry.

Jitter draws from the upper half of the nominal delay: jobs that failed together do not come back together, a delay
never shrinks to nothing, and with a multiplier of 2 or more the delays still grow.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any, Final

import attrs

from ._durations import seconds
from ._errors import ConfigurationError, shown

#: Beyond this exponent every delay has long been capped, and a float would overflow.
_MAX_EXPONENT: Final = 64
_MAX_MULTIPLIER: Final = 1000.0


def _initial_delay(value: float | timedelta) -> float:
    return seconds("initial_delay", value)


def _max_delay(value: float | timedelta) -> float:
    return seconds("max_delay", value)


def check_multiplier(name: str, value: object) -> float:
    """:raises ConfigurationError: if delays cannot be multiplied by this; the message calls it ``name``"""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1.0 <= value <= _MAX_MULTIPLIER:
        raise ConfigurationError(f"{name} must be a number from 1 to {_MAX_MULTIPLIER:g}, not {shown(value)}")
    return value


def _plain_tuple(value: Any) -> Any:
    """A named tuple is one, too; but ``BaseExceptionGroup.subgroup`` takes no other than a plain one."""
    return tuple(value) if isinstance(value, tuple) else value


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """A recipe for when a failed job is tried again.

    :param initial_delay: nominal delay after the first failure (in seconds, or a ``timedelta``). Defaults to 1.
    :param multiplier: factor from one delay to the next, from 1 to 1000. Defaults to 2.
    :param max_delay: no delay is longer (in seconds, or a ``timedelta``). Defaults to 300.
    :param jitter: whether each delay is drawn from the upper half of its nominal value. Defaults to ``True``.
    :param retry_on: only these exceptions, and groups that hold one of them, are worth another attempt. Defaults to
        all.
    :raises ConfigurationError: if a value cannot be used; the message names it
    """

    initial_delay: float = attrs.field(default=1.0, converter=_initial_delay)
    multiplier: float = attrs.field(default=2.0)
    max_delay: float = attrs.field(default=300.0, converter=_max_delay)
    jitter: bool = attrs.field(default=True)
    retry_on: tuple[type[BaseException], ...] = attrs.field(default=(BaseException,), converter=_plain_tuple)

    @multiplier.validator
    def _check_multiplier(self, _: object, value: object) -> None:
        check_multiplier("multiplier", value)

    @jitter.validator
    def _check_jitter(self, _: object, value: object) -> None:
        if not isinstance(value, bool):
            raise ConfigurationError(f"jitter must be True or False, not {shown(value)}")

    @retry_on.validator
    def _check_retry_on(self, _: object, value: object) -> None:
        if not isinstance(value, tuple) or not all(
            isinstance(one, type) and issubclass(one, BaseException) for one in value
        ):
            raise ConfigurationError(f"retry_on must be a tuple of exception classes, not {shown(value)}")

    def delay(self, attempt: int) -> float:
        """The pause after the ``attempt``-th failure, counted from 1 (in seconds)."""
        nominal = min(self.max_delay, self.initial_delay * self.multiplier ** min(attempt - 1, _MAX_EXPONENT))
        return nominal * random.uniform(0.5, 1.0) if self.jitter else nominal  # noqa: S311  (jitter, not a secret)

    def retries(self, error: BaseException) -> bool:
        """Whether this error is worth another attempt."""
        if isinstance(error, BaseExceptionGroup):
            return error.subgroup(self.retry_on) is not None
        return isinstance(error, self.retry_on)
