"""Executors of one's own, and those for threads and processes, under a worker."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from pgq_anyio import (
    AbstractEntrypointExecutor,
    CancelReason,
    Context,
    ExecutorParameters,
    Job,
    JobId,
    JobStatus,
    PgQueuer,
    ProcessExecutor,
    PsycopgDriver,
    Queries,
    RetryWithBackoffEntrypointExecutor,
    Schedule,
    current_context,
)
from pgq_anyio.testing import drain, running_worker
from tests.executors.process_handlers import ignore_term_of_a_job, write_pid_of_a_job
from tests.executors.processes import wait_for_pid, wait_until

pytestmark = pytest.mark.anyio


class Notifier(AbstractEntrypointExecutor):
    """Ignores the function; fails if the payload says so."""

    def __init__(self, parameters: ExecutorParameters, *, channel: str) -> None:
        super().__init__(parameters)
        self.channel = channel
        self.seen: list[tuple[Any, Context]] = []

    async def execute(self, job: Any, context: Context) -> None:
        await anyio.lowlevel.checkpoint()
        self.seen.append((job, context))
        assert context is current_context()
        if isinstance(job, Job) and job.payload == b"bad":
            raise ConnectionError(f"{self.channel} is closed")


class Wrapping(AbstractEntrypointExecutor):
    """Hands the job on to one for processes."""

    def __init__(self, parameters: ExecutorParameters) -> None:
        super().__init__(parameters)
        self.inner = ProcessExecutor(parameters)

    async def execute(self, job: Any, context: Context) -> object:
        return await self.inner.execute(job, context)


class Telling(Wrapping):
    """As above, and tells the worker."""

    kind = ProcessExecutor.kind


class Patient(AbstractEntrypointExecutor):
    """Lasts until it is cancelled, and says what it was told of it."""

    def __init__(self, parameters: ExecutorParameters) -> None:
        super().__init__(parameters)
        self.started: set[JobId | None] = set()
        self.ended: list[tuple[JobId | None, CancelReason | None]] = []

    async def execute(self, job: Any, context: Context) -> None:
        self.started.add(context.job_id)
        try:
            with context.cancellation if job.payload == b"cooperative" else nullcontext():
                await anyio.sleep_forever()
        finally:
            self.ended.append((context.job_id, context.cancel_reason))


@pytest.mark.promise(23, 28, 49)
async def test_a_custom_executor_is_cancelled_like_any_other(dsn: str, schema: str) -> None:
    """By a request (confined to a block, or not), by its timeout, and by the stop of its worker."""
    app = PgQueuer(dsn, schema=schema)
    made: list[Patient] = []

    def make(parameters: ExecutorParameters) -> Patient:
        made.append(Patient(parameters))
        return made[-1]

    async def never(job: Job) -> None:
        raise AssertionError("the executor ignores it")

    app.entrypoint("patient", executor_factory=make)(never)
    app.entrypoint("hasty", executor_factory=make, timeout=0.05)(never)
    patient, hasty = made
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        plain, cooperative, left, late = await queries.enqueue(
            ["patient", "patient", "patient", "hasty"], [b"plain", b"cooperative", b"left", b""]
        )
        async with running_worker(app, shutdown_grace=0):
            await wait_until(lambda: patient.started == {plain, cooperative, left})
            await queries.mark_job_as_cancelled([plain, cooperative])
            await wait_until(lambda: len(patient.ended) == 2 and len(hasty.ended) == 1)
        assert {
            plain: JobStatus.CANCELLED,
            cooperative: JobStatus.CANCELLED,
            left: JobStatus.QUEUED,
            late: JobStatus.FAILED,
        } == await queries.job_status([plain, cooperative, left, late])
        record = await queries.get_job(late)
    assert record is not None
    assert ["JobTimeout"] == [error.type for error in record.errors]
    assert {(plain, CancelReason.USER), (cooperative, CancelReason.USER), (left, CancelReason.SHUTDOWN)} == set(
        patient.ended
    )
    assert [(late, CancelReason.TIMEOUT)] == hasty.ended


@pytest.mark.promise(49)
async def test_a_custom_executor(dsn: str, schema: str) -> None:
    """It gets all parameters once, at registration, and for each run the job and its context; what it raises is
    recorded, and the function may be ignored. For schedules, too.
    """
    app = PgQueuer(dsn, schema=schema)
    made: list[Notifier] = []

    def make(parameters: ExecutorParameters) -> Notifier:
        made.append(Notifier(parameters, channel="sms"))
        return made[-1]

    async def never(job: Job, context: Context) -> None:
        raise AssertionError("the executor ignores it")

    async def never_either(schedule: Schedule) -> None:
        raise AssertionError("the executor ignores it")

    app.entrypoint(
        "notify",
        executor_factory=make,
        requests_per_second=1000,
        concurrency_limit=3,
        retry_timer=20,
        timeout=5,
        max_attempts=1,
        max_crashes=2,
    )(never)
    app.schedule("hourly", "@hourly", executor_factory=make)(never_either)
    notifier, hourly = made
    expected = ExecutorParameters(
        name="notify",
        func=never,
        is_async=True,
        wants_context=True,
        timeout=5.0,
        max_attempts=1,
        max_crashes=2,
        retry_timer=20.0,
        requests_per_second=1000.0,
        concurrency_limit=3,
        serialized_dispatch=False,
    )
    assert expected == notifier.parameters
    assert ("hourly", never_either, "@hourly", False) == (
        hourly.parameters.name,
        hourly.parameters.func,
        hourly.parameters.expression,
        hourly.parameters.wants_context,
    )
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        good, bad = await queries.enqueue("notify", [b"good", b"bad"])
        async with running_worker(app):
            await queries.run_schedule("hourly")
            await wait_until(lambda: len(notifier.seen) == 2 and bool(hourly.seen))
        assert {good: JobStatus.SUCCESSFUL, bad: JobStatus.FAILED} == await queries.job_status([good, bad])
        record = await queries.get_job(bad)
    assert record is not None
    assert [("ConnectionError", "sms is closed")] == [(error.type, error.message) for error in record.errors]
    assert {good, bad} == {job.id for job, _ in notifier.seen}
    assert all(context.job is job for job, context in notifier.seen)
    ((schedule, context),) = hourly.seen
    assert isinstance(schedule, Schedule)
    assert (schedule, None) == (context.schedule, context.job)
    assert 2 == len(made), "one for each registration"


@pytest.mark.promise(49)
async def test_threads_and_processes(dsn: str, schema: str, tmp_path: Path) -> None:
    """As many threads at once as the worker has room for jobs, and a process that is another one."""
    app = PgQueuer(dsn, schema=schema)
    threads = 50
    together = threading.Barrier(threads)

    @app.entrypoint("thread")
    def thread(job: Job) -> None:
        together.wait(20)

    app.entrypoint("process", executor_factory=ProcessExecutor)(write_pid_of_a_job)
    path = tmp_path / "pid"
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        ids = await queries.enqueue("thread", [b""] * threads)
        ids += await queries.enqueue("process", str(path).encode())
        with anyio.fail_after(30):
            await drain(app)
        assert dict.fromkeys(ids, JobStatus.SUCCESSFUL) == await queries.job_status(ids)
    assert os.getpid() != int(await anyio.Path(path).read_text())


@pytest.mark.promise(23)
async def test_a_process_that_is_killed_is_named(
    dsn: str, schema: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ignores SIGTERM for as long as it may: the log says which job it was, and why it had to end."""
    app = PgQueuer(dsn, schema=schema)
    app.entrypoint("stubborn", executor_factory=ProcessExecutor)(ignore_term_of_a_job)
    path = tmp_path / "pid"
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        async with running_worker(app, cancel_grace=0.2):
            (job_id,) = await queries.enqueue("stubborn", str(path).encode())
            await wait_for_pid(path)
            with caplog.at_level(logging.WARNING, "pgq_anyio.processes"):
                await queries.mark_job_as_cancelled([job_id])
                with anyio.fail_after(10):
                    while JobStatus.CANCELLED != (await queries.job_status([job_id]))[job_id]:  # noqa: ASYNC110
                        await anyio.sleep(0.01)
    said = [record.getMessage() for record in caplog.records if record.name == "pgq_anyio.processes"]
    assert [f"the process of job {job_id} of 'stubborn' still runs 0.2 s after SIGTERM (user): it is killed"] == said


