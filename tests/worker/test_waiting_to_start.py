"""A job that waits for a process has not started: nothing that happens meanwhile treats it as one that runs."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter
from anyio.lowlevel import checkpoint

from pgq_anyio import Context, Job, JobId, JobStatus, PgQueuer, ProcessExecutor, Queries
from pgq_anyio import _worker as worker_module
from pgq_anyio._context import ExecutionTools, OuterScopes
from pgq_anyio._db import Connection
from pgq_anyio._executors import ProcessPool, _processes
from pgq_anyio.testing import drain, running_worker
from tests.executors import process_handlers
from tests.executors.processes import is_gone, let_go, wait_for_pid, wait_until
from tests.worker.test_cancel import wait_status

pytestmark = pytest.mark.anyio


class ShortOfChildren(ProcessPool):
    """There is one process, and more jobs are claimed, as if they would end in a moment."""

    def __init__(self) -> None:
        super().__init__(1)

    @property
    def max_workers(self) -> int:
        return 10


@pytest.fixture(autouse=True)
def one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs wait for the only process until it is free."""
    monkeypatch.setattr(worker_module, "ProcessPool", ShortOfChildren)
    monkeypatch.setattr(_processes, "LONGEST_WAIT", math.inf)


@pytest.fixture
def app(app: PgQueuer) -> PgQueuer:
    """It can occupy the process: see ``occupied``."""
    app.entrypoint("hold", executor_factory=ProcessExecutor)(process_handlers.hold_a_job)
    return app


@asynccontextmanager
async def occupied(queries: Queries, path: Path) -> AsyncIterator[JobId]:
    """A job is in the process until the block ends, at the latest."""
    (job_id,) = await queries.enqueue("hold", str(path).encode())
    try:
        await wait_for_pid(path)
        yield job_id
    finally:
        let_go(path)


def names(directory: Path) -> list[str]:
    """The files that handlers have made."""
    return sorted(path.name for path in directory.iterdir())


async def enqueue_waiting(app: PgQueuer, queries: Queries, name: str, *paths: Path) -> list[JobId]:
    """Enqueue jobs and return when all of them wait for the process."""
    ids = await queries.enqueue(name, [str(path).encode() for path in paths])

    def all_wait() -> bool:
        try:
            return all(app.get_context(job_id).is_waiting for job_id in ids)
        except LookupError:
            return False

    await wait_until(all_wait)
    return ids


async def count_refunds(dsn: str, schema: str) -> int:
    """How many tokens have been given back and not been spent yet."""
    async with await Connection.connect(dsn) as connection:
        cursor = await connection.execute(f'select coalesce(sum(tokens), 0) from "{schema}".limiter_refund')
        ((tokens,),) = await cursor.fetchall()
        return int(tokens)


@pytest.mark.promise(28)
async def test_a_timeout_begins_with_the_process(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """Three jobs that take longer together than each of them may: all succeed."""
    app.entrypoint("while", timeout=4, executor_factory=ProcessExecutor)(process_handlers.take_a_while)
    async with running_worker(app):
        async with occupied(queries, tmp_path / "held"):  # so that the process is there, too
            ids = await enqueue_waiting(app, queries, "while", *(tmp_path / str(number) for number in range(3)))
        for job_id in ids:
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)


