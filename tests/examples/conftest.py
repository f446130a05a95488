"""Fixtures for tests of examples."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgq_anyio._store.migrations import migrate_sync

_numbers = itertools.count(1)


@pytest.fixture
def database(server_dsn: str) -> Iterator[str]:
    """The DSN of a database of the test's own, with the tables in the schema that examples use: the default one."""
    name = f"example_{os.getpid()}_{next(_numbers)}"

    def change(command: LiteralString) -> None:
        with psycopg.connect(server_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL(command).format(sql.Identifier(name)))

    change("create database {}")
    try:
        dsn = make_conninfo(server_dsn, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            migrate_sync(connection, "pgq_anyio")
        yield dsn
    finally:
        change("drop database {} with (force)")
