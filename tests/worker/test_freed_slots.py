"""A slot that becomes free while its worker goes away is taken by another one, long before its poll."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pgq_anyio import Job, JobId, JobStatus, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio._limited_name import LimitedName
from pgq_anyio._services import heartbeat
from pgq_anyio._store._sql import Store
from pgq_anyio._store.worker import Pulse, beat_worker
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

#: No poll: what is found is found because somebody said so.
PATIENT: dict[str, Any] = {"dequeue_timeout": 3600, "shutdown_grace": 3600}


async def wait_for(fact: Callable[[], object]) -> None:
    """Look at a fact of this process until it is true."""
    with anyio.fail_after(20):
        while not fact():  # noqa: ASYNC110  (a fact that it can only be looked at)
            await anyio.sleep(0.005)


def known(app: PgQueuer, name: str = "limited") -> LimitedName:
    """What the worker of an app knows of a limited name."""
    assert app._worker is not None
    assert app._worker.term is not None
    return app._worker.term.limited.names[name]


def rests(app: PgQueuer) -> bool:
    """Whether its worker has seen that the name is full, and waits for news."""
    one = known(app)
    return one.resting and not one.empty


class Other:
    """A worker that takes what others leave."""

    def __init__(self, dsn: str, schema: str, **limits: Any) -> None:
        self.app = PgQueuer(dsn, schema=schema)
        self.ran: list[JobId] = []
        self.app.entrypoint("limited", **limits)(self._run)

    async def _run(self, job: Job) -> None:
        self.ran.append(job.id)


@pytest.mark.promise(6, 19)
@pytest.mark.parametrize(
    "limits", [{"concurrency_limit": 1}, {"serialized_dispatch": True}], ids=["limit", "serialized"]
)
@pytest.mark.parametrize("also", [(), ("free",)], ids=["limited", "both"])
async def test_a_worker_that_saw_a_full_name_hears_of_jobs_after_the_only_idle_one_has_left(
    dsn: str, schema: str, queries: Queries, app: PgQueuer, limits: dict[str, Any], also: tuple[str, ...]
) -> None:
    """While the name was full it asked for nothing and was told nothing. The other worker ran the last job, became the
    one that enqueuers notify, and has left.
    """
    started, release = anyio.Event(), anyio.Event()

    @app.entrypoint("limited", **limits)
    async def limited(job: Job) -> None:
        started.set()
        await release.wait()

    for name in also:
        app.entrypoint(name)(limited)
    other = Other(dsn, schema, **limits)
    async with anyio.create_task_group() as tasks:
        # With small batches it has room at any time: without, it tells others at once of the slot that becomes free.
        await tasks.start(partial(app.run, batch_size=10, **PATIENT))
        await queries.enqueue("limited")
        with anyio.fail_after(20):
            await started.wait()
        await tasks.start(partial(other.app.run, **PATIENT))
        await wait_for(partial(rests, other.app))
        release.set()
        await wait_for(lambda: known(app).empty and known(app).resting)
        assert rests(other.app)
        app.stop()
        await wait_for(lambda: app._worker is None)
        (job_id,) = await queries.enqueue("limited")
        await wait_for(lambda: [job_id] == other.ran)
        other.app.stop()


@pytest.mark.promise(18, 19, 36, 37)
@pytest.mark.parametrize("kind", ["thread", "shielded"])
@pytest.mark.parametrize("end", ["stop", "cancel", "failure", "lease"])
async def test_a_slot_is_taken_by_another_worker_while_its_own_is_being_ended(
    dsn: str, schema: str, queries: Queries, app: PgQueuer, kind: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler ends in its own time, and another one of the same worker goes on: the worker is not gone yet."""
    release, hold = threading.Event(), anyio.Event()
    ended: list[JobId] = []

    async def shielded(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(release.wait)

    def in_thread(job: Job) -> None:
        release.wait()

    @app.entrypoint("longer")
    async def longer(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            await hold.wait()
        ended.append(job.id)

    app.entrypoint("limited", concurrency_limit=1)(shielded if kind == "shielded" else in_thread)
    other = Other(dsn, schema, concurrency_limit=1)
    running, _ = await queries.enqueue(["limited", "longer"])
    async with anyio.create_task_group() as tasks:
        try:
            scope = anyio.CancelScope()

            async def run() -> None:
                with scope, contextlib.suppress(ZeroDivisionError):
                    await app.run(**PATIENT)

            tasks.start_soon(run)
            await wait_status(queries, running, JobStatus.RUNNING)
            await tasks.start(partial(other.app.run, **PATIENT))
            (waiting,) = await queries.enqueue("limited")
            await wait_for(partial(rests, other.app))
            worker = app._worker
            assert worker is not None
            assert worker.term is not None
            match end:
                case "stop":
                    app.stop()
                case "cancel":
                    scope.cancel()
                case "failure":
                    fail_for(worker.term.worker_id, monkeypatch)
                    worker.term.heart.beat_soon()
                case "lease":
                    worker.term.lease.scope.cancel()
            await wait_for(worker.is_leaving)
            release.set()
            await wait_for(lambda: [waiting] == other.ran)
            assert [] == ended
        finally:
            release.set()
            hold.set()
            if not scope.cancel_called:
                app.stop()
            other.app.stop()


def fail_for(failing_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next heartbeat of a worker fail in a way that no retry can mend."""
    beat = beat_worker

    async def beat_or_fail(conn: Connection, store: Store, *, worker_id: int, **options: Any) -> Pulse | None:
        if worker_id == failing_id:
            raise ZeroDivisionError
        return await beat(conn, store, worker_id=worker_id, **options)

    monkeypatch.setattr(heartbeat, "beat_worker", beat_or_fail)
