"""Each service that fails for good takes the whole worker with it, and all of its jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import psycopg
import pytest
from anyio.abc import TaskStatus

from pgq_anyio import (
    Context,
    Job,
    JobStatus,
    PgQueuer,
    PsycopgDriver,
    Queries,
    Schedule,
    SyncQueries,
    _database,
    _worker,
)
from pgq_anyio._db import Connection
from pgq_anyio._services import completer, listener
from pgq_anyio.testing import running_worker

pytestmark = pytest.mark.anyio

#: Name of the task: name of what the worker calls.
SERVICES = {
    "heartbeat": "run_heartbeat",
    "listener": "run_listener",
    "overdue watch": "run_overdue_watch",
    "watchdog": "run_watchdog",
    "claimer": "run_claimer",
    "limited claimer": "run_limited",
    "promoter": "run_promoter",
    "rescuer": "run_rescuer",
    "pruner": "run_pruner",
    "scheduler": "run_scheduler",
}


class Crash:
    """An error that no retry can mend, in one service, at a time of one's own choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._now = anyio.Event()

    def prepare(self, function: str) -> None:
        """Let the service that the worker calls by this name crash."""
        service: Callable[..., Any] = getattr(_worker, function)

        async def crashing(
            *args: Any, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED, **options: Any
        ) -> None:
            if task_status is not anyio.TASK_STATUS_IGNORED:
                options["task_status"] = task_status
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._crash)
                await service(*args, **options)

        self._monkeypatch.setattr(_worker, function, crashing)

    def prepare_completer(self) -> None:
        """Let the completer crash: it is shielded, so that only its own statement can."""

        async def store_batch(*args: Any, **options: Any) -> int:
            await self._crash()
            return 0

        self._monkeypatch.setattr(completer, "store_batch", store_batch)

    async def _crash(self) -> None:
        await self._now.wait()
        raise psycopg.errors.InsufficientPrivilege("permission denied for table worker")

    def now(self) -> None:
        """Crash."""
        self._now.set()


@pytest.fixture
async def crash(monkeypatch: pytest.MonkeyPatch, anyio_backend: object) -> Crash:
    return Crash(monkeypatch)


