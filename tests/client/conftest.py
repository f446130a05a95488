"""Fixtures for tests of producers and operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgq_anyio import PsycopgDriver
from pgq_anyio._client import Queries, SyncQueries

#: Run a query in which ``{schema}`` stands for the schema; its rows, as any other session sees them.
Look = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
async def driver(anyio_backend: str, dsn: str) -> AsyncIterator[PsycopgDriver]:
    """An open driver on the backend of the test."""
    async with PsycopgDriver(dsn) as driver:
        yield driver


@pytest.fixture
def queries(driver: PsycopgDriver, schema: str) -> Queries:
    """A producer for the test's schema."""
    return Queries(driver, schema=schema)


@pytest.fixture
def sync_queries(dsn: str, schema: str) -> Iterator[SyncQueries]:
    """A producer without an event loop, with a connection of its own."""
    with SyncQueries(dsn, schema=schema) as queries:
        yield queries


@pytest.fixture
def look(dsn: str, schema: str) -> Iterator[Look]:
    """A session that only looks."""
    with psycopg.connect(dsn, autocommit=True) as connection:

        def look(query: str, *parameters: Any) -> list[tuple[Any, ...]]:
            text = sql.SQL(query).format(schema=sql.Identifier(schema))
            cursor = connection.execute(text, parameters or None)
            return cursor.fetchall() if cursor.description else []

        yield look
