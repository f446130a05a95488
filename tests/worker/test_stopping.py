"""Leaving the tree means that every job has ended or was given back."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import psycopg
import pytest

from pgq_anyio import (
    ConfigurationError,
    Context,
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    PsycopgDriver,
    Queries,
    SchemaError,
    _app,
)
from pgq_anyio._database import open_database
from pgq_anyio._db import Connection
from pgq_anyio._store.worker import has_pending
from pgq_anyio.testing import drain, running_worker
from tests.bounds import Within

pytestmark = pytest.mark.anyio


@pytest.mark.promise(34)
async def test_an_idle_worker_stops_at_once(app: PgQueuer, queries: Queries, within: Within) -> None:
    """Idle: within a second. Nothing is left of it."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    async with running_worker(app):
        await anyio.wait_all_tasks_blocked()
        stopped_at = anyio.current_time()
    assert anyio.current_time() - stopped_at < within(1)
    assert [] == await queries.workers()


@pytest.mark.promise(34)
async def test_running_jobs_end_and_nothing_new_starts(app: PgQueuer, queries: Queries) -> None:
    """Within the grace a running job ends and is recorded; a queued one stays."""
    started, release = anyio.Event(), anyio.Event()
    ran = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.append(job.id)
        started.set()
        await release.wait()

    first, second = await queries.enqueue(["fetch"] * 2, None)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(app.run, max_concurrency=1))
            await started.wait()
            app.stop()
            app.stop()
            release.set()
    assert [first] == ran
    assert {first: JobStatus.SUCCESSFUL, second: JobStatus.QUEUED} == await queries.job_status([first, second])


@pytest.mark.promise(35)
async def test_a_job_longer_than_the_grace_goes_back_to_its_place(
    app: PgQueuer, queries: Queries, within: Within
) -> None:
    """Its scope is cancelled with reason shutdown; no attempt is counted, and it runs ahead of jobs enqueued later."""
    started = anyio.Event()
    seen: list[object] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        seen.append((job.payload, job.attempt))
        if len(seen) > 1:
            return
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            seen.append(context.cancel_reason and context.cancel_reason.value)

    (job_id,) = await queries.enqueue("fetch", b"first")
    async with running_worker(app, shutdown_grace=0.2, max_concurrency=1):
        await started.wait()
        await queries.enqueue("fetch", b"second")
        stopped_at = anyio.current_time()
    assert 0.2 <= anyio.current_time() - stopped_at < within(1.2)
    assert {job_id: JobStatus.QUEUED} == await queries.job_status([job_id])
    with anyio.fail_after(10):
        await drain(app, max_concurrency=1)
    assert [(b"first", 1), "shutdown", (b"first", 1), (b"second", 1)] == seen
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.SUCCESSFUL, 1, 0, ()) == (record.status, record.attempt, record.crashes, record.errors)


@pytest.mark.promise(35)
async def test_a_threads_job_that_saw_the_shutdown_goes_back(app: PgQueuer, queries: Queries) -> None:
    """A thread that returns because it saw the flag has not done its work; one that did not look has."""
    started, release = threading.Event(), threading.Event()

    @app.entrypoint("polite")
    def polite(job: Job, context: Context) -> None:
        started.set()
        while not context.cancellation.cancel_called:
            release.wait(0.005)

    @app.entrypoint("deaf")
    def deaf(job: Job) -> None:
        started.set()
        release.wait(20)

    for name, expected in (("polite", JobStatus.QUEUED), ("deaf", JobStatus.SUCCESSFUL)):
        started.clear()
        (job_id,) = await queries.enqueue(name)
        with anyio.fail_after(10):
            async with running_worker(app, shutdown_grace=0):
                await anyio.to_thread.run_sync(started.wait)
                app.stop()
                if name == "deaf":
                    await anyio.sleep(0.05)
                    release.set()
        assert {job_id: expected} == await queries.job_status([job_id])
        await queries.mark_job_as_cancelled([job_id])


@pytest.mark.promise(36)
async def test_cancelling_run_gives_everything_back(app: PgQueuer, queries: Queries) -> None:
    """No grace, no surviving task, and the cancellation is re-raised."""
    started = anyio.Event()
    reasons: list[object] = []
    running = 0

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        nonlocal running
        running += 1
        if running == 5:
            started.set()
        try:
            await anyio.sleep_forever()
        finally:
            running -= 1
            reasons.append(context.cancel_reason and context.cancel_reason.value)

    ids = await queries.enqueue(["fetch"] * 5, None)
    before = {task.id for task in anyio.get_running_tasks()}
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await started.wait()
                scope.cancel()

            tasks.start_soon(cancel)
            await app.run()
        pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught
    assert set() == {task.id for task in anyio.get_running_tasks()} - before
    assert 0 == running
    assert dict.fromkeys(ids, JobStatus.QUEUED) == await queries.job_status(ids)
    assert [] == await queries.workers()
    record = await queries.get_job(ids[0])
    assert record is not None
    assert (1, 0) == (record.attempt, record.crashes)


