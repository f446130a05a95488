"""``pgq-anyio migrate`` and ``pgq-anyio uninstall``: the tables in the database."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._store.migrations import migrate_sync, migration_sql, uninstall_sync
from .messages import UsageError
from .options import SCHEMA, Dsn, Schema, Traceback, connect, invocation_of, open_database
from .show import counted


def migrate(
    ctx: typer.Context,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a new database instead of running it.")] = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Make the tables, or bring them up to date. Does no harm when there is nothing to do."""
    if sql:
        sys.stdout.write(migration_sql(schema))
        return
    with open_database(ctx, dsn) as conninfo, connect(conninfo) as connection:
        applied = migrate_sync(connection, schema)
    where = f"the schema {schema!r} in {invocation_of(ctx).database}"
    if applied:
        sys.stdout.write(
            f"{where} is up to date: applied {counted(len(applied), 'migration')} ({', '.join(applied)})\n"
        )
    else:
        sys.stdout.write(f"{where} is up to date; there was nothing to do\n")


def uninstall(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Remove the tables with all jobs in them. Does no harm when there are none."""
    with open_database(ctx, dsn) as conninfo, connect(conninfo) as connection:
        where = f"the schema {schema!r} in {invocation_of(ctx).database}"
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"uninstall removes {where} with all jobs in it: say that you mean it with --yes")
            typer.confirm(f"remove {where} with all jobs in it?", abort=True, err=True)
        removed = uninstall_sync(connection, schema)
    sys.stdout.write(f"{where} {'has been removed' if removed else 'does not exist; there was nothing to do'}\n")
