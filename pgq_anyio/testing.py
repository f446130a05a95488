"""Tools for the tests of an application that uses pgq_anyio.

::

    async def test_fetch(app: PgQueuer) -> None:
        await run_job(app, "fetch", b"https://example.org")     # the handler alone, no database

    async def test_flow(app: PgQueuer, queries: Queries) -> None:
        async with running_worker(app):                         # a whole worker in the background
            await queries.enqueue("fetch", b"https://example.org")
            ...
        await drain(app)                                        # or: run until nothing is left

``temporary_database`` and ``temporary_schema`` give such tests tables of their own. They block, as fixtures may: an
event loop is not needed yet.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
from anyio import CancelScope, CapacityLimiter
from psycopg import sql

from ._app import PgQueuer
from ._context import Context, ExecutionTools, OuterScopes
from ._db.defaults import connect_blocking
from ._db.inner_scopes import watch_inner_scopes
from ._embedded import EmbeddedServer
from ._errors import first_leaf
from ._executors import ProcessPool
from ._models import Job, JobId
from ._registry import Executor, HandlerKind
from ._services.runner import call_handler
from ._settings import read_dsn
from ._store._sql import Store
from ._store.migrations import migrate_sync

__all__ = ["drain", "run_job", "running_worker", "temporary_database", "temporary_schema"]

#: How long the removal of a temporary schema may wait for a connection that was left open in it (in seconds).
DROP_PATIENCE = 10.0


@contextmanager
def temporary_database(options: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run an empty PostgreSQL server for the length of the block, and remove it afterwards.

    It listens on a unix socket only and does not sync to disk. The tables are made by :func:`temporary_schema`. Needs
    the extra ``embedded``.

    :param options: further settings of the server, such as ``{"max_connections": "200"}``
    :return: a context manager that gives the DSN
    :raises ConfigurationError: if the embedded server is not installed, or a setting is none, or one of ours
    :raises PgqError: if PostgreSQL does not start with these settings; the message has the end of its log
    """
    with EmbeddedServer(ephemeral=True, options=options or {}) as dsn:
        yield dsn


@contextmanager
def temporary_schema(dsn: str, name: str | None = None) -> Iterator[str]:
    """Make the tables in a schema of their own, which is removed with all jobs when the block ends.

    :param dsn: any database; nothing outside of the schema is touched
    :param name: the name of the schema, which must not exist yet. Defaults to a fresh one.
    :return: a context manager that gives the name, for ``PgQueuer(dsn, schema=name)`` and ``Queries(driver,
        schema=name)``
    :raises ConfigurationError: if the name or the DSN cannot be used
    :raises psycopg.errors.DuplicateSchema: if there is such a schema
    :raises psycopg.errors.LockNotAvailable: when the block ends, if a transaction in the schema is still open
    """
    schema = Store(name or f"test_{secrets.token_hex(8)}").schema
    identifier = sql.Identifier(schema)
    dsn = read_dsn(dsn, "dsn")
    with connect_blocking(dsn) as connection:
        connection.execute(sql.SQL("create schema {}").format(identifier))
        try:
            migrate_sync(connection, schema)
            yield schema
        finally:
            # Not by the connection of before: it may have been lost meanwhile.
            with connect_blocking(dsn) as other:
                other.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{int(DROP_PATIENCE * 1000)}ms")))
                other.execute(sql.SQL("drop schema if exists {} cascade").format(identifier))


@asynccontextmanager
async def running_worker(app: PgQueuer, **options: Any) -> AsyncIterator[PgQueuer]:
    """Run a worker in the background of the block. It is registered and listens when the block begins; it stops
    gracefully when the block ends, and its jobs are cancelled and given back if the block raises.

    :param app: the app to run
    :param options: as for :meth:`PgQueuer.run`
    :return: an async context manager that gives the app
    """
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(app.run, **options))
            yield app
            app.stop()
    except BaseExceptionGroup as group:
        raise first_leaf(group, cancelled=anyio.get_cancelled_exc_class()) from None


async def drain(app: PgQueuer, **options: Any) -> None:
    """Run a worker until no job is left for the app's names, retries and deferred jobs included.

    :param app: the app to run
    :param options: as for :meth:`PgQueuer.run`
    """
    await app.run(mode="drain", **options)


async def run_job(
    app: PgQueuer,
    name: str,
    payload: bytes | None = None,
    *,
    priority: int = 0,
    attempt: int = 1,
    resources: Any = None,
) -> None:
    """Call the handler of an entrypoint as a worker would, without a database: in its own scope, with a context and its
    timeout, in a thread or process if that is how it runs.

    :param app: the app that registered the handler
    :param name: the name of the entrypoint
    :param payload: the payload of the job
    :param priority: the priority of the job
    :param attempt: the number of the attempt, from 1
    :param resources: what ``ctx.resources`` is
    :raises LookupError: if the app has no such entrypoint
    :raises JobTimeout: if the handler ran longer than its ``timeout``

    Whatever else the handler raises is raised here.
    """
    entrypoint = app._registry.entrypoints.get(name)
    if entrypoint is None:
        known = ", ".join(sorted(app._registry.entrypoints)) or "none"
        raise LookupError(f"the app has no entrypoint {name!r}; it has: {known}")
    job = Job(JobId(1), name, payload, priority, attempt, 0, datetime.now(UTC))
    if entrypoint.executor.kind is HandlerKind.PROCESS:
        async with ProcessPool(1) as pool:
            error = await _call(entrypoint.executor, job, entrypoint.timeout, resources, pool)
    else:
        error = await _call(entrypoint.executor, job, entrypoint.timeout, resources, None)
    if error is not None:
        raise error


async def _call(
    executor: Executor, job: Job, timeout: float | None, resources: Any, pool: ProcessPool | None
) -> BaseException | None:
    context = Context(
        job=job,
        schedule=None,
        resources=resources,
        tools=ExecutionTools(CapacityLimiter(1), pool, cancel_grace=5.0),
        outer=OuterScopes(CancelScope(), CancelScope()),
    )
    with CancelScope() as scope:
        context.open(scope)
        return await call_handler(executor, job, context, watch_inner_scopes(), timeout)
    raise AssertionError("nobody cancels this scope")
