"""Jobs that share a task: what one must never notice of another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from pgq_anyio import (
    CancelReason,
    ConfigurationError,
    Context,
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    Queries,
    Schedule,
    ThreadExecutor,
    current_context,
)
from pgq_anyio._services.slots import TURN
from pgq_anyio.testing import drain, running_worker
from tests.worker.test_cancel import wait_status

pytestmark = pytest.mark.anyio

T = TypeVar("T")

secret: ContextVar[int | None] = ContextVar("secret", default=None)


async def test_jobs_that_do_not_wait_share_a_task(app: PgQueuer, queries: Queries) -> None:
    """The point of slots: a hundred jobs need no hundred tasks."""
    tasks = set()

    @app.entrypoint("quick")
    async def quick(job: Job) -> None:
        tasks.add(anyio.get_current_task().id)

    await queries.enqueue(["quick"] * 100, None)
    await drain(app)
    assert len(tasks) < 20


async def test_tasks_of_jobs_that_waited_take_further_ones(app: PgQueuer, queries: Queries) -> None:
    """Five rounds of twenty jobs need twenty tasks, which have no job's name in between."""
    tasks: set[object] = set()  # the tasks themselves: the id of one that is gone may come again
    running = 0
    everybody = anyio.Event()

    @app.entrypoint("waits")
    async def waits(job: Job) -> None:
        nonlocal running
        tasks.add(native_task())
        running += 1
        if running == 20:
            everybody.set()
        await everybody.wait()

    async with running_worker(app, max_concurrency=20):
        for _ in range(5):
            running, everybody = 0, anyio.Event()
            ids = await queries.enqueue(["waits"] * 20, None)
            for job_id in ids:
                await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
        names = [task.name for task in anyio.get_running_tasks()]
    assert len(tasks) <= 20
    assert len([name for name in names if name == "slot"]) == len(tasks)
    assert not [name for name in names if name and name.startswith("job:")]


async def test_a_job_that_ends_after_the_stop_ends_its_task(app: PgQueuer, queries: Queries) -> None:
    """There is nothing that it could take: the worker does not wait for it."""
    release, waiting = anyio.Event(), anyio.Event()

    @app.entrypoint("waits")
    async def waits(job: Job) -> None:
        waiting.set()
        await release.wait()

    await queries.enqueue("waits", None)
    with anyio.fail_after(20):
        async with running_worker(app):
            await waiting.wait()
            app.stop()
            await anyio.wait_all_tasks_blocked()
            release.set()


