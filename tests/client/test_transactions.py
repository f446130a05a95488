"""Calls inside the caller's own transaction, on whatever connection it has."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row

from pgq_anyio import ConfigurationError, JobStatus, PsycopgDriver
from pgq_anyio._client import Queries, SyncQueries, _queries
from pgq_anyio._db import Connection
from tests.client.conftest import Look

pytestmark = pytest.mark.anyio

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dicts": {"row_factory": dict_row},
    "namedtuples": {"row_factory": namedtuple_row},
    "scalars": {"row_factory": scalar_row},
    "objects": {"row_factory": class_row(dict)},
    "never prepared": {"prepare_threshold": None},
}
ASYNC_CURSORS = [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor]
SYNC_CURSORS = [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor]


@pytest.fixture(params=["ours", *KINDS])
async def caller(request: pytest.FixtureRequest, anyio_backend: str, dsn: str) -> AsyncIterator[Any]:
    """A caller's asynchronous connection, not in autocommit mode; psycopg's own ones know asyncio only."""
    if request.param == "ours":
        connection: psycopg.AsyncConnection[Any] = await Connection.connect(dsn, autocommit=False)
    elif anyio_backend != "asyncio":
        pytest.skip("psycopg's own connections run on asyncio")
    else:
        connection = await psycopg.AsyncConnection.connect(dsn, **KINDS[request.param])
    yield connection
    await connection.close()


@pytest.fixture(params=list(KINDS))
def sync_caller(request: pytest.FixtureRequest, dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A caller's blocking connection, not in autocommit mode."""
    with contextlib.closing(psycopg.connect(dsn, **KINDS[request.param])) as connection:
        yield connection


def count(look: Look) -> int:
    ((found,),) = look("select (select count(*) from {schema}.queued) + (select count(*) from {schema}.deferred)")
    return int(found)


@pytest.mark.promise(3)
@pytest.mark.parametrize("number", [1, 1500])
async def test_jobs_belong_to_the_callers_transaction(queries: Queries, caller: Any, look: Look, number: int) -> None:
    """Invisible until the commit, gone after a rollback; by arrays and by COPY."""
    await caller.execute("select 1")
    job_ids = await queries.enqueue(["fetch"] * number, b"x", connection=caller)
    assert number == len(job_ids)
    assert 0 == count(look)
    await caller.rollback()
    assert 0 == count(look)
    job_ids = await queries.enqueue(["fetch"] * number, b"x", connection=caller)
    assert 0 == count(look)
    await caller.commit()
    assert [(n,) for n in job_ids] == look("select job_id from {schema}.queued order by seq")


@pytest.mark.promise(3)
@pytest.mark.parametrize("number", [1, 1500])
def test_jobs_belong_to_the_callers_blocking_transaction(
    dsn: str, schema: str, sync_caller: psycopg.Connection[Any], look: Look, number: int
) -> None:
    """The same without an event loop: by ``connection=``, and for a ``SyncQueries`` on the caller's connection."""
    for queries, given in (
        (SyncQueries(sync_caller, schema=schema), None),
        (SyncQueries(dsn, schema=schema), sync_caller),
    ):
        with queries:
            before = count(look)
            queries.enqueue(["fetch"] * number, b"x", connection=given)
            assert before == count(look)
            sync_caller.rollback()
            assert before == count(look)
            queries.enqueue(["fetch"] * number, b"x", connection=given)
            assert before == count(look)
            sync_caller.commit()
            assert before + number == count(look)
    assert not sync_caller.closed


