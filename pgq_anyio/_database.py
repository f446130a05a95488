"""From what the user gave to an open driver on a schema that fits.

An embedded database is migrated without asking: it is nobody else's. On a server the worker never changes the schema by
itself; it says what is wrong and names the command.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread

from ._db import PsycopgDriver
from ._embedded import EmbeddedServer
from ._errors import ConfigurationError
from ._settings import find_database, find_direct_dsn, redacted
from ._store._sql import Store
from ._store.migrations import check_schema, migrate

logger = logging.getLogger("pgq_anyio")

#: How long an embedded server may take to stop (in seconds) before it is left to its guardian.
STOP_TIMEOUT = 15.0
#: How long to wait for a connection of a driver that others use, too (in seconds): perhaps they wait for this worker.
PATIENCE = 30.0


@asynccontextmanager
async def open_database(
    source: str | PsycopgDriver | None,
    store: Store,
    *,
    direct_dsn: str | None = None,
    migrate_first: bool = False,
) -> AsyncIterator[PsycopgDriver]:
    """Open the database that ``source`` stands for.

    :param source: a DSN, a driver (left open if it was open), or ``None`` for what the environment says
    :param direct_dsn: a way around the pooler, for listening; ``None`` for what the environment says. A driver has its
        own.
    :param migrate_first: whether to bring the schema up to date, as is always done with an embedded database
    :raises ConfigurationError: if a DSN cannot be used
    :raises SchemaError: if the schema is missing, old, or newer than this code
    :raises psycopg.OperationalError: if the server cannot be reached
    """
    async with AsyncExitStack() as stack:
        if isinstance(source, PsycopgDriver):
            if direct_dsn is not None:
                raise ConfigurationError(
                    "--direct-dsn belongs to a DSN, and this app has a driver: give that one direct_conninfo, "
                    "or name the database with --dsn too"
                )
            driver = source
            if not driver.is_open:
                await stack.enter_async_context(driver)
        else:
            found = find_database(source, os.environ, argument_name="the app's DSN")
            direct = find_direct_dsn(direct_dsn, os.environ, found)
            if direct is not None:
                logger.info("listening for notifications on %s", redacted(direct))
            conninfo = found.conninfo
            if conninfo is None:
                conninfo = await stack.enter_async_context(open_embedded())
            driver = await stack.enter_async_context(PsycopgDriver(conninfo, direct_conninfo=direct))
            migrate_first = migrate_first or found.is_embedded
        if migrate_first:
            async with driver.connection(PATIENCE) as conn:
                await migrate(conn, store.schema)
        async with driver.connection(PATIENCE) as conn:
            await check_schema(conn, store)
        yield driver


@asynccontextmanager
async def open_embedded() -> AsyncIterator[str]:
    """The embedded database of this project; its DSN."""
    server = EmbeddedServer()
    conninfo = await anyio.to_thread.run_sync(server.__enter__)
    logger.info("using the embedded database in %s", server.directory)
    try:
        yield conninfo
    finally:
        with anyio.move_on_after(STOP_TIMEOUT, shield=True):
            await anyio.to_thread.run_sync(server.__exit__, None, None, None, abandon_on_cancel=True)
