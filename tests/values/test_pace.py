"""How many jobs are claimed ahead, by how fast jobs end."""

from __future__ import annotations

import pytest

from pgq_anyio._pace import Pace

MOST = 500


@pytest.mark.parametrize(
    ("per_second", "took", "expected"),
    [
        pytest.param(10_000, 0.002, 200, id="microseconds"),
        pytest.param(10_000, 0.02, 400, id="a server that is far away"),
        pytest.param(1_000, 10.0, 100, id="a server that does not answer"),
        pytest.param(500_000, 0.01, MOST, id="no more than allowed"),
        pytest.param(100, 0.002, 0, id="a hundred slots, jobs of a second"),
        pytest.param(0, 1.0, 0, id="nothing ends"),
    ],
)
def test_as_many_as_end_within_a_moment(per_second: int, took: float, expected: int) -> None:
    """What jobs have just done decides."""
    pace = Pace()
    for look in range(40):
        pace.look(look * 0.1, round(look * 0.1 * per_second), took)
    assert expected == pytest.approx(pace.ahead(MOST), abs=1)


def test_half_of_what_is_known_comes_from_the_last_look() -> None:
    """A pause lowers it, one lucky moment does not make it."""
    pace = Pace()
    pace.look(0.0, 0, 1.0)
    pace.look(1.0, 1000, 1.0)
    assert 50 == pace.ahead(MOST)
    pace.look(2.0, 1000, 1.0)
    assert 25 == pace.ahead(MOST)


def test_looks_in_quick_succession_are_one() -> None:
    """What is to be held for a moment is learnt from no less than a moment, however long that is."""
    pace = Pace()
    pace.look(0.0, 0, 0.04)
    pace.look(0.079, 100, 0.04)
    assert 0 == pace.ahead(MOST)
    pace.look(0.08, 100, 0.04)
    assert 50 == pace.ahead(MOST)


def test_long_jobs_that_end_together_are_not_taken_for_short_ones() -> None:
    """Three slots whose jobs end one millisecond after the other."""
    pace = Pace()
    pace.look(0.0, 0, 0.002)
    aheads = []
    for look in range(100):
        pace.look(10 + look / 1000, min(look, 3), 0.002)
        aheads.append(pace.ahead(MOST))
    assert [0] * 100 == aheads


def test_what_did_not_start_in_time_is_forgotten() -> None:
    """The next jobs have to show it anew."""
    pace = Pace()
    pace.look(0.0, 0, 1.0)
    pace.look(1.0, 1000, 1.0)
    pace.forget()
    assert 0 == pace.ahead(MOST)
