"""Fixtures for tests of single statements: several connections on one schema, in an order that the test decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import pytest

from pgq_anyio._db import Connection
from pgq_anyio._services.claimer import DISPATCH_SETTINGS
from pgq_anyio._store._sql import Store


class Connect(Protocol):
    """Opens a connection with the settings of a part of the worker: unless told otherwise, those of a claimer."""

    async def __call__(self, settings: Mapping[str, str] = ..., /) -> Connection: ...


@pytest.fixture
def store(schema: str) -> Store:
    """The statements of the test's schema."""
    return Store(schema)


@pytest.fixture
async def connect(anyio_backend: str, server_dsn: str) -> AsyncIterator[Connect]:
    """Open connections; they are closed after the test."""
    opened: list[Connection] = []

    async def connect(settings: Mapping[str, str] = DISPATCH_SETTINGS, /) -> Connection:
        opened.append(await Connection.connect(server_dsn, settings=settings))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.abort()