def native_task() -> object:
    """The event loop's own object."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_task()
    return asyncio.current_task()


@pytest.mark.parametrize("waits", [False, True])
async def test_variables_of_one_job_are_not_seen_by_another(app: PgQueuer, queries: Queries, waits: bool) -> None:
    """Each job has fresh context variables, and keeps its own from step to step; child tasks inherit them."""
    before: list[int | None] = []
    after: list[bool] = []

    @app.entrypoint("leaky")
    async def leaky(job: Job, context: Context) -> None:
        before.append(secret.get())
        secret.set(job.id)
        if waits and job.id % 2:
            await anyio.sleep(0.001)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child, job.id)
        after.append(secret.get() == job.id and current_context() is context)

    async def child(job_id: int) -> None:
        after.append(secret.get() == job_id)

    await queries.enqueue(["leaky"] * 200, None)
    await drain(app)
    assert [None] * 200 == before
    assert all(after)
    assert len(after) == (300 if waits else 200)


@pytest.mark.parametrize("own_task", [False, True])
async def test_the_end_of_a_job_leaves_no_variables_to_the_next(
    app: PgQueuer, queries: Queries, own_task: bool
) -> None:
    """Jobs that were claimed ahead start when another one ends, in its last step: not in its variables."""
    number = 1000
    before: list[int | None] = []
    tasks: set[int] = set()

    @app.entrypoint("leaky", own_task=own_task)
    async def leaky(job: Job) -> None:
        before.append(secret.get())
        tasks.add(anyio.get_current_task().id)
        secret.set(job.id)
        await anyio.sleep(0.001)

    await queries.enqueue(["leaky"] * number, None)
    await drain(app, max_concurrency=5)
    assert [None] * number == before
    if not own_task:
        assert len(tasks) < number / 2, "a task that a job has left takes the next one"


async def test_a_job_that_waits_delays_none_behind_it(app: PgQueuer, queries: Queries) -> None:
    """Of jobs claimed together, those behind a waiting one start at once; here it waits for them."""
    started = 0
    all_started = anyio.Event()

    @app.entrypoint("together")
    async def together(job: Job) -> None:
        nonlocal started
        started += 1
        if started == 50:
            all_started.set()
        elif started % 3:
            await all_started.wait()

    ids = await queries.enqueue(["together"] * 50, None)
    with anyio.fail_after(20):
        await drain(app, max_concurrency=50)
    assert {JobStatus.SUCCESSFUL} == set((await queries.job_status(ids)).values())


@pytest.mark.parametrize("blocks", [False, True])
async def test_jobs_that_wait_start_together_unless_they_block(app: PgQueuer, queries: Queries, blocks: bool) -> None:
    """Three hundred jobs do not take a pass of the event loop each to start; jobs that block it for long do."""
    number = 40 if blocks else 300
    passes: list[int] = []
    count = 0
    all_started = anyio.Event()

    @app.entrypoint("waits")
    async def waits(job: Job) -> None:
        passes.append(count)
        if blocks:
            time.sleep(TURN)  # noqa: ASYNC251  (a handler that blocks the event loop is the point)
        if len(passes) == number:
            all_started.set()
        await all_started.wait()

    async def count_passes() -> None:
        nonlocal count
        while True:
            await anyio.lowlevel.checkpoint()
            count += 1

    await queries.enqueue(["waits"] * number, None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_passes)
        await drain(app, max_concurrency=number, batch_size=number)
        tasks.cancel_scope.cancel()
    if blocks:
        assert len(set(passes)) >= number / 2
    else:
        assert len(set(passes)) < number / 6


async def test_scopes_and_threads_work_from_step_to_step(app: PgQueuer, queries: Queries) -> None:
    """Nested scopes, their deadlines, task groups and threads behave as in a task of the job's own."""
    seen: list[object] = []

    @app.entrypoint("nested")
    async def nested(job: Job) -> None:
        secret.set(7)
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        seen.append(scope.cancelled_caught)
        seen.append(await anyio.to_thread.run_sync(secret.get))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                await anyio.sleep_forever()
        except* ValueError:
            seen.append("failed")

    async def fail() -> None:
        raise ValueError

    (job_id,) = await queries.enqueue("nested")
    await drain(app)
    assert [True, 7, "failed"] == seen
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


async def test_a_failure_touches_no_job_behind_it(app: PgQueuer, queries: Queries) -> None:
    """Whatever a job raises without waiting, the next ones run in the same slot."""

    @app.entrypoint("mixed")
    async def mixed(job: Job) -> None:
        if job.payload == b"exit":
            raise SystemExit(3)
        if job.payload == b"group":
            raise BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError()])

    ids = await queries.enqueue(["mixed"] * 4, [b"exit", b"fine", b"group", b"fine"])
    await drain(app)
    statuses = await queries.job_status(ids)
    failed, fine = JobStatus.FAILED, JobStatus.SUCCESSFUL
    assert [failed, fine, failed, fine] == [statuses[job_id] for job_id in ids]


@pytest.mark.parametrize("when", ["while it runs", "after its end"])
async def test_a_cancelled_job_does_not_cancel_the_next_one_of_its_task(
    app: PgQueuer, queries: Queries, when: str
) -> None:
    """A job that waits may have taken over the scope of one that did not: only a scope that nobody can cancel."""
    contexts: list[Context] = []
    tasks: list[int] = []

    @app.entrypoint("mixed")
    async def mixed(job: Job, context: Context) -> None:
        contexts.append(context)
        tasks.append(anyio.get_current_task().id)
        if job.payload == b"waits":
            if when == "after its end":
                contexts[0].request_cancel(CancelReason.USER, grace=0)
            await anyio.sleep(0.05)
        elif when == "while it runs":
            context.request_cancel(CancelReason.USER, grace=0)

    ids = await queries.enqueue("mixed", [b"", b"waits"])
    with anyio.fail_after(20):
        await drain(app)
    statuses = await queries.job_status(ids)
    assert 2 == len(contexts), "a job that was interrupted runs again"
    running = when == "while it runs"
    assert [JobStatus.CANCELLED if running else JobStatus.SUCCESSFUL, JobStatus.SUCCESSFUL] == [
        statuses[job_id] for job_id in ids
    ]
    assert running == (len(set(tasks)) == 2)


