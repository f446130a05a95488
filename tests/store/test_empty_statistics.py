"""Plans after a VACUUM that found the busy tables empty: PostgreSQL then takes them for one row, however full they are
a moment later, and keeps a generic plan that was made for that.
"""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._hints import HIGHEST, LOWEST
from pgq_anyio._limits import Limits
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._services.completer import COMPLETION_SETTINGS
from pgq_anyio._store._sql import Store
from pgq_anyio._store.limiter import COUNTING, NOWHERE, TOLERANCE, define_limits
from tests.store.scenes import ADD_RUNNING, PER_CLAIM, WORKER, add_worker, rows, value
from tests.store.test_plans import count_rows, hint, plan_of

pytestmark = [pytest.mark.anyio, pytest.mark.promise(47)]

#: Rows in each table, and in how many of them a statement deals with at once.
ROWS, BATCH = 4000, 1000
NAMES = ["fetch", "parse", "store"]
JOB_IDS = list(range(1, BATCH + 1))
FILL = {
    "queued": "insert into {schema}.queued (job_id, entrypoint, priority)"
    " select n, (array['fetch', 'parse', 'store'])[n %% 3 + 1], n %% 2 from generate_series(1, %s) as n",
    "running": ADD_RUNNING,
    "finished": "insert into {schema}.finished (job_id, entrypoint, status, priority, attempt, crashes, created_at)"
    " select n, 'fetch', 'failed', 0, 1, 0, clock_timestamp() from generate_series(1, %s) as n",
    "deferred": "insert into {schema}.deferred (run_at, job_id, entrypoint)"
    " select clock_timestamp() - interval '1 hour', n, 'fetch' from generate_series(1, %s) as n",
}

ENDED: dict[str, Any] = {
    "job_ids": JOB_IDS,
    "worker_ids": [WORKER] * BATCH,
    "claim_nos": [n // PER_CLAIM for n in JOB_IDS],
}
SETTLED: dict[str, Any] = {
    **ENDED,
    "actions": ["again", "failed", "back", "cancelled"] * (BATCH // 4),
    "delays": [0.0, None, None, None] * (BATCH // 4),
    "next_attempts": [2, None, None, None] * (BATCH // 4),
    "error_types": [None] * BATCH,
    "error_messages": [None] * BATCH,
    "error_tracebacks": [None] * BATCH,
    "reasons": [None] * BATCH,
    "started": [True] * BATCH,
}
CANCELLED: dict[str, Any] = {"job_ids": JOB_IDS, "reason": None}
CLAIM: dict[str, Any] = {
    "worker_id": WORKER,
    "claim_no": 99,
    "limit": BATCH // 2,
    "reach": BATCH // 2,
    "limit_changes": 0,
}
LIMITED_CLAIM: dict[str, Any] = {
    **CLAIM,
    "reach": 1,
    "entrypoints": NAMES,
    "limited": [True, False, True],
    "in_process": [False, True, True],
    "processes": BATCH,
    "lane_entrypoints": [],
    "priorities": [],
    "seqs": [],
    **{f"open_{column}": [] for column in attrs.asdict(NOWHERE.lanes)},
    "gap_entrypoints": NAMES,
    "gap_aboves": [LOWEST] * len(NAMES),
    "gap_belows": [HIGHEST] * len(NAMES),
    "tolerance": TOLERANCE,
    "counting": COUNTING,
}
#: By the name of the statement and what it finds: the table that is full, the settings of the connection, parameters.
CASES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "finish_jobs": ("running", COMPLETION_SETTINGS, ENDED),
    "settle_jobs": ("running", COMPLETION_SETTINGS, SETTLED),
    "give_back_claims": ("running", {}, {"worker_id": WORKER, "job_ids": [None] * 2, "claim_nos": [0, 1]}),
    "leave": ("running", {}, {"worker_id": WORKER}),
    "rescue_jobs": ("running", DISPATCH_SETTINGS, {"worker_ids": [WORKER], "beats": [0], "max_crashes": 5}),
    "cancel_jobs of running": ("running", {}, {**CANCELLED, "states": ["running"]}),
    "cancel_jobs of queued": ("queued", {}, {**CANCELLED, "states": ["queued"]}),
    "cancel_jobs of deferred": ("deferred", {}, {**CANCELLED, "states": ["deferred"]}),
    "claim_sweep": ("queued", DISPATCH_SETTINGS, {**CLAIM, "entrypoints": NAMES}),
    "claim_hinted": ("queued", DISPATCH_SETTINGS, CLAIM),
    "claim_limited": ("queued", DISPATCH_SETTINGS, LIMITED_CLAIM),
    "requeue_jobs": ("finished", {}, {"job_ids": JOB_IDS, "finished_before": None}),
    "promote_due": (
        "deferred",
        DISPATCH_SETTINGS,
        {"limit": BATCH, "window": BATCH, "bytes": 10**9, "moved_run_at": "-infinity", "moved_job_id": 0},
    ),
}


async def empty(conn: Connection, store: Store, table: str) -> None:
    """Leave the table with pages and without rows, and let PostgreSQL notice."""
    await rows(conn, store, FILL[table], ROWS)
    await rows(conn, store, f"delete from {{schema}}.{table}")
    # A partitioned table has no pages, its partitions have.
    parts = f"select relid from pg_partition_tree('{{schema}}.{table}') union select '{{schema}}.{table}'::regclass"
    known = f"select reltuples from pg_class where oid in ({parts}) and relpages > 0"
    with anyio.fail_after(60):  # another test's transaction may keep the rows for a while
        while await rows(conn, store, known) != [(0.0,)]:
            await rows(conn, store, f"vacuum (truncate off) {{schema}}.{table}")
            await anyio.sleep(0.05)


@pytest.mark.parametrize("case", CASES)
async def test_no_statement_compares_each_with_each(conn: Connection, server_dsn: str, store: Store, case: str) -> None:
    """What is handled grows with the rows, not with their number times that of the jobs it is about."""
    table, settings, parameters = CASES[case]
    await empty(conn, store, table)
    other = await Connection.connect(server_dsn, settings={"search_path": "pg_catalog, pg_temp", **settings})
    try:
        await add_worker(conn, store, names=NAMES)
        await rows(conn, store, FILL[table], ROWS)
        if case == "claim_limited":
            limits = dict.fromkeys(NAMES, Limits(concurrency_limit=ROWS))
            await define_limits(conn, store, worker_id=WORKER, name="worker", entrypoints=NAMES, limits=limits)
            await rows(other, store, "select set_config('pgq_anyio.locked', '{{t,t,t}}', false)")
        if case == "claim_hinted":
            parameters = {**parameters, **await hint(conn, store, NAMES)}
            assert 50 == await value(conn, store, "select count(*) from {schema}.running")
        plan = await plan_of(other, store, case.split(maxsplit=1)[0], parameters)
    finally:
        other.abort()
    assert BATCH // 2 <= count_rows(plan) < 20 * ROWS
