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
        pace.look(look * 0.01, round(look * 0.01 * per_second))
    assert expected == pytest.approx(pace.ahead(took, MOST), abs=1)


def test_half_of_what_is_known_comes_from_the_last_look() -> None:
    """A pause lowers it, one lucky moment does not make it."""
    pace = Pace()
    pace.look(0.0, 0)
    pace.look(1.0, 1000)
    assert 50 == pace.ahead(1.0, MOST)
    pace.look(2.0, 1000)
    assert 25 == pace.ahead(1.0, MOST)


def test_looks_in_quick_succession_are_one() -> None:
    """A millisecond says something, a microsecond does not."""
    pace = Pace()
    pace.look(0.0, 0)
    pace.look(0.0001, 100)
    assert 0 == pace.ahead(1.0, MOST)
    pace.look(1.0, 1000)
    assert 50 == pace.ahead(1.0, MOST)


def test_what_did_not_start_in_time_is_forgotten() -> None:
    """The next jobs have to show it anew."""
    pace = Pace()
    pace.look(0.0, 0)
    pace.look(1.0, 1000)
    pace.forget()
    assert 0 == pace.ahead(1.0, MOST)
