"""What jobs leave behind in the tables while somebody holds an old snapshot, so that nothing can be vacuumed.

Each change of a row leaves one dead row then. Those of the tables of jobs are in proportion to the jobs, whatever one
does. The control tables must not be: they are changed by claims, heartbeats and occurrences, however many jobs there
are.
"""

from __future__ import annotations

from typing import Final

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, Schedule
from pgq_anyio import _holdings as holdings
from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from tests.store.conftest import Connect, connect, store
from tests.store.scenes import add_jobs, rows, value
from tests.store.test_strict_order import open_snapshot

__all__ = ["connect", "store"]

pytestmark = [pytest.mark.anyio, pytest.mark.promise(47), pytest.mark.heavy]

JOBS: Final = 1000
NAMES: Final = ("fetch", "narrow", "rated")
OF_JOBS: Final = ("queued", "deferred", "running")
#: What a run costs for itself: a registration, some heartbeats, and marks that say whether the worker sleeps.
A_RUN: Final = 20

SESSIONS: Final = "select exists (select from pg_stat_activity where application_name ~ '^pgq_anyio ')"


async def dead_rows(conn: Connection, store: Store) -> dict[str, int]:
    """By table, how many rows were ever updated or deleted. All sessions of workers have ended."""
    with anyio.fail_after(20):
        while await value(conn, store, SESSIONS):  # noqa: ASYNC110  (a fact of the server)
            await anyio.sleep(0.01)
    await rows(conn, store, "select pg_stat_clear_snapshot()")
    found = await rows(
        conn,
        store,
        "select relname, n_tup_upd + n_tup_del from pg_stat_all_tables"
        " where schemaname = %s and relname !~ '^finished'",
        store.schema,
    )
    return dict(found)


async def sizes(conn: Connection, store: Store) -> dict[str, int]:
    """The size of each table that rows are taken from (in pages)."""
    query = (
        "select relname, pg_relation_size(oid) / 8192 from pg_class"
        " where relnamespace = '{schema}'::regnamespace and relkind = 'r' and relname !~ '^(finished|attempt)'"
    )
    return dict(await rows(conn, store, query))


async def test_control_tables_do_not_grow_with_the_jobs(
    dsn: str, store: Store, conn: Connection, connect: Connect
) -> None:
    """With names without and with limits, rates, and a schedule of every second in use: twice as many jobs leave no
    more dead rows in a control table, but for those that stand for claims and occurrences. When the snapshot has ended
    a vacuum makes room for as much again.
    """
    app = PgQueuer(dsn, schema=store.schema)
    occurrences = 0

    @app.entrypoint("rated", requests_per_second=1_000_000)
    @app.entrypoint("narrow", concurrency_limit=50)
    @app.entrypoint("fetch")
    async def handle(job: Job) -> None: ...

    @app.schedule("tick", "* * * * * *")
    async def tick(schedule: Schedule) -> None:
        nonlocal occurrences
        occurrences += 1

    async def run(number: int) -> tuple[dict[str, int], int]:
        """Run so many jobs of each name; dead rows by table, and the number of claims."""
        nonlocal occurrences
        occurrences = 0
        before, claims = await dead_rows(conn, store), next(holdings._claim_numbers)
        for name in NAMES:
            await add_jobs(conn, store, number, name=name)
        with anyio.fail_after(50):
            await app.run(mode="drain", lease=30)
        after = await dead_rows(conn, store)
        return {table: after[table] - before.get(table, 0) for table in after}, next(holdings._claim_numbers) - claims

    async with open_snapshot(connect, store):
        for number in (JOBS, 2 * JOBS):
            dead, claims = await run(number)
            jobs = number * len(NAMES)
            assert {"queued": jobs, "running": jobs, "deferred": 0} == {table: dead.pop(table) for table in OF_JOBS}
            assert dead.pop("limiter_state") <= 2 * claims
            assert dead.pop("schedule") <= 2 * occurrences + A_RUN
            assert max(dead.values()) <= A_RUN, dead
    for table in await sizes(conn, store):
        await conn.execute(f'vacuum (truncate off) "{store.schema}"."{table}"')
    at_first = await sizes(conn, store)
    await run(2 * JOBS)
    assert at_first == {table: max(at_first[table], size) for table, size in (await sizes(conn, store)).items()}
