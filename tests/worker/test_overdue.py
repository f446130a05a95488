"""Handlers that ignore their timeout are named, like those that ignore a request."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest
from psycopg import sql

from pgq_anyio import Job, JobId, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio._services import overdue as overdue_module
from pgq_anyio._store.running import mark_overdue
from pgq_anyio.testing import running_worker
from tests.worker.limited_fleet import wait_for

pytestmark = pytest.mark.anyio


async def wait_for_marks(queries: Queries, count: int) -> set[JobId]:
    """Wait until as many rows say that they are overdue; which."""
    while True:
        marked = {job.id for job in await queries.list_jobs() if job.overdue_at is not None}
        if len(marked) >= count:
            return marked
        await anyio.sleep(0.05)


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
    with caplog.at_level(logging.WARNING, "pgq_anyio.overdue"), anyio.fail_after(60):
        async with running_worker(app, cancel_grace=0.1):
            try:
                marked = await wait_for_marks(queries, 2)
            finally:
                release.set()
    assert set(ids[:2]) == marked
    for job_id, name in zip(ids, ["deaf", "shielded"], strict=False):
        assert f"job {job_id} of {name!r} ignores its cancellation (timeout) for more than 0.1 s" in caplog.text
        assert f"in {name}_handler" in caplog.text
    assert 2 == caplog.text.count("ignores its cancellation")


@pytest.mark.promise(23)
async def test_a_mark_that_cannot_be_set_is_set_later(
    app: PgQueuer,
    queries: Queries,
    conn: Connection,
    schema: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody has locked the rows: the handlers are named all the same, once, and marked when the lock is gone."""
    release = threading.Event()
    started: list[JobId] = []
    attempts = 0

    async def counted(*args: Any) -> int:
        nonlocal attempts
        attempts += 1
        return await mark_overdue(*args)

    monkeypatch.setattr(overdue_module, "mark_overdue", counted)
    monkeypatch.setattr(overdue_module, "LONGEST_MARK", 0.1)

    @app.entrypoint("deaf")
    def deaf(job: Job) -> None:
        started.append(job.id)
        release.wait()

    ids = await queries.enqueue(["deaf", "deaf"], None)
    running = sql.Identifier(schema, "running")
    with caplog.at_level(logging.WARNING, "pgq_anyio.overdue"), anyio.fail_after(60):
        async with running_worker(app, cancel_grace=0.1):
            try:
                await wait_for(lambda: len(started) == len(ids))
                await queries.mark_job_as_cancelled(ids)
                async with conn.transaction():
                    await conn.execute(sql.SQL("select 1 from {} for update").format(running))
                    await wait_for(lambda: attempts >= 3)
                    assert not [job for job in await queries.list_jobs() if job.overdue_at is not None]
                marked = await wait_for_marks(queries, 2)
            finally:
                release.set()
    assert set(ids) == marked
    assert 2 == caplog.text.count("ignores its cancellation")
