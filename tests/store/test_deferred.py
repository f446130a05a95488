"""Promotions: what they move, and when the next one is."""

from __future__ import annotations

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._store.deferred import promote_due
from pgq_anyio._store.queued import NewJobs, enqueue_jobs
from tests.store.conftest import Connect
from tests.store.scenes import add_worker, claim, rows, value

pytestmark = pytest.mark.anyio

BLOCKS = (
    "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c "
    "where c.relnamespace = '{schema}'::regnamespace and c.relname ~ '^(queued|deferred|running)'"
)


async def defer(conn: Connection, store: Store, delay: str, *, number: int = 1, priority: int = 0) -> None:
    """Put jobs into the table, due ``delay`` from now."""
    query = (
        "insert into {schema}.deferred (run_at, entrypoint, priority) "
        "select clock_timestamp() + %s::interval, 'fetch', %s from generate_series(1, %s)"
    )
    await rows(conn, store, query, delay, priority, number)


@pytest.mark.promise(9)
async def test_what_becomes_due_during_a_promotion_is_the_next(conn: Connection, store: Store) -> None:
    """It was not moved, and nobody may sleep until somebody else looks."""
    await rows(
        conn,
        store,
        "create function {schema}.slow() returns trigger language plpgsql as "
        "'begin perform pg_sleep(0.2); return new; end'",
    )
    await rows(
        conn,
        store,
        "create trigger slow before insert on {schema}.queued for each row execute function {schema}.slow()",
    )
    await defer(conn, store, "-1 s")
    await defer(conn, store, "100 ms")
    first = await promote_due(conn, store, limit=10)
    assert 1 == first.moved
    assert first.next_due is not None
    assert first.next_due <= 0
    second = await promote_due(conn, store, limit=10)
    assert (1, None) == (second.moved, second.next_due)


@pytest.mark.promise(4, 10)
@pytest.mark.parametrize("beside", ["foreign", "deferred"])
async def test_what_a_promotion_and_a_claim_read(conn: Connection, connect: Connect, store: Store, beside: str) -> None:
    """As many blocks beside 100,000 jobs of a name that nobody serves, or that are deferred and have a higher priority,
    as without them, but for the height of an index: they cost a worker nothing.
    """
    claimer = await connect()
    await add_worker(conn, store)

    async def cost() -> int:
        async with claimer.transaction(force_rollback=True):
            await defer(claimer, store, "-1 s")
            before = await value(claimer, store, BLOCKS)
            assert 1 == (await promote_due(claimer, store, limit=100)).moved
            assert 1 == len(await claim(claimer, store))
            blocks: int = await value(claimer, store, BLOCKS) - before
            return blocks

    await cost()  # plans too
    without = await cost()
    if beside == "foreign":
        query = "insert into {schema}.queued (entrypoint, priority) select 'foreign', 9 from generate_series(1, 100000)"
        await rows(conn, store, query)
    else:
        await defer(conn, store, "1 day", number=100_000, priority=9)
    assert await cost() <= without + 20


@pytest.mark.promise(10)
async def test_what_deferring_a_job_reads(conn: Connection, connect: Connect, store: Store) -> None:
    """Whether somebody has to be woken for it is not looked up among 100,000 that are overdue."""
    producer = await connect()

    async def cost() -> int:
        async with producer.transaction(force_rollback=True):
            before = await value(producer, store, BLOCKS)
            none = [None]
            jobs = NewJobs(["fetch"], none, [0], [3600.0], none)
            await enqueue_jobs(producer, store, jobs, always_notify=False)
            blocks: int = await value(producer, store, BLOCKS) - before
            return blocks

    await cost()
    without = await cost()
    await defer(conn, store, "-1 hour", number=100_000)
    assert await cost() <= without + 20
