"""The database's time between two answers, without asking."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest

from pgq_anyio._database_clock import DatabaseClock

EPOCH = 1_800_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH + seconds, UTC)


@pytest.fixture
def loop_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The event loop's clock, set by hand."""
    time = [0.0]
    monkeypatch.setattr(anyio, "current_time", lambda: time[0])
    return time


def test_the_time_of_an_answer_goes_on_with_the_loops_clock(loop_time: list[float]) -> None:
    clock = DatabaseClock()
    clock.observe(EPOCH, asked_at=100.0, answered_at=100.0)
    loop_time[0] = 107.5
    assert at(7.5) == clock.now()
    assert 2.5 == clock.until(at(10.0))


def test_nothing_is_taken_for_due_before_it_is(loop_time: list[float]) -> None:
    """The database may have read its clock at the very end of the answer's way."""
    clock = DatabaseClock()
    clock.observe(EPOCH, asked_at=100.0, answered_at=100.8)
    loop_time[0] = 100.8
    assert at(0.0) == clock.now()


def test_the_fastest_answer_counts(loop_time: list[float]) -> None:
    """An answer that lay about in a busy loop does not make the next run late."""
    clock = DatabaseClock()
    clock.observe(EPOCH, asked_at=100.0, answered_at=100.001)
    clock.observe(EPOCH + 10.0, asked_at=110.0, answered_at=112.0)
    loop_time[0] = 112.0
    assert pytest.approx(EPOCH + 11.999) == clock.now().timestamp()


@pytest.mark.parametrize("step", [3600.0, -3600.0, 1.0, -1.0])
def test_a_step_of_the_databases_clock_is_taken_over(loop_time: list[float], step: float) -> None:
    clock = DatabaseClock()
    clock.observe(EPOCH, asked_at=100.0, answered_at=100.001)
    clock.observe(EPOCH + 10.0 + step, asked_at=110.0, answered_at=110.5)
    loop_time[0] = 110.5
    assert at(10.0 + step) == clock.now()


def test_a_slow_drift_is_followed(loop_time: list[float]) -> None:
    """A day at 50 millionths, with a heartbeat every ten seconds: never off by more than a few milliseconds."""
    clock = DatabaseClock()
    for beat in range(8640):
        loop_time[0] = beat * 10.0
        database = EPOCH + loop_time[0] * 1.00005
        clock.observe(database, asked_at=loop_time[0] - 0.001, answered_at=loop_time[0] + 0.001)
        assert abs(clock.now().timestamp() - database) < 0.003
