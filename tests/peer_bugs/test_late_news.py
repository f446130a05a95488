"""A cancel request that is heard late: it is about one attempt, and touches none that came after it."""

from __future__ import annotations

import anyio
import pytest

from pgq_anyio import CancelReason, Context, Job, JobStatus, PgQueuer, PsycopgDriver, Queries
from pgq_anyio._db import Connection
from pgq_anyio._services.listener import worker_channel
from pgq_anyio._store._sql import Store
from pgq_anyio._term import Term
from pgq_anyio.testing import running_worker
from tests.store.conftest import store
from tests.store.scenes import rows, value

__all__ = ["store"]

pytestmark = [pytest.mark.anyio, pytest.mark.promise(24, 25), pytest.mark.heavy]


async def beat_again(conn: Connection, store: Store, term: Term) -> None:
    """Wait for the answer to a heartbeat that begins now: its predecessor's has been taken in."""
    before = await value(conn, store, "select beat from {schema}.worker")
    with anyio.fail_after(20):
        while await value(conn, store, "select beat from {schema}.worker") < before + 2:
            term.heart.beat_soon()
            await anyio.sleep(0.005)


async def test_a_late_cancel_leaves_a_newer_attempt_alone(dsn: str, store: Store, conn: Connection) -> None:
    """The notification of a cancel is held up until the cancelled job was requeued and runs again, on the same worker.
    Then it arrives, and so does the old answer to a heartbeat: nothing happens.
    """
    app = PgQueuer(dsn, schema=store.schema)
    runs: list[Context] = []
    release = anyio.Event()
    held_up: list[str] = []
    claims: list[int] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        runs.append(context)
        await release.wait()

    async with PsycopgDriver(dsn) as driver, running_worker(app):
        queries = Queries(driver, schema=store.schema)
        assert app._worker is not None
        term = app._worker.term
        assert term is not None
        hear = term.ear.on_notification

        def hold_up(payload: str) -> None:
            (held_up.append if payload.startswith("cancel:") else hear)(payload)

        async def wait_run() -> None:
            number = len(claims) + 1
            with anyio.fail_after(20):
                while len(runs) < number:  # noqa: ASYNC110  (the handler fills the list)
                    await anyio.sleep(0.002)
            claims.append(await value(conn, store, "select claim_no from {schema}.running"))

        async def wait_status(status: JobStatus) -> None:
            with anyio.fail_after(20):
                while await queries.job_status([job_id]) != {job_id: status}:  # noqa: ASYNC110  (a fact of the database)
                    await anyio.sleep(0.002)

        term.ear.on_notification = hold_up
        (job_id,) = await queries.enqueue("fetch")
        await wait_run()
        await queries.mark_job_as_cancelled([job_id])
        await beat_again(conn, store, term)  # the request is delivered all the same
        await wait_status(JobStatus.CANCELLED)
        with anyio.fail_after(20):
            while not held_up:  # noqa: ASYNC110  (the listener fills the list)
                await anyio.sleep(0.002)
        assert [f"cancel:{term.worker_id}:{job_id}.{claims[0]}"] == held_up
        assert [job_id] == await queries.requeue([job_id])
        await wait_run()
        assert claims[0] < claims[1]

        term.ear.on_notification = hear
        await rows(conn, store, "select pg_notify(%s, %s)", worker_channel(term.worker_id), held_up[0])
        hear(held_up[0])
        assert not term.heart.deliver([(job_id, claims[0])])
        await beat_again(conn, store, term)
        assert {job_id: JobStatus.RUNNING} == await queries.job_status([job_id])
        release.set()
        await wait_status(JobStatus.SUCCESSFUL)
    assert [CancelReason.USER, None] == [one.cancel_reason for one in runs]