@pytest.mark.promise(37)
@pytest.mark.parametrize("name", ["completer", *SERVICES])
async def test_each_service_that_crashes_ends_every_job(
    app: PgQueuer, queries: Queries, crash: Crash, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The service is named, the jobs are cancelled and given back, and the run ends with the leaf error."""
    running: set[str] = set()
    reasons: dict[str, object] = {}
    all_started = anyio.Event()

    def begin(kind: str) -> None:
        running.add(kind)
        if running == {"async", "thread", "schedule"}:
            all_started.set()

    def end(kind: str, context: Context) -> None:
        running.remove(kind)
        reasons[kind] = context.cancel_reason and context.cancel_reason.value

    async def wait_for_the_end(kind: str, context: Context) -> None:
        begin(kind)
        try:
            await anyio.sleep_forever()
        finally:
            end(kind, context)

    @app.entrypoint("async")
    async def fetch(job: Job, context: Context) -> None:
        await wait_for_the_end("async", context)

    @app.schedule("schedule", "* * * * * *")
    async def fire(schedule: Schedule, context: Context) -> None:
        await wait_for_the_end("schedule", context)

    @app.entrypoint("thread", concurrency_limit=1)
    def fetch_in_a_thread(job: Job, context: Context) -> None:
        anyio.from_thread.run_sync(begin, "thread")
        stay = threading.Event()
        while not context.cancellation.cancel_called:
            stay.wait(0.01)
        end("thread", context)

    @app.entrypoint("quick")
    async def quick(job: Job) -> None: ...

    if name == "completer":
        crash.prepare_completer()
    else:
        crash.prepare(SERVICES[name])
    ids = await queries.enqueue(["async", "thread"], None)

    async def break_it() -> None:
        await all_started.wait()
        if name == "completer":
            ids.extend(await queries.enqueue("quick"))
        crash.now()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_it)
        with anyio.fail_after(30), pytest.raises(psycopg.errors.InsufficientPrivilege):
            await app.run(lease=5)
    assert set() == running
    assert {"async": "shutdown", "thread": "shutdown", "schedule": "shutdown"} == reasons
    assert f"the {name} has failed, which ends the worker: InsufficientPrivilege: permission denied" in caplog.text
    assert dict.fromkeys(ids, JobStatus.QUEUED) == await queries.job_status(ids)
    assert [] == await queries.workers()


@pytest.mark.promise(37)
async def test_a_handler_that_delays_the_end_after_an_error_is_named(
    app: PgQueuer, queries: Queries, crash: Crash, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged at once; the run waits for the handler, says for whom, and ends when that ends."""
    started, ended, release = anyio.Event(), anyio.Event(), threading.Event()

    @app.entrypoint("deaf")
    def deaf_handler(job: Job) -> None:
        anyio.from_thread.run_sync(started.set)
        release.wait()

    async def run() -> None:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await app.run(cancel_grace=0.1)
        ended.set()

    crash.prepare("run_heartbeat")
    (job_id,) = await queries.enqueue("deaf")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                await started.wait()
                crash.now()
                await wait_logged(caplog, f"job {job_id} of 'deaf' ignores its cancellation (shutdown)")
                assert "the heartbeat has failed" in caplog.text
                assert "in deaf_handler" in caplog.text
                assert not ended.is_set()
            finally:
                release.set()
    assert ended.is_set()


@pytest.mark.promise(23, 36)
@pytest.mark.parametrize("cause", ["grace", "hurry", "lease", "caller"])
async def test_whatever_cancels_the_jobs_the_grace_counts_from_then(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture, cause: str, dsn: str, schema: str
) -> None:
    """The end of the grace, a second request, a lease lost while jobs are waited for, and the caller's scope."""
    started, release = anyio.Event(), threading.Event()

    @app.entrypoint("deaf")
    def deaf_handler(job: Job) -> None:
        anyio.from_thread.run_sync(started.set)
        release.wait()

    (job_id,) = await queries.enqueue("deaf")
    grace = 0.1 if cause == "grace" else 3600
    reason = "lease_lost" if cause == "lease" else "shutdown"
    with anyio.fail_after(30), anyio.CancelScope() as scope:
        async with running_worker(app, shutdown_grace=grace, cancel_grace=0.1, lease=2):
            with anyio.CancelScope(shield=True):
                try:
                    await started.wait()
                    worker = app._worker
                    assert worker is not None
                    if cause == "caller":
                        scope.cancel()
                    else:
                        app.stop()
                        await anyio.wait_all_tasks_blocked()
                    if cause == "hurry":
                        worker.stop.hurry()
                    elif cause == "lease":
                        async with await Connection.connect(dsn) as connection:
                            await connection.execute(f'delete from "{schema}".worker')
                    await wait_logged(caplog, f"job {job_id} of 'deaf' ignores its cancellation ({reason})")
                finally:
                    release.set()
    assert (cause == "caller") == scope.cancelled_caught


async def wait_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until something was logged."""
    with caplog.at_level(logging.WARNING):
        while text not in caplog.text:  # noqa: ASYNC110  (a log has no events)
            await anyio.sleep(0.01)


@pytest.mark.promise(37, 40)
async def test_an_error_at_the_end_of_a_cancelled_run_is_raised(dsn: str, schema: str) -> None:
    """And not taken along by the scope that was cancelled, which some loops would have it."""
    started = anyio.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ZeroDivisionError

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        await anyio.sleep_forever()

    with SyncQueries(dsn, schema=schema) as queries:
        queries.enqueue("fetch")
    raised: BaseException | None = None
    async with anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await started.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel)
        try:
            await app.run()
        except ZeroDivisionError as error:
            raised = error
    assert raised is not None


async def test_a_way_around_the_pooler_that_cannot_be_written_to(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leads to a server that is a standby now: the worker starts all the same, and finds jobs by polling."""

    async def refuse(*args: Any) -> None:
        raise psycopg.errors.ReadOnlySqlTransaction("cannot execute LISTEN during recovery")

    monkeypatch.setattr(listener, "open_once", refuse)
    ran = anyio.Event()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.set()

    with anyio.fail_after(20):
        async with running_worker(app, dequeue_timeout=0.2):
            await queries.enqueue("fetch")
            await ran.wait()


async def test_a_driver_without_a_free_connection(dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds it may wait for this worker, which says so and does not wait for ever."""
    monkeypatch.setattr(_database, "PATIENCE", 0.05)
    async with PsycopgDriver(dsn, max_size=1) as driver, driver.connection():
        with pytest.raises(psycopg.OperationalError, match=r"within 0\.05 s: the pool has 1"):
            await PgQueuer(driver, schema=schema).run()
