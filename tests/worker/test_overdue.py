"""Handlers that ignore their timeout are named, like those that ignore a request."""

from __future__ import annotations

import logging
import threading

import anyio
import pytest

from pgq_anyio import Job, PgQueuer, Queries
from pgq_anyio.testing import running_worker

pytestmark = pytest.mark.anyio


@pytest.mark.promise(23, 28)
async def test_a_handler_that_ignores_its_timeout_is_reported(
    app: PgQueuer, queries: Queries, caplog: pytest.LogCaptureFixture
) -> None:
    """After the grace it is named with its stack and marked in its row. Others, with or without a timeout, are not."""
    release = threading.Event()

    @app.entrypoint("deaf", timeout=0.2)
    def deaf_handler(job: Job) -> None:
        release.wait()

    @app.entrypoint("shielded", timeout=0.2)
    async def shielded_handler(job: Job) -> None:
        with anyio.CancelScope(shield=True):
            while not release.is_set():  # noqa: ASYNC110  (threads wait for the same event)
                await anyio.sleep(0.01)

    @app.entrypoint("long", timeout=3600)
    @app.entrypoint("unlimited")
    def other_handler(job: Job) -> None:
        release.wait()

    ids = await queries.enqueue(["deaf", "shielded", "long", "unlimited"], None)
    marked: set[int] = set()
    with caplog.at_level(logging.WARNING, "pgq_anyio.overdue"), anyio.fail_after(20):
        async with running_worker(app, cancel_grace=0.1):
            try:
                while len(marked) < 2:
                    marked = {job.id for job in await queries.list_jobs() if job.overdue_at is not None}
            finally:
                release.set()
    assert set(ids[:2]) == marked
    for job_id, name in zip(ids, ["deaf", "shielded"], strict=False):
        assert f"job {job_id} of {name!r} ignores its cancellation (timeout) for more than 0.1 s" in caplog.text
        assert f"in {name}_handler" in caplog.text
    assert 2 == caplog.text.count("ignores its cancellation")
