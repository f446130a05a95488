"""Promotions: what they move, and when the next one is."""

from __future__ import annotations

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._store.deferred import BATCH_BYTES, START, promote_due
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


@pytest.mark.promise(9)
async def test_what_others_have_locked_is_told(conn: Connection, connect: Connect, store: Store) -> None:
    """Somebody cancels a job that is due, and may roll that back."""
    await defer(conn, store, "-2 s")
    await defer(conn, store, "-1 s")
    other = await connect()
    async with other.transaction():
        await rows(other, store, "select from {schema}.deferred order by run_at limit 1 for update")
        promotion = await promote_due(conn, store, limit=10)
        assert (1, True) == (promotion.moved, promotion.passed_by)
    promotion = await promote_due(conn, store, limit=10)
    assert (1, False) == (promotion.moved, promotion.passed_by)


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


#: Jobs of one priority whose place in the queue is not that of their time.
OUT_OF_ORDER = (
    "select count(*) from (select job_id, lag(job_id) over (partition by priority order by seq) as before "
    "from {schema}.queued) q where before > job_id"
)


@pytest.mark.promise(9)
async def test_one_promotes_at_a_time(conn: Connection, connect: Connect, store: Store) -> None:
    """Places in the queue follow the times: nobody moves later jobs beside one who moves earlier ones."""
    await defer(conn, store, "-1 s", number=300)
    first, second = await connect(), await connect()
    async with first.transaction():
        assert 100 == (await promote_due(first, store, limit=100)).moved
        beside = await promote_due(second, store, limit=100)
        assert (False, 0, []) == (beside.is_ours, beside.moved, beside.entrypoints)
    promotion = await promote_due(second, store, limit=100)
    assert (True, 100, True) == (promotion.is_ours, promotion.moved, promotion.has_more)
    assert not (await promote_due(first, store, limit=100)).has_more
    assert 300 == await value(conn, store, "select count(*) from {schema}.queued")
    assert 0 == await value(conn, store, OUT_OF_ORDER)


@pytest.mark.promise(9)
async def test_a_promotion_moves_the_highest_priority_first(conn: Connection, store: Store) -> None:
    """Of all that are due in its window, and what became due first within a priority. Nothing is passed by: a look
    starts behind a job before which all have been moved.
    """
    for priority in (0, 5, 0, 9):
        await defer(conn, store, "-1 s", number=10, priority=priority)
    behind, moved = START, []
    while True:
        promotion = await promote_due(conn, store, limit=8, window=30, behind=behind)
        behind = promotion.last or behind
        moved.append(await rows(conn, store, "select priority, count(*) from {schema}.queued group by 1 order by 1"))
        if not promotion.has_more:
            break
    # The highest priority lies beyond the window at first; as soon as it is in it, it is the next.
    assert [[(5, 8)], [(5, 8), (9, 8)], [(0, 4), (5, 10), (9, 10)]] == moved[:3]
    assert [(0, 20), (5, 10), (9, 10)] == moved[-1]
    assert 0 == await value(conn, store, OUT_OF_ORDER)
    assert 0 == await value(conn, store, "select count(*) from {schema}.deferred")


@pytest.mark.promise(9)
async def test_a_promotion_is_bounded_in_bytes(conn: Connection, store: Store) -> None:
    """Large payloads are moved a few at a time, and one that is too large alone."""
    query = (
        "insert into {schema}.deferred (run_at, entrypoint, payload) "
        "select clock_timestamp(), 'fetch', convert_to(repeat('x', %s), 'UTF8') from generate_series(1, 5)"
    )
    await rows(conn, store, query, BATCH_BYTES // 2)
    moved = []
    while True:
        promotion = await promote_due(conn, store)
        moved.append(promotion.moved)
        if not promotion.has_more:
            break
    assert [2, 2, 1] == moved
    await rows(conn, store, query, BATCH_BYTES + 1)
    assert 1 == (await promote_due(conn, store)).moved
