"""Tools for the tests of an application that uses pgq_anyio.

::

    async def test_fetch(app: PgQueuer) -> None:
        await run_job(app, "fetch", b"https://example.org")     # the handler alone, no database

    async def test_flow(app: PgQueuer, queries: Queries) -> None:
        async with running_worker(app):                         # a whole worker in the background
            await queries.enqueue("fetch", b"https://example.org")
            ...
        await drain(app)                                        # or: run until nothing is left
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
from anyio import CancelScope, CapacityLimiter

from ._app import PgQueuer
from ._context import Context, ExecutionTools, OuterScopes
from ._errors import first_leaf
from ._executors import ProcessPool
from ._models import Job, JobId
from ._registry import Executor, HandlerKind
from ._services.runner import call_handler

__all__ = ["drain", "run_job", "running_worker"]


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
        raise first_leaf(group) from None


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
        return await call_handler(executor, job, context, timeout)
    raise AssertionError("nobody cancels this scope")
