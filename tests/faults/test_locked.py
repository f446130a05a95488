"""Tables that somebody else has locked, and limits of time that an administrator has set for the role."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest
from psycopg import sql

from tests.faults.conftest import SceneMaker
from tests.faults.rows import LONG, TOO_LATE, form
from tests.faults.scene import LEASE, Scene
from tests.worker.fleet import wait_until
from tests.worker.own_server import OwnServer

pytestmark = pytest.mark.heavy

TABLES = ("queued", "running", "finished", "worker", "deferred", "limiter_state")
#: Whatever is locked, a worker has this long to say farewell after its grace (in seconds): 5 s for its last outcomes,
#: 5 s for its registration, and something for its end.
FAREWELL = 12.0


@contextmanager
def locked(scene: Scene, table: str) -> Iterator[None]:
    """Nobody else can read or write the table meanwhile."""
    with psycopg.connect(scene.fleet.dsn) as locker:
        locker.execute("set lock_timeout = 0; set statement_timeout = 0")
        locker.execute(
            sql.SQL("lock table {} in access exclusive mode").format(sql.Identifier(scene.fleet.schema, table))
        )
        yield


def test_a_table_is_locked(make_own_scene: SceneMaker) -> None:
    """As by a VACUUM FULL. Workers wait, or lose their lease and register anew; then everything goes on."""
    duration, jobs = form(short=2, long=30), form(short=200, long=600)
    scene = make_own_scene(8, "a table is locked", bound=15, allowed=TOO_LATE)
    scene.start_many(2)
    for table in TABLES if LONG else ("running", "worker"):
        before = scene.ended()
        scene.load(jobs, payload=b"0.02")
        scene.wait_ended(before + jobs // 4)
        scene.hit(*scene.workers)
        with locked(scene, table):
            threading.Event().wait(duration)  # the time that it is locked is what the scenario is about
        scene.recover()
        scene.wait_ended(len(scene.ids))
    row = scene.finish()
    assert 0 == row.lost


@pytest.mark.promise(34)
def test_workers_stop_although_a_table_is_locked(make_own_scene: SceneMaker) -> None:
    """Peer's bug: a worker cannot exit while the database is slow or locked. Out within the budget; what could not be
    stored runs again on others.
    """
    grace, jobs = 1.0, form(short=100, long=600)
    scene = make_own_scene(
        8,
        "workers are told to stop while a table is locked",
        bound=LEASE + 5,
        allowed=TOO_LATE,
    )
    for table in TABLES if LONG else ("running",):
        workers = scene.start_many(2, shutdown_grace=grace)
        scene.load(jobs, payload=b"0.3")
        wait_until(scene.log.runs)
        scene.hit(*workers)
        with locked(scene, table):
            told_at = time.monotonic()
            for worker in workers:
                worker.signal(signal.SIGTERM)
            assert [0, 0] == [worker.wait(40) for worker in workers]
            assert time.monotonic() - told_at < grace + FAREWELL
        scene.start_many(2)
        scene.recover()
        scene.wait_ended(len(scene.ids))
        scene.stop()
    row = scene.finish()
    assert 0 == row.lost


def test_statements_may_take_no_time(make_own_scene: SceneMaker, own_server: OwnServer) -> None:
    """The administrator has given the role a statement_timeout and a lock_timeout: what they interrupt is repeated."""
    times, jobs = form(short=3, long=50), form(short=300, long=5000)
    scene = make_own_scene(8, "statements are interrupted by the role's time-outs", bound=15)
    scene.fleet.rows("alter role current_user set statement_timeout = '400ms'")
    scene.fleet.rows("alter role current_user set lock_timeout = '150ms'")
    try:
        scene.start_many(2)
        scene.load(jobs, payload=b"0.05")
        for done in range(times):
            scene.wait_ended(jobs * done // (times + 1))
            scene.hit(*scene.workers)
            with locked(scene, TABLES[done % 4]):
                since = own_server.log.stat().st_size
                wait_until(partial(own_server.says, "due to lock timeout", since))
        scene.recover()
        row = scene.finish()
    finally:
        scene.fleet.rows("alter role current_user reset all")
    assert 0 == row.lost
