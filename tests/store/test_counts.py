"""Counting what waits: exact up to a limit, and never the price of the whole queue."""

from __future__ import annotations

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from pgq_anyio._store._steps import run_steps
from pgq_anyio._store.reading import queue_size
from tests.store.scenes import add_jobs, rows
from tests.store.test_plans import plan_of

pytestmark = pytest.mark.anyio


async def test_counts_are_exact_up_to_the_limit(conn: Connection, store: Store) -> None:
    """For each name by itself, in the order of names, whatever the priorities are."""
    assert {} == await run_steps(conn, queue_size(store, limit=3))
    for name, number in (("b", 2), ("a", 3), ("A long, naïve name", 5), ("c", 1)):
        await add_jobs(conn, store, number, name=name, priorities=[n % 3 - 1 for n in range(number)])
    everything = {"A long, naïve name": 5, "a": 3, "b": 2, "c": 1}
    assert everything == await run_steps(conn, queue_size(store, limit=None))
    assert everything == await run_steps(conn, queue_size(store, limit=5))
    assert {name: min(number, 3) for name, number in everything.items()} == await run_steps(
        conn, queue_size(store, limit=3)
    )
    assert sorted(everything.items()) == sorted(await rows(conn, store, "select * from {schema}.queue_size()"))
    assert [(1,)] == await rows(conn, store, "select distinct jobs from {schema}.queue_size(1)")


@pytest.mark.promise(47)
@pytest.mark.parametrize("statistics", ["of the empty table", "up to date"])
async def test_what_a_count_reads_does_not_grow_with_the_queue(conn: Connection, store: Store, statistics: str) -> None:
    """With thirty times as many jobs a count reads hardly more, of rare names among many jobs of others too. With a
    million: ``test_million``.
    """
    await rows(conn, store, "analyze {schema}.queued")
    read = []
    for number in (2_000, 58_000):
        await rows(
            conn,
            store,
            "insert into {schema}.queued (entrypoint, priority) "
            "select case when n %% 500 = 0 then 'rare ' || n %% 3 else 'common' end, n %% 4 "
            "from generate_series(1, %s) n",
            number,
        )
        if statistics == "up to date":
            await rows(conn, store, "vacuum analyze {schema}.queued")
        plan = await plan_of(conn, store, "queue_size", {"limit": 1000})
        assert 4 == plan["Actual Rows"]
        read.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    assert read[1] < 2 * read[0] + 200, read
