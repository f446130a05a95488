"""``requests_per_second``: how often jobs start in the whole fleet, by the server's time.

A job starts when its claim says so: on a busy machine its handler may come to its first line at any time after that. So
it is the times of the claims that are looked at, and with ``--figures`` the rows that the handlers write, too.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.worker.fleet import BACKENDS, Fleet, wait_until
from tests.worker.limited_fleet import count_ended, enqueue, start

pytestmark = pytest.mark.heavy


def starts(fleet: Fleet) -> list[datetime]:
    """When handlers began."""
    return [row[0] for row in fleet.rows("select at from {log} where event = 'start' order by at")]


def claims(fleet: Fleet) -> list[datetime]:
    """When jobs that have ended were claimed."""
    return [row[0] for row in fleet.rows("select claimed_at from {schema}.finished order by claimed_at")]


def most(at: list[datetime], seconds: float) -> int:
    """The most of these times in any span of this length."""
    return max(sum(begin <= one < begin + timedelta(seconds=seconds) for one in at) for begin in at)


@pytest.mark.promise(21)
@pytest.mark.figures
@BACKENDS
@pytest.mark.parametrize("number", [1, 4])
def test_ten_a_second(fleet: Fleet, backend: str, number: int, figures: bool) -> None:
    """At most 11 starts in any second, 90 to 110 in ten. A token that nobody was awake for is lost, and a claim may be
    stopped between its look at the clock and its note of the time: a busy machine has fewer starts, and any ten seconds
    are looked at, with a tenth of a second of such stops for each, instead of any one.
    """
    start(fleet, backend, number, {"requests_per_second": 10})
    enqueue(fleet, [b"quick"] * 200)
    wait_until(lambda: count_ended(fleet) >= 115, timeout=30 if figures else 50)
    at = claims(fleet)
    assert 101 + 10 >= most(at, 10)
    assert 11 + 5 >= most(at, 1)
    if figures:
        for times in (at, starts(fleet)):
            assert 90 <= sum(one < times[0] + timedelta(seconds=10) for one in times) <= 110
            assert 11 >= most(times, 1)


@pytest.mark.promise(21)
@BACKENDS
def test_one_every_two_seconds(fleet: Fleet, backend: str, figures: bool) -> None:
    """Half a request per second, from the first job on; what fails or is retried spends its token too."""
    start(fleet, backend, 2, {"requests_per_second": 0.5})
    enqueue(fleet, [b"fail", b"quick", b"quick"])
    wait_until(lambda: 3 == count_ended(fleet), timeout=15 if figures else 40)
    first, second, third = claims(fleet)
    for pause in (second - first, third - second):
        assert timedelta(seconds=1.9 if figures else 1.5) < pause < timedelta(seconds=2.5 if figures else 15)
