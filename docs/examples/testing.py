"""Tests of an application: a handler alone, and the whole way through the queue. Run it with pytest."""

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from pgq_anyio import Job, JobTimeout, PgQueuer, PsycopgDriver, Queries
from pgq_anyio.testing import drain, run_job, running_worker, temporary_database, temporary_schema

orders: list[str] = []

pytestmark = pytest.mark.anyio


async def order(job: Job) -> None:
    if job.payload is None:
        await anyio.sleep_forever()
    orders.append((job.payload or b"").decode())


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A server for all tests; any other database does as well."""
    with temporary_database() as dsn:
        yield dsn


@pytest.fixture
def app(dsn: str) -> Iterator[PgQueuer]:
    """The application, on tables of the test's own."""
    with temporary_schema(dsn) as schema:
        app = PgQueuer(dsn, schema=schema)
        app.entrypoint("order", timeout=0.2)(order)
        orders.clear()
        yield app


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loops that the tests run on."""
    return str(request.param)


@pytest.fixture
async def queries(anyio_backend: str, app: PgQueuer, dsn: str) -> AsyncIterator[Queries]:
    """A producer."""
    async with PsycopgDriver(dsn) as driver:
        yield Queries(driver, schema=app.schema)


async def test_the_handler_alone() -> None:
    """Needs no database. What the handler raises is raised here."""
    app = PgQueuer()
    app.entrypoint("order", timeout=0.2)(order)
    await run_job(app, "order", b"tea")
    assert orders[-1] == "tea"
    with pytest.raises(JobTimeout):
        await run_job(app, "order")


async def test_all_that_was_enqueued(app: PgQueuer, queries: Queries) -> None:
    """Run a worker until nothing is left for the names of the app, retries and deferred jobs included."""
    await queries.enqueue(["order"] * 2, [b"tea", b"milk"])
    await drain(app)
    assert sorted(orders) == ["milk", "tea"]


async def test_while_a_worker_runs(app: PgQueuer, queries: Queries) -> None:
    """Run a worker beside the test."""
    async with running_worker(app):
        await queries.enqueue("order", b"tea")
        with anyio.fail_after(5):
            while not orders:
                await anyio.sleep(0.01)
    assert orders == ["tea"]
