"""What jobs leave behind in the tables and indexes, also while somebody holds an old snapshot, so that nothing can be
vacuumed.

Each change of a row leaves one dead row then. Those of the tables of jobs are in proportion to the jobs, whatever one
does. The control tables must not be: they are changed by claims, heartbeats and occurrences, however many jobs there
are. Records (of finished jobs, of the errors of their attempts, and of who cancelled them) are only added, and grow
until retention removes them: their size is bounded only with that.
"""

from __future__ import annotations

from typing import Final

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, RetryPolicy, Schedule
from pgq_anyio import _holdings as holdings
from pgq_anyio._db import Connection
from pgq_anyio._retention import Retention
from pgq_anyio._store._sql import Store
from pgq_anyio._store.finished import prune_finished, prune_leftovers, sweep_finished
from tests.store.conftest import Connect, connect, store
from tests.store.scenes import add_jobs, cancel, rows, value
from tests.store.test_strict_order import open_snapshot

__all__ = ["connect", "store"]

pytestmark = [pytest.mark.anyio, pytest.mark.promise(47), pytest.mark.heavy]

JOBS: Final = 1000
NAMES: Final = ("fetch", "narrow", "rated", "again")
RECORDS: Final = ("finished", "attempt_error", "cancel_request")
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
        conn, store, "select relname, n_tup_upd + n_tup_del from pg_stat_all_tables where schemaname = %s", store.schema
    )
    return dict(found)


async def sizes(conn: Connection, store: Store) -> dict[str, int]:
    """The size of each table and each index (in pages)."""
    query = (
        "select relname, pg_relation_size(oid) / current_setting('block_size')::bigint from pg_class"
        " where relnamespace = '{schema}'::regnamespace and relkind in ('r', 'i')"
    )
    return dict(await rows(conn, store, query))


async def leave_vacuums_to_us(conn: Connection, store: Store) -> None:
    """An autovacuum between two of ours would free pages earlier in one cycle than in the other."""
    tables = "select relname from pg_class where relnamespace = '{schema}'::regnamespace and relkind = 'r'"
    for (table,) in await rows(conn, store, tables):
        await rows(conn, store, f"alter table {{schema}}.{table} set (autovacuum_enabled = off)")


async def make_room(conn: Connection, store: Store) -> None:
    """Remove all records, as retention does, and vacuum."""
    await prune_finished(conn, store, retention=Retention.of(0))
    await sweep_finished(conn, store, retention=Retention.of(0), swept=set())
    await prune_leftovers(conn, store, retention=Retention.of(0))
    tables = "select oid, relname from pg_class where relnamespace = '{schema}'::regnamespace and relkind = 'r'"
    with anyio.fail_after(60):  # another test's transaction may keep the rows for a while
        for oid, table in await rows(conn, store, tables):
            await rows(conn, store, f"vacuum (truncate off) {{schema}}.{table}")
            while await value(conn, store, "select pg_stat_get_dead_tuples(%s)", oid):
                await anyio.sleep(0.05)
                await rows(conn, store, f"vacuum (truncate off) {{schema}}.{table}")


async def test_control_tables_do_not_grow_with_the_jobs(
    dsn: str, store: Store, conn: Connection, connect: Connect
) -> None:
    """With names without and with limits, rates, retries, cancels, and a schedule of every second in use: twice as many
    jobs leave no more dead rows in a control table, but for those that stand for claims and occurrences, and none in
    the records. When the snapshot has ended, retention and vacuums make room for as much again, in every table and
    index.
    """
    app = PgQueuer(dsn, schema=store.schema)
    occurrences = 0

    @app.entrypoint("rated", requests_per_second=1_000_000)
    @app.entrypoint("narrow", concurrency_limit=50)
    @app.entrypoint("fetch")
    async def handle(job: Job) -> None: ...

    @app.entrypoint("again", max_attempts=2, retry_policy=RetryPolicy(initial_delay=0.1))
    async def again(job: Job) -> None:
        if job.attempt == 1:
            raise ValueError("once more")

    @app.schedule("tick", "* * * * * *")
    async def tick(schedule: Schedule) -> None:
        nonlocal occurrences
        occurrences += 1

    async def run(number: int) -> tuple[dict[str, int], int]:
        """Run so many jobs of each name, and cancel as many; dead rows by table, and the number of claims."""
        nonlocal occurrences
        occurrences = 0
        before, claims = await dead_rows(conn, store), next(holdings._claim_numbers)
        producer = await connect({"application_name": "pgq_anyio producer"})  # what it has done is counted as it goes
        for name in NAMES:
            await add_jobs(producer, store, number, name=name)
        cancelled = await add_jobs(producer, store, number)
        assert cancelled == await cancel(producer, store, cancelled)
        producer.abort()
        with anyio.fail_after(50):
            await app.run(mode="drain", lease=30)
        after = await dead_rows(conn, store)
        return {table: after[table] - before.get(table, 0) for table in after}, next(holdings._claim_numbers) - claims

    await leave_vacuums_to_us(conn, store)
    async with open_snapshot(connect, store):
        for number in (JOBS, 2 * JOBS):
            dead, claims = await run(number)
            claimed = (len(NAMES) + 1) * number
            of_jobs = {"queued": claimed + number, "running": claimed, "deferred": number}
            assert of_jobs == {table: dead.pop(table) for table in of_jobs}
            assert dead.pop("limiter_state") <= 2 * claims
            assert dead.pop("schedule") <= 2 * occurrences + A_RUN
            # An occurrence is a second: in each the worker may fall asleep and wake.
            assert dead.pop("worker") <= 2 * occurrences + A_RUN
            assert {0} == {dead.pop(table) for table in list(dead) if table.startswith(RECORDS)}
            assert max(dead.values()) <= A_RUN, dead
    seen = []
    for _ in range(2):  # the pages that a vacuum has emptied are free in an index with the next one
        await make_room(conn, store)
        await run(2 * JOBS)
        seen.append(await sizes(conn, store))
    before, after = seen
    assert before == {name: max(before[name], size) for name, size in after.items()}
