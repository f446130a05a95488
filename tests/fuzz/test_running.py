"""Apps that run, and are given or asked for anything: no job is lost, and none is found that does not run."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import anyio
import pytest

from pgq_anyio import ConfigurationError, Job, JobStatus, PgQueuer, PsycopgDriver, Queries, current_context
from pgq_anyio.testing import drain, run_job, running_worker
from tests.fuzz.values import ENDS

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

NUMBERS_OF_NO_JOB = [number for number in ENDS if not 0 < number < 1000]
NO_IDS: tuple[Any, ...] = (
    *(None, "", "1", "\ud800", "'; drop table queued; --", b"1", 1.5, math.nan, math.inf),
    *([1], (1,), {1}, {1: 1}, [], object(), len, AsyncExitStack),
)


def generate() -> Iterator[int]:
    """As a lifespan looks whose decorator was forgotten."""
    yield 1


async def generate_later() -> AsyncIterator[int]:
    """As above."""
    yield 1


class NeverLeft:
    """A lifespan without an end."""

    async def __aenter__(self) -> int:
        return 1


#: What can be called, but gives no async context manager.
LIFESPANS: tuple[Callable[..., Any], ...] = (
    *(dict, list, object, int, type, len),
    *(generate, generate_later, contextmanager(generate), NeverLeft, PgQueuer, lambda needed: needed),
    *(lambda: None, lambda: "lifespan", lambda: AsyncExitStack),
)


async def run_with(lifespan: Callable[..., Any], driver: PsycopgDriver, schema: str) -> None:
    """An app with a handler, until nothing is left to do."""
    app = PgQueuer(driver, schema=schema, lifespan=lifespan)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    await app.run(mode="drain")


async def test_lifespans_that_are_none(dsn: str, schema: str) -> None:
    """The worker, if there can be one, ends with an error of type, says goodbye, and has touched no job."""
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        (job_id,) = await queries.enqueue("fetch")
        for lifespan in LIFESPANS:
            with anyio.fail_after(20), pytest.raises((ConfigurationError, TypeError)):
                await run_with(lifespan, driver, schema)
            assert [] == await queries.workers(), lifespan
        record = await queries.get_job(job_id)
        assert record is not None
        assert (JobStatus.QUEUED, 1, 0) == (record.status, record.attempt, record.crashes)


def ask(app: PgQueuer) -> None:
    """Ask for the context of what is no running job."""
    for number in NUMBERS_OF_NO_JOB:
        with pytest.raises(LookupError):
            app.get_context(number)  # type: ignore[arg-type]
    for value in NO_IDS:
        with pytest.raises((LookupError, ConfigurationError)):
            app.get_context(value)


async def test_contexts_of_no_job(dsn: str, schema: str) -> None:
    """There is none before a worker, in one that is idle, beside a running job, and inside of it."""
    app = PgQueuer(dsn, schema=schema)
    running, asked = anyio.Event(), anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        running.set()
        ask(app)
        assert app.get_context(job.id) is current_context()
        await asked.wait()

    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        ask(app)
        async with running_worker(app):
            ask(app)
            (job_id,) = await queries.enqueue("fetch")
            with anyio.fail_after(20):
                await running.wait()
            ask(app)
            asked.set()
        await drain(app)
        assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    await run_job(app, "fetch")
