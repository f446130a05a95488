"""``on_lease_lost``: jobs of a worker that lets them go on when its lease is over, and what counts of them."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, ClassVar

import anyio
import attrs
import pytest
from anyio.abc import TaskGroup

from pgq_anyio import AbstractEntrypointExecutor, Context, Job, JobStatus, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio._models import JobId
from pgq_anyio._store import limiter
from pgq_anyio._store._sql import Store
from pgq_anyio._term import registration
from pgq_anyio.testing import running_worker
from tests.store.scenes import rows
from tests.worker.proxy import Proxy
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]

LEASE = 2.0
DECLARED_DEAD = "has been declared dead by another one: its jobs go on"


@attrs.define(eq=False)
class Handler:
    """Runs until it is let go, and notes when it started and how it ended."""

    app: PgQueuer
    started: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    may_end: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    notes: list[tuple[JobId, str]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.app.entrypoint("work")(self.run)

    async def run(self, job: Job) -> None:
        self.notes.append((job.id, "start"))
        self.started.set()
        try:
            await self.may_end.wait()
        except anyio.get_cancelled_exc_class():
            self.notes.append((job.id, "cancelled"))
            raise
        self.notes.append((job.id, "end"))


class Unstarted(AbstractEntrypointExecutor):
    """Waits to start, for ever."""

    waits: ClassVar[set[JobId]] = set()

    async def execute(self, job: Job, context: Context) -> None:
        with context.waiting():
            self.waits.add(job.id)
            try:
                await anyio.sleep_forever()
            finally:
                self.waits.remove(job.id)


async def wait_said(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with anyio.fail_after(30):
        while text not in caplog.text:  # noqa: ASYNC110  (the log tells nobody)
            await anyio.sleep(0.01)


@attrs.define(eq=False)
class Scene:
    """A worker that was declared dead while its job runs, and the one that has the job now."""

    lost: Handler
    owner: Handler
    job_id: JobId

    @classmethod
    async def open(
        cls,
        tasks: TaskGroup,
        dsn: str,
        proxy: Proxy,
        queries: Queries,
        schema: str,
        caplog: pytest.LogCaptureFixture,
        *,
        owners: TaskGroup | None = None,
        **options: Any,
    ) -> Scene:
        """Cut off the heartbeats of the first worker, for so long that the second runs its job.

        :param tasks: where the first worker runs, and the second as well unless there are ``owners``
        """
        lost = Handler(PgQueuer(proxy.dsn, schema=schema))
        owner = Handler(PgQueuer(dsn, schema=schema))
        options = {"lease": LEASE, "on_lease_lost": "continue", **options}
        with caplog.at_level(logging.WARNING, "pgq_anyio"):
            lost.app.entrypoint("never", executor_factory=Unstarted)(lost.run)
            await tasks.start(partial(lost.app.run, **options))
            job_id, _ = await queries.enqueue(["work", "never"])
            await lost.started.wait()
            while not Unstarted.waits:  # noqa: ASYNC110  (a list)
                await anyio.sleep(0.01)
            proxy.silence("heartbeat")
            await (owners or tasks).start(partial(owner.app.run, lease=LEASE))
            await owner.started.wait()
            proxy.forget()
            await wait_said(DECLARED_DEAD, caplog)
        assert [(job_id, "start")] == lost.notes
        return cls(lost, owner, job_id)


async def test_jobs_go_on_and_what_they_come_to_is_refused(
    dsn: str, proxy: Proxy, queries: Queries, conn: Connection, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing new is claimed before they have ended. Then the worker registers anew and goes on."""
    store = Store(schema)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            scene = await Scene.open(tasks, dsn, proxy, queries, schema, caplog)
            claim_of_owner = "select * from {schema}.running where job_id = %s"
            claims = await rows(conn, store, claim_of_owner, scene.job_id)
            assert 1 == len(claims)
            while Unstarted.waits:  # noqa: ASYNC110  (a list; what had not started never does)
                await anyio.sleep(0.01)
            assert 1 == len(await rows(conn, store, "select worker_id from {schema}.worker"))
            scene.owner.app.stop()  # its job may end, and the next one is not for it
            (waiting,) = await queries.enqueue("work")
            await anyio.sleep(0.3)  # by now a worker that claims would have it
            scene.lost.may_end.set()
            await wait_status(queries, waiting, JobStatus.SUCCESSFUL)
            events = [(scene.job_id, "start"), (scene.job_id, "end"), (waiting, "start"), (waiting, "end")]
            assert events == scene.lost.notes
            assert claims == await rows(conn, store, claim_of_owner, scene.job_id)
            scene.owner.may_end.set()
            await wait_status(queries, scene.job_id, JobStatus.SUCCESSFUL)
            scene.lost.app.stop()
    query = "select job_id, attempt, crashes, worker_id from {schema}.finished order by job_id"
    of_owner, of_lost = await rows(conn, store, query)
    assert ((scene.job_id, 1, 1, claims[0][1]), (waiting, 1, 0)) == (of_owner, of_lost[:3])


