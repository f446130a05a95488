"""What a promotion reads while somebody holds an old snapshot."""

from __future__ import annotations

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._store.deferred import START, Place, promote_due
from tests.store.conftest import Connect
from tests.store.scenes import rows, value
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


async def blocks_of_a_look(conn: Connection, store: Store, behind: Place = START) -> int:
    """How many blocks of the table and its indexes one promotion reads; it is undone."""

    async def read_blocks() -> int:
        blocks: int = await value(
            conn,
            store,
            "select sum(pg_stat_get_xact_blocks_fetched(c.oid)) from pg_class c "
            "where c.relnamespace = '{schema}'::regnamespace and c.relname ~ '^deferred'",
        )
        return blocks

    async with conn.transaction(force_rollback=True):
        before = await read_blocks()
        await promote_due(conn, store, limit=10, behind=behind)
        return await read_blocks() - before


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
