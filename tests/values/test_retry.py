"""Delays between attempts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgq_anyio import ConfigurationError, RetryPolicy


def test_delays_grow_and_are_capped() -> None:
    policy = RetryPolicy(initial_delay=timedelta(milliseconds=100), multiplier=2, max_delay=1, jitter=False)
    assert [0.1, 0.2, 0.4, 0.8, 1.0, 1.0] == pytest.approx([policy.delay(attempt) for attempt in range(1, 7)])


@given(st.integers(1, 10_000), st.floats(0, 1e6), st.floats(1, 1000), st.floats(0, 1e9))
def test_jitter_stays_in_the_upper_half(attempt: int, initial: float, multiplier: float, cap: float) -> None:
    """For every policy and every attempt, however late."""
    policy = RetryPolicy(initial_delay=initial, multiplier=multiplier, max_delay=cap)
    nominal = RetryPolicy(initial_delay=initial, multiplier=multiplier, max_delay=cap, jitter=False).delay(attempt)
    assert nominal / 2 <= policy.delay(attempt) <= nominal <= cap


def test_jittered_delays_differ() -> None:
    policy = RetryPolicy()
    assert len({policy.delay(3) for _ in range(20)}) > 10


def test_only_named_errors_are_worth_another_attempt() -> None:
    policy = RetryPolicy(retry_on=(OSError,))
    assert policy.retries(ConnectionResetError())
    assert not policy.retries(ValueError())
    assert policy.retries(ExceptionGroup("g", [ValueError(), ConnectionResetError()]))
    assert not policy.retries(ExceptionGroup("g", [ValueError()]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("initial_delay", -1),
        ("max_delay", float("inf")),
        ("multiplier", 0.5),
        ("multiplier", True),
        ("multiplier", "2"),
        ("multiplier", float("nan")),
        ("retry_on", ValueError),
        ("retry_on", ("ValueError",)),
    ],
)
def test_bad_values_are_named(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=option):
        RetryPolicy(**{option: value})  # type: ignore[arg-type]  # the point of the test
