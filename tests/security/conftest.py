"""Fixtures for tests of who may do what: a schema whose roles have the rights that ``pgq-anyio grants`` gives them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgq_anyio._store.grants import Purpose, grants_sql
from pgq_anyio._store.migrations import migrate_sync

PASSWORD = "not a secret"


@attrs.frozen
class Roles:
    """A role for each purpose, and one that was granted nothing."""

    dsn: str
    schema: str

    def name(self, role: str) -> str:
        """A name that has to be quoted."""
        return f'{role} "%s" é {self.schema}'

    def conninfo(self, role: str) -> str:
        """The DSN of a role."""
        return make_conninfo(self.dsn, user=self.name(role), password=PASSWORD)

    def connect(self, role: str) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of a role; ``admin`` is whoever runs the tests."""
        return psycopg.connect(self.dsn if role == "admin" else self.conninfo(role), autocommit=True)

    def bind(self, query: str) -> sql.Composed:
        """Put the name of the schema into a query."""
        return sql.SQL(query).format(schema=sql.Identifier(self.schema))


NAMES = [*(purpose.value for purpose in Purpose), "nobody"]


@pytest.fixture
def roles(dsn: str, empty_schema: str) -> Iterator[Roles]:
    """The roles of a schema that its owner has migrated."""
    roles = Roles(dsn, empty_schema)
    with roles.connect("admin") as admin:
        try:
            for name in NAMES:
                role = sql.Identifier(roles.name(name))
                admin.execute(sql.SQL("create role {} login password {}").format(role, PASSWORD))
            admin.execute(grants_sql(empty_schema, {Purpose.MIGRATE: [roles.name("migrate")]}))
            with roles.connect("migrate") as owner:
                migrate_sync(owner, empty_schema)
                owner.execute(grants_sql(empty_schema, {purpose: [roles.name(purpose.value)] for purpose in Purpose}))
            yield roles
        finally:
            for name in NAMES:
                role = sql.Identifier(roles.name(name))
                admin.execute(sql.SQL("drop owned by {} cascade").format(role))
                admin.execute(sql.SQL("drop role {}").format(role))
