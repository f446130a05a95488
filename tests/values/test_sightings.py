"""Who is dead: judged by one's own clock, never by the database's."""

from __future__ import annotations

import math

import pytest

from pgq_anyio._services.rescuer import SLACK, Sightings
from pgq_anyio._store.worker import Peer

#: Longer than the tests, but for those of it.
GAP = 1000.0


def peer(beat: int, *, age: float = 0.0, lease: float = 30.0, worker_id: int = 1, has_left: bool = False) -> Peer:
    return Peer(worker_id, beat, lease, age, has_left)


def look(sightings: Sightings, now: float, *peers: Peer, step: float = 0.0) -> None:
    """One answer at ``now``; the database's clock is ahead by 1,000 s and by ``step``."""
    sightings.observe(peers, clock=now + 1000 + step, now=now)


def keep_looking(sightings: Sightings, until: float, *peers: Peer) -> None:
    """Look often enough, from the last look on, to be able to judge at ``until``."""
    assert sightings._last_look is not None
    now = sightings._last_look
    while now < until - 1:
        now = min(now + 1, until - 1)
        look(sightings, now, *peers)


def test_nobody_is_dead_at_first_sight() -> None:
    """Whatever age the row states: the server may have been away, promoted, or its clock may have stepped."""
    sightings = Sightings(GAP)
    look(sightings, 100.0, peer(7, age=100_000.0))
    keep_looking(sightings, 129.9, peer(7, age=100_000.0))
    assert [] == sightings.dead(100.0 + 29.9)
    assert [(1, 7)] == sightings.dead(100.0 + 30.0 + SLACK)


def test_a_new_beat_starts_a_new_lease() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2))
    keep_looking(sightings, 39.9, peer(2))
    assert [] == sightings.dead(39.9)
    assert [(1, 2)] == sightings.dead(40.1)


def test_a_beat_counts_from_when_it_was_made_if_the_clock_can_be_trusted() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=6.0))
    keep_looking(sightings, 33.9, peer(2))
    assert [] == sightings.dead(33.9)
    assert [(1, 2)] == sightings.dead(34.1)


def test_a_beat_never_counts_from_before_the_look_that_did_not_show_it() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=3600.0))
    keep_looking(sightings, 29.9, peer(2))
    assert [] == sightings.dead(29.9)


def test_a_step_of_the_databases_clock_gives_a_full_lease_from_the_sighting() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=3600.0), step=3600.0)
    keep_looking(sightings, 39.9, peer(2))
    assert [] == sightings.dead(39.9)
    assert [(1, 2)] == sightings.dead(40.1)


def test_everybody_is_judged_by_their_own_lease() -> None:
    sightings = Sightings(GAP)
    both = peer(1, worker_id=1, lease=5.0), peer(1, worker_id=2, lease=30.0)
    look(sightings, 0.0, *both)
    assert math.isclose(5.0 + SLACK, sightings.next_due(0.0))
    keep_looking(sightings, 6.0, *both)
    assert [(1, 1)] == sightings.dead(6.0)


def test_those_who_say_that_they_leave_are_due_at_once() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(3, has_left=True))
    assert -math.inf == sightings.next_due(0.0)
    assert [(1, 3)] == sightings.dead(0.0)


def test_a_judgement_that_was_not_carried_out_is_tried_again_later() -> None:
    """The worker's row was locked by its heartbeat: look again, but not in a loop."""
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    keep_looking(sightings, 31.0, peer(1))
    judged = sightings.dead(31.0)
    assert [(1, 1)] == judged
    sightings.forget(judged, now=31.0)
    assert [] == sightings.dead(31.0)
    assert 31.0 < sightings.next_due(31.0) < 32.0


def test_time_in_which_nothing_was_seen_does_not_count() -> None:
    """The server was away, and nobody could beat: after it has come back, everybody has a full lease again."""
    sightings = Sightings(20.0)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2))
    assert 40.0 + SLACK == sightings.next_due(30.0)
    assert math.inf == sightings.next_due(30.1)
    assert [] == sightings.dead(50.0)
    look(sightings, 50.0, peer(2, age=40.0))
    assert [] == sightings.dead(50.0)
    look(sightings, 60.0, peer(2, age=50.0))
    look(sightings, 79.0, peer(2, age=69.0))
    assert [] == sightings.dead(79.9)
    assert [(1, 2)] == sightings.dead(80.1)


def test_those_who_say_that_they_leave_are_judged_in_any_case() -> None:
    sightings = Sightings(20.0)
    look(sightings, 0.0, peer(3, has_left=True))
    assert [(1, 3)] == sightings.dead(50.0)


@pytest.mark.promise(13)
def test_a_pause_is_measured_by_the_other_ones_lease() -> None:
    """Between two looks of a worker with a lease of 30 s the server was away for 4 s: one with a lease of 5 s, which
    could not beat meanwhile, is not dead.
    """
    sightings = Sightings(20.0)
    look(sightings, 0.0, peer(1, lease=5.0))
    assert [] == sightings.dead(5.1)
    assert math.inf == sightings.next_due(5.1)
    look(sightings, 10.0, peer(2, lease=5.0, age=1.0))
    assert [] == sightings.dead(15.1)


@pytest.mark.promise(12)
def test_one_who_beats_more_often_than_we_look_is_judged_all_the_same() -> None:
    """The look that shows nothing new leaves it a third of its lease."""
    sightings = Sightings(20.0)
    for now in (0.0, 10.0):
        look(sightings, now, peer(1, lease=5.0))
        assert [] == sightings.dead(now)
    assert math.isclose(10.0 + 5 / 3 + SLACK, sightings.next_due(10.0))
    assert [] == sightings.dead(10.0 + 5 / 3)
    assert [(1, 1)] == sightings.dead(10.1 + 5 / 3)


@pytest.mark.promise(12)
def test_one_whose_looks_are_always_late_judges_all_the_same() -> None:
    """Its heartbeats need a second attempt each time."""
    sightings = Sightings(20.0)
    for now in (0.0, 21.0, 42.0):
        look(sightings, now, peer(1))
        assert [] == sightings.dead(now)
    assert [(1, 1)] == sightings.dead(52.1)


@pytest.mark.promise(12)
def test_one_with_a_short_lease_whose_looks_are_always_late_judges_one_with_a_long_lease() -> None:
    """Its pauses are short for the other: after the first of them they count."""
    sightings = Sightings(10 / 3)
    dead = None
    for number in range(20):
        look(sightings, 3.5 * number, peer(1))
        if dead is None and sightings.dead(3.5 * number):
            dead = 3.5 * number
    assert dead is not None
    assert 30 < dead <= 30 + 2 * 3.5


def test_a_beat_after_a_pause_brings_a_full_lease_again() -> None:
    sightings = Sightings(20.0)
    look(sightings, 0.0, peer(1))
    look(sightings, 50.0, peer(1))
    look(sightings, 60.0, peer(2))
    look(sightings, 100.0, peer(2))
    look(sightings, 115.0, peer(2))
    assert [] == sightings.dead(129.9)
    assert [(1, 2)] == sightings.dead(130.1)