async def test_the_grace_of_a_cancelled_job_does_not_end_the_next_one(app: PgQueuer, queries: Queries) -> None:
    """It ended in time; what would have ended it after the grace is its own."""
    grace = 0.1
    runs = 0

    @app.entrypoint("cooperative")
    async def cooperative(job: Job, context: Context) -> None:
        nonlocal runs
        runs += 1
        if job.payload == b"cancelled":
            with context.cancellation:
                await anyio.lowlevel.checkpoint()
                context.request_cancel(CancelReason.USER, grace=grace)
                await anyio.sleep_forever()
        else:
            await anyio.sleep(2 * grace)

    ids = await queries.enqueue("cooperative", [b"cancelled", b"next"])
    with anyio.fail_after(20):
        await drain(app, max_concurrency=1)
    statuses = await queries.job_status(ids)
    assert 2 == runs, "a job that was interrupted runs again"
    assert [JobStatus.CANCELLED, JobStatus.SUCCESSFUL] == [statuses[job_id] for job_id in ids]


async def test_a_handler_can_have_a_task_of_its_own(app: PgQueuer, queries: Queries) -> None:
    """``own_task=True``: no two jobs in one task, although none of them waits."""
    tasks: list[str | None] = []

    @app.entrypoint("own", own_task=True)
    async def own(job: Job) -> None:
        tasks.append(anyio.get_current_task().name)

    ids = await queries.enqueue(["own"] * 20, None)
    await drain(app)
    assert sorted(f"job:own:{job_id}" for job_id in ids) == sorted(str(name) for name in tasks)


async def test_a_thread_has_a_task_of_its_own(app: PgQueuer, queries: Queries) -> None:
    """It is always waited for, so that nothing would be gained by a task that takes one after the other."""
    tasks: list[str | None] = []

    class Watched(ThreadExecutor):
        async def execute(self, job: Job, context: Context) -> None:
            tasks.append(anyio.get_current_task().name)
            await super().execute(job, context)

    @app.entrypoint("thread", executor_factory=Watched)
    def thread(job: Job) -> None:
        pass

    ids = await queries.enqueue(["thread"] * 5, None)
    await drain(app, max_concurrency=1)
    assert [f"job:thread:{job_id}" for job_id in ids] == tasks


async def test_own_task_is_checked(app: PgQueuer) -> None:
    """Only True and False."""
    with pytest.raises(ConfigurationError, match="own_task"):
        app.entrypoint("own", own_task=1)  # type: ignore[arg-type]


ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})])


@asynccontextmanager
async def going_on(app: PgQueuer) -> AsyncIterator[None]:
    """Run a worker that has not stopped by itself when the block ends."""
    ended = anyio.Event()

    async def run() -> None:
        await app.run()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(20):
            yield
        assert not ended.is_set(), "the worker has stopped"
        app.stop()


