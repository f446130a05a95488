"""Jobs that a worker claims ahead of its slots: short ones come in larger batches, and none is kept from others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial

import anyio
import pytest

from pgq_anyio import Context, Job, JobId, JobStatus, PgQueuer, Queries
from pgq_anyio._pace import Pace
from pgq_anyio._services import claimer as claimer_module
from pgq_anyio._services import slots as slots_module
from pgq_anyio._store.queued import Claim, claim_hinted
from pgq_anyio.testing import drain, running_worker

pytestmark = pytest.mark.anyio

SLOTS = 2
AHEAD = 20


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim ahead, whatever the pace: as if jobs had been short until now."""
    monkeypatch.setattr(Pace, "ahead", lambda _pace, most: min(AHEAD, most))


async def wait_states(queries: Queries, ids: Sequence[JobId], **states: int) -> None:
    """Wait until so many jobs are in these states, and none in others."""
    expected = Counter({JobStatus(state): count for state, count in states.items()})
    while Counter((await queries.job_status(ids)).values()) != expected:  # noqa: ASYNC110  (the database tells no event)
        await anyio.sleep(0.01)


async def wait_started(started: Sequence[int], count: int) -> None:
    while len(started) < count:  # noqa: ASYNC110  (handlers fill it)
        await anyio.sleep(0.01)