@pytest.mark.parametrize("end", ["stop", "cancel"])
async def test_a_stop_reaches_jobs_that_go_on(
    dsn: str, proxy: Proxy, queries: Queries, schema: str, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """With its grace, or, by the scope around ``run()``, without."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as lost_tasks:
            grace = 0.2 if end == "stop" else 3600.0
            scene = await Scene.open(
                lost_tasks, dsn, proxy, queries, schema, caplog, owners=tasks, shutdown_grace=grace
            )
            if end == "stop":
                scene.lost.app.stop()
            else:
                lost_tasks.cancel_scope.cancel()
            scene.owner.may_end.set()
            scene.owner.app.stop()
    assert [(scene.job_id, "start"), (scene.job_id, "cancelled")] == scene.lost.notes
    assert {scene.job_id: JobStatus.SUCCESSFUL} == await queries.job_status([scene.job_id])


async def test_a_lease_that_nobody_else_takes_goes_on(
    proxy: Proxy, queries: Queries, conn: Connection, schema: str
) -> None:
    """Cut off for longer than its lease, alone: the worker, its jobs and what they come to are as good as before."""
    store = Store(schema)
    handler = Handler(PgQueuer(proxy.dsn, schema=schema))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(handler.app.run, lease=LEASE, on_lease_lost="continue"))
            (job_id,) = await queries.enqueue("work")
            await handler.started.wait()
            (registered,) = await rows(conn, store, "select worker_id from {schema}.worker")
            proxy.silence()
            await anyio.sleep(LEASE + 0.5)
            proxy.forget()
            handler.may_end.set()
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
            (after,) = await queries.enqueue("work")
            await wait_status(queries, after, JobStatus.SUCCESSFUL)
            assert [registered] == await rows(conn, store, "select worker_id from {schema}.worker")
            handler.app.stop()
    ended = await rows(conn, store, "select job_id, attempt, crashes, worker_id from {schema}.finished order by 1")
    assert [(job_id, 1, 0, *registered), (after, 1, 0, *registered)] == ended


@pytest.mark.parametrize(
    ("on_lease_lost", "events"),
    [("cancel", ["start", "cancelled", "start", "end"]), ("continue", ["start", "start", "end", "end"])],
)
async def test_a_claim_that_the_server_has_forgotten(
    dsn: str, queries: Queries, conn: Connection, schema: str, on_lease_lost: Any, events: list[str]
) -> None:
    """A crash of the server may undo a claim, and the job is claimed again: only the second one counts."""
    store, handler = Store(schema), Handler(PgQueuer(dsn, schema=schema))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(handler.app.run, on_lease_lost=on_lease_lost))
            (job_id,) = await queries.enqueue("work")
            await handler.started.wait()
            await rows(conn, store, "update {schema}.running set claim_no = 0 returning job_id")
            worker = handler.app._worker
            assert worker is not None
            assert worker.term is not None
            worker.term.heart.compare_soon()
            while [event for _, event in handler.notes].count("start") < 2:  # noqa: ASYNC110  (a list)
                await anyio.sleep(0.01)
            handler.may_end.set()
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
            handler.app.stop()
    assert events == [event for _, event in handler.notes]
    assert [(job_id, 1)] == await rows(conn, store, "select job_id, attempt from {schema}.finished")


async def test_a_worker_that_is_declared_dead_before_it_listens(
    app: PgQueuer, queries: Queries, conn: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was slow to register, and no deadline bounds that: it registers anew, and goes on."""
    define, buried = limiter.define_limits, False

    async def be_buried(*args: Any, **kwargs: Any) -> Any:
        nonlocal buried
        if not buried:
            buried = True
            await rows(conn, Store(app.schema), "delete from {schema}.worker")
        return await define(*args, **kwargs)

    monkeypatch.setattr(registration, "define_limits", be_buried)
    handler = Handler(app)
    handler.may_end.set()
    (job_id,) = await queries.enqueue("work")
    with caplog.at_level(logging.WARNING, "pgq_anyio"):
        async with running_worker(app, lease=LEASE, on_lease_lost="continue"):
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
    assert buried
    assert "registering anew" in caplog.text
