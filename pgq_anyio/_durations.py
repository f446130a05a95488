"""Checked numbers: durations and counts that a person typed, turned into what the code computes with.

Every option goes through here, so that a bad one is refused where it was written, with its name, and never later.
A ``bool`` is not a number here although Python says so: ``timeout=True`` is a mistake.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from ._errors import ConfigurationError, shown

#: No duration is longer (in seconds): a hundred years. PostgreSQL's intervals and clocks end somewhere.
LONGEST: Final = 100 * 365.25 * 86400.0


def seconds(name: str, value: float | timedelta, *, at_least: float = 0.0, above: float | None = None) -> float:
    """Check a duration.

    :param name: what the option is called, for the message
    :param value: seconds, or a ``timedelta``
    :param at_least: the smallest value allowed (in seconds). Defaults to 0.
    :param above: if given, the value must be greater than this (in seconds)
    :return: the duration in seconds
    :raises ConfigurationError: if it is not a finite number in this range
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigurationError(f"{name} must be a number of seconds or a timedelta, not {shown(value)}")
    # Not by isfinite(): a whole number may be too large for a float.
    if not abs(number) < math.inf:
        raise ConfigurationError(f"{name} must be finite, not {shown(value)}")
    if number > LONGEST:
        raise ConfigurationError(f"{name} must be less than a hundred years, not {shown(value)}")
    if above is not None and number <= above:
        raise ConfigurationError(f"{name} must be more than {above:g} s, not {shown(value)}")
    if number < at_least:
        raise ConfigurationError(f"{name} must be at least {at_least:g} s, not {shown(value)}")
    return float(number)


def count(name: str, value: int, *, at_least: int = 1, at_most: int = 2**31 - 1) -> int:
    """Check a whole number.

    :raises ConfigurationError: if it is not an ``int`` between ``at_least`` and ``at_most``
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name} must be a whole number, not {shown(value)}")
    if not at_least <= value <= at_most:
        raise ConfigurationError(f"{name} must be between {at_least} and {at_most}, not {shown(value)}")
    return value
