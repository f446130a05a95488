"""The tables of a schema: making them, bringing them up to date, judging them, removing them.

A migration is a file ``NNN_name.sql`` beside this module; the table ``migration`` says which have been applied. They
run one by one, each in a transaction of its own that first takes an advisory lock of the schema and then looks what is
left to do, so any number of processes may migrate at once. The lock belongs to the transaction and not to the session:
behind a transaction pooler a session is nobody's.

Workers and producers go on meanwhile, and lock the same tables in other orders than a migration does. If PostgreSQL
ends the migration to resolve a deadlock, nothing of it is left, and it is tried again.

Each function exists for asynchronous and for blocking connections; both take the same steps.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, Final, LiteralString, TypeVar, cast

import psycopg
from psycopg import errors

from ..._errors import SchemaError
from .._sql import DEFAULT_SCHEMA, Store
from .._steps import Ask, Execute, InTransaction, Steps, run_steps, run_steps_sync

T = TypeVar("T")

#: READ COMMITTED, so that what is read after the wait for the lock is what the lock's last holder left. No search path
#: or time limit of the user has a say in what a migration does; servers know ``transaction_timeout`` from 17 on.
_BEGIN: Final = (
    "set transaction isolation level read committed, read write; "
    "set local search_path = pg_catalog, pg_temp; set local statement_timeout = 0; set local lock_timeout = 0; "
    "select pg_catalog.set_config(name, '0', true) from pg_catalog.pg_settings "
    "where name operator(pg_catalog.=) 'transaction_timeout'"
)
_LOCK: Final = (
    "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgq_anyio migrate ' || {schema_name}, 0))"
)
_HAS_SCHEMA: Final = (
    "select exists (select from pg_catalog.pg_namespace where nspname operator(pg_catalog.=) {schema_name})"
)
_HAS_TABLE: Final = (
    "select exists (select from pg_catalog.pg_class c "
    "join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace "
    "where n.nspname operator(pg_catalog.=) {schema_name} and c.relname operator(pg_catalog.=) 'migration')"
)
_APPLIED: Final = "select name from {schema}.migration order by name"
_RECORD: Final = "insert into {schema}.migration (name) values (%(name)s)"
#: How often one transaction is tried again: PostgreSQL takes a second (``deadlock_timeout``) to notice each deadlock.
_RETRIES: Final = 19


async def migrate(conn: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    """Make the schema and its tables, or bring them up to date.

    :param conn: a connection outside of any transaction
    :param schema: the name of the schema
    :return: the names of the migrations that were applied; empty if there was nothing to do
    :raises SchemaError: if the schema is newer than this code
    """
    _refuse_transaction(conn)
    return await run_steps(conn, _migrate(Store(schema)))


def migrate_sync(conn: psycopg.Connection[Any], schema: str) -> list[str]:
    """As ``migrate``, with a blocking connection."""
    _refuse_transaction(conn)
    return run_steps_sync(conn, _migrate(Store(schema)))


async def uninstall(conn: psycopg.AsyncConnection[Any], schema: str) -> bool:
    """Remove the schema with all that is in it.

    :param conn: a connection outside of any transaction
    :param schema: the name of the schema
    :return: whether there was anything to remove
    :raises SchemaError: if the schema holds anything else, or something elsewhere depends on it; nothing is removed
    """
    _refuse_transaction(conn)
    return await run_steps(conn, _uninstall(Store(schema)))


def uninstall_sync(conn: psycopg.Connection[Any], schema: str) -> bool:
    """As ``uninstall``, with a blocking connection."""
    _refuse_transaction(conn)
    return run_steps_sync(conn, _uninstall(Store(schema)))


async def check_schema(conn: psycopg.AsyncConnection[Any], store: Store) -> None:
    """Check that the tables are those which this code knows.

    :raises SchemaError: if they are missing, old, or newer than this code; the message says what to do
    """
    await run_steps(conn, _check(store))


def check_schema_sync(conn: psycopg.Connection[Any], store: Store) -> None:
    """As ``check_schema``, with a blocking connection."""
    run_steps_sync(conn, _check(store))


def migration_sql(schema: str) -> str:
    """All migrations as a script for ``psql`` and a database that has none of them."""
    store = Store(schema)
    # No name in the comment: a line break in it would end it.
    parts = ["-- The tables of pgq_anyio.\n\\set ON_ERROR_STOP on\nbegin;\n"]
    parts.append("set local search_path = pg_catalog, pg_temp;\n")
    parts.append(store.bind("create schema if not exists {schema};\n"))
    for migration, text in migrations().items():
        parts.append(f"\n-- {migration}\n{store.bind(text)}")
        parts.append(store.bind(_RECORD).replace("%(name)s", f"'{migration}'") + ";\n")
    parts.append("\ncommit;\n")
    return "".join(parts)


@cache
def migrations() -> dict[str, LiteralString]:
    """The text of every migration by name, in order."""
    names = sorted(path.name for path in files(__package__).iterdir() if path.name[0].isdigit())
    return {name.removesuffix(".sql"): _read(name) for name in names}


def _read(name: str) -> LiteralString:
    """A file of ours, which nobody else can have written."""
    text: LiteralString = cast("Any", (files(__package__) / name).read_text("utf-8"))
    return text


def _migrate(store: Store) -> Steps[list[str]]:
    applied: list[str] = []
    while (name := (yield from _in_transaction(lambda: _apply_next(store)))) is not None:
        applied.append(name)
    return applied


def _in_transaction(make_steps: Callable[[], Steps[T]]) -> Steps[T]:
    """Take steps in a transaction, again if it was the victim of a deadlock."""
    result: T
    for _ in range(_RETRIES):
        with suppress(errors.DeadlockDetected):
            result = yield InTransaction(make_steps())
            return result
    result = yield InTransaction(make_steps())
    return result


def _apply_next(store: Store) -> Steps[str | None]:
    """Apply the first migration that is missing; its name."""
    yield Execute(_BEGIN)
    yield Execute(store.bind(_LOCK))
    present = yield from _applied(store)
    _refuse_newer(store, present)
    name = next((name for name in migrations() if name not in present), None)
    if name is None:
        return None
    if not present and not (yield Ask(store.bind(_HAS_SCHEMA)))[0][0]:
        yield Execute(store.bind("create schema {schema}"))
    yield Execute(store.bind(migrations()[name]))
    yield Execute(store.bind(_RECORD, has_placeholders=True), {"name": name})
    return name


def _uninstall(store: Store) -> Steps[bool]:
    def drop() -> Steps[bool]:
        yield Execute(_BEGIN)
        yield Execute(store.bind(_LOCK))
        if not (yield Ask(store.bind(_HAS_TABLE)))[0][0]:
            return False
        yield Execute(store.bind(_read("uninstall.sql")))
        return True

    try:
        return (yield from _in_transaction(drop))
    except errors.DependentObjectsStillExist as error:
        raise SchemaError(
            f"the schema {store.schema!r} was not removed: it holds objects that are not pgq_anyio's, or they depend "
            f"on it. Drop or move them first. PostgreSQL says: {error.diag.message_detail or error}"
        ) from None


def _check(store: Store) -> Steps[None]:
    present = yield from _applied(store)
    _refuse_newer(store, present)
    missing = [name for name in migrations() if name not in present]
    if not missing:
        return
    command = "pgq-anyio migrate" + ("" if store.schema == DEFAULT_SCHEMA else f" --schema {shlex.quote(store.schema)}")
    if present:
        raise SchemaError(
            f"the schema {store.schema!r} is older than this code (missing: {', '.join(missing)}): run `{command}`"
        )
    raise SchemaError(f"the database has no pgq_anyio tables in the schema {store.schema!r}: run `{command}`")


def _applied(store: Store) -> Steps[list[str]]:
    """The names of the migrations that the database has."""
    if not (yield Ask(store.bind(_HAS_TABLE)))[0][0]:
        return []
    return [row[0] for row in (yield Ask(store.bind(_APPLIED)))]


def _refuse_newer(store: Store, present: list[str]) -> None:
    unknown = [name for name in present if name not in migrations()]
    if unknown:
        raise SchemaError(
            f"the schema {store.schema!r} is newer than this code (unknown: {', '.join(unknown)}): "
            "install the pgq_anyio that made it, or a later one"
        )


def _refuse_transaction(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise RuntimeError(
            "the schema cannot be changed inside an open transaction: commit it, or use another connection"
        )
