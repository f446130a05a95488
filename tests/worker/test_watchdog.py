"""A handler that blocks the event loop is named."""

from __future__ import annotations

import logging
import time

import anyio
import pytest

from pgq_anyio import Job, JobStatus, PgQueuer, Queries
from pgq_anyio.testing import drain

pytestmark = pytest.mark.anyio


async def test_a_blocked_loop_is_reported_with_its_stack(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per block, while it lasts, with the name of the function that blocks."""

    @app.entrypoint("block")
    async def block_the_loop(job: Job) -> None:
        deadline = time.monotonic() + 10
        while "block_the_loop" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251  # the point of the test

    (job_id,) = await queries.enqueue("block")
    with caplog.at_level(logging.WARNING, "pgq_anyio.watchdog"), anyio.fail_after(20):
        await drain(app, block_warning=0.2)
    assert {job_id: JobStatus.SUCCESSFUL} == await queries.job_status([job_id])
    assert 1 == len([record for record in caplog.records if record.name == "pgq_anyio.watchdog"])
    assert "block_the_loop" in caplog.text


async def test_a_loop_that_runs_is_not_reported(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting is no blocking."""

    @app.entrypoint("wait")
    async def wait(job: Job) -> None:
        await anyio.sleep(2.5)

    await queries.enqueue("wait")
    with caplog.at_level(logging.WARNING, "pgq_anyio.watchdog"), anyio.fail_after(20):
        await drain(app, block_warning=2)
    assert "event loop has been blocked" not in caplog.text
