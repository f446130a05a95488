"""Workers that are killed: SIGKILL at random, in the middle of whatever they do."""

from __future__ import annotations

import random
import signal

import pytest

from tests.faults.conftest import SceneMaker
from tests.faults.rows import form
from tests.faults.scene import BACKENDS, LEASE

pytestmark = pytest.mark.heavy

#: After so many kills it is seen how long it takes until everybody is at work again.
RECOVERIES = 4


@pytest.mark.promise(12, 15, 18)
def test_workers_are_killed_at_random(make_scene: SceneMaker) -> None:
    """Each is replaced at once. Every job ends, and those of the dead run on others once the lease is over."""
    times, jobs = form(short=4, long=100), form(short=1000, long=20_000)
    scene = make_scene(
        1,
        "a worker is killed by SIGKILL",
        bound=LEASE + 5,
        allowed="killed between the end of the handler and the stored outcome",
    )
    scene.start_many(4)
    scene.load(jobs, payload=b"0.1")
    for done in range(1, times + 1):
        scene.wait_ended(jobs * done // (times + 2))
        victim = random.choice(scene.workers)  # also one that has not got as far as its registration
        scene.hit(victim)
        victim.signal(signal.SIGKILL)
        victim.wait()
        scene.start(BACKENDS[done % 2], ready=False)
        if done % RECOVERIES == 0:
            scene.recover()
    row = scene.finish()
    assert (times, 0) == (row.times, row.lost)
    assert row.interrupted > 0
