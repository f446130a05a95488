"""Calls of producers and operators, cancelled at each of their awaits in turn: all of it is done, or nothing."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import PsycopgDriver, Queries
from pgq_anyio._db import Connection
from pgq_anyio._store import enqueueing
from pgq_anyio._store._sql import Store
from tests.db.steps import cancel_everywhere
from tests.store.scenes import rows, value

pytestmark = pytest.mark.anyio

QUEUED = "select count(*) from {schema}.queued"
CANCELLED = "select count(*) from {schema}.finished where status = 'cancelled'"


@pytest.mark.promise(2)
@pytest.mark.parametrize("number", [1, 3, 1500], ids=["one", "a statement", "three statements"])
async def test_enqueue(dsn: str, schema: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(enqueueing, "COPY_FROM", 10_000)
    monkeypatch.setattr(enqueueing, "MAX_JOBS", 500)
    store = Store(schema)
    async with PsycopgDriver(dsn, max_size=1) as driver:
        queries = Queries(driver, schema=schema)

        async def check(k: int, cancelled: bool) -> None:
            found = await value(conn, store, QUEUED)
            assert found in ((0, number) if cancelled else (number,)), f"cancelled at await {k}"
            await rows(conn, store, "delete from {schema}.queued")
            with anyio.fail_after(10):  # the only connection of the pool is free, and works
                assert {} == await queries.queue_size()

        assert 1 <= await cancel_everywhere(lambda: queries.enqueue(["fetch"] * number), check)


@pytest.mark.promise(24, 33)
async def test_cancel_and_requeue(dsn: str, schema: str, conn: Connection) -> None:
    store = Store(schema)
    async with PsycopgDriver(dsn, max_size=1) as driver:
        queries = Queries(driver, schema=schema)
        ids = await queries.enqueue(["fetch"] * 3)

        async def check_cancel(k: int, cancelled: bool) -> None:
            found = await value(conn, store, CANCELLED)
            assert found in ((0, 3) if cancelled else (3,)), f"cancelled at await {k}"
            await queries.requeue(ids)

        async def check_requeue(k: int, cancelled: bool) -> None:
            found = await value(conn, store, QUEUED)
            assert found in ((0, 3) if cancelled else (3,)), f"cancelled at await {k}"
            await queries.mark_job_as_cancelled(ids)

        assert 1 <= await cancel_everywhere(lambda: queries.mark_job_as_cancelled(ids), check_cancel)
        await queries.mark_job_as_cancelled(ids)
        assert 1 <= await cancel_everywhere(lambda: queries.requeue(ids), check_requeue)
