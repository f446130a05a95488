"""``requests_per_second``: how often jobs start in the whole fleet, by rows that they write with the server's time."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.bounds import Within
from tests.worker.fleet import BACKENDS, Fleet, wait_until
from tests.worker.limited_fleet import count_ended, enqueue, start


def starts(fleet: Fleet) -> list[datetime]:
    return [row[0] for row in fleet.rows("select at from {log} where event = 'start' order by at")]


@pytest.mark.promise(21)
@BACKENDS
@pytest.mark.parametrize("number", [1, 4])
def test_ten_a_second(fleet: Fleet, backend: str, number: int, figures: bool) -> None:
    """At most 11 starts in any second, 90 to 110 in ten. A busy machine may not come to so many."""
    start(fleet, backend, number, {"requests_per_second": 10})
    enqueue(fleet, [b"quick"] * 200)
    wait_until(lambda: fleet.value("select count(*) from {log} where event = 'start'") >= 115, timeout=45)
    at = starts(fleet)
    in_ten = sum(one < at[0] + timedelta(seconds=10) for one in at)
    assert (90 if figures else 30) <= in_ten <= 110
    assert 11 >= max(sum(begin <= one < begin + timedelta(seconds=1) for one in at) for begin in at)


@pytest.mark.promise(21)
@BACKENDS
def test_one_every_two_seconds(fleet: Fleet, backend: str, within: Within) -> None:
    """Half a request per second, from the first job on; what fails or is retried spends its token too."""
    start(fleet, backend, 2, {"requests_per_second": 0.5})
    enqueue(fleet, [b"fail", b"quick", b"quick"])
    wait_until(lambda: 3 == count_ended(fleet), timeout=30)
    first, second, third = starts(fleet)
    for pause in (second - first, third - second):
        assert timedelta(seconds=1.9) < pause < timedelta(seconds=within(2.5))
