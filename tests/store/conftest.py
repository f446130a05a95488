"""Fixtures for tests of single statements: several connections on one schema, in an order that the test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._store._sql import Store

Connect = Callable[[], Awaitable[Connection]]


@pytest.fixture
def store(schema: str) -> Store:
    """The statements of the test's schema."""
    return Store(schema)


@pytest.fixture
async def connect(anyio_backend: str, server_dsn: str) -> AsyncIterator[Connect]:
    """Open connections with the settings of a worker; they are closed after the test."""
    opened: list[Connection] = []

    async def connect() -> Connection:
        opened.append(await Connection.connect(server_dsn, settings=DISPATCH_SETTINGS))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.abort()
