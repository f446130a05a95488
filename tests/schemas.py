"""Schemas that serve one test after the other: making and dropping one takes longer than most tests.

A schema is used again only if the catalogs say that nothing in it was defined, granted, changed or analysed since it
was made, and no session's last statement names it. Some tests lie between two uses, so that a process that was just
killed has left the server. Otherwise the schema is dropped, when its turn comes, and a new one is made.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from datetime import UTC, date, datetime
from typing import Any, Final, LiteralString

import attrs
import psycopg
from psycopg import sql

from pgq_anyio._store.migrations import migration_sql

#: How many others are used before a schema is used again.
BETWEEN: Final = 4

#: Row versions stand for the rows, but for relations: emptying and measuring those is no change of definition.
DEFINITION: Final[LiteralString] = """
with chosen as materialized (select cast(cast(%(schema)s as text) as regnamespace) as space),
relation as materialized (select r.* from pg_class r join chosen on relnamespace = space)
select md5(string_agg(cast(part as text), ' ' order by cast(part as text))) from (
    select to_jsonb(r) - array['relfilenode', 'relpages', 'reltuples', 'relallvisible', 'relallfrozen', 'relfrozenxid',
        'relminmxid', 'relhasindex'] from relation r
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_namespace t join chosen on t.oid = space
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_type t join chosen on typnamespace = space
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_proc t join chosen on pronamespace = space
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_constraint t join chosen on connamespace = space
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_trigger t join relation r on tgrelid = r.oid
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_policy t join relation r on polrelid = r.oid
    union all select to_jsonb(row(t.oid, t.xmin)) from pg_attrdef t join relation r on adrelid = r.oid
    union all select to_jsonb(row(attrelid, attnum, t.xmin)) from pg_attribute t join relation r on attrelid = r.oid
    union all select to_jsonb(row(indexrelid, t.xmin)) from pg_index t join relation r on indexrelid = r.oid
    union all select to_jsonb(row(starelid, staattnum, t.xmin)) from pg_statistic t join relation r on starelid = r.oid
) as parts (part)
"""
#: Whether a session's last statement names the schema, and whether there is one.
STATE: Final[LiteralString] = """
select exists (select from pg_stat_activity where pid <> pg_backend_pid() and strpos(query, %(schema)s) > 0),
    to_regnamespace(%(schema)s) is not null
"""
MIGRATIONS: Final[LiteralString] = "select * from {schema}.migration order by name"
#: Counters of changes are part of what a test may look at.
TABLES: Final[LiteralString] = """
select relname, pg_relation_size(oid) > 0, pg_stat_reset_single_table_counters(oid)
from pg_class where relnamespace = cast(%(schema)s as regnamespace) and relkind = 'r' and relname <> 'migration'
"""
RESTART: Final[LiteralString] = (
    "select setval(cast(seqrelid as regclass), seqstart, false) from pg_sequence"
    " join pg_class c on c.oid = seqrelid where relnamespace = cast(%(schema)s as regnamespace)"
)

_numbers = itertools.count(1)


@attrs.define
class Used:
    """A schema that a test has left."""

    name: str
    definition: list[Any]
    made_on: date
    """In UTC: a schema has partitions for the day that it was made on and for those after it."""


def make(connection: psycopg.Connection[Any], name: str) -> Used:
    """From the script for ``psql``, in one round trip."""
    today = datetime.now(UTC).date()
    script = "".join(line for line in migration_sql(name).splitlines(True) if not line.startswith("\\"))
    connection.execute(script.encode())
    return Used(name, definition(connection, name), today)


def is_as_new(connection: psycopg.Connection[Any], used: Used) -> bool:
    """Whether nothing but rows has changed, and nobody is left who could change them."""
    if used.made_on != datetime.now(UTC).date():
        return False
    ((in_use, exists),) = connection.execute(STATE, {"schema": used.name})
    return exists and not in_use and definition(connection, used.name) == used.definition


def definition(connection: psycopg.Connection[Any], name: str) -> list[Any]:
    """What the catalogs say about the schema, and which migrations it has."""
    migrations = sql.SQL(MIGRATIONS).format(schema=sql.Identifier(name))
    return [*connection.execute(DEFINITION, {"schema": name}), *connection.execute(migrations)]


def empty(connection: psycopg.Connection[Any], name: str) -> None:
    """Remove all rows, and let the ids begin again."""
    tables = connection.execute(TABLES, {"schema": name})
    filled = [sql.Identifier(name, table) for table, has_pages, _ in tables if has_pages]
    if filled:
        connection.execute(sql.SQL("truncate {}").format(sql.SQL(", ").join(filled)))
    connection.execute(RESTART, {"schema": name})


def drop(connection: psycopg.Connection[Any], name: str) -> None:
    """Remove the schema if there is one."""
    connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


@attrs.define
class Schemas:
    """Makes schemas on one server, for the tests of one process.

    Blocking: fixtures stay usable from sync and async tests, whatever event loop the test's backend has under way.
    """

    dsn: str
    _connection: psycopg.Connection[Any] | None = None
    _used: deque[Used] = attrs.field(factory=deque)

    def new_name(self) -> str:
        """A name that nothing else uses."""
        return f"test_{os.getpid()}_{next(_numbers)}"

    def take(self) -> Used:
        """A migrated schema without a row, for one test."""
        connection = self._connect()
        while len(self._used) > BETWEEN:
            used = self._used.popleft()
            if is_as_new(connection, used):
                empty(connection, used.name)
                return used
            drop(connection, used.name)
        return make(connection, self.new_name())

    def give_back(self, used: Used) -> None:
        """The test has ended. The schema is looked at when its turn comes."""
        self._used.append(used)

    def drop(self, name: str) -> None:
        """Remove the schema if there is one."""
        drop(self._connect(), name)

    def close(self) -> None:
        """Remove what is left."""
        with self._connect() as connection:
            for used in self._used:
                drop(connection, used.name)

    def _connect(self) -> psycopg.Connection[Any]:
        """A connection that is kept: opening one takes as long as what it is used for."""
        if self._connection is not None:
            try:
                self._connection.execute("select")
            except psycopg.OperationalError:  # a test has ended all that there were
                self._connection = None
        if self._connection is None:
            # A connection that a test left open would block this for ever; with a limit it names itself.
            self._connection = psycopg.connect(self.dsn, autocommit=True, options="-c lock_timeout=10s")
        return self._connection
