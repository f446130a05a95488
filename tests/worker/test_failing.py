"""Whatever a handler raises is that job's failure and touches nothing else."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest

from pgq_anyio import (
    Cancel,
    Context,
    Discard,
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    Queries,
    Retry,
    RetryPolicy,
    Schedule,
    Snooze,
)
from pgq_anyio.testing import drain, run_job, running_worker
from tests.bounds import Within

pytestmark = pytest.mark.anyio


class OddError(Exception):
    """An error whose text PostgreSQL cannot store as it is."""

    def __str__(self) -> str:
        return "nul \x00, surrogate \udcff, and a very long tail " + "x" * 20_000


@pytest.mark.promise(29)
async def test_an_exception_is_recorded_and_the_others_go_on(app: PgQueuer, queries: Queries) -> None:
    """With type, message and traceback; final by default."""
    calls: list[int] = []

    @app.entrypoint("fail")
    async def fail(job: Job) -> None:
        calls.append(job.id)
        raise ValueError("what went wrong")

    @app.entrypoint("work")
    async def work(job: Job) -> None:
        await anyio.sleep(0.01)

    ids = await queries.enqueue(["work", "fail", "work"], [b"1", b"2", b"3"])
    with anyio.fail_after(10):
        await drain(app)
    assert [JobStatus.SUCCESSFUL, JobStatus.FAILED, JobStatus.SUCCESSFUL] == [
        (await queries.job_status(ids))[job_id] for job_id in ids
    ]
    assert [ids[1]] == calls
    record = await queries.get_job(ids[1])
    assert record is not None
    assert b"2" == record.payload
    (error,) = record.errors
    assert ("ValueError", "what went wrong", 1) == (error.type, error.message, error.attempt)
    assert error.traceback is not None
    assert 'raise ValueError("what went wrong")' in error.traceback


@pytest.mark.promise(29)
async def test_all_leaves_of_a_group_are_recorded(app: PgQueuer, queries: Queries) -> None:
    """Of an ExceptionGroup from the handler's own task group."""

    @app.entrypoint("fail")
    async def fail(job: Job) -> None:
        async def raise_it(error: Exception) -> None:
            raise error

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raise_it, ValueError("first leaf"))
            tasks.start_soon(raise_it, KeyError("second leaf"))

    (job_id,) = await queries.enqueue("fail")
    with anyio.fail_after(10):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert JobStatus.FAILED == record.status
    assert record.errors[0].traceback is not None
    assert "first leaf" in record.errors[0].traceback
    assert "second leaf" in record.errors[0].traceback


@pytest.mark.promise(29)
async def test_a_text_that_cannot_be_stored_is_stored_all_the_same(app: PgQueuer, queries: Queries) -> None:
    """NUL and lone surrogates are spelled out, long texts are cut with a note."""

    @app.entrypoint("fail")
    async def fail(job: Job) -> None:
        raise OddError

    (job_id,) = await queries.enqueue("fail")
    with anyio.fail_after(10):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    message = record.errors[0].message
    assert message.startswith("nul \\x00, surrogate \\udcff")
    assert "characters left out" in message


