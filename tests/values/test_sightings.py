"""Who is dead: judged by one's own clock, never by the database's."""

from __future__ import annotations

import math

from pgq_anyio._services.rescuer import SLACK, Sightings
from pgq_anyio._store.worker import Peer

#: Longer than the tests, but for those of it.
GAP = 1000.0


def peer(beat: int, *, age: float = 0.0, lease: float = 30.0, worker_id: int = 1, has_left: bool = False) -> Peer:
    return Peer(worker_id, beat, lease, age, has_left)


def look(sightings: Sightings, now: float, *peers: Peer, step: float = 0.0) -> None:
    """One answer at ``now``; the database's clock is ahead by 1,000 s and by ``step``."""
    sightings.observe(peers, clock=now + 1000 + step, now=now)


def test_nobody_is_dead_at_first_sight() -> None:
    """Whatever age the row states: the server may have been away, promoted, or its clock may have stepped."""
    sightings = Sightings(GAP)
    look(sightings, 100.0, peer(7, age=100_000.0))
    assert [] == sightings.dead(100.0 + 29.9)
    assert [(1, 7)] == sightings.dead(100.0 + 30.0 + SLACK)


def test_a_new_beat_starts_a_new_lease() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2))
    assert [] == sightings.dead(39.9)
    assert [(1, 2)] == sightings.dead(40.1)


def test_a_beat_counts_from_when_it_was_made_if_the_clock_can_be_trusted() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=6.0))
    assert [] == sightings.dead(33.9)
    assert [(1, 2)] == sightings.dead(34.1)


def test_a_beat_never_counts_from_before_the_look_that_did_not_show_it() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=3600.0))
    assert [] == sightings.dead(29.9)


def test_a_step_of_the_databases_clock_gives_a_full_lease_from_the_sighting() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    look(sightings, 10.0, peer(2, age=3600.0), step=3600.0)
    assert [] == sightings.dead(39.9)
    assert [(1, 2)] == sightings.dead(40.1)


def test_everybody_is_judged_by_their_own_lease() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1, worker_id=1, lease=5.0), peer(1, worker_id=2, lease=30.0))
    assert [(1, 1)] == sightings.dead(6.0)
    assert math.isclose(5.0 + SLACK, sightings.next_due(0.0))


def test_those_who_say_that_they_leave_are_due_at_once() -> None:
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(3, has_left=True))
    assert -math.inf == sightings.next_due(0.0)
    assert [(1, 3)] == sightings.dead(0.0)


def test_a_judgement_that_was_not_carried_out_is_tried_again_later() -> None:
    """The worker's row was locked by its heartbeat: look again, but not in a loop."""
    sightings = Sightings(GAP)
    look(sightings, 0.0, peer(1))
    judged = sightings.dead(31.0)
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
