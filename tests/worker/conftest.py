"""Fixtures for tests of the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pgq_anyio import PgQueuer, PsycopgDriver, Queries
from tests.worker.fleet import Fleet, open_fleet


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
