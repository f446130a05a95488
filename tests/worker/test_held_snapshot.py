"""A worker while somebody holds an old snapshot: its looks at the queue start behind what it has done."""

from __future__ import annotations

from datetime import timedelta

import anyio
import psycopg
import pytest

from pgq_anyio import Job, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._hints import HIGHEST, LOWEST
from pgq_anyio._store.deferred import START
from pgq_anyio._strict_hints import StrictHints
from pgq_anyio.testing import running_worker

pytestmark = pytest.mark.anyio

JOBS = 400


@pytest.mark.promise(47)
async def test_the_hint_of_a_serialized_name_moves_on(app: PgQueuer, queries: Queries, dsn: str) -> None:
    """Transactions that hold a snapshot, or have written elsewhere, do not hold it back."""
    seen: list[bytes | None] = []
    all_done = anyio.Event()

    @app.entrypoint("fetch", serialized_dispatch=True)
    async def fetch(job: Job) -> None:
        seen.append(job.payload)
        if len(seen) == JOBS:
            all_done.set()

    with psycopg.connect(dsn) as reporter, psycopg.connect(dsn) as writer:
        reporter.execute("set transaction isolation level repeatable read")
        reporter.execute("select count(*) from pg_class")
        writer.execute("create temporary table elsewhere (one integer)")
        await queries.enqueue(["fetch"] * JOBS, [b"%d" % number for number in range(JOBS)])
        async with running_worker(app):
            with anyio.fail_after(30):
                await all_done.wait()
            assert app._worker is not None
            assert app._worker.term is not None
            hints = app._worker.term.limited.names["fetch"].hints
            assert isinstance(hints, StrictHints)
            with anyio.fail_after(20):  # it moves while jobs run, and with the looks of a worker that falls asleep
                while (lanes := hints.lanes()) is None:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            assert [0] == lanes.priorities
            assert [(LOWEST, 0), (0, HIGHEST)] == list(zip(lanes.gap_aboves, lanes.gap_belows, strict=True))
    assert [b"%d" % number for number in range(JOBS)] == seen


@pytest.mark.promise(9, 47)
async def test_promotion_starts_behind_what_was_moved_and_hears_of_what_lies_in_front(
    app: PgQueuer, queries: Queries, driver: PsycopgDriver
) -> None:
    """A transaction that defers a job and commits after later ones were moved: its job runs at once. No heartbeat could
    have told of it.
    """
    ran: list[bytes | None] = []

    @app.entrypoint("later")
    async def later(job: Job) -> None:
        ran.append(job.payload)

    async def wait_ran(payload: bytes) -> None:
        with anyio.fail_after(20):
            while payload not in ran:  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async with running_worker(app, lease=600):
        async with driver.connection() as connection, connection.transaction():
            await queries.enqueue("later", b"late", execute_after=timedelta(seconds=0.1), connection=connection)
            await queries.enqueue("later", b"soon", execute_after=timedelta(seconds=0.3))
            await wait_ran(b"soon")
            assert app._worker is not None
            assert app._worker.term is not None
            assert app._worker.term.promoter._behind > START
            assert [b"soon"] == ran
        await wait_ran(b"late")
