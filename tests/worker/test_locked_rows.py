"""Jobs that somebody has locked in a transaction that stays open: a cancel request of a program that takes its time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from psycopg import sql

from pgq_anyio import Job, JobId, PgQueuer, Queries
from pgq_anyio._db import Connection
from pgq_anyio._services import claimer as claimer_module
from pgq_anyio.testing import running_worker
from tests.worker.limited_fleet import wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.promise(5, 48)]

LOCKED = 40
#: Claims within a second: those of the first pauses, and four of the longest.
FEW = 40


def claimer_of(app: PgQueuer) -> claimer_module.Claimer:
    """The claimer of the app's worker."""
    assert app._worker is not None
    assert app._worker.term is not None
    return app._worker.term.claimer


async def test_what_others_have_locked_is_passed_by(
    app: PgQueuer, queries: Queries, conn: Connection, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, the jobs behind them run; and nobody tries the locked ones all the time."""
    ran: list[JobId] = []
    claims = 0

    @app.entrypoint("fetch")
    async def fetch(job: Job) -> None:
        ran.append(job.id)

    def count(name: str) -> None:
        claim = getattr(claimer_module, name)

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal claims
            claims += 1
            return await claim(*args, **options)

        monkeypatch.setattr(claimer_module, name, counted)

    count("claim_sweep")
    count("claim_hinted")
    locked = await queries.enqueue(["fetch"] * LOCKED, [None] * LOCKED, [9] * LOCKED)
    behind = await queries.enqueue("fetch", [None, None])
    async with conn.transaction():
        assert locked == await queries.mark_job_as_cancelled(locked, connection=conn)
        async with running_worker(app, max_concurrency=1, dequeue_timeout=3600):
            await wait_for(lambda: ran == behind)
            await wait_for(lambda: claimer_of(app).pause == claimer_module.LONGEST_PAUSE)
            claims = 0
            await anyio.sleep(1)
            assert claims <= FEW
            # It is to be told of new ones, and need not come across them.
            is_told = sql.SQL("select sleeping from {}.worker").format(sql.Identifier(schema))
            assert [(True,)] == await (await conn.execute(is_told)).fetchall()
            (last,) = await queries.enqueue("fetch")
            await wait_for(lambda: ran == [*behind, last])