@pytest.mark.promise(3)
@pytest.mark.parametrize("cursor", range(3))
async def test_the_callers_cursor_class_does_not_matter(
    anyio_backend: str, dsn: str, schema: str, driver: PsycopgDriver, look: Look, cursor: int
) -> None:
    """Client-side binding and raw placeholders are the caller's choice for the caller's statements."""
    with psycopg.connect(dsn, cursor_factory=SYNC_CURSORS[cursor]) as connection:
        (job_id,) = SyncQueries(connection, schema=schema).enqueue("fetch", b"\x00")
        assert [job_id] == SyncQueries(connection, schema=schema).mark_job_as_cancelled([job_id])
    if anyio_backend == "asyncio":
        queries = Queries(driver, schema=schema)
        async with await psycopg.AsyncConnection.connect(dsn, cursor_factory=ASYNC_CURSORS[cursor]) as asynchronous:
            (job_id,) = await queries.enqueue("fetch", b"\x00", connection=asynchronous)
            assert [job_id] == await queries.mark_job_as_cancelled([job_id], connection=asynchronous)
    assert {(b"\x00", "cancelled")} == set(look("select payload, status from {schema}.finished"))


@pytest.mark.promise(3)
async def test_a_failed_enqueue_leaves_the_rest_of_the_transaction(queries: Queries, dsn: str, look: Look) -> None:
    """A large batch that the database refuses is undone alone: it runs in a savepoint."""
    look("alter table {schema}.queued add check (payload <> 'bad'::bytea)")
    connection = await Connection.connect(dsn)
    async with connection.transaction():
        await queries.enqueue("fetch", b"good", connection=connection)
        with pytest.raises(psycopg.errors.CheckViolation):
            await queries.enqueue("fetch", [b"bad"] * 2000, connection=connection)
    connection.abort()
    assert [(b"good",)] == look("select payload from {schema}.queued")


@pytest.mark.promise(3)
@pytest.mark.parametrize("number", [1, 1500])
async def test_a_commit_always_notifies(queries: Queries, dsn: str, schema: str, number: int) -> None:
    """Also when nobody sleeps: a worker that falls asleep before the commit would not know. By arrays and by COPY, once
    for each name.
    """
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute(sql.SQL("listen {}").format(sql.Identifier(f"pgq_anyio.{schema}")))
        connection = await Connection.connect(dsn)
        async with connection.transaction():
            await queries.enqueue(["fetch"] * number, None, connection=connection)
            assert [] == list(listener.notifies(timeout=0.05))
        assert ["queued:fetch"] == [n.payload for n in listener.notifies(timeout=5, stop_after=1)]
        connection.abort()
        await queries.enqueue(["fetch"] * number, None)
        with psycopg.connect(dsn) as producer:
            SyncQueries(producer, schema=schema).enqueue(["other"] * number, None)
        assert ["queued:other"] == [n.payload for n in listener.notifies(timeout=5, stop_after=1)]


@pytest.mark.promise(3)
async def test_cancel_in_the_callers_transaction(queries: Queries, caller: Any, look: Look) -> None:
    """It takes effect with the commit, for any number of ids, also for jobs of the same transaction."""
    job_ids = await queries.enqueue("fetch", [b"x"] * 1200)
    job_ids += await queries.enqueue("fetch", connection=caller)
    assert job_ids == await queries.mark_job_as_cancelled(job_ids, "why", connection=caller)
    assert 1200 == count(look)
    await caller.rollback()
    assert 1200 == count(look)
    assert job_ids[:-1] == await queries.mark_job_as_cancelled(job_ids, "why", connection=caller)
    await caller.commit()
    assert {JobStatus.CANCELLED} == set((await queries.job_status(job_ids)).values())
    await caller.execute("set transaction isolation level repeatable read")
    with pytest.raises(RuntimeError, match="REPEATABLE READ"):
        await queries.mark_job_as_cancelled(job_ids, connection=caller)


async def test_a_pipeline_of_the_caller(queries: Queries, dsn: str, look: Look) -> None:
    """In pipeline mode there is neither COPY nor a prepared statement of ours; the jobs arrive all the same."""
    connection = await Connection.connect(dsn)
    async with connection.pipeline():
        job_ids = await queries.enqueue("fetch", [b"x"] * 1500, connection=connection)
    connection.abort()
    assert [(n,) for n in job_ids] == look("select job_id from {schema}.queued order by seq")