@pytest.mark.promise(49)
@pytest.mark.parametrize("executor", [Wrapping, Telling])
async def test_an_executor_that_hands_on_to_a_process(
    dsn: str, schema: str, tmp_path: Path, executor: type[Wrapping]
) -> None:
    """It says of what kind it is, or the job's error says that it has to."""
    app = PgQueuer(dsn, schema=schema)
    app.entrypoint("write", executor_factory=executor)(write_pid_of_a_job)
    path = tmp_path / "pid"
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        (job_id,) = await queries.enqueue("write", str(path).encode())
        with anyio.fail_after(30):
            await drain(app)
        record = await queries.get_job(job_id)
    assert record is not None
    if executor is Telling:
        assert (JobStatus.SUCCESSFUL, True) == (record.status, path.exists())
    else:
        assert (JobStatus.FAILED, False) == (record.status, path.exists())
        assert "say kind = ProcessExecutor.kind in its class" in record.errors[0].message


@pytest.mark.promise(29, 40)
@pytest.mark.parametrize("retried", [False, True])
async def test_a_sync_handler_that_gives_a_coroutine_has_failed(dsn: str, schema: str, retried: bool) -> None:
    """Nobody awaits it: the work is not done, and the error says how to have it done."""
    app = PgQueuer(dsn, schema=schema)
    ran: list[Job] = []

    async def fetch(job: Job) -> None:
        ran.append(job)

    factory = partial(RetryWithBackoffEntrypointExecutor, max_attempts=1) if retried else None
    app.entrypoint("fetch", executor_factory=factory)(lambda job: fetch(job))  # noqa: PLW0108  (the point of the test)
    async with PsycopgDriver(dsn) as driver:
        queries = Queries(driver, schema=schema)
        (job_id,) = await queries.enqueue("fetch")
        with anyio.fail_after(20):
            await drain(app)
        record = await queries.get_job(job_id)
    assert record is not None
    assert (JobStatus.FAILED, []) == (record.status, ran)
    assert "the handler of 'fetch' is no async function, but gave a coroutine" in record.errors[0].message
