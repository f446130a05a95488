"""``PsycopgDriver``: bound to its loop, discreet, with sensible settings."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.rows import dict_row

from pgq_anyio._db import PsycopgDriver

pytestmark = pytest.mark.anyio

SECRET = "hush-hush"


async def test_open_and_close(dsn: str) -> None:
    """It is opened once at a time, and can be opened again."""
    driver = PsycopgDriver(dsn)
    assert "closed" in repr(driver)
    for _ in range(2):
        async with driver:
            opened = driver.is_open
            assert opened
            with pytest.raises(RuntimeError, match="open already"):
                await driver.__aenter__()
            async with driver.connection(5) as conn:
                assert [("pgq_anyio",)] == await (await conn.execute("show application_name")).fetchall()
        assert not driver.is_open
    with pytest.raises(RuntimeError, match="not open"):
        async with driver.connection():
            pass


async def test_another_event_loop(dsn: str) -> None:
    """Used from another event loop it is refused, and both loops are named."""
    async with PsycopgDriver(dsn) as driver:

        async def use() -> str:
            with pytest.raises(RuntimeError, match="event loop") as caught:
                await driver.connect(role="test")
            return str(caught.value)

        for backend in ("asyncio", "trio"):
            said = await anyio.to_thread.run_sync(partial(anyio.run, use, backend=backend))
            assert 2 == said.count(" at 0x")


async def test_dedicated_connections(dsn: str) -> None:
    """A dedicated connection says what it is for, and has keepalives unless the DSN has its own."""
    async with PsycopgDriver(dsn) as driver, await driver.connect(role="listener") as conn:
        assert [("pgq_anyio listener",)] == await (await conn.execute("show application_name")).fetchall()
        parameters = conn.info.get_parameters()
        assert "15" == parameters["keepalives_idle"]
        assert "30000" == parameters["tcp_user_timeout"]
    async with PsycopgDriver(f"{dsn} keepalives_idle=7") as driver, await driver.connect(role="x") as conn:
        assert "7" == conn.info.get_parameters()["keepalives_idle"]
        assert conn.use_statements


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_connection_as_the_caller_wants_it(dsn: str, autocommit: bool) -> None:
    """Whatever rows are to be and whether statements commit: it is handed out with no transaction open, and keeps its
    settings.
    """
    async with PsycopgDriver(dsn) as driver:
        options: dict[str, Any] = {"row_factory": dict_row, "autocommit": autocommit, "settings": {"work_mem": "3MB"}}
        async with await driver.connect(role="x", **options) as conn:
            assert autocommit == conn.autocommit
            assert psycopg.pq.TransactionStatus.IDLE == conn.pgconn.transaction_status
            await conn.rollback()
            rows: list[Any] = await (await conn.execute("show work_mem")).fetchall()
            assert [{"work_mem": "3MB"}] == rows
            assert autocommit == (psycopg.pq.TransactionStatus.IDLE == conn.pgconn.transaction_status)


async def test_without_prepared_statements(dsn: str) -> None:
    """``prepare=False`` holds for the pool and dedicated connections, not for the direct ones."""
    driver = PsycopgDriver(f"{dsn} options='-c work_mem=1MB'", prepare=False, direct_conninfo=dsn)
    async with driver, driver.connection() as pooled:  # noqa: SIM117
        async with await driver.connect(role="x") as own, await driver.connect(role="y", direct=True) as direct:
            for conn in (pooled, own):
                assert conn.prepare_threshold is None
                assert not conn.use_statements
                assert [("1MB",)] == await (await conn.execute("show work_mem")).fetchall()
            assert direct.use_statements
            assert [("4MB",)] == await (await direct.execute("show work_mem")).fetchall()


@pytest.mark.parametrize("conninfo", [f"postgresql://u:{SECRET}@h/d", f"host=h password={SECRET}"])
def test_no_secrets_in_repr(conninfo: str) -> None:
    """The password of a DSN is never shown."""
    driver = PsycopgDriver(conninfo)
    assert SECRET not in repr(driver)
    assert SECRET not in repr(driver._pool)
