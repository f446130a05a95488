"""Handlers in processes that return although they were asked to end: they have done their work, as async ones have."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from pgq_anyio import JobId, JobStatus, PgQueuer, ProcessExecutor, Queries
from pgq_anyio.testing import running_worker
from tests.executors import process_handlers
from tests.executors.processes import wait_for_pid
from tests.worker.test_cancel import wait_status

pytestmark = [pytest.mark.anyio, pytest.mark.heavy]


async def enqueue(queries: Queries, path: Path) -> JobId:
    """A job that returns when its process gets SIGTERM."""
    (job_id,) = await queries.enqueue("late", str(path).encode())
    return job_id


def tidied(path: Path) -> bool:
    return path.with_name(path.name + ".tidied").exists()


@pytest.mark.promise(35)
async def test_after_a_stop(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """It is successful, and does not run again."""
    app.entrypoint("late", executor_factory=ProcessExecutor)(process_handlers.return_on_term_of_a_job)
    with anyio.fail_after(30):
        async with running_worker(app, shutdown_grace=0):
            job_id = await enqueue(queries, tmp_path / "pid")
            await wait_for_pid(tmp_path / "pid")
    assert tidied(tmp_path / "pid")
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])


@pytest.mark.promise(28)
async def test_after_a_timeout(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """As an async handler that keeps the cancellation to itself."""
    app.entrypoint("late", timeout=3, executor_factory=ProcessExecutor)(process_handlers.return_on_term_of_a_job)
    with anyio.fail_after(30):
        async with running_worker(app):
            job_id = await enqueue(queries, tmp_path / "pid")
            await wait_status(queries, job_id, JobStatus.SUCCESSFUL)
    assert tidied(tmp_path / "pid")


@pytest.mark.promise(26)
async def test_after_a_cancel_request(app: PgQueuer, queries: Queries, tmp_path: Path) -> None:
    """The record of the request counts, whatever it returned."""
    app.entrypoint("late", executor_factory=ProcessExecutor)(process_handlers.return_on_term_of_a_job)
    with anyio.fail_after(30):
        async with running_worker(app):
            job_id = await enqueue(queries, tmp_path / "pid")
            await wait_for_pid(tmp_path / "pid")
            await queries.mark_job_as_cancelled([job_id])
            await wait_status(queries, job_id, JobStatus.CANCELLED)
    assert tidied(tmp_path / "pid")
