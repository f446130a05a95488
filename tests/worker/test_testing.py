"""What ``pgq_anyio.testing`` gives to tests of applications: a database and tables of their own."""

from __future__ import annotations

from urllib.parse import urlencode

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgq_anyio import ConfigurationError, Job, JobStatus, PgQueuer, PsycopgDriver, Queries, testing
from pgq_anyio.testing import drain, temporary_database, temporary_schema

pytestmark = pytest.mark.anyio


def schemas(dsn: str) -> set[str]:
    """The names of all schemas of a database."""
    with psycopg.connect(dsn) as connection:
        return {name for (name,) in connection.execute("select nspname from pg_namespace")}


async def test_a_database_and_two_schemas_of_ones_own() -> None:
    """Jobs run in one and are unknown in the other; nothing is left of either, nor of the server."""

    def run_in_thread(dsn: str, schema: str) -> None:
        anyio.run(run, dsn, schema)

    async def run(dsn: str, schema: str) -> None:
        app = PgQueuer(dsn, schema=schema)

        @app.entrypoint("fetch")
        async def fetch(job: Job) -> None: ...

        async with PsycopgDriver(dsn) as driver:
            ids = await Queries(driver, schema=schema).enqueue("fetch")
            await drain(app)
            assert dict.fromkeys(ids, JobStatus.SUCCESSFUL) == await Queries(driver, schema=schema).job_status(ids)
            assert {} == await Queries(driver, schema="other").job_status(ids)

    with temporary_database({"max_connections": "30"}) as dsn:
        with psycopg.connect(dsn) as connection:
            assert ("30",) == connection.execute("show max_connections").fetchone()
        with temporary_schema(dsn) as first, temporary_schema(dsn, "other") as second:
            assert {first, second} <= schemas(dsn)
            assert "other" == second
            await anyio.to_thread.run_sync(run_in_thread, dsn, first)
        assert set() == {first, second} & schemas(dsn)
    assert not await anyio.Path(str(conninfo_to_dict(dsn)["host"])).exists()


async def test_a_schema_that_is_there_already_is_left_alone(dsn: str, schema: str) -> None:
    """It may be somebody's data."""
    with pytest.raises(psycopg.errors.DuplicateSchema), temporary_schema(dsn, schema):
        pytest.fail("it was taken over")
    assert schema in schemas(dsn)
    with pytest.raises(ConfigurationError, match="dollar"), temporary_schema(dsn, "a$b"):
        pytest.fail("a name that cannot be used was used")


async def test_a_schema_goes_whatever_happens_in_the_block(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed test leaves nothing; one that leaves a transaction open is told so instead of waited for."""
    with pytest.raises(ZeroDivisionError), temporary_schema(dsn) as name:
        raise ZeroDivisionError
    assert name not in schemas(dsn)
    monkeypatch.setattr(testing, "DROP_PATIENCE", 0.1)
    with psycopg.connect(dsn) as connection:
        with pytest.raises(psycopg.errors.LockNotAvailable), temporary_schema(dsn) as name:
            connection.execute(psycopg.sql.SQL("select from {}.queued").format(psycopg.sql.Identifier(name)))
        connection.rollback()
        connection.execute(psycopg.sql.SQL("drop schema {} cascade").format(psycopg.sql.Identifier(name)))


def test_any_dsn_is_read_as_elsewhere(dsn: str) -> None:
    """Also one that names a driver; and one that cannot be read is not shown."""
    with temporary_schema(f"postgresql+asyncpg:///?{urlencode(conninfo_to_dict(dsn))}") as name:
        assert name in schemas(dsn)
    with pytest.raises(ConfigurationError) as refused, temporary_schema("postgresql://u:s3cret@h:port:5/db"):
        pass
    assert "s3cret" not in str(refused.value)
