"""Where a claim starts to look."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgq_anyio._hints import HIGHEST, LOWEST, MAX_LANES, SWEEP_PAUSE, SWEEP_SHARE, Hints
from pgq_anyio._models import Job, JobId


def claimed(entrypoint: str, priority: int, seq: int) -> tuple[Job, int]:
    return Job(JobId(seq), entrypoint, None, priority, 1, 0, datetime.now(UTC)), seq


def test_a_claimer_that_knows_nothing_sweeps() -> None:
    assert Hints(("a",)).lanes(0.0) is None


def test_hints_move_behind_what_was_claimed_and_never_back() -> None:
    hints = Hints(("a",))
    hints.learn([claimed("a", 0, 7), claimed("a", 0, 9), claimed("a", 0, 8)])
    hints.swept(10.0, 0.0)
    lanes = hints.lanes(10.0)
    assert lanes is not None
    assert (["a"], [0], [9]) == (lanes.entrypoints, lanes.priorities, lanes.seqs)


def test_every_gap_between_known_priorities_is_probed() -> None:
    """A new priority, above, between, below, or of a name never seen, is found by the next claim."""
    hints = Hints(("a", "b"))
    hints.learn([claimed("a", 5, 1), claimed("a", 0, 2), claimed("a", 1, 3)])
    hints.swept(0.0, 0.0)
    lanes = hints.lanes(0.0)
    assert lanes is not None
    gaps = list(zip(lanes.gap_entrypoints, lanes.gap_aboves, lanes.gap_belows, strict=True))
    assert [("a", LOWEST, 0), ("a", 1, 5), ("a", 5, HIGHEST), ("b", LOWEST, HIGHEST)] == gaps


def test_sweeps_take_at_most_their_share_of_the_time() -> None:
    hints = Hints(("a",))
    hints.learn([claimed("a", 0, 1)])
    hints.swept(100.0, 0.001)
    assert hints.lanes(100.0 + SWEEP_PAUSE - 0.01) is not None
    assert hints.lanes(100.0 + SWEEP_PAUSE + 0.01) is None
    hints.swept(200.0, 0.1)
    assert hints.lanes(200.0 + 0.1 * SWEEP_SHARE - 0.01) is not None
    assert hints.lanes(200.0 + 0.1 * SWEEP_SHARE + 0.01) is None


def test_lanes_that_were_in_use_are_forgotten() -> None:
    """With priorities that change all the time, every claim would be a sweep, for ever."""
    hints = Hints(("a",))
    hints.learn([claimed("a", priority, priority) for priority in range(MAX_LANES + 1)])
    hints.swept(0.0, 0.0)
    hints.learn([claimed("a", 5, 1000)])
    lanes = hints.lanes(0.0)
    assert lanes is not None
    assert ([5], [1000]) == (lanes.priorities, lanes.seqs)


def test_news_of_something_in_front_makes_the_next_claim_a_sweep() -> None:
    hints = Hints(("a",))
    hints.learn([claimed("a", 0, 1)])
    hints.swept(0.0, 0.0)
    hints.sweep_next()
    assert hints.lanes(0.0) is None


@pytest.mark.promise(35)
def test_news_that_comes_during_a_sweep_is_not_lost() -> None:
    """What came in front meanwhile, the sweep may have missed."""
    hints = Hints(("a",))
    hints.learn([claimed("a", 0, 1)])
    assert hints.lanes(0.0) is None
    hints.sweep_next()
    hints.swept(0.0, 1.0)
    assert hints.lanes(0.1) is None
    hints.swept(0.1, 1.0)
    assert hints.lanes(0.2) is not None


def test_a_reconnect_drops_all_hints() -> None:
    """Sequences may have jumped, or gone back with a failover."""
    hints = Hints(("a",))
    hints.learn([claimed("a", 0, 1_000_000)])
    hints.swept(0.0, 0.0)
    hints.forget()
    hints.swept(0.0, 0.0)
    assert hints.lanes(0.0) is None


def test_too_many_lanes_are_swept_instead() -> None:
    hints = Hints(("a",))
    hints.learn([claimed("a", priority, priority + 1) for priority in range(MAX_LANES + 1)])
    hints.swept(0.0, 0.0)
    assert hints.lanes(0.0) is None
