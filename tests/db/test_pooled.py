"""Through PgBouncer: recognised, no prepared statements, no settings left to others, the same answers."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import psycopg
import pytest

from pgq_anyio import SyncQueries
from pgq_anyio._db import PsycopgDriver, Statement, batch
from pgq_anyio._db.line import Line
from tests.poolers import open_pgbouncer

pytestmark = pytest.mark.anyio

SETTINGS = {"work_mem": "3MB", "synchronous_commit": "off"}
SHOW = Statement("show", "select current_setting('work_mem'), current_setting('transaction_isolation')")
DIVIDE = Statement("divide", "select 1 / %(by)s::int")


@pytest.fixture(scope="module")
def pooled_dsn(server_dsn: str) -> Iterator[str]:
    """One connection to the server, which all clients share: what one leaves behind, the next one finds."""
    with open_pgbouncer(server_dsn, size=1) as pooler:
        yield pooler.dsn


def work_mem(dsn: str) -> str:
    """What a client finds that has set nothing."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("show work_mem").fetchall()
    return str(rows[0][0])


async def test_it_is_recognised(dsn: str, pooled_dsn: str) -> None:
    """The connection itself says whether there is a pooler; who knows better says so."""
    for where, pooled, expected in [(dsn, None, False), (pooled_dsn, None, True), (pooled_dsn, False, False)]:
        async with PsycopgDriver(where, pooled=pooled) as driver, driver.connection() as conn:
            assert expected == conn.is_pooled
            assert expected != conn.use_statements
            assert (None if expected else 5) == conn.prepare_threshold
    async with PsycopgDriver(dsn, pooled=True) as driver, driver.connection() as conn:
        assert conn.is_pooled
    async with PsycopgDriver(pooled_dsn, prepare=True) as driver, driver.connection() as conn:
        assert conn.is_pooled
        assert conn.use_statements


async def test_the_direct_way_is_trusted(dsn: str, pooled_dsn: str) -> None:
    """What needs a session of its own goes around the pooler, or, if that is what was named, through it."""
    for direct in (dsn, pooled_dsn):
        async with PsycopgDriver(pooled_dsn, direct_conninfo=direct) as driver:
            async with await driver.connect(role="listen", direct=True) as conn:
                assert not conn.is_pooled
                assert conn.info.get_parameters()["host"] == psycopg.conninfo.conninfo_to_dict(direct)["host"]
            async with await driver.connect(role="heartbeat") as conn:
                assert conn.is_pooled


async def test_settings_hold_and_are_left_to_nobody(pooled_dsn: str) -> None:
    """Peer's bug: session settings leak into pooled connections. Each of our statements has them, nobody else does."""
    before = work_mem(pooled_dsn)
    assert "3MB" != before
    async with PsycopgDriver(pooled_dsn) as driver:
        line = Line(driver, "test", SETTINGS)
        conn = await line.connection()
        try:
            assert before == work_mem(pooled_dsn)
            for _ in range(3):
                assert [("3MB", "read committed")] == await SHOW.fetch(conn)
                assert before == work_mem(pooled_dsn)
                assert [[("3MB", "read committed")], [(1,)]] == await batch(conn, (SHOW, {}), (DIVIDE, {"by": 1}))
                assert before == work_mem(pooled_dsn)
            for attempt in (DIVIDE.fetch(conn, by=0), batch(conn, (SHOW, {}), (DIVIDE, {"by": 0}))):
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await attempt
                assert before == work_mem(pooled_dsn)
            async with conn.transaction():
                assert [("3MB", "read committed")] == await SHOW.fetch(conn)
            assert before == work_mem(pooled_dsn)
        finally:
            line.close()


async def test_a_setting_that_the_server_refuses(pooled_dsn: str) -> None:
    """It is told as what it is, and the connection goes on."""
    async with PsycopgDriver(pooled_dsn, pooled=True) as driver:
        line = Line(driver, "test", {"work_mem": "little"})
        conn = await line.connection()
        try:
            for attempt in (SHOW.fetch(conn), batch(conn, (SHOW, {}))):
                with pytest.raises(psycopg.errors.InvalidParameterValue, match="little"):
                    await attempt
            assert psycopg.pq.TransactionStatus.IDLE == conn.pgconn.transaction_status
        finally:
            line.close()


async def test_statements_have_snapshots_of_their_own(pooled_dsn: str) -> None:
    """Whatever the session's default is, each statement of a batch sees what was committed before it: limits are exact
    because of that.
    """
    async with PsycopgDriver(pooled_dsn) as driver:
        line = Line(driver, "test", SETTINGS)
        conn = await line.connection()
        await conn.execute("set default_transaction_isolation = 'repeatable read'")  # of the one session that there is
        try:
            assert [("3MB", "read committed")] == await SHOW.fetch(conn)
            assert [[("3MB", "read committed")]] == await batch(conn, (SHOW, {}))
        finally:
            await conn.execute("reset default_transaction_isolation")
            line.close()


async def test_a_cancelled_statement_leaves_the_pooler_clean(pooled_dsn: str) -> None:
    """Interrupted on the server, through the pooler; the one connection to the server is free at once."""
    doze = Statement("doze", "select pg_sleep(%(time)s::float8)::text")
    async with PsycopgDriver(pooled_dsn) as driver:
        line = Line(driver, "test", SETTINGS)
        try:
            conn = await line.connection()
            with anyio.move_on_after(0.2) as scope:
                await doze.fetch(conn, time=30)
            assert scope.cancelled_caught
            with anyio.fail_after(5):
                assert [("3MB", "read committed")] == await SHOW.fetch(conn)
            assert "3MB" != work_mem(pooled_dsn)
        finally:
            line.close()


def test_blocking_code_prepares_nothing(schema: str, pooled_dsn: str) -> None:
    """Psycopg prepares what is executed often; through a pooler another client's statements would be met."""
    with SyncQueries(pooled_dsn, schema=schema) as one, SyncQueries(pooled_dsn, schema=schema) as other:
        for _ in range(8):
            one.enqueue("anything")
            other.enqueue("anything")
        assert {"anything": 16} == one.queue_size()
        with psycopg.connect(pooled_dsn, autocommit=True) as conn:
            assert [] == conn.execute("select name from pg_prepared_statements").fetchall()
