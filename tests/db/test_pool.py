"""The pool: bounded, lazy, and leaking nothing under cancellation."""

from __future__ import annotations

import anyio
import psycopg
import pytest

from pgq_anyio._db import Connection, Pool, PoolTimeout
from tests.db.steps import cancel_everywhere

pytestmark = pytest.mark.anyio


async def count(conn: Connection, application: str) -> int:
    cursor = await conn.execute("select count(*) from pg_stat_activity where application_name = %s", [application])
    row = await cursor.fetchone()
    assert row is not None
    number: int = row[0]
    return number


async def test_bounded_and_lazy(dsn: str, conn: Connection) -> None:
    """No connection before it is needed, never more than ``max_size``, none left afterwards."""
    async with Pool(dsn, max_size=3, application_name="bounded") as pool:
        assert 0 == await count(conn, "bounded")

        async def use() -> None:
            async with pool.connection() as taken:
                await taken.execute("select pg_sleep(0.005)")

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(use)
        assert 3 == await count(conn, "bounded")
    with anyio.fail_after(5):
        while await count(conn, "bounded"):
            pass


async def test_exhausted(dsn: str) -> None:
    """Who waits too long gets an error that says so; the pool works on."""
    async with Pool(dsn, max_size=1) as pool:
        async with pool.connection() as first:
            with pytest.raises(PoolTimeout, match=r"within 0\.05 s: the pool has 1"):
                async with pool.connection(0.05):
                    pass
            with anyio.move_on_after(0.05) as scope:
                async with pool.connection():
                    pass
            assert scope.cancelled_caught
        async with pool.connection(1) as second:
            assert first is second


async def test_broken_connections_are_replaced(dsn: str, conn: Connection) -> None:
    """A connection that the server closed while it was idle is never handed out."""
    async with Pool(dsn, max_size=2) as pool:
        async with pool.connection() as taken:
            pid = taken.info.backend_pid
        await conn.execute("select pg_terminate_backend(%s, 5000)", [pid])
        async with pool.connection() as taken:
            assert pid != taken.info.backend_pid
            await taken.execute("select 1")


async def test_checked_after_an_error(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error a connection is asked before it is used again, and not otherwise."""
    asked: list[object] = []
    execute = Connection.execute

    async def spy(self: Connection, query: str, *args: object, **kwargs: object) -> object:
        asked.append(query)
        return await execute(self, query, *args, **kwargs)  # type: ignore[call-overload]

    async with Pool(dsn, max_size=1) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.connection() as first:
                raise ZeroDivisionError
        monkeypatch.setattr(Connection, "execute", spy)
        async with pool.connection() as second:
            assert first is second
        assert [""] == asked
        async with pool.connection():
            pass
        assert [""] == asked


async def test_given_back_in_a_transaction(dsn: str) -> None:
    """What a user leaves open is rolled back, in a cancelled scope too."""
    async with Pool(dsn, max_size=1) as pool:
        with anyio.move_on_after(0.1):
            async with pool.connection() as first:
                await first.execute("begin; create temp table left_over ()")
                await anyio.sleep_forever()
        async with pool.connection() as second:
            assert first is second
            with pytest.raises(psycopg.errors.UndefinedTable):
                await second.execute("select * from left_over")


async def test_transactions_begin_as_before(dsn: str) -> None:
    """How a user had his transactions begin is not how the next one's begin: whose work would be rolled back."""
    settings = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    async with Pool(dsn, max_size=1) as pool:
        for leave in (Connection.commit, Connection.rollback, Connection.cancel_safe):
            async with pool.connection() as first:
                await first.set_autocommit(False)
                await first.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
                await first.set_read_only(True)
                await first.set_deferrable(True)
                await first.execute("select 1")
                await leave(first)
            async with pool.connection() as second:
                assert first is second
                assert (True, None) == (second.autocommit, second.isolation_level)
                assert (None, None) == (second.read_only, second.deferrable)
                await second.execute("select 1")
                assert psycopg.pq.TransactionStatus.IDLE == second.pgconn.transaction_status
                async with second.transaction():
                    assert [("read committed", "off")] == await (await second.execute(settings)).fetchall()


async def test_cancelled_at_every_await(dsn: str) -> None:
    """However a user is cancelled, all slots come back and every connection of the pool works."""
    async with Pool(dsn, max_size=2) as pool:

        async def work() -> None:
            async with pool.connection() as taken:
                await taken.execute("begin")
                await taken.execute("select pg_sleep(0.001)")

        async def check(k: int, cancelled: bool) -> None:
            assert pool._slots is not None
            assert 2 == pool._slots.value
            async with pool.connection(1) as one, pool.connection(1) as two:
                await one.execute("select 1")
                await two.execute("select 1")
            if k % 2:
                while pool._idle:  # the next run connects
                    pool._idle.pop().conn.abort()

        assert await cancel_everywhere(work, check) >= 3


async def test_unreachable(dsn: str) -> None:
    """If a connection cannot be opened, its slot is free again."""
    async with Pool("host=/nowhere", max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection(5):
                    pass


async def test_closed(dsn: str) -> None:
    """A closed pool hands out nothing, and closes what is given back late."""
    pool = Pool(dsn)
    with pytest.raises(psycopg.InterfaceError, match="not open"):
        async with pool.connection():
            pass
    async with pool:
        context = pool.connection()
        conn = await context.__aenter__()
    await context.__aexit__(None, None, None)
    assert conn.closed


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2"])
def test_bad_size(size: object) -> None:
    """A size that is none is refused."""
    with pytest.raises(ValueError, match="max_size"):
        Pool("", max_size=size)  # type: ignore[arg-type]
