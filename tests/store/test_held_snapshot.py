"""What claims without limits and promotions read while somebody holds an old snapshot."""

from __future__ import annotations

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._hints import Hints
from pgq_anyio._models import Held
from pgq_anyio._store._sql import Store
from pgq_anyio._store.deferred import START, Place, promote_due
from pgq_anyio._store.queued import claim_hinted, claim_sweep
from pgq_anyio._store.running import finish_jobs
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_worker, rows, value
from tests.store.test_strict_order import open_snapshot

pytestmark = pytest.mark.anyio


async def defer(conn: Connection, store: Store, number: int, delay: str) -> None:
    """Defer jobs by an interval, which may be negative: they have become due since."""
    await rows(
        conn,
        store,
        "insert into {schema}.deferred (run_at, entrypoint) "
        "select clock_timestamp() + %s::interval, 'fetch' from generate_series(1, %s)",
        delay,
        number,
    )


async def read_blocks(conn: Connection, store: Store, table: str) -> int:
    """How many blocks of a table and its indexes this connection has read."""
    blocks: int = await value(
        conn,
        store,
        "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c "
        "where c.relnamespace = '{schema}'::regnamespace and starts_with(c.relname, %s)",
        table,
    )
    return blocks


async def blocks_of_a_look(conn: Connection, store: Store, behind: Place = START) -> int:
    """How many blocks one promotion reads; it is undone."""
    async with conn.transaction(force_rollback=True):
        before = await read_blocks(conn, store, "deferred")
        await promote_due(conn, store, limit=10, behind=behind)
        return await read_blocks(conn, store, "deferred") - before


@pytest.mark.promise(47)
async def test_a_held_snapshot_does_not_slow_claims(conn: Connection, connect: Connect, store: Store) -> None:
    """A claim starts behind the last one in each lane, whose entries cannot be removed."""
    claimer = await connect()
    await add_worker(conn, store)
    # Wide ones: few share a page, so that each dead entry that is walked costs a look at another page.
    await rows(
        conn,
        store,
        "insert into {schema}.queued (entrypoint, priority, payload) "
        "select 'fetch', n %% 2, convert_to(repeat('x', 1500), 'utf8') from generate_series(1, %s) n",
        1200,
    )
    hints = Hints(("fetch",))

    async def take(number: int) -> list[Held]:
        fence = {"worker_id": WORKER, "claim_no": number, "limit": 10, "reach": 10}
        lanes = hints.lanes(0.0)
        if lanes is None:
            taken = await claim_sweep(claimer, store, ["fetch"], **fence)
            hints.swept(0.0, 1.0)
        else:
            taken = await claim_hinted(claimer, store, lanes, **fence)
        hints.learn(taken.jobs)
        return [Held(job, WORKER, number) for job, _ in taken.jobs]

    async def cost(number: int) -> int:
        async with claimer.transaction(force_rollback=True):
            before = await read_blocks(claimer, store, "queued")
            assert 10 == len(await take(number))
            return await read_blocks(claimer, store, "queued") - before

    async with open_snapshot(connect, store):
        costs = []
        for number in range(80):
            await finish_jobs(claimer, store, await take(number))
            if number in (2, 79):
                costs.append(await cost(1000 + number))
        assert costs[1] <= costs[0] + 10


@pytest.mark.promise(47)
async def test_a_held_snapshot_does_not_slow_promotion(conn: Connection, connect: Connect, store: Store) -> None:
    """A look starts behind the last job that was moved, whose entries cannot be removed."""
    promoter = await connect()
    async with open_snapshot(connect, store):
        behind = START
        costs = []
        for _ in range(5):
            await defer(conn, store, 1000, "-1 second")
            promotion = await promote_due(promoter, store, limit=1000, behind=behind)
            assert 1000 == promotion.moved
            assert promotion.last is not None
            behind = promotion.last
            costs.append(await blocks_of_a_look(promoter, store, behind))
        assert costs[-1] <= costs[0] + 5