@pytest.mark.promise(28)
async def test_a_timeout_holds_after_the_wait(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """A job that waited for longer than its timeout has all of it left, and not more."""
    app.entrypoint("stay", timeout=1, executor_factory=ProcessExecutor)(process_handlers.stay_with_a_job)
    async with running_worker(app):
        async with occupied(queries, tmp_path / "held") as holder:
            (job_id,) = await enqueue_waiting(app, queries, "stay", tmp_path / "stay")
            await anyio.sleep(1.1)
            assert app.get_context(job_id).is_waiting
        await wait_status(queries, holder, JobStatus.SUCCESSFUL)
        await wait_for_pid(tmp_path / "stay")
        await wait_status(queries, job_id, JobStatus.FAILED)
    record = await queries.get_job(job_id)
    assert record is not None
    assert ["JobTimeout"] == [error.type for error in record.errors]


@pytest.mark.promise(21, 34)
async def test_a_stop_ends_the_wait(app: PgQueuer, queries: Queries, tmp_path: Path, dsn: str, schema: str) -> None:
    """The jobs that wait are in the queue again while the running one may still end, as the same attempt and with the
    tokens of their rate; none of them starts when the process becomes free. So is a run of a schedule.
    """
    write = process_handlers.write_pid_of_a_job
    app.entrypoint("write", requests_per_second=1000, executor_factory=ProcessExecutor)(write)
    report = tmp_path / "report"
    app.schedule(str(report), "0 0 1 1 *", executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_run)
    async with running_worker(app, shutdown_grace=3600), occupied(queries, tmp_path / "held") as holder:
        waiting = await enqueue_waiting(app, queries, "write", tmp_path / "first", tmp_path / "second")
        await queries.run_schedule(str(report))
        await wait_until(lambda: bool(_scheduler(app).running()))
        app.stop()
        for job_id in waiting:
            await wait_status(queries, job_id, JobStatus.QUEUED)
        await wait_until(lambda: not _scheduler(app).running())
        assert {holder: JobStatus.RUNNING} == await queries.job_status([holder])
    assert {holder: JobStatus.SUCCESSFUL} == await queries.job_status([holder])
    assert ["held", "held.go"] == names(tmp_path)
    for job_id in waiting:
        record = await queries.get_job(job_id)
        assert record is not None
        assert (JobStatus.QUEUED, 1, 0, ()) == (record.status, record.attempt, record.crashes, record.errors)
    assert 2 == await count_refunds(dsn, schema)
    await _run_until_there(app, report)
    assert dict.fromkeys(waiting, JobStatus.SUCCESSFUL) == await queries.job_status(waiting)


@pytest.mark.promise(23, 25)
async def test_a_cancel_request_ends_the_wait(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """The job is recorded as cancelled while the process is still occupied, and the next one has the token of its rate,
    long before there would be another.
    """
    write = process_handlers.write_pid_of_a_job
    app.entrypoint("write", requests_per_second=0.01, executor_factory=ProcessExecutor)(write)
    async with running_worker(app):
        async with occupied(queries, tmp_path / "held") as holder:
            (job_id,) = await enqueue_waiting(app, queries, "write", tmp_path / "never")
            assert [job_id] == await queries.mark_job_as_cancelled([job_id])
            await wait_status(queries, job_id, JobStatus.CANCELLED)
            assert {holder: JobStatus.RUNNING} == await queries.job_status([holder])
            (later,) = await enqueue_waiting(app, queries, "write", tmp_path / "later")
        await wait_status(queries, holder, JobStatus.SUCCESSFUL)
        await wait_status(queries, later, JobStatus.SUCCESSFUL)
    assert not (tmp_path / "never").exists()


@pytest.fixture
def slow_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Every Python that is started from then on runs this first."""
    directory = tmp_path / "site"
    directory.mkdir()
    path = os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)

    def run_first(code: str) -> None:
        (directory / "sitecustomize.py").write_text(code)

    return run_first


@pytest.mark.promise(28)
async def test_a_timeout_begins_when_the_process_has_started(
    app: PgQueuer, queries: Queries, tmp_path: Path, slow_python: Callable[[str], None]
) -> None:
    """A process takes longer to start than its first job may: the job succeeds."""
    slow_python("import time; time.sleep(2.5)")
    app.entrypoint("write", timeout=2, executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_job)
    async with running_worker(app):
        (job_id,) = await enqueue_waiting(app, queries, "write", tmp_path / "pid")
        await wait_status(queries, job_id, JobStatus.SUCCESSFUL)


@pytest.mark.promise(23, 25, 34)
@pytest.mark.parametrize("end", ["cancel request", "stop"])
async def test_the_wait_for_a_start_can_be_ended(
    app: PgQueuer, queries: Queries, tmp_path: Path, slow_python: Callable[[str], None], end: str
) -> None:
    """A process that never gets there is ended with the wait."""
    tell = tmp_path / "starting"
    slow_python(
        f"import os, time; open({str(tell)!r} + 'x', 'w').write(str(os.getpid()));"
        f"os.rename({str(tell)!r} + 'x', {str(tell)!r}); time.sleep(3600)"
    )
    app.entrypoint("write", executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_job)
    async with running_worker(app, shutdown_grace=3600, cancel_grace=3600):
        (job_id,) = await enqueue_waiting(app, queries, "write", tmp_path / "never")
        child = await wait_for_pid(tell)
        if end == "stop":
            app.stop()
        else:
            assert [job_id] == await queries.mark_job_as_cancelled([job_id])
        await wait_status(queries, job_id, JobStatus.QUEUED if end == "stop" else JobStatus.CANCELLED)
    assert is_gone(child)


@pytest.mark.promise(28)
async def test_a_process_that_cannot_start(
    app: PgQueuer, queries: Queries, tmp_path: Path, slow_python: Callable[[str], None]
) -> None:
    """The attempt has failed, and says why."""
    slow_python("import os; os._exit(5)")
    app.entrypoint("write", executor_factory=ProcessExecutor)(process_handlers.write_pid_of_a_job)
    (job_id,) = await queries.enqueue("write", str(tmp_path / "never").encode())
    with anyio.fail_after(30):
        await drain(app)
    record = await queries.get_job(job_id)
    assert record is not None
    assert JobStatus.FAILED == record.status
    assert "exit code 5 before it could start the handler" in record.errors[0].message


async def test_what_comes_with_the_stop_comes_too_late() -> None:
    """A job whose wait is over in the very moment of the request to stop has not started, and does not."""
    is_stopping = False
    context = Context(
        job=None,
        schedule=None,
        resources=None,
        tools=ExecutionTools(CapacityLimiter(1), None, 5.0),
        outer=OuterScopes(CancelScope(), CancelScope(), lambda: is_stopping),
    )
    with CancelScope() as scope:
        context.open(scope)
        with context.waiting():
            is_stopping = True
        await checkpoint()
        pytest.fail("it has started")
    assert context.is_waiting


async def test_what_comes_after_the_stop_does_not_wait() -> None:
    """A job that would have to wait when the worker has been asked to stop does not start."""
    context = Context(
        job=None,
        schedule=None,
        resources=None,
        tools=ExecutionTools(CapacityLimiter(1), None, 5.0),
        outer=OuterScopes(CancelScope(), CancelScope(), lambda: True),
    )
    with anyio.fail_after(10), CancelScope() as scope:
        context.open(scope)
        with context.waiting():
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert context.is_waiting


async def test_there_is_one_wait_in_a_run() -> None:
    """A handler that needs a second process runs already: a stop leaves it the grace, as any other."""
    is_stopping = False
    context = Context(
        job=None,
        schedule=None,
        resources=None,
        tools=ExecutionTools(CapacityLimiter(1), None, 5.0),
        outer=OuterScopes(CancelScope(), CancelScope(), lambda: is_stopping),
    )
    with CancelScope() as scope:
        context.open(scope)
        with context.waiting():
            seen = [context.is_waiting]
        is_stopping = True
        with context.waiting():
            seen.append(context.is_waiting)
            context.end_wait()
        await checkpoint()
    assert [True, False] == seen
    assert not scope.cancel_called


async def test_threads_are_never_waited_for(app: PgQueuer, queries: Queries) -> None:
    """A worker claims no more jobs than it has threads."""
    waiting: list[int] = []

    @app.entrypoint("thread")
    def thread(job: Job, context: Context) -> None:
        waiting.append(context.tools.thread_limiter.statistics().tasks_waiting)

    await queries.enqueue("thread", [b""] * 200)
    with anyio.fail_after(30):
        await drain(app, max_concurrency=3)
    assert [0] * 200 == waiting


def _scheduler(app: PgQueuer) -> Any:
    worker = app._worker
    assert worker is not None
    assert worker.term is not None
    return worker.term.scheduler


async def _run_until_there(app: PgQueuer, path: Path) -> None:
    """Run a worker until no job is left and this file is there."""
    async with running_worker(app):
        await wait_for_pid(path)
    with anyio.fail_after(30):
        await drain(app)
