"""Fixtures for tests of the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from pgq_anyio import PgQueuer, PsycopgDriver
if TYPE_CHECKING:
    from pgq_anyio._client import Queries
from tests.worker.fleet import Fleet, open_fleet


@pytest.fixture
async def driver(anyio_backend: str, dsn: str) -> AsyncIterator[PsycopgDriver]:
    """An open driver on the backend of the test."""
    async with PsycopgDriver(dsn) as driver:
        yield driver


@pytest.fixture
def queries(driver: PsycopgDriver, schema: str) -> Queries:
    """A producer for the test's schema."""
    from pgq_anyio._client import Queries

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
