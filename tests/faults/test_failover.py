"""The primary dies and its standby takes over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.faults.replicas import Replicas, open_replicas
from tests.faults.rows import form
from tests.faults.scene import Scene, open_scene
from tests.worker.fleet import wait_until
from tests.worker.proxy import open_proxy

pytestmark = pytest.mark.heavy

#: A claim is not waited for; one that the standby has not heard of is made again, before or after its worker notices.
ALLOWED = "claims that the standby has not heard of are made again"
#: How long after its promotion everybody has to be at work (in seconds).
BOUND = 15.0

OpenScene = Callable[..., Scene]


@pytest.fixture
def replicas(server_dsn: str) -> Iterator[Replicas]:
    """A primary; the scenario builds the standby as it needs it."""
    with open_replicas(server_dsn) as replicas:
        yield replicas


@pytest.fixture
def open_the_scene(replicas: Replicas, server_dsn: str, empty_schema: str) -> Iterator[OpenScene]:
    """Makes a scene on the replicas."""
    with ExitStack() as stack:

        def make(title: str, allowed: str = ALLOWED) -> Scene:
            replicas.primary.migrate(empty_schema)
            scene = stack.enter_context(
                open_scene(replicas.dsn, empty_schema, server_dsn, number=6, title=title, bound=BOUND, allowed=allowed)
            )
            stack.callback(scene.fleet.reconnect)
            return scene

        yield make


def fail_over(replicas: Replicas, scene: Scene) -> None:
    """Kill the primary and promote the standby."""
    replicas.kill_primary()
    replicas.promote()
    scene.fleet.reconnect()


@pytest.mark.promise(15)
def test_with_synchronous_replication_nothing_is_lost(replicas: Replicas, open_the_scene: OpenScene) -> None:
    """Workers find the new primary by themselves. What was enqueued, and what had ended, is there: in the middle of the
    load, and for a single job that has just ended.
    """
    times, jobs = form(short=2, long=10), form(short=400, long=1000)
    scene = open_the_scene("failover to a synchronous standby")
    scene.start_many(2)
    for round_no in range(times):
        replicas.build_standby(synchronous=True)
        if round_no % 2 == 0:
            before = scene.ended()
            scene.load(jobs, payload=b"0.02")
            scene.wait_ended(before + jobs // 2)
        else:
            scene.wait_ended(len(scene.ids))
            (last,) = scene.load(1, payload=b"0.1")
            wait_until(partial(scene.fleet.status, last))
        ended = set(scene.fleet.rows("select job_id, status from {schema}.finished"))
        scene.hit_server(loses="outcomes")  # the workers may take longer than a lease to find the new primary
        fail_over(replicas, scene)
        assert not ended - set(scene.fleet.rows("select job_id, status from {schema}.finished"))
        scene.recover()
    row = scene.finish()
    assert (times, 0) == (row.times, row.lost)


@pytest.mark.promise(15)
def test_with_asynchronous_replication_only_what_was_not_sent_is_lost(
    replicas: Replicas, open_the_scene: OpenScene
) -> None:
    """Jobs that the standby has never heard of are gone, as anything that was committed at that time is. All others
    end, also those that had ended without the standby's knowledge: they run again.
    """
    jobs, late = form(short=300, long=3000), 40
    scene = open_the_scene(
        "failover to an asynchronous standby, without what it had not received",
        "what the standby had not heard of is done again",
    )
    replicas.build_standby(synchronous=False)
    scene.start_many(2)
    scene.load(jobs, payload=b"0.02")
    scene.wait_ended(jobs // 4)
    replicas.catch_up()
    ended = set(scene.fleet.rows("select job_id, status from {schema}.finished"))
    replicas.catch_up()
    scene.hit_server(loses="commits")
    replicas.part()
    gone = scene.fleet.enqueue("work", b"0.02", times=late)
    scene.wait_ended(jobs // 2)
    fail_over(replicas, scene)
    query = " union all ".join(
        f"select job_id from {{schema}}.{table} where job_id = any (%s)" for table in ("queued", "running", "finished")
    )
    assert [] == scene.fleet.rows(query, gone, gone, gone)
    assert not ended - set(scene.fleet.rows("select job_id, status from {schema}.finished"))
    scene.recover()
    row = scene.finish()
    assert (1, 0) == (row.times, row.lost)
    assert row.doubled > 0


@pytest.mark.promise(15)
def test_nothing_runs_on_a_standby(replicas: Replicas, open_the_scene: OpenScene) -> None:
    """Peer's bug: a worker goes on against a demoted, read-only database. The address of the primary leads to the
    standby, which is promoted later: until then workers start nothing and do not give up.
    """
    scene = open_the_scene("the address of the primary leads to a standby, which is promoted later")
    replicas.build_standby(synchronous=True)
    with open_proxy(replicas.primary.dsn) as proxy:
        scene.start_many(2, dsn=proxy.dsn)
        scene.load(300, payload=b"0.02")
        scene.wait_ended(100)
        scene.hit_server(loses="outcomes")  # nothing can be stored for longer than a lease
        replicas.kill_primary()
        proxy.target = replicas.standby.dsn
        proxy.cut()
        threading.Event().wait(1)  # what had started may end
        started = len(scene.log.runs())
        read_only_until = time.monotonic() + 4  # longer than a lease
        threading.Event().wait(read_only_until - time.monotonic())
        assert started == len(scene.log.runs())
        assert 2 == len(scene.workers)
        replicas.promote()
        scene.fleet.reconnect()
        scene.recover()
        row = scene.finish()
    assert (1, 0) == (row.times, row.lost)
