"""Who is overdue, and when it is looked who might be."""

from __future__ import annotations

import math
from typing import Any, cast

import anyio
import attrs
import pytest

from pgq_anyio._services.overdue import SHORTEST_PAUSE, OverdueWatch

pytestmark = pytest.mark.anyio

GRACE = 5.0


@attrs.define(eq=False)
class FakeRun:
    """A run, as far as its end is concerned; its own context as well."""

    times_out_at: float = math.inf
    ended: bool = False

    @property
    def context(self) -> FakeRun:
        return self


@attrs.define(eq=False)
class Looks:
    """What runs, and how often that was asked."""

    runs: list[FakeRun]
    count: int = 0

    def __call__(self) -> list[Any]:
        self.count += 1
        return list(self.runs)


def overdue(watch: OverdueWatch) -> list[Any]:
    """Who is overdue now."""
    return list(watch.take_overdue())


def make_watch(*runs: FakeRun, shortest_timeout: float = math.inf, grace: float = GRACE) -> tuple[OverdueWatch, Looks]:
    looks = Looks(list(runs))
    watch = OverdueWatch(
        line=cast(Any, None), store=cast(Any, None), grace=grace, shortest_timeout=shortest_timeout, running=looks
    )
    return watch, looks


async def test_without_timeouts_nobody_looks() -> None:
    """Once, when the worker starts; then only those who are asked to end are waited for."""
    watch, looks = make_watch(FakeRun())
    assert [] == overdue(watch)
    assert math.inf == watch.wait_time()
    assert [] == overdue(watch)
    assert 1 == looks.count
    watch.expect_all()
    assert GRACE - 1 < watch.wait_time() <= GRACE


async def test_a_timeout_is_overdue_after_the_grace_and_once() -> None:
    """However often it is looked; asking the handler to end begins anew."""
    now = anyio.current_time()
    deaf, late = FakeRun(now - GRACE), FakeRun(now - GRACE + 1)
    watch, looks = make_watch(deaf, late, FakeRun(), shortest_timeout=60)
    assert [deaf] == overdue(watch)
    assert 0 < watch.wait_time() <= 1, "the next look is when the second one may be overdue"
    looks.runs.remove(late)
    for _ in range(2):
        watch._look_at = -math.inf
        assert [] == overdue(watch)
    assert 64 < watch.wait_time() <= 65, "no job that starts now can be overdue earlier"
    watch.grace = 0
    watch.expect_all()
    assert deaf in overdue(watch)


async def test_looks_keep_a_distance() -> None:
    """However short timeouts and grace are."""
    watch, _ = make_watch(FakeRun(anyio.current_time() + 0.001), shortest_timeout=0.001, grace=0)
    overdue(watch)
    assert SHORTEST_PAUSE / 2 < watch.wait_time() <= SHORTEST_PAUSE


async def test_the_first_cancellation_counts_and_the_end_ends_it() -> None:
    """A second one does not put the report off; a handler that has ended is not waited for."""
    run = FakeRun()
    watch, _ = make_watch(run)
    overdue(watch)
    watch.expect(cast(Any, run))
    watch.grace = 100
    watch.expect_all()
    assert watch.wait_time() <= GRACE
    run.ended = True
    assert math.inf == watch.wait_time()
