"""Workers that stand still for about as long as their lease: stopped processes, and event loops that are blocked."""

from __future__ import annotations

import random
import signal
import threading
from functools import partial

import pytest

from tests.faults.conftest import SceneMaker
from tests.faults.job_log import JobLog
from tests.faults.rows import form
from tests.faults.scene import LEASE
from tests.worker.fleet import wait_until

pytestmark = pytest.mark.heavy

#: How long a worker stands still, in leases: shorter, about as long, and longer.
SHARES = (0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 2.0)


@pytest.mark.promise(14)
def test_workers_are_frozen_around_their_lease(make_scene: SceneMaker) -> None:
    """SIGSTOP, and SIGCONT later: others go on, and the one that comes back works with them again."""
    times, jobs = form(short=3, long=70), form(short=600, long=12_000)
    scene = make_scene(
        2,
        "a worker is stopped by SIGSTOP around its lease",
        bound=LEASE + 5,
        allowed="its handler had ended, or ended by itself as it woke up, and its lease was over",
    )
    scene.start_many(3)
    scene.load(jobs, payload=b"0.1")
    for done in range(times):
        scene.wait_ended(jobs * done // (times + 2))
        victim = random.choice(scene.workers)
        share = SHARES[done % len(SHARES)] if times > len(SHARES) else (0.5, 1.0, 1.4)[done % 3]
        scene.hit(victim)
        victim.signal(signal.SIGSTOP)
        threading.Event().wait(share * LEASE)  # the time that it stands still is what the scenario is about
        victim.signal(signal.SIGCONT)
        scene.recover()
    scene.finish()


def test_event_loops_are_blocked_for_longer_than_the_lease(make_scene: SceneMaker) -> None:
    """A handler blocks its worker's event loop: the others take its jobs, and it works with them again afterwards."""
    times, jobs = form(short=2, long=30), form(short=400, long=6_000)
    scene = make_scene(
        10,
        "a handler blocks its event loop for longer than the lease",
        bound=LEASE + 5,
        allowed="its handlers had ended, and its lease was over",
    )
    workers = {worker.pid: worker for worker in scene.start_many(3)}
    scene.load(jobs, payload=b"0.1")
    for done in range(times):
        scene.wait_ended(jobs * done // (times + 2))
        (job_id,) = scene.load(1, payload=str(1.5 * LEASE).encode(), mix=("block",), priority=2000)
        (blocked,) = wait_until(partial(scene.log.find, job_id), what="the loop is blocked")
        scene.hit(workers[blocked.pid])
        wait_until(partial(is_through, scene.log, job_id), what="the loop is free again")
        scene.recover()
    row = scene.finish()
    assert row.interrupted + row.doubled >= times  # the handlers that blocked ran again


def is_through(log: JobLog, job_id: int) -> bool:
    """Whether the handler that blocked has come to its end."""
    return log.find(job_id)[0].event is not None
