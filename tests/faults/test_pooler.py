"""Workers behind PgBouncer in transaction mode, which goes away and comes back."""

from __future__ import annotations

import threading

import pytest

from tests.faults.conftest import SceneMaker
from tests.faults.rows import TOO_LATE, form
from tests.poolers import open_pgbouncer

pytestmark = pytest.mark.heavy


def test_the_pooler_is_killed(make_scene: SceneMaker, server_dsn: str) -> None:
    """All that workers do goes through it, and cancel requests arrive by heartbeat. The fleet's limit holds, whatever
    session a claim is given.
    """
    times, jobs = form(short=2, long=30), form(short=600, long=10_000)
    scene = make_scene(7, "PgBouncer, in transaction mode, is killed", bound=15, allowed=TOO_LATE)
    with open_pgbouncer(server_dsn) as pooler:
        scene.start_many(3, dsn=pooler.dsn, dequeue_timeout=1)
        scene.load(jobs, payload=b"0.05")
        for done in range(times):
            scene.wait_ended(jobs * (done + 1) // (times + 2))
            scene.hit(*scene.workers)
            pooler.kill()
            threading.Event().wait(0.5)  # the time that it is away
            pooler.start()
            scene.recover()
        row = scene.finish()
    assert (times, 0) == (row.times, row.lost)