@pytest.mark.promise(16)
@pytest.mark.parametrize("waits", [False, True])
async def test_short_jobs_come_in_larger_batches(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Claims grow beyond the slots, but not beyond ``batch_size``; no more run at once than there are slots, and no
    more are held than these and two batches.
    """
    wanted: list[int] = []
    running = most = held = 0

    async def claim(*args: object, limit: int, **options: object) -> Claim:
        wanted.append(limit)
        return await claim_hinted(*args, limit=limit, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(claimer_module, "claim_hinted", claim)

    @app.entrypoint("short")
    async def short(job: Job) -> None:
        nonlocal running, most, held
        running += 1
        most = max(most, running)
        assert app._worker is not None
        assert app._worker.term is not None
        held = max(held, app._worker.term.holdings.busy)
        if waits:
            await anyio.lowlevel.checkpoint()
        running -= 1

    await queries.enqueue(["short"] * 3_000, None)
    await drain(app, max_concurrency=SLOTS, batch_size=50)
    assert SLOTS < max(wanted) <= 50
    assert most <= SLOTS
    assert SLOTS < held <= SLOTS + 2 * 50
    assert not await queries.queue_size()


@pytest.mark.promise(16)
@pytest.mark.usefixtures("ahead")
async def test_long_jobs_that_were_claimed_ahead_are_given_back(
    app: PgQueuer, queries: Queries, dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment another worker can run them. No attempt is counted, and none has started twice."""
    release = anyio.Event()
    started: list[int] = []
    attempts: set[int] = set()
    other = PgQueuer(dsn, schema=schema)

    async def long(job: Job) -> None:
        started.append(job.id)
        attempts.add(job.attempt)
        await release.wait()

    app.entrypoint("long")(long)
    other.entrypoint("long")(long)
    ids = await queries.enqueue(["long"] * (SLOTS + AHEAD), None)
    async with running_worker(app, max_concurrency=SLOTS):
        with anyio.fail_after(20):
            await wait_started(started, SLOTS)
            monkeypatch.undo()  # it claims ahead no more, as its pace says
            await wait_states(queries, ids, running=SLOTS, queued=AHEAD)
        assert ids[:SLOTS] == started
        async with running_worker(other, max_concurrency=AHEAD):
            with anyio.fail_after(20):
                await wait_started(started, len(ids))
            release.set()
    assert sorted(started) == sorted(ids)
    assert {1} == attempts


@pytest.mark.promise(34, 35)
@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("end", ["stop", "cancel"])
async def test_what_has_not_started_when_the_worker_stops_never_does(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """It goes back at once, to its old place, and not only when a slot becomes free."""
    monkeypatch.setattr(slots_module, "LONGEST_WAIT", 1000.0)
    started: list[int] = []
    stopping = anyio.Event()

    @app.entrypoint("long")
    async def long(job: Job) -> None:
        started.append(job.id)
        await stopping.wait()

    ids = await queries.enqueue(["long"] * (SLOTS + AHEAD), None)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(app.run, max_concurrency=SLOTS))
            await wait_started(started, SLOTS)
            await wait_states(queries, ids, running=SLOTS + AHEAD)
            if end == "stop":
                app.stop()
                await wait_states(queries, ids, running=SLOTS, queued=AHEAD)
                stopping.set()
            else:
                tasks.cancel_scope.cancel()
    assert ids[:SLOTS] == started
    interrupted = JobStatus.SUCCESSFUL if end == "stop" else JobStatus.QUEUED
    statuses = await queries.job_status(ids)
    assert [interrupted] * SLOTS + [JobStatus.QUEUED] * AHEAD == [statuses[job_id] for job_id in ids]
    records = [await queries.get_job(job_id) for job_id in ids[SLOTS:]]
    assert {(1, 0)} == {(record.attempt, record.crashes) for record in records if record is not None}


@pytest.mark.promise(25)
@pytest.mark.usefixtures("ahead")
async def test_a_job_that_was_claimed_ahead_and_cancelled_does_not_start(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is heard before there is a slot for it."""
    monkeypatch.setattr(slots_module, "LONGEST_WAIT", 1000.0)
    started: list[int] = []
    heard, release = anyio.Event(), anyio.Event()
    request_cancel = Context.request_cancel

    def hear(context: Context, *args: object, **options: object) -> bool:
        heard.set()
        return request_cancel(context, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Context, "request_cancel", hear)

    @app.entrypoint("long")
    async def long(job: Job) -> None:
        started.append(job.id)
        await release.wait()

    ids = await queries.enqueue(["long"] * (SLOTS + 3), None)
    async with running_worker(app, max_concurrency=SLOTS):
        with anyio.fail_after(20):
            await wait_started(started, SLOTS)
            await wait_states(queries, ids, running=SLOTS + 3)
            await queries.mark_job_as_cancelled([ids[-1]])
            await heard.wait()
            release.set()
            await wait_states(queries, ids, successful=SLOTS + 2, cancelled=1)
    assert ids[:-1] == started


@pytest.mark.promise(5)
@pytest.mark.usefixtures("ahead")
async def test_a_higher_priority_passes_what_was_claimed_ahead(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of starts is that of priorities, also among jobs of different claims, and by age inside one."""
    monkeypatch.setattr(slots_module, "LONGEST_WAIT", 1000.0)
    started: list[int] = []
    first, release = anyio.Event(), anyio.Event()

    @app.entrypoint("job")
    async def handler(job: Job) -> None:
        started.append(job.id)
        first.set()
        await release.wait()

    low = await queries.enqueue(["job"] * 5, None)
    async with running_worker(app, max_concurrency=1):
        with anyio.fail_after(20):
            await first.wait()
            high = await queries.enqueue(["job"] * 3, None, priority=1)
            await wait_states(queries, [*low, *high], running=8)
            release.set()
            await wait_started(started, 8)
    assert [low[0], *high, *low[1:]] == started


@pytest.mark.usefixtures("ahead")
async def test_threads_and_tasks_of_their_own_wait_for_a_slot_too(app: PgQueuer, queries: Queries) -> None:
    """Whatever the kind of the handler, no more run at once than there are slots."""
    running = most = 0

    def begin() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)

    def end() -> None:
        nonlocal running
        running -= 1

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        anyio.from_thread.run_sync(begin)
        anyio.from_thread.run_sync(end)

    @app.entrypoint("own", own_task=True)
    async def own(job: Job) -> None:
        begin()
        await anyio.lowlevel.checkpoint()
        end()

    @app.entrypoint("shared")
    async def shared(job: Job) -> None:
        begin()
        await anyio.lowlevel.checkpoint()
        end()

    await queries.enqueue(["thread", "own", "shared"] * 30, None)
    with anyio.fail_after(30):
        await drain(app, max_concurrency=SLOTS)
    assert SLOTS == most


@pytest.mark.promise(36)
@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("kind", ["thread", "shield"])
async def test_cancelling_run_gives_them_back_at_once(
    app: PgQueuer, queries: Queries, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Handlers that do not end hold every slot: those that wait for one are not held until then."""
    monkeypatch.setattr(slots_module, "LONGEST_WAIT", 3600)
    release = threading.Event()
    started: list[int] = []

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        started.append(job.id)
        release.wait(30)

    @app.entrypoint("shield")
    async def shield(job: Job) -> None:
        started.append(job.id)
        with anyio.CancelScope(shield=True):
            while not release.is_set():  # noqa: ASYNC110  (a thread's)
                await anyio.sleep(0.01)

    async def run() -> None:
        with scope:
            await app.run(max_concurrency=SLOTS)

    scope = anyio.CancelScope()
    ids = await queries.enqueue([kind] * AHEAD, None)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                await wait_states(queries, ids, running=AHEAD)
                await wait_started(started, SLOTS)
                scope.cancel()
                await wait_states(queries, ids, running=SLOTS, queued=AHEAD - SLOTS)
            finally:
                release.set()
    assert SLOTS == len(started)
