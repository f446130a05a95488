"""Two schemas in one database know nothing of each other, although names, ids and clocks are the same in both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import anyio
import attrs
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, PsycopgDriver, Queries, Schedule
from pgq_anyio._db import Connection
from pgq_anyio._store.migrations import uninstall
from pgq_anyio.testing import drain, running_worker, temporary_schema
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.promise(45)]

YEARLY = "0 0 1 1 *"


@attrs.define(eq=False)
class Side:
    """An app with its producer, and what its handlers have done."""

    app: PgQueuer
    queries: Queries
    release: anyio.Event = attrs.field(factory=anyio.Event)
    running: list[int] = attrs.field(factory=list)
    occurrences: int = 0

    def register(self) -> None:
        @self.app.entrypoint("hold", serialized_dispatch=True)
        async def hold(job: Job) -> None:
            self.running.append(job.id)
            await self.release.wait()

        @self.app.entrypoint("rated", requests_per_second=0.1)
        async def rated(job: Job) -> None: ...

        @self.app.schedule("report", YEARLY)
        async def report(schedule: Schedule) -> None:
            self.occurrences += 1


@pytest.fixture
async def sides(driver: PsycopgDriver, dsn: str, schema: str) -> AsyncIterator[tuple[Side, Side]]:
    """Two of them."""
    with temporary_schema(dsn) as other:
        both = [Side(PgQueuer(dsn, schema=name), Queries(driver, schema=name)) for name in (schema, other)]
        for side in both:
            side.register()
        yield both[0], both[1]


async def wait_until(fact: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not fact():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_limits_rates_cancels_and_schedules(sides: tuple[Side, Side]) -> None:
    """A full limit, a spent token, a cancel, a pause and a request to run are those of one schema."""
    ours, theirs = sides
    async with running_worker(ours.app), running_worker(theirs.app):
        ids = [await side.queries.enqueue(["hold", "rated"]) for side in sides]
        assert ids[0] == ids[1], "the same ids mean different jobs"
        await wait_until(lambda: ours.running and theirs.running)
        for side in sides:
            await wait_status(side.queries, ids[0][1], JobStatus.SUCCESSFUL)
        await ours.queries.pause_schedule("report")
        await theirs.queries.run_schedule("report")
        await wait_until(lambda: theirs.occurrences)
        assert ids[0][:1] == await ours.queries.mark_job_as_cancelled(ids[0][:1])
        await wait_status(ours.queries, ids[0][0], JobStatus.CANCELLED)
        assert JobStatus.RUNNING == (await theirs.queries.job_status(ids[0]))[ids[0][0]]
        assert [1, 1] == [len(await side.queries.workers()) for side in sides]
        assert [True, False] == [(await side.queries.schedules())[0].paused for side in sides]
        theirs.release.set()
    assert (0, 1) == (ours.occurrences, theirs.occurrences)
    assert JobStatus.SUCCESSFUL == (await theirs.queries.job_status(ids[0]))[ids[0][0]]


async def test_draining_and_removing(sides: tuple[Side, Side], dsn: str) -> None:
    """One is drained and then removed with all it has, while a job of the other runs."""
    ours, theirs = sides
    await theirs.queries.enqueue(["hold", "hold"])
    ours.release.set()
    async with running_worker(theirs.app):
        await wait_until(lambda: theirs.running)
        await ours.queries.enqueue("hold")
        with anyio.fail_after(10):
            await drain(ours.app)
        assert 1 == len(ours.running)
        async with await Connection.connect(dsn) as connection:
            assert await uninstall(connection, ours.app.schema)
        assert {"hold": 1} == await theirs.queries.queue_size()
        theirs.release.set()
        await wait_until(lambda: 2 == len(theirs.running))