@pytest.mark.promise(17, 37)
async def test_a_service_that_fails_for_good_ends_the_run_with_its_leaf_error(
    app: PgQueuer, queries: Queries, dsn: str, schema: str
) -> None:
    """Never a half-dead worker: the jobs are given back and the cause, not a group, reaches the caller."""
    started = anyio.Event()
    running = 0

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        nonlocal running
        running += 1
        if running == 3:
            started.set()
        await anyio.sleep_forever()

    ids = await queries.enqueue(["fetch"] * 3)

    async def break_it() -> None:
        await started.wait()
        async with await Connection.connect(dsn) as connection:
            await connection.execute(f'alter table "{schema}".worker rename to gone')

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(break_it)
        with anyio.fail_after(15), pytest.raises(psycopg.errors.UndefinedTable):
            await app.run(lease=2)
    async with await Connection.connect(dsn) as connection:
        await connection.execute(f'alter table "{schema}".gone rename to worker')
    assert dict.fromkeys(ids, JobStatus.QUEUED) == await queries.job_status(ids)


@pytest.mark.promise(38)
async def test_drain_returns_when_nothing_is_left(app: PgQueuer, queries: Queries, within: Within) -> None:
    """Retries and deferred jobs included, and within a second after the last one."""
    from datetime import timedelta

    ended_at: list[float] = []

    @app.entrypoint("flaky", max_attempts=2)
    async def flaky(job: Job) -> None:
        if job.attempt == 1:
            raise ValueError("again")
        ended_at.append(anyio.current_time())

    @app.entrypoint("later")
    async def later(job: Job) -> None:
        ended_at.append(anyio.current_time())

    ids = await queries.enqueue(["flaky", "later"], None, execute_after=[None, timedelta(seconds=0.5)])
    with anyio.fail_after(25):
        await drain(app)
    assert anyio.current_time() - max(ended_at) < within(1)
    assert dict.fromkeys(ids, JobStatus.SUCCESSFUL) == await queries.job_status(ids)


