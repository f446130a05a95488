"""Two schemas of one database: no lock of one is met in the other, and what takes over or removes stays at home."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from pgq_anyio._db import Connection
from pgq_anyio._limits import Limits
from pgq_anyio._retention import Retention
from pgq_anyio._store._sql import Store
from pgq_anyio._store.deferred import promote_due
from pgq_anyio._store.finished import prune_finished
from pgq_anyio._store.limiter import Scan, claim_limited, define_limits
from pgq_anyio._store.migrations import _LOCK, migrate
from pgq_anyio._store.worker import rescue_jobs
from pgq_anyio.testing import temporary_schema
from tests.store.conftest import Connect
from tests.store.scenes import WORKER, add_jobs, add_worker, claim, rows, value
from tests.store.test_finished import record

pytestmark = [pytest.mark.anyio, pytest.mark.promise(45)]

Deed = Callable[[Connection, Store], Awaitable[object]]


@pytest.fixture
def other(dsn: str) -> Iterator[Store]:
    """The second one; the first one is ``store``."""
    with temporary_schema(dsn) as name:
        yield Store(name)


async def define(conn: Connection, store: Store) -> object:
    """Register a worker that limits a name."""
    await add_worker(conn, store)
    limits = {"fetch": Limits(1)}
    _, replaced = await define_limits(conn, store, worker_id=WORKER, name="test", entrypoints=["fetch"], limits=limits)
    return replaced


async def claim_the_limited(conn: Connection, store: Store) -> object:
    """Take a job of a name of which one may run; its lock is passed by if another has it."""
    scan = Scan.over({"fetch": None})
    answer = await claim_limited(conn, store, scan, worker_id=WORKER, claim_no=1, limit=10, reach=1)
    return len(answer.jobs), answer.names[0].locked


async def promote(conn: Connection, store: Store) -> object:
    """Move what is due, unless another is at it."""
    return (await promote_due(conn, store)).moved


async def make_day(conn: Connection, store: Store) -> object:
    """Make a partition; whoever waits for another longer than for any lock gets an error."""
    day = datetime.now(UTC).date() + timedelta(days=20)
    return await value(conn, store, "select {schema}.make_finished_day(%s)", day)


async def lock_migrations(conn: Connection, store: Store) -> object:
    """Keep everybody else from migrating."""
    return (await (await conn.execute(store.bind(_LOCK))).fetchall())[0]


@pytest.mark.parametrize(
    ("deed", "expected"),
    [(define, []), (claim_the_limited, (1, True)), (promote, 1), (make_day, True), (lock_migrations, ("",))],
    ids=lambda part: part.__name__ if callable(part) else "",
)
async def test_no_lock_of_one_is_met_in_the_other(
    conn: Connection, connect: Connect, store: Store, other: Store, deed: Deed, expected: object
) -> None:
    """What is done in an open transaction in one is done at once in the other."""
    holder = await connect()
    for each in (store, other):
        if deed is claim_the_limited:
            await define(conn, each)
        await add_jobs(conn, each)
        await rows(
            conn,
            each,
            "insert into {schema}.deferred (entrypoint, run_at) values ('fetch', clock_timestamp() - interval '1 s')",
        )
    async with holder.transaction():
        assert expected == await deed(holder, store)
        with anyio.fail_after(10):
            assert expected == await deed(conn, other)
            assert [] == await migrate(conn, other.schema)


async def test_the_dead_and_the_old_of_one_leave_the_other_alone(conn: Connection, store: Store, other: Store) -> None:
    """The same worker, job and record in both: taken over and removed in one, they are untouched in the other."""
    for each in (store, other):
        await add_worker(conn, each)
        await add_jobs(conn, each)
        assert 1 == len(await claim(conn, each))
        await record(conn, each, days_ago=3)
    assert [WORKER] == (await rescue_jobs(conn, store, [(WORKER, 0)], max_crashes=5))[0]
    assert await prune_finished(conn, store, retention=Retention.of(1.0)) > 0
    looks = [
        "select crashes from {schema}.queued",
        "select worker_id from {schema}.running",
        "select worker_id from {schema}.worker",
        "select count(*) from {schema}.finished",
    ]
    assert [[(1,)], [], [], [(0,)]] == [await rows(conn, store, look) for look in looks]
    assert [[], [(WORKER,)], [(WORKER,)], [(1,)]] == [await rows(conn, other, look) for look in looks]
