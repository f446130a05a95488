"""A server that has run out of something: disk, connections, the right to write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from tests.faults.conftest import SceneMaker
from tests.faults.rows import TOO_LATE, form
from tests.faults.scene import LEASE, Scene, open_scene
from tests.faults.small_disk import open_server_on_a_small_disk
from tests.worker.fleet import wait_until
from tests.worker.own_server import open_own_server

pytestmark = pytest.mark.heavy

#: How long a shortage lasts (in seconds): longer than a lease.
DURATION = LEASE + 1
BOUND = 15.0


def test_the_disk_is_full(server_dsn: str, empty_schema: str) -> None:
    """Until nothing can be written, at which the server itself may give up. Workers wait until there is room again."""
    times, jobs = form(short=1, long=10), form(short=400, long=2000)
    with open_server_on_a_small_disk(server_dsn) as (server, disk):
        server.migrate(empty_schema)
        with open_scene(
            server.dsn,
            empty_schema,
            server_dsn,
            number=8,
            title="the disk of the server is full",
            bound=BOUND,
            allowed="the server crashed and forgot claims",
        ) as scene:
            scene.start_many(2)
            for _ in range(times):
                before = scene.ended()
                scene.load(jobs, payload=b"0.01")
                scene.wait_ended(before + jobs // 4)
                since = server.log.stat().st_size
                scene.hit_server(loses="outcomes")  # they are not stored for longer than a lease
                disk.fill()
                try:
                    wait_until(partial(server.says, "No space left on device", since))
                    threading.Event().wait(DURATION)
                    assert scene.workers == scene.fleet.workers
                finally:
                    disk.free()
                    server.start()  # what an administrator does if it has given up
                scene.fleet.reconnect()
                scene.recover()
                scene.wait_ended(len(scene.ids))
            row = scene.finish()
    assert (times, 0) == (row.times, row.lost)


def _connect(dsn: str) -> psycopg.Connection[tuple[object, ...]] | None:
    """A connection, unless there is none left."""
    try:
        return psycopg.connect(dsn, application_name="hog")
    except psycopg.OperationalError as error:
        if "too many clients" in str(error):
            return None
        raise


@contextmanager
def hogging(scene: Scene, limit: int) -> Iterator[None]:
    """Workers lose their connections, and all that the server has are taken."""
    taken: list[psycopg.Connection[tuple[object, ...]]] = []
    query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'pgq_anyio%%'"

    def take() -> bool:
        scene.fleet.value(query)
        while (one := _connect(scene.fleet.dsn)) is not None:
            taken.append(one)
        return len(taken) >= limit - 1  # and one that looks

    try:
        wait_until(take, what="all connections are taken")
        yield
    finally:
        for one in taken:
            one.close()


def test_the_server_has_no_connection_left(server_dsn: str, empty_schema: str) -> None:
    """Others have taken all, and those that workers had were ended. They get in again as soon as that is possible."""
    times, jobs, limit = form(short=1, long=20), form(short=400, long=4000), 30
    options = {"max_connections": str(limit), "superuser_reserved_connections": "0", "log_statement": "none"}
    with open_own_server(server_dsn, **options) as server:
        server.start()
        server.migrate(empty_schema)
        with open_scene(
            server.dsn,
            empty_schema,
            server_dsn,
            number=8,
            title="the server has no connection left",
            bound=BOUND,
            allowed=TOO_LATE,
        ) as scene:
            scene.start_many(2)
            scene.load(jobs, payload=b"0.05")
            for done in range(times):
                scene.wait_ended(jobs * (done + 1) // (times + 2))
                scene.hit(*scene.workers)
                with hogging(scene, limit):
                    threading.Event().wait(DURATION)
                    assert scene.workers == scene.fleet.workers
                scene.recover()
            row = scene.finish()
    assert (times, 0) == (row.times, row.lost)


@pytest.mark.promise(15)
def test_the_server_becomes_read_only(make_own_scene: SceneMaker) -> None:
    """Peer's bug: a worker goes on against a demoted, read-only database. All connections stay open here."""
    times, jobs = form(short=1, long=20), form(short=400, long=4000)
    scene = make_own_scene(8, "the server becomes read-only", bound=BOUND, allowed=TOO_LATE)
    scene.start_many(2)
    scene.load(jobs, payload=b"0.05")
    scene.fleet.rows("set default_transaction_read_only = off")
    for done in range(times):
        scene.wait_ended(jobs * (done + 1) // (times + 2))
        scene.hit(*scene.workers)
        try:
            scene.fleet.rows("alter system set default_transaction_read_only = on")
            scene.fleet.rows("select pg_reload_conf()")
            threading.Event().wait(1)  # what had started may end
            started = len(scene.log.runs())
            threading.Event().wait(DURATION)
            assert started == len(scene.log.runs())
            assert scene.workers == scene.fleet.workers
        finally:
            scene.fleet.rows("alter system reset default_transaction_read_only")
            scene.fleet.rows("select pg_reload_conf()")
        scene.recover()
    row = scene.finish()
    assert (times, 0) == (row.times, row.lost)