@pytest.mark.promise(38)
async def test_drain_waits_for_what_another_worker_runs(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left in the queue, and still something is to be waited for."""
    started, release, looked = anyio.Event(), anyio.Event(), anyio.Event()
    looks = 0

    @app.entrypoint("slow")
    async def slow(job: Job) -> None:
        started.set()
        await release.wait()

    other = PgQueuer(dsn, schema=schema)
    other.entrypoint("slow")(slow)

    async def counted(*args: Any) -> bool:
        nonlocal looks
        pending = await has_pending(*args)
        looks += 1
        if looks == 3:
            looked.set()
        return pending

    monkeypatch.setattr("pgq_anyio._services.drain.has_pending", counted)
    (job_id,) = await queries.enqueue("slow")
    async with running_worker(app):
        with anyio.fail_after(20):
            await started.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(drain, other)
                await looked.wait()
                assert {job_id: JobStatus.RUNNING} == await queries.job_status([job_id])
                release.set()
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


async def test_drain_of_an_empty_queue_returns_at_once(app: PgQueuer, queries: Queries) -> None:
    """Nothing to wait for."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    with anyio.fail_after(20):
        await drain(app)


@pytest.mark.promise(39)
async def test_what_is_missing_is_said_before_anything_runs(dsn: str, empty_schema: str) -> None:
    """A missing schema names the command; an unreachable server is an error of psycopg's."""
    app = PgQueuer(dsn, schema=empty_schema)
    with pytest.raises(SchemaError, match="pgq-anyio migrate"):
        await app.run()
    away = PgQueuer("host=127.0.0.1 port=1 connect_timeout=2")
    with pytest.raises(psycopg.OperationalError):
        await away.run()


async def test_an_app_runs_once_at_a_time_and_again_afterwards(app: PgQueuer, queries: Queries) -> None:
    """A second concurrent run() is refused; stop() without one does nothing."""
    app.stop()

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    for _ in range(2):
        async with running_worker(app):
            with pytest.raises(RuntimeError, match="being run already"):
                await app.run()


async def test_stop_from_another_thread(app: PgQueuer, queries: Queries) -> None:
    """stop() is thread-safe."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None: ...

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(app.run)
            await anyio.to_thread.run_sync(app.stop)


@pytest.mark.promise(34)
async def test_a_stop_while_the_database_is_opened() -> None:
    """It is not forgotten, and does not wait for a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent, anyio.fail_after(20):
        silent.settimeout(20)
        app = PgQueuer(f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=nothing connect_timeout=60")
        with ExitStack() as stack:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(app.run)
                connection, _ = await anyio.to_thread.run_sync(silent.accept)
                stack.enter_context(connection)  # it says nothing, to the end
                await anyio.to_thread.run_sync(app.stop)


@pytest.mark.promise(34)
async def test_a_stop_when_the_database_has_just_been_opened(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job starts."""
    ran = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.append(job.id)

    @asynccontextmanager
    async def open_and_stop(*args: Any, **options: Any) -> AsyncIterator[PsycopgDriver]:
        async with open_database(*args, **options) as driver:
            app.stop()
            yield driver

    monkeypatch.setattr(_app, "open_database", open_and_stop)
    (job_id,) = await queries.enqueue("fetch")
    with anyio.fail_after(20):
        await app.run()
    assert [] == ran
    assert {job_id: JobStatus.QUEUED} == await queries.job_status([job_id])
    assert [] == await queries.workers()


async def test_resources_are_closed_after_the_last_job(dsn: str, schema: str, queries: Queries) -> None:
    """The lifespan is left after every job has ended, also when run() is cancelled."""
    order: list[str] = []
    started = anyio.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        try:
            yield "pool"
        finally:
            order.append("closed")

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            order.append("job")

    await queries.enqueue("fetch")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app.run)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert ["job", "closed"] == order


async def test_an_error_in_the_lifespan_reaches_the_caller(dsn: str, schema: str) -> None:
    """As it is, not in a group."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[object]:
        resources: dict[str, object] = {}
        yield resources["missing"]

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)
    with pytest.raises(KeyError, match="missing"):
        await app.run()


@pytest.mark.promise(34)
async def test_a_stop_ends_the_entry_of_a_lifespan(dsn: str, schema: str) -> None:
    """It waits for something that is away: nothing runs yet, so the stop is a clean one."""
    entered, left = anyio.Event(), anyio.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            left.set()
        yield

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.run)
            await entered.wait()
            app.stop()
    assert left.is_set()


@pytest.mark.promise(34)
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("options", [{}, {"own_task": True}, {"requests_per_second": 1e5}], ids=str)
async def test_nothing_starts_after_a_handler_has_asked_for_the_stop(
    app: PgQueuer, queries: Queries, waits: bool, options: dict[str, Any]
) -> None:
    """Of the jobs that were claimed together with its own, none does; they are back in the queue, unspent."""
    ran: list[JobId] = []

    @app.entrypoint("fetch", **options)
    async def fetch(job: Job) -> None:
        ran.append(job.id)
        if len(ran) == 3:
            app.stop()
        if waits:
            await anyio.sleep(0.01)

    ids = await queries.enqueue(["fetch"] * 60)
    with anyio.fail_after(20):
        await app.run()
    assert 3 == len(ran)
    states = await queries.job_status(ids)
    assert set(ran) == {job_id for job_id, status in states.items() if status is JobStatus.SUCCESSFUL}
    assert 57 == [*states.values()].count(JobStatus.QUEUED)


async def _awaited() -> object: ...


async def _generated() -> AsyncIterator[None]:
    yield


def _generated_without_async() -> Iterator[None]:
    yield


def _taking_the_app(app: object) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@pytest.mark.parametrize(
    ("lifespan", "said"),
    [
        (_awaited, "has to be awaited: .* put @contextlib.asynccontextmanager above it"),
        (_generated, "an async generator: put @contextlib.asynccontextmanager above it"),
        (_generated_without_async, "a generator: write async def, and put @contextlib.asynccontextmanager above it"),
        (_taking_the_app, r"nobody passes arguments to it: this one takes \(app"),
        (nullcontext(), "not one itself"),
        ("resources", "not one itself"),
    ],
)
async def test_no_lifespan(lifespan: Any, said: str) -> None:
    """Seen where it is given, with the fix."""
    with pytest.raises(ConfigurationError, match=said):
        PgQueuer("dbname=nowhere", lifespan=lifespan)


@pytest.mark.parametrize(
    ("lifespan", "said"),
    [
        (lambda: None, "gave a NoneType"),
        (lambda: _awaited(), "gave a coroutine"),  # noqa: PLW0108  (a function that does not look like a coroutine's)
        (contextmanager(_generated_without_async), "gave a _GeneratorContextManager"),
    ],
)
async def test_what_a_lifespan_gives(dsn: str, schema: str, lifespan: Any, said: str) -> None:
    """No context manager: the worker does not start."""
    with pytest.raises(ConfigurationError, match=said):
        await PgQueuer(dsn, schema=schema, lifespan=lifespan).run()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dequeue_timeout", 0),
        ("dequeue_timeout", "30"),
        ("batch_size", 0),
        ("max_concurrency", -1),
        ("max_concurrency", True),
        ("mode", "forever"),
        ("lease", 1),
        ("lease", float("nan")),
        ("on_lease_lost", "ignore"),
        ("shutdown_grace", -1),
        ("cancel_grace", float("inf")),
    ],
)
async def test_bad_options_are_named(app: PgQueuer, option: str, value: object) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match=option):
        await app.run(**{option: value})  # type: ignore[arg-type]