@ON_ASYNCIO
@pytest.mark.parametrize(("times", "waits"), [(1, False), (2, False), (1, True)], ids=["once", "twice", "and waits"])
@pytest.mark.parametrize("own_task", [False, True])
@pytest.mark.promise(27)
async def test_a_handler_that_cancels_its_task_and_returns_does_so_to_itself_alone(
    app: PgQueuer, queries: Queries, own_task: bool, times: int, waits: bool
) -> None:
    """Its task takes no further job, and neither those that run beside it nor the worker hear of it."""
    tasks: dict[bytes | None, asyncio.Task[Any]] = {}
    release = anyio.Event()

    @app.entrypoint("selfish", own_task=own_task)
    async def selfish(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        if job.payload == b"cancel":
            for _ in range(times):
                task.cancel()
            if waits:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
        tasks[job.payload] = task

    @app.entrypoint("beside")
    async def beside(job: Job) -> None:
        await release.wait()

    (waiting,) = await queries.enqueue("beside")
    ids = await queries.enqueue(["selfish"] * 3, [b"first", b"cancel", b"last"])
    async with going_on(app):
        for job_id in ids:
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
        await anyio.wait_all_tasks_blocked()
        (later,) = await queries.enqueue("selfish", b"later")
        await wait_status(queries, later, JobStatus.SUCCESSFUL)
        release.set()
        await wait_status(queries, waiting, JobStatus.SUCCESSFUL)
    assert tasks[b"cancel"] not in (tasks[b"last"], tasks[b"later"])


@ON_ASYNCIO
@pytest.mark.parametrize("is_woken", [False, True])
@pytest.mark.promise(27)
async def test_a_task_that_is_cancelled_after_its_job_has_ended(
    app: PgQueuer, queries: Queries, is_woken: bool
) -> None:
    """Somebody has kept it: it idles, or a job has just been found for it, and others take that."""
    kept: list[asyncio.Task[Any]] = []

    @app.entrypoint("kept")
    async def kept_one(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        kept.append(task)

    async with going_on(app):
        (first,) = await queries.enqueue("kept")
        await wait_status(queries, first, JobStatus.SUCCESSFUL)
        await anyio.wait_all_tasks_blocked()
        if is_woken:
            worker = app._worker
            assert worker is not None
            assert worker.term is not None
            slots = worker.term.handlers._slots
            assert slots is not None
            assert 1 == len(slots._idle)
            slots._wake()
        kept[0].cancel()
        await anyio.wait_all_tasks_blocked()
        assert kept[0].done()
        assert not kept[0].cancelled()
        later = await queries.enqueue(["kept"] * 3, None)
        for job_id in later:
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
    assert kept[0] not in kept[1:]


@ON_ASYNCIO
@pytest.mark.promise(27, 43)
async def test_a_scheduled_run_that_cancels_its_task_does_so_to_itself_alone(app: PgQueuer, queries: Queries) -> None:
    """It is recorded, and the worker goes on."""

    @app.schedule("selfish", "0 0 1 1 *")
    async def selfish(schedule: Schedule) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @app.entrypoint("later")
    async def later(job: Job) -> None: ...

    async with going_on(app):
        while not await queries.schedules():  # noqa: ASYNC110  (a fact of the database)
            await anyio.sleep(0.01)
        await queries.run_schedule("selfish")
        while (await queries.schedules())[0].last_status != JobStatus.SUCCESSFUL:  # noqa: ASYNC110  (as above)
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()
        (job_id,) = await queries.enqueue("later")
        await wait_status(queries, job_id, JobStatus.SUCCESSFUL)


@asynccontextmanager
async def a_waiting_job(app: PgQueuer, queries: Queries, in_handler: Callable[[], T]) -> AsyncIterator[tuple[JobId, T]]:
    """Let a job wait; its id, and what was found where its handler runs."""
    release, waiting = anyio.Event(), anyio.Event()
    found: list[T] = []

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        found.append(in_handler())
        waiting.set()
        await release.wait()

    (job_id,) = await queries.enqueue("wait")
    async with running_worker(app):
        with anyio.fail_after(10):
            await waiting.wait()
            await anyio.wait_all_tasks_blocked()
        yield job_id, found[0]
        release.set()


async def test_a_waiting_task_shows_its_job(app: PgQueuer, queries: Queries) -> None:
    """Task dumps name the job, and the stack of its context has the handler's line."""
    async with a_waiting_job(app, queries, lambda: None) as (job_id, _):
        names = [task.name for task in anyio.get_running_tasks()]
        assert f"job:wait:{job_id}" in names
        assert "await release.wait()" in app.get_context(job_id).stack()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_dump_of_trio_s_tasks_shows_the_handler(app: PgQueuer, queries: Queries) -> None:
    """The frames that trio finds go through the slot into the handler."""
    async with a_waiting_job(app, queries, trio.lowlevel.current_task) as (_, task):
        assert "wait" in [frame.f_code.co_name for frame, _ in task.iter_await_frames()]


@ON_ASYNCIO
async def test_a_dump_of_asyncio_s_tasks_shows_the_handler(app: PgQueuer, queries: Queries) -> None:
    """What a task awaits goes through the slot into the handler."""
    async with a_waiting_job(app, queries, asyncio.current_task) as (_, task):
        assert task is not None
        names: list[str] = []
        awaited: Any = task.get_coro()
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            names.append(frame.f_code.co_name)
            awaited = getattr(awaited, "cr_await", None)
        assert "wait" in names
