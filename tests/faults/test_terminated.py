"""Single connections are ended by the server: of each kind that a worker has, and those of producers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import psycopg
import pytest
from psycopg import sql

from tests.faults.conftest import SceneMaker
from tests.faults.producer import producing
from tests.faults.rows import form
from tests.faults.scene import Scene
from tests.worker.fleet import wait_until

pytestmark = pytest.mark.heavy

#: The connection that a worker has only while it looks after the records.
MAINTENANCE = "pgq_anyio maintenance"
#: A worker's connections by their application name, and the pool of producers.
ROLES = (
    MAINTENANCE,
    "pgq_anyio listen",
    "pgq_anyio dispatch",
    "pgq_anyio dispatch limited",
    "pgq_anyio completion",
    "pgq_anyio heartbeat",
    "pgq_anyio schedule",
    "pgq_anyio",
)
#: The shortest in which a heartbeat's second attempt is in time even on a busy machine (in seconds).
LEASE = 5.0


def terminate(scene: Scene, role: str) -> int:
    """End all connections of a role; how many."""
    query = "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s"
    number: int = scene.fleet.value(query, role)
    return number


@contextmanager
def maintained(scene: Scene) -> Iterator[None]:
    """Let a worker look after the records, as each one does when it starts, and wait there for as long as the block
    lasts: a table that nothing else needs is locked. After the block it goes to work, and stops then.
    """
    table = sql.Identifier(scene.fleet.schema, "cancel_request")
    with psycopg.connect(scene.fleet.dsn) as holder:
        holder.execute(sql.SQL("lock table {} in share mode").format(table))
        worker = scene.start("trio", ready=False, lease=LEASE)
        yield
        holder.rollback()
    scene.wait_registered(worker)
    scene.wait_busy(worker)
    worker.signal(signal.SIGTERM)
    assert 0 == worker.wait(40)


@pytest.mark.promise(13, 15, 18)
def test_connections_are_terminated_by_role(make_own_scene: SceneMaker) -> None:
    """Nobody loses a lease and no run is repeated: what was under way is sent again, or given back unstarted."""
    rounds = form(short=1, long=30)
    scene = make_own_scene(4, "the connections of one role are terminated", bound=LEASE)
    scene.start_many(2, lease=LEASE, ticks=True)
    registered = scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
    with producing(scene, "trio"):
        for done in range(rounds):
            for role in ROLES:
                scene.wait_ended(scene.ended() + 30)
                with maintained(scene) if role == MAINTENANCE else nullcontext():
                    wait_until(partial(terminate, scene, role), what=f"connections of {role!r}")
                    scene.hit()
            if done % 5 == 0 or done == rounds - 1:
                scene.recover()
    assert registered == scene.fleet.rows("select worker_id from {schema}.worker order by worker_id")
    row = scene.finish()
    assert len(scene.log.ticks()) == len(set(scene.log.ticks()))
    assert (0, 0) == (row.doubled, row.interrupted)
