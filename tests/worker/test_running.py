"""Jobs run: once each, in order, with their payload, and their outcome is recorded."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import psycopg
import pytest
from psycopg import sql

from pgq_anyio import Context, Job, JobId, JobStatus, PgQueuer, Queries, SyncQueries, current_context
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    "payload",
    [None, b"", b"\x00", bytes(range(256)), b"x" * 2**20],
    ids=["none", "empty", "nul", "every byte", "1 MiB"],
)
async def test_a_job_runs_once_with_the_identical_payload(
    app: PgQueuer, queries: Queries, payload: bytes | None
) -> None:
    """One job, one worker: the handler runs exactly once and sees the bytes that were enqueued."""
    seen: list[tuple[JobId, bytes | None, bytes | None]] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        seen.append((job.id, job.payload, job.data))

    (job_id,) = await queries.enqueue("fetch", payload)
    with anyio.fail_after(20):
        await drain(app)
    assert [(job_id, payload, payload)] == seen
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


@pytest.mark.promise(2)
@pytest.mark.parametrize("number", [1, 2, 1_000, 10_000])
async def test_each_job_of_a_list_runs_once(app: PgQueuer, queries: Queries, number: int) -> None:
    """A list of N in one call gives N distinct ids in input order, and each job runs once."""
    seen: list[tuple[JobId, bytes | None]] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        seen.append((job.id, job.payload))

    payloads = [str(index).encode() for index in range(number)]
    ids = await queries.enqueue(["fetch"] * number, payloads)
    assert number == len(set(ids))
    with anyio.fail_after(40):
        await drain(app)
    assert dict(zip(ids, payloads, strict=True)) == dict(seen)
    assert number == len(seen)


@pytest.mark.promise(7, 8)
async def test_jobs_from_elsewhere_that_are_due_at_once(app: PgQueuer, queries: Queries, dsn: str, schema: str) -> None:
    """Enqueued without an event loop, by plain SQL, or with a time that has passed: they run."""
    seen: list[JobId] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        seen.append(job.id)

    past = datetime.now(UTC) - timedelta(days=1)
    with SyncQueries(dsn, schema=schema) as elsewhere, psycopg.connect(dsn) as connection:
        ids = elsewhere.enqueue("fetch")
        call = sql.SQL("select {}.enqueue('fetch')").format(sql.Identifier(schema))
        ids += [row[0] for row in connection.execute(call)]
    for when in (None, timedelta(0), timedelta(seconds=-5), past):
        ids += await queries.enqueue("fetch", execute_after=when)
    async with running_worker(app):
        with anyio.fail_after(20):
            while len(seen) < len(ids):  # noqa: ASYNC110  (handlers set it)
                await anyio.sleep(0.01)
    assert sorted(ids) == sorted(seen)


@pytest.mark.promise(4)
async def test_jobs_of_other_names_stay_untouched(dsn: str, schema: str, app: PgQueuer, queries: Queries) -> None:
    """Jobs for a name that no running worker serves stay queued; a later worker that serves it runs them."""
    ran: list[str] = []

    @app.entrypoint("mine")
    async def mine(job: Job) -> None:
        ran.append(job.entrypoint)

    other = PgQueuer(dsn, schema=schema)

    @other.entrypoint("theirs")
    async def theirs(job: Job) -> None:
        ran.append(job.entrypoint)

    (job_id,) = await queries.enqueue("theirs")
    await queries.enqueue("mine")
    with anyio.fail_after(20):
        await drain(app)
    assert ["mine"] == ran
    assert {job_id: JobStatus.QUEUED} == await queries.job_status([job_id])
    record = await queries.get_job(job_id)
    assert record is not None
    assert (None, 1, 0) == (record.claimed_at, record.attempt, record.crashes)
    with anyio.fail_after(20):
        await drain(other)
    assert ["mine", "theirs"] == ran


@pytest.mark.promise(5)
async def test_priority_first_then_first_in_first_out_across_names(app: PgQueuer, queries: Queries) -> None:
    """One order for all names of a worker: priority, then age, also when one name has a large backlog."""
    seen: list[tuple[str, int, bytes | None]] = []

    async def note(job: Job) -> None:
        seen.append((job.entrypoint, job.priority, job.payload))

    for name in ("a", "b", "c"):
        app.entrypoint(name)(note)
    jobs: list[tuple[str, int, bytes]] = [("a", 0, b"%d" % index) for index in range(300)]
    jobs += [(name, priority, b"%d" % index) for index in range(20) for name in ("b", "c") for priority in (0, 3, -2)]
    names, priorities, payloads = zip(*jobs, strict=True)
    await queries.enqueue(list(names), list(payloads), list(priorities))
    with anyio.fail_after(30):
        await drain(app, max_concurrency=1, batch_size=1)
    assert sorted(jobs, key=lambda job: -job[1]) == seen


@pytest.mark.promise(5)
async def test_a_higher_priority_overtakes_a_backlog(app: PgQueuer, queries: Queries, figures: bool) -> None:
    """Under a saturating backlog, of its own name and of another, a new job of a higher priority starts within 250 ms;
    on a busy machine three of five within a second, of the ten that the backlog takes.
    """
    started: dict[JobId, float] = {}

    @app.entrypoint("bulk")
    async def bulk(job: Job) -> None:
        await anyio.sleep(0.005)

    @app.entrypoint("urgent")
    async def urgent(job: Job) -> None:
        started[job.id] = anyio.current_time()
        await anyio.sleep(0.005)

    await queries.enqueue(["bulk", "urgent"] * 10_000, None)
    delays = []
    async with running_worker(app, max_concurrency=10, shutdown_grace=0):
        with anyio.fail_after(20):
            while not started:  # noqa: ASYNC110  (handlers fill it)
                await anyio.sleep(0.01)
            for priority in range(1, 6):
                asked_at = anyio.current_time()
                (job_id,) = await queries.enqueue("urgent", priority=priority)
                while job_id not in started:  # noqa: ASYNC110  (as above)
                    await anyio.sleep(0.005)
                delays.append(started[job_id] - asked_at)
        assert sum((await queries.queue_size()).values()) > 1_000
    assert max(delays) < 0.25 if figures else statistics.median(delays) < 1


@pytest.mark.promise(16)
async def test_a_worker_holds_no_more_than_it_can_run(app: PgQueuer, queries: Queries) -> None:
    """What is claimed never exceeds max_concurrency."""
    release = anyio.Event()
    started = 0

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        nonlocal started
        started += 1
        await release.wait()

    ids = await queries.enqueue(["wait"] * 50, None)
    async with running_worker(app, max_concurrency=7, batch_size=100):
        with anyio.fail_after(10):
            while started < 7:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        statuses = Counter((await queries.job_status(ids)).values())
        assert {JobStatus.RUNNING: 7, JobStatus.QUEUED: 43} == statuses
        release.set()
        with anyio.fail_after(10):
            while started < 50:
                await anyio.lowlevel.checkpoint()


@pytest.mark.promise(16)
async def test_two_workers_share_a_small_backlog_of_long_jobs(dsn: str, schema: str, queries: Queries) -> None:
    """One worker does not take what another could run."""
    release = anyio.Event()
    held: Counter[str] = Counter()

    def make(name: str) -> PgQueuer:
        app = PgQueuer(dsn, schema=schema)

        @app.entrypoint("wait")
        async def wait(job: Job) -> None:
            held[name] += 1
            await release.wait()

        return app

    async with (
        running_worker(make("one"), max_concurrency=5),
        running_worker(make("two"), max_concurrency=5),
    ):
        await queries.enqueue(["wait"] * 10, None)
        with anyio.fail_after(10):
            while held.total() < 10:
                await anyio.lowlevel.checkpoint()
        assert {"one": 5, "two": 5} == held
        release.set()


@pytest.mark.promise(17)
async def test_a_claimed_job_shows_its_owner(app: PgQueuer, queries: Queries) -> None:
    """A running job is visible with its worker, and not as queued."""
    release = anyio.Event()

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        await release.wait()

    (job_id,) = await queries.enqueue("wait")
    async with running_worker(app):
        with anyio.fail_after(10):
            while (await queries.job_status([job_id]))[job_id] is not JobStatus.RUNNING:
                await anyio.lowlevel.checkpoint()
        record = await queries.get_job(job_id)
        assert record is not None
        assert [worker.id for worker in await queries.workers()] == [record.worker_id]
        release.set()
    record = await queries.get_job(job_id)
    assert record is not None
    assert record.status is JobStatus.SUCCESSFUL
    assert [] == await queries.workers()


async def test_a_handler_gets_its_context(dsn: str, schema: str, queries: Queries) -> None:
    """By a second parameter, by get_context, and by current_context, in child tasks too, with the lifespan's value."""
    order: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        order.append("open")
        yield "resources"
        order.append("close")

    app = PgQueuer(dsn, schema=schema, lifespan=lifespan)
    seen: list[object] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job, context: Context) -> None:
        seen.append(context)
        seen.append(app.get_context(job.id))
        seen.append(current_context())

        async def child() -> None:
            seen.append(current_context())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        order.append("job")
        assert context.resources == "resources"
        assert context.job_id == job.id
        assert context.cancel_reason is None

    await queries.enqueue("fetch")
    with anyio.fail_after(10):
        await drain(app)
    assert 4 == len(seen)
    assert 1 == len({id(context) for context in seen})
    assert ["open", "job", "close"] == order
    with pytest.raises(LookupError, match="12345"):
        app.get_context(JobId(12345))
    with pytest.raises(LookupError, match="no job is running"):
        current_context()


async def test_contexts_do_not_leak_from_job_to_job(app: PgQueuer, queries: Queries) -> None:
    """What a job sets in its contextvars no other job ever sees."""
    variable: ContextVar[int | None] = ContextVar("variable", default=None)
    seen: list[int | None] = []

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        seen.append(variable.get())
        variable.set(job.id)
        await anyio.lowlevel.checkpoint()
        assert job.id == variable.get()

    await queries.enqueue(["fetch"] * 300, None)
    with anyio.fail_after(20):
        await drain(app, max_concurrency=20)
    assert [None] * 300 == seen


async def test_partials_and_callable_objects_are_handlers(app: PgQueuer, queries: Queries) -> None:
    """What is async counts as async, however it is wrapped."""
    seen: list[str] = []

    async def fetch(prefix: str, job: Job) -> None:
        seen.append(prefix + job.entrypoint)

    class Fetcher:
        async def __call__(self, job: Job) -> None:
            seen.append(job.entrypoint)

    app.entrypoint("partial")(partial(fetch, "a "))
    app.entrypoint("object")(Fetcher())
    await queries.enqueue(["partial", "object"], None)
    with anyio.fail_after(10):
        await drain(app)
    assert ["a partial", "object"] == sorted(seen)