@pytest.mark.promise(32)
@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt("mine"),
        ExceptionGroup("g", [ValueError("x")]),
        BaseExceptionGroup("b", [SystemExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_even_these_are_only_the_jobs_failure(
    app: PgQueuer, queries: Queries, error: BaseException, kind: str
) -> None:
    """SystemExit, KeyboardInterrupt and groups: that job fails, nothing else."""

    @app.entrypoint("async")
    async def fail(job: Job) -> None:
        raise error

    @app.entrypoint("thread")
    def fail_in_a_thread(job: Job) -> None:
        if isinstance(error, SystemExit):
            sys.exit(3)
        raise error

    @app.entrypoint("work")
    async def work(job: Job) -> None: ...

    failing, working = await queries.enqueue([kind, "work"], None)
    with anyio.fail_after(10):
        await drain(app)
    assert {failing: JobStatus.FAILED, working: JobStatus.SUCCESSFUL} == await queries.job_status([failing, working])
    record = await queries.get_job(failing)
    assert record is not None
    assert type(error).__name__ == record.errors[0].type


@pytest.mark.promise(31)
async def test_a_retry_is_the_same_job_later(app: PgQueuer, queries: Queries, within: Within) -> None:
    """Same id, payload and priority; the attempt is visible; not before the delay, and soon after it when idle."""
    runs: list[tuple[int, bytes | None, int, int, float]] = []

    @app.entrypoint("flaky")
    async def flaky(job: Job) -> None:
        runs.append((job.id, job.payload, job.priority, job.attempt, anyio.current_time()))
        if job.attempt < 3:
            raise Retry(delay=0.3, reason=f"attempt {job.attempt}")

    ended = anyio.Event()
    async with running_worker(app):
        (job_id,) = await queries.enqueue("flaky", b"payload", priority=4)
        with anyio.fail_after(20):
            while (await queries.job_status([job_id]))[job_id] is not JobStatus.SUCCESSFUL:
                await anyio.lowlevel.checkpoint()
        ended.set()
    assert [(job_id, b"payload", 4, attempt) for attempt in (1, 2, 3)] == [run[:4] for run in runs]
    for (*_, before), (*_, after) in pairwise(runs):
        assert 0.3 <= after - before < within(1.0)
    record = await queries.get_job(job_id)
    assert record is not None
    assert ["attempt 1", "attempt 2"] == [error.message for error in record.errors]


@pytest.mark.promise(31)
async def test_attempts_are_used_up_and_every_error_is_kept(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """max_attempts=3: three runs, three errors, and three lines of the log; only the last is a warning."""

    @app.entrypoint("fail", max_attempts=3, retry_policy=RetryPolicy(initial_delay=0.01))
    async def fail(job: Job) -> None:
        raise ValueError(f"attempt {job.attempt}")

    (job_id,) = await queries.enqueue("fail")
    with anyio.fail_after(20), caplog.at_level(logging.INFO, "pgq_anyio.runner"):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.FAILED, 3) == (record.status, record.attempt)
    assert [f"attempt {number}" for number in (1, 2, 3)] == [error.message for error in record.errors]
    first, second, last = [line for line in caplog.records if line.name == "pgq_anyio.runner"]
    for number, line in ((1, first), (2, second)):
        said = f"attempt {number} of job {job_id} of 'fail' failed: ValueError: attempt {number}; another follows in "
        assert (logging.INFO, True) == (line.levelno, line.getMessage().startswith(said))
    assert (logging.WARNING, f"job {job_id} of 'fail' failed: ValueError: attempt 3") == (
        last.levelno,
        last.getMessage(),
    )


async def test_what_a_handler_may_say(app: PgQueuer, queries: Queries) -> None:
    """Snooze is not counted, Cancel ends as cancelled, Discard as failed whatever attempts are left."""
    snoozed: list[int] = []

    @app.entrypoint("snooze")
    async def snooze(job: Job) -> None:
        snoozed.append(job.attempt)
        if len(snoozed) < 3:
            raise Snooze(0)

    @app.entrypoint("cancel", max_attempts=5)
    async def cancel(job: Job) -> None:
        raise Cancel("not today")

    @app.entrypoint("discard", max_attempts=5)
    async def discard(job: Job) -> None:
        raise Discard("hopeless")

    ids = await queries.enqueue(["snooze", "cancel", "discard"], None)
    with anyio.fail_after(10):
        await drain(app)
    assert [JobStatus.SUCCESSFUL, JobStatus.CANCELLED, JobStatus.FAILED] == [
        (await queries.job_status(ids))[job_id] for job_id in ids
    ]
    assert [1, 1, 1] == snoozed
    cancelled, discarded = [await queries.get_job(job_id) for job_id in ids[1:]]
    assert cancelled is not None
    assert "not today" == cancelled.cancel_reason
    assert discarded is not None
    assert ["hopeless"] == [error.message for error in discarded.errors]


async def test_a_handler_alone_raises_what_it_raises(app: PgQueuer) -> None:
    """testing.run_job calls it as a worker would, without a database."""

    @app.entrypoint("fail", timeout=0.05)
    async def fail(job: Job) -> None:
        if job.payload == b"slow":
            await anyio.sleep_forever()
        raise ValueError(job.payload)

    with pytest.raises(ValueError, match="now"):
        await run_job(app, "fail", b"now")
    with pytest.raises(Exception, match=r"0\.05 s"):
        await run_job(app, "fail", b"slow")
    with pytest.raises(LookupError, match="it has: fail"):
        await run_job(app, "other")


async def test_a_handler_alone_finds_its_own_context(app: PgQueuer) -> None:
    """Also by its id, and in a thread: as it does in a worker."""
    seen: list[object] = []

    @app.entrypoint("async")
    async def in_a_task(job: Job, context: Context) -> None:
        with app.get_context(job.id).cancellation:
            await anyio.lowlevel.checkpoint()
        seen.append(app.get_context(job.id) is context)

    @app.entrypoint("thread")
    def in_a_thread(job: Job, context: Context) -> None:
        seen.append(app.get_context(job.id) is context)
        with pytest.raises(LookupError, match="no job 2 is running"):
            app.get_context(JobId(2))

    await run_job(app, "async")
    await run_job(app, "thread")
    assert [True, True] == seen
    with pytest.raises(LookupError, match="no job 1 is running"):
        app.get_context(JobId(1))


class NoDelayError(Retry):
    """Forgets the ``__init__`` of its base."""

    def __init__(self, limit: int) -> None:
        self.limit = limit


class BadDelayError(Retry):
    """Sets what its base would have refused."""

    def __init__(self) -> None:
        super().__init__()
        self.delay = "soon"  # type: ignore[assignment]


class ExitDelayError(Snooze):
    """Cannot even be asked."""

    def __init__(self) -> None:
        Exception.__init__(self, "never")

    @property
    def delay(self) -> float:  # type: ignore[override]
        raise SystemExit(3)


class DumbError(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


class LaterError(Retry):
    """Sets a delay of the kind that its base takes."""

    def __init__(self) -> None:
        super().__init__()
        self.delay = timedelta(hours=1)  # type: ignore[assignment]


BROKEN: dict[str, tuple[Exception, str]] = {
    "no-delay": (NoDelayError(5), "AttributeError"),
    "bad-delay": (BadDelayError(), "ConfigurationError"),
    "exit": (ExitDelayError(), "SystemExit"),
    "dumb": (DumbError(), "SystemExit"),
}


@pytest.mark.promise(32)
@pytest.mark.parametrize(("error", "kind"), BROKEN.values(), ids=BROKEN)
async def test_an_answer_that_cannot_be_read_is_a_failure(
    app: PgQueuer, queries: Queries, error: Exception, kind: str
) -> None:
    """Of the job or the scheduled run whose handler has raised it, and of nothing else; the record tells of both."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        if job.payload:
            raise error

    @app.schedule("report", "0 0 1 1 *")
    async def report(schedule: Schedule) -> None:
        raise error

    ids = await queries.enqueue(["fetch"] * 2, [b"broken", b""])
    async with running_worker(app):
        await queries.run_schedule("report")
        with anyio.fail_after(20):
            while (record := (await queries.schedules())[0]).last_status is None:  # noqa: ASYNC110  (a fact)
                await anyio.sleep(0.01)
            while set((await queries.job_status(ids)).values()) & {JobStatus.QUEUED, JobStatus.RUNNING}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    assert ("failed", kind) == (record.last_status, record.last_error_type)
    broken, fine = [await queries.get_job(job_id) for job_id in ids]
    assert broken is not None
    assert fine is not None
    assert (JobStatus.FAILED, JobStatus.SUCCESSFUL) == (broken.status, fine.status)
    assert kind == broken.errors[0].type
    for trace in (broken.errors[0].traceback, record.last_error_traceback):
        assert trace is not None
        assert type(error).__name__ in trace


@pytest.mark.promise(31)
async def test_a_delay_that_a_subclass_sets_is_kept(app: PgQueuer, queries: Queries) -> None:
    """As a number of seconds, or as a ``timedelta``."""

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        raise LaterError

    (job_id,) = await queries.enqueue("fetch")
    async with running_worker(app):
        with anyio.fail_after(20):
            while (await queries.job_status([job_id]))[job_id] is not JobStatus.DEFERRED:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    record = await queries.get_job(job_id)
    assert record is not None
    assert record.run_at is not None
    assert timedelta(minutes=59) < record.run_at - record.created_at < timedelta(minutes=61)
