"""A transaction that is left open for as long as the scenario lasts, and an autovacuum that never rests, under load."""

from __future__ import annotations

import statistics
import time

import psycopg
import pytest

from tests.faults.rows import LONG, form
from tests.faults.scene import open_scene
from tests.worker.own_server import open_own_server

pytestmark = pytest.mark.heavy

#: Autovacuum looks at every table once a second, at full speed, whatever little has changed.
STORM = {
    "autovacuum": "on",
    "autovacuum_naptime": "1s",
    "autovacuum_max_workers": "5",
    "autovacuum_vacuum_threshold": "1",
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_insert_threshold": "1",
    "autovacuum_vacuum_insert_scale_factor": "0",
    "autovacuum_analyze_threshold": "1",
    "autovacuum_analyze_scale_factor": "0",
    "autovacuum_vacuum_cost_delay": "0",
    "log_statement": "none",
}
#: How many times longer a round may take in the end than in the beginning. Held in the long form alone: the short one
#: shares the machine with other tests, and two thousand dead rows cost nothing that could be told from their load.
SLOWER = 2.5


def test_a_snapshot_is_held_and_autovacuum_storms(server_dsn: str, empty_schema: str) -> None:
    """No dead row can be removed meanwhile, and statistics change all the time: rounds of jobs go on taking the same
    time, and nobody loses a lease.
    """
    duration, jobs = form(short=8, long=600), form(short=200, long=2000)
    with open_own_server(server_dsn, **STORM) as server:
        server.start()
        server.migrate(empty_schema)
        with (
            open_scene(
                server.dsn,
                empty_schema,
                server_dsn,
                number=12,
                title="a snapshot is held while autovacuum storms",
                bound=10,
            ) as scene,
            psycopg.connect(server.dsn) as holder,
        ):
            scene.start_many(2, lease=10)
            registered = scene.fleet.rows("select worker_id from {schema}.worker order by 1")
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select count(*) from pg_class")
            rounds: list[float] = []
            until = time.monotonic() + duration
            while time.monotonic() < until or len(rounds) < 9:
                began_at = time.monotonic()
                scene.load(jobs, payload=b"0.01")
                scene.wait_ended(len(scene.ids))
                rounds.append(time.monotonic() - began_at)
                scene.hit()
            third = len(rounds) // 3
            if LONG:
                assert statistics.median(rounds[-third:]) < SLOWER * statistics.median(rounds[:third])
            assert registered == scene.fleet.rows("select worker_id from {schema}.worker order by 1")
            held = (
                "select count(*) from pg_stat_activity where backend_xmin is not null and state = 'idle in transaction'"
            )
            assert 1 == scene.fleet.value(held)
            vacuumed = "select sum(autovacuum_count) from pg_stat_user_tables where schemaname = %s"
            assert scene.fleet.value(vacuumed, empty_schema) > 0
            scene.recover()
            row = scene.finish()
    assert (len(rounds), 0, 0) == (row.times, row.lost, row.doubled)
