"""How long records are kept, as it is written and as it is used."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import typer

from pgq_anyio import ConfigurationError
from pgq_anyio._cli.options import parse_retention
from pgq_anyio._retention import DAY, WEEK, Retention, check_retention


@pytest.mark.parametrize(
    ("value", "times"),
    [
        (WEEK, (WEEK, WEEK, WEEK)),
        (timedelta(hours=1), (3600.0, 3600.0, 3600.0)),
        (0, (0.0, 0.0, 0.0)),
        ({}, (WEEK, WEEK, WEEK)),
        ({"successful": 60}, (60.0, WEEK, WEEK)),
        ({"failed": timedelta(days=30), "cancelled": 0.5, "successful": 0}, (0.0, 30 * DAY, 0.5)),
    ],
)
def test_one_time_or_one_for_each(value: Any, times: tuple[float, float, float]) -> None:
    """A number, a duration, or a mapping in which what is left out is a week."""
    retention = check_retention(value)
    assert times == (retention.successful, retention.failed, retention.cancelled)
    assert max(times) == retention.longest


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1, "retention must be at least 0 s"),
        ("7d", "retention must be a number"),
        (None, "retention must be a number"),
        (True, "retention must be a number"),
        (float("inf"), "retention must be finite"),
        ({"succesful": 1}, "retention is for successful, failed, cancelled, not for 'succesful'"),
        ({"failed": "1h"}, r"retention\['failed'\] must be a number"),
        ({1: 2}, "not for 1"),
    ],
)
def test_what_is_no_time_is_told(value: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        check_retention(value)


@pytest.mark.parametrize(
    ("times", "swept"),
    [
        ((WEEK, WEEK, WEEK), []),
        ((DAY, DAY, DAY), []),
        ((60, WEEK, WEEK), [60]),
        ((60, WEEK, DAY), [60, DAY]),
        ((60, 60, 60), [60]),
        ((0, 60, 3600), [0, 60, 3600]),
    ],
)
def test_days_are_dropped_where_that_is_enough(times: tuple[float, float, float], swept: list[float]) -> None:
    """Records are deleted one by one only if their time is shorter than another's, or than a day."""
    assert swept == Retention(successful=times[0], failed=times[1], cancelled=times[2]).swept


def test_on_the_command_line() -> None:
    """One duration, or one for each status."""
    assert 7 * DAY == parse_retention("7d")
    assert {"successful": 3600.0, "failed": 30 * DAY} == parse_retention("successful=1h, failed=30d")
    for wrong in ("week", "failed=", "=1h,", "failed=1h,x"):
        with pytest.raises((typer.BadParameter, ConfigurationError)):
            check_retention(parse_retention(wrong))
