"""``pgq-anyio grants``: what each role of the database may do."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._store._sql import Store
from .._store.grants import Purpose, grants_sql
from .._store.migrations import check_schema_sync
from .messages import UsageError
from .options import SCHEMA, Dsn, Schema, Traceback, connect, invocation_of, open_database
from .show import counted


def grants(
    ctx: typer.Context,
    migrate: Annotated[
        str | None, typer.Option("--migrate", metavar="ROLE", help="Owns the tables, makes and changes them.")
    ] = None,
    produce: Annotated[
        list[str] | None,
        typer.Option("--produce", metavar="ROLE", help="Enqueues, reads nothing. May be repeated."),
    ] = None,
    operate: Annotated[
        list[str] | None,
        typer.Option("--operate", metavar="ROLE", help="Reads, cancels, requeues, changes schedules. May be repeated."),
    ] = None,
    work: Annotated[
        list[str] | None, typer.Option("--work", metavar="ROLE", help="Runs workers. May be repeated.")
    ] = None,
    read: Annotated[
        list[str] | None, typer.Option("--read", metavar="ROLE", help="Reads everything. May be repeated.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Run the SQL instead of printing it.")] = False,
    dsn: Dsn = None,
    schema: Schema = SCHEMA,
    traceback: Traceback = False,
) -> None:
    """Print the SQL that gives roles exactly the rights they need. Name a role for all that it does in one call.

    What it could do in the schema before is taken away. The roles must exist; but for --migrate, so must the tables.
    """
    roles: dict[Purpose, list[str]] = {
        Purpose.MIGRATE: [] if migrate is None else [migrate],
        Purpose.PRODUCE: produce or [],
        Purpose.OPERATE: operate or [],
        Purpose.WORK: work or [],
        Purpose.READ: read or [],
    }
    named = {role for some in roles.values() for role in some}
    if not named:
        raise UsageError("grants needs a role: name one with --migrate, --produce, --operate, --work or --read")
    text = grants_sql(schema, roles)
    if not apply:
        sys.stdout.write(text)
        return
    with open_database(ctx, dsn) as conninfo, connect(conninfo) as connection:
        if any(roles[purpose] for purpose in Purpose if purpose is not Purpose.MIGRATE):
            check_schema_sync(connection, Store(schema))
        connection.execute(text)
    sys.stdout.write(
        f"{counted(len(named), 'role')} may now use the schema {schema!r} in {invocation_of(ctx).database}: "
        f"{', '.join(sorted(named))}\n"
    )
