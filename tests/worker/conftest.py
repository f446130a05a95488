"""Fixtures for tests of the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pgq_anyio import PgQueuer, PsycopgDriver, Queries
from tests.worker.away import Journal
from tests.worker.fleet import Fleet, open_fleet
from tests.worker.own_server import OwnServer, open_own_server
from tests.worker.proxy import Proxy, open_proxy


@pytest.fixture(
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})], ids=["asyncio", "uvloop", "trio"]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run the tests of the worker on uvloop too."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


@pytest.fixture
async def driver(anyio_backend: object, dsn: str) -> AsyncIterator[PsycopgDriver]:
    """An open driver on the backend of the test."""
    async with PsycopgDriver(dsn) as driver:
        yield driver


@pytest.fixture
def queries(driver: PsycopgDriver, schema: str) -> Queries:
    """A producer for the test's schema."""
    return Queries(driver, schema=schema)


@pytest.fixture
def app(dsn: str, schema: str) -> PgQueuer:
    """An app without handlers on the test's schema."""
    return PgQueuer(dsn, schema=schema)


@pytest.fixture
def fleet(dsn: str, schema: str) -> Iterator[Fleet]:
    """Worker processes on the test's schema."""
    with open_fleet(dsn, schema) as fleet:
        yield fleet


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """What handlers of ``tests.worker.away`` write."""
    journal = Journal(tmp_path / "journal")
    monkeypatch.setenv("PGQ_TEST_JOURNAL", str(journal.path))
    return journal


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy before the server of the run."""
    with open_proxy(dsn) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _own_server(server_dsn: str) -> Iterator[OwnServer]:
    with open_own_server(server_dsn) as server:
        yield server


@pytest.fixture
def own_server(_own_server: OwnServer, empty_schema: str) -> OwnServer:
    """A running server that the test may stop and kill, with the tables of the schema ``empty_schema``."""
    _own_server.start()
    _own_server.migrate(empty_schema)
    return _own_server


@pytest.fixture
def own_fleet(own_server: OwnServer, empty_schema: str) -> Iterator[Fleet]:
    """Worker processes on a server that the test may stop and kill."""
    with open_fleet(own_server.dsn, empty_schema) as fleet:
        yield fleet
        own_server.start()
        fleet.reconnect()
