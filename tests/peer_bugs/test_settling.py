"""A handler that goes on after its timeout, or after the stop, keeps its row: the outcome waits for its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.from_thread
import pytest

from pgq_anyio import CancelReason, Context, Job, JobId, PgQueuer
from pgq_anyio._db import Connection
from pgq_anyio._store._sql import Store
from tests.store.conftest import store
from tests.store.scenes import add_jobs, rows, value

__all__ = ["store"]

pytestmark = [pytest.mark.anyio, pytest.mark.promise(23, 28, 35), pytest.mark.heavy]


class Stubborn:
    """A handler that sees that it is to end, and does not before the test says so."""

    def __init__(self) -> None:
        self.starts: list[JobId] = []
        self.told: list[CancelReason | None] = []
        self.release = threading.Event()
        self.ends: list[JobId] = []

    def tell(self, context: Context) -> bool:
        if not self.told and context.cancellation.cancel_called:
            self.told.append(context.cancel_reason)
        return self.release.is_set()

    async def in_the_loop(self, job: Job, context: Context) -> None:
        self.starts.append(job.id)
        with anyio.CancelScope(shield=True):
            while not self.tell(context):  # noqa: ASYNC110  (the thread waits for the same event)
                await anyio.sleep(0.005)
        self.ends.append(job.id)

    def in_a_thread(self, job: Job, context: Context) -> None:
        self.starts.append(job.id)
        while not self.tell(context):
            self.release.wait(0.005)
        self.ends.append(job.id)


async def wait_for(fact: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110  (handlers, also in threads, make it true)
            await anyio.sleep(0.005)


STATES = """
select 'running' as state, attempt from {schema}.running where entrypoint = 'stubborn'
union all select 'queued', attempt from {schema}.queued where entrypoint = 'stubborn'
union all select status, attempt from {schema}.finished where entrypoint = 'stubborn'
"""


@pytest.mark.parametrize("kind", ["in_the_loop", "in_a_thread"])
@pytest.mark.parametrize("cause", ["timeout", "stop"])
async def test_a_job_is_settled_only_when_its_handler_has_ended(
    dsn: str, store: Store, conn: Connection, kind: str, cause: str
) -> None:
    """Told of the timeout or the stop it goes on; until it ends the job is its worker's. Only then it has failed of the
    timeout, or is queued again.
    """
    app = PgQueuer(dsn, schema=store.schema)
    handler = Stubborn()
    reason = CancelReason.TIMEOUT if cause == "timeout" else CancelReason.SHUTDOWN
    app.entrypoint("stubborn", timeout=0.1 if cause == "timeout" else None)(getattr(handler, kind))
    ended = anyio.Event()

    async def run() -> None:
        await app.run(lease=2, shutdown_grace=0 if cause == "stop" else 60, cancel_grace=0.1)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await add_jobs(conn, store, name="stubborn")
        await wait_for(lambda: handler.starts)
        if cause == "stop":
            app.stop()
        await wait_for(lambda: handler.told)
        # Everything that could settle it gets through several times more, and the worker still beats.
        beat = await value(conn, store, "select beat from {schema}.worker")
        with anyio.fail_after(20):
            while await value(conn, store, "select beat from {schema}.worker") < beat + 2:
                assert [("running", 1)] == await rows(conn, store, STATES)
                await anyio.sleep(0.02)
        assert [] == handler.ends
        assert not ended.is_set()
        handler.release.set()
        with anyio.fail_after(20):
            settled = ("failed", 1) if cause == "timeout" else ("queued", 1)
            while await rows(conn, store, STATES) != [settled]:
                assert await rows(conn, store, STATES) in ([("running", 1)], [settled])
                await anyio.sleep(0.005)
        assert 1 == len(handler.ends)
        app.stop()
    assert [reason] == handler.told
    if cause == "timeout":
        assert [("JobTimeout",)] == await rows(conn, store, "select error_type from {schema}.finished")
