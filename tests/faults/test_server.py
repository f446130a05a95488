"""The server is restarted, crashes, or is killed, in the middle of load and of migrations."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgq_anyio._store._sql import Store
from pgq_anyio._store.migrations import check_schema_sync, migrate_sync, migrations, uninstall_sync
from tests.faults.conftest import SceneMaker
from tests.faults.producer import producing
from tests.faults.rows import Row, form
from tests.faults.scene import BACKENDS, SLOTS
from tests.worker.own_server import OwnServer

pytestmark = pytest.mark.heavy

WAYS = {
    "fast": "the server is restarted in fast mode",
    "immediate": "the server crashes (immediate mode)",
    "kill": "the postmaster is killed by SIGKILL",
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)
#: Longer than the server is away, so that nobody's lease is over (in seconds).
LEASE = 10.0
#: The server is away for up to so long (in seconds).
AWAY = 2.0
BOUND = 10.0


def bring_down(server: OwnServer, way: str) -> None:
    """Stop the server in one of the ways."""
    if way == "kill":
        server.kill()
    else:
        server.stop("fast" if way == "fast" else "immediate")


@pytest.mark.promise(15)
@ALL_WAYS
def test_the_server_goes_away_under_load(make_own_scene: SceneMaker, own_server: OwnServer, way: str) -> None:
    """Workers and producers go on by themselves. A restart costs nothing; a crash may undo the claims of the last
    moment, which are no more than there are slots.
    """
    times = form(short=1, long=20)
    scene = make_own_scene(
        3, WAYS[way], bound=BOUND, allowed="" if way == "fast" else "its claim was undone by the crash"
    )
    scene.start_many(3, lease=LEASE)
    with producing(scene, BACKENDS[len(way) % 2]) as producer:
        for _ in range(times):
            scene.wait_ended(scene.ended() + 200)
            if way == "fast":
                scene.hit()
            else:
                scene.hit_server()
            bring_down(own_server, way)
            threading.Event().wait(random.uniform(0, AWAY))  # for how long the server is away
            own_server.start()
            scene.fleet.reconnect()
            scene.recover()
    row = scene.finish()
    assert producer.failed > 0
    assert row.doubled + row.interrupted <= (0 if way == "fast" else times * 3 * SLOTS)


@pytest.mark.promise(45)
@ALL_WAYS
def test_the_server_goes_away_during_migrations(own_server: OwnServer, empty_schema: str, way: str) -> None:
    """Each migration is applied whole or not at all, and the next ``migrate`` does the rest."""
    times = form(short=3, long=30)
    halves = 0
    for _ in range(times):
        migrating = threading.Thread(target=migrate_again_and_again, args=(own_server.dsn, empty_schema))
        migrating.start()
        threading.Event().wait(random.uniform(0.05, 0.3))  # somewhere in the middle of a migration
        bring_down(own_server, way)
        migrating.join(30)
        assert not migrating.is_alive()
        own_server.start()
        with psycopg.connect(own_server.dsn, autocommit=True) as connection:
            there = applied(connection, empty_schema)
            assert list(migrations())[: len(there)] == there
            halves += 0 < len(there) < len(migrations())
            assert list(migrations())[len(there) :] == migrate_sync(connection, empty_schema)
            check_schema_sync(connection, Store(empty_schema))
    Row(
        number=3,
        title=f"{WAYS[way]}, during a migration",
        times=times,
        jobs=0,
        lost=0,
        doubled=0,
        allowed="",
        interrupted=halves,
        recovered=0,
        bound=0,
    ).save()


def migrate_again_and_again(dsn: str, schema: str) -> None:
    """Make and remove the tables until the connection breaks."""
    with pytest.raises(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as connection:  # noqa: PT012
        while True:
            uninstall_sync(connection, schema)
            migrate_sync(connection, schema)


def applied(connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """The migrations that the database has."""
    query = "select to_regclass(quote_ident(%s) || '.migration') is not null"
    if connection.execute(query, (schema,)).fetchall() == [(False,)]:
        return []
    names = sql.SQL("select name from {} order by name").format(sql.Identifier(schema, "migration"))
    return [row[0] for row in connection.execute(names).fetchall()]