@pytest.mark.parametrize("autocommit", [False, True])
async def test_operating_in_a_pipeline_of_the_caller(queries: Queries, caller: Any, autocommit: bool) -> None:
    """What has to be asked before is waited for: in a transaction and outside of one."""
    await caller.set_autocommit(autocommit)
    one, *others = job_ids = await queries.enqueue("fetch", [b"x"] * 3)
    async with caller.pipeline(), caller.transaction():
        assert [one] == await queries.mark_job_as_cancelled([one], connection=caller)
    async with caller.pipeline():
        assert others == await queries.mark_job_as_cancelled(entrypoint="fetch", connection=caller)
        assert job_ids == await queries.requeue(entrypoint="fetch", status="cancelled", connection=caller)
    await caller.commit()
    assert {JobStatus.QUEUED} == set((await queries.job_status(job_ids)).values())


@pytest.mark.parametrize("autocommit", [False, True])
def test_operating_in_a_blocking_pipeline_of_the_caller(
    sync_queries: SyncQueries, sync_caller: psycopg.Connection[Any], autocommit: bool
) -> None:
    """The same without an event loop."""
    sync_caller.autocommit = autocommit
    one, *others = job_ids = sync_queries.enqueue("fetch", [b"x"] * 3)
    with sync_caller.pipeline(), sync_caller.transaction():
        assert [one] == sync_queries.mark_job_as_cancelled([one], connection=sync_caller)
    with sync_caller.pipeline():
        assert others == sync_queries.mark_job_as_cancelled(entrypoint="fetch", connection=sync_caller)
        assert job_ids == sync_queries.requeue(entrypoint="fetch", status="cancelled", connection=sync_caller)
    sync_caller.commit()
    assert {JobStatus.QUEUED} == set(sync_queries.job_status(job_ids).values())


async def test_a_connection_of_the_pool_is_left_as_it_was(queries: Queries, driver: PsycopgDriver, look: Look) -> None:
    """Who switched autocommit off for his own statements does not undo what is enqueued after that."""
    async with driver.connection() as connection:
        await connection.set_autocommit(False)
        await connection.execute("select 1")
        await connection.commit()
    await queries.enqueue("fetch")
    assert 1 == count(look)


async def test_the_wrong_kind_of_connection_is_named(queries: Queries, dsn: str, sync_queries: SyncQueries) -> None:
    """The message says what to use."""
    connection = await Connection.connect(dsn)
    with psycopg.connect(dsn) as blocking:
        with pytest.raises(ConfigurationError, match="use SyncQueries"):
            await queries.enqueue("fetch", connection=blocking)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="use Queries"):
            sync_queries.enqueue("fetch", connection=connection)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="use Queries"):
            SyncQueries(connection)  # type: ignore[arg-type]
        for wrong in (object(), dsn, blocking.cursor()):
            with pytest.raises(ConfigurationError, match="connection"):
                await queries.enqueue("fetch", connection=wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="Connection"):
                sync_queries.enqueue("fetch", connection=wrong)  # type: ignore[arg-type]
    connection.abort()


async def test_a_caller_who_holds_every_connection_is_told(
    dsn: str, schema: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He waits for one that only he can give back: an error says so in time, and the fix works."""
    monkeypatch.setattr(_queries, "PATIENCE", 0.05)
    async with PsycopgDriver(dsn, max_size=1) as driver, driver.connection() as connection:
        queries = Queries(driver, schema=schema)
        async with connection.transaction():
            with pytest.raises(psycopg.OperationalError, match=r"within 0\.05 s: the pool has 1; .* \(connection=\)"):
                await queries.enqueue("fetch")
            await queries.enqueue("fetch", connection=connection)
    assert 1 == count(look)
