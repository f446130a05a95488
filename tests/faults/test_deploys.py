"""Deploys under load: workers are replaced, versions work side by side, and the schema is migrated meanwhile."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest

from pgq_anyio._store import migrations as package
from pgq_anyio._store.migrations import migrate_sync
from tests.faults.conftest import SceneMaker
from tests.faults.later import LATER, expect_later
from tests.faults.producer import producing
from tests.faults.rows import form
from tests.faults.scene import BACKENDS, SLOTS, Scene
from tests.worker.fleet import WorkerProcess

pytestmark = pytest.mark.heavy

#: Long enough that a busy machine costs nobody its lease (in seconds).
LEASE = 10.0


def replace(scene: Scene, worker: WorkerProcess, backend: str, **options: Any) -> WorkerProcess:
    """Stop a worker with SIGTERM, and start another one beside it."""
    worker.signal(signal.SIGTERM)
    successor = scene.start(backend, ready=False, lease=LEASE, **options)
    assert 0 == worker.wait()
    scene.wait_registered(successor)
    return successor


@pytest.mark.promise(17, 35)
def test_workers_are_replaced_one_after_the_other(make_scene: SceneMaker) -> None:
    """Jobs that do not end within the grace are given back and run elsewhere; none comes to its end twice."""
    rounds = form(short=1, long=20)
    options: dict[str, Any] = {"shutdown_grace": 0.1}
    scene = make_scene(11, "four workers are replaced, one after the other", bound=LEASE)
    workers = scene.start_many(4, lease=LEASE, **options)
    with producing(scene, "trio", payload=b"0.3", pause=0.2):  # no more than the limited ones bear
        for done in range(rounds):
            for index, worker in enumerate(workers):
                scene.wait_ended(scene.ended() + 2 * SLOTS)
                scene.wait_busy(worker)
                workers[index] = replace(scene, worker, BACKENDS[(done + index) % 2], **options)
            scene.hit()
            scene.recover()
    row = scene.finish()
    assert row.doubled == 0
    assert 0 < row.interrupted <= rounds * 4 * SLOTS
    assert [(1, 0)] == scene.fleet.rows("select distinct attempt, crashes from {schema}.finished")


@pytest.mark.promise(4)
def test_two_versions_work_side_by_side(make_scene: SceneMaker) -> None:
    """What both serve is run by both, what one serves by that one only; without it such jobs wait."""
    times = form(short=1, long=10)
    mix = ("work", "version_1", "version_2", "thread")
    scene = make_scene(11, "two versions with different entrypoints", bound=LEASE)
    old = scene.start_many(2, lease=LEASE, version=1)
    new = scene.start_many(2, lease=LEASE, version=2)
    pids = {"version_1": {worker.pid for worker in old}, "version_2": {worker.pid for worker in new}}
    for _ in range(times):
        scene.load(400, payload=b"0.02", mix=mix)
        scene.wait_ended(scene.ended() + 100)
        scene.hit()
        for worker in old:
            worker.signal(signal.SIGTERM)
        assert [0, 0] == [worker.wait() for worker in old]
        waiting = scene.load(10, mix=("version_1",))
        scene.recover()
        assert [] == [run for run in scene.log.runs() if run.job_id in waiting]
        old = scene.start_many(2, lease=LEASE, version=1)
        pids["version_1"] |= {worker.pid for worker in old}
    scene.finish()
    ran_by = {
        name: {run.pid for run in scene.log.runs() if run.entrypoint == name} for name in ("version_1", "version_2")
    }
    assert ran_by["version_1"] <= pids["version_1"]
    assert ran_by["version_2"] <= pids["version_2"]


def test_the_schema_is_migrated_while_workers_run(make_scene: SceneMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the version before go on, under their registration; no more of them can start. Those of the new
    version replace them.
    """
    times = form(short=1, long=len(LATER))
    monkeypatch.setattr(package, "migrations", package.migrations)  # put back afterwards
    scene = make_scene(11, "the schema is migrated while workers of the version before run", bound=LEASE)
    workers = scene.start_many(2, lease=LEASE)
    with producing(scene, "asyncio"):
        for number in range(1, times + 1):
            registered = scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
            scene.wait_ended(scene.ended() + 50)
            scene.hit()
            expect_later(number)
            with psycopg.connect(scene.fleet.dsn, autocommit=True) as connection:
                assert [list(LATER)[number - 1]] == migrate_sync(connection, scene.fleet.schema)
            scene.recover()
            assert registered == scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
            belated = scene.start("asyncio", ready=False, lease=LEASE, migrations=number - 1)
            assert belated.wait() != 0
            workers = [
                replace(scene, worker, backend, migrations=number)
                for worker, backend in zip(workers, BACKENDS, strict=True)
            ]
    row = scene.finish()
    assert (0, 0) == (row.doubled, row.interrupted)
